//! Ground floor: stats, time, drain signal, randomness and other things that every floor uses.
