//! What requests ask for by name: who waits for which name, and which names are still asked for.
//!
//! Names come from requests, so anyone can make up as many as they like. There is a bound: names that brought nothing are
//! given up first, the oldest before the others, then names that nobody waits for any more, and last, where that costs no
//! more than a second question, names that brought something. What is given up is no longer asked of the server.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::oneshot;

/// Bounds of one list of names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Names in all.
    pub(super) names: usize,
    /// Names that brought nothing.
    pub(super) absent: usize,
    /// Names that brought something may be given up.
    pub(super) gives_up_present: bool,
    /// The longest name.
    pub(super) length: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { names: 10_000, absent: 1_000, gives_up_present: true, length: 1_024 }
    }
}

/// What is known about a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// The server has nothing of the name.
    Absent,
    /// It has not answered.
    Asked,
    /// It has something.
    Present,
}

struct Entry {
    kind: Kind,
    /// When it was asked for, or answered, in numbers that grow.
    stamp: u64,
    waiting: Vec<oneshot::Sender<()>>,
    /// When closed ones among `waiting` are looked for.
    sweep: usize,
}

/// What became of a question.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// The server is to be asked: it is not already.
    pub(super) is_new: bool,
    /// Nobody waits for it beside.
    pub(super) is_alone: bool,
    /// What is given up for it.
    pub(super) given_up: Vec<Arc<str>>,
}

/// Names that are asked for.
pub(super) struct Names {
    limits: Limits,
    entries: HashMap<Arc<str>, Entry>,
    /// Oldest first.
    by_age: BTreeMap<(Kind, u64), Arc<str>>,
    absent: usize,
    next: u64,
}

impl Names {
    pub(super) fn new(limits: Limits) -> Names {
        Names { limits, entries: HashMap::new(), by_age: BTreeMap::new(), absent: 0, next: 0 }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.entries.len()
    }

    /// The server has answered for this name, and will say so if that changes.
    pub(super) fn is_settled(&self, name: &str) -> bool {
        self.entries.get(name).is_some_and(|entry| entry.kind != Kind::Asked)
    }

    /// Somebody waits for this name.
    pub(super) fn is_awaited(&self, name: &str) -> bool {
        self.entries.get(name).is_some_and(|entry| entry.waiting.iter().any(|answer| !answer.is_closed()))
    }

    /// Somebody asks for a name. None where there is no room for it: whoever asks is answered at once.
    pub(super) fn ask(&mut self, name: &str, answer: oneshot::Sender<()>) -> Option<Asked> {
        if name.len() > self.limits.length {
            return None;
        }
        let mut given_up = Vec::new();
        let is_new = match self.entries.get(name) {
            Some(_) => false,
            None => {
                if self.entries.len() >= self.limits.names {
                    given_up.push(self.give_up()?);
                }
                true
            }
        };
        if is_new {
            self.settle(name, Kind::Asked);
        }
        let entry = self.entries.get_mut(name)?;
        if entry.waiting.len() >= entry.sweep.max(16) {
            // Who has left does not wait any more. The cost is shared by those who came since.
            entry.waiting.retain(|answer| !answer.is_closed());
            entry.sweep = entry.waiting.len() * 2;
        }
        let is_alone = entry.waiting.iter().all(|answer| answer.is_closed());
        entry.waiting.push(answer);
        Some(Asked { is_new, is_alone, given_up })
    }

    /// The server has answered for a name that may have been asked for. Returns what is given up now.
    pub(super) fn answered(&mut self, name: &str, present: bool) -> Option<Arc<str>> {
        let entry = self.entries.get_mut(name)?;
        // Dropped, a sender is an answer.
        entry.waiting.clear();
        self.settle(name, if present { Kind::Present } else { Kind::Absent });
        if self.absent <= self.limits.absent {
            return None;
        }
        let (oldest, _) = self.by_age.range((Kind::Absent, 0)..(Kind::Asked, 0)).next()?;
        let oldest = *oldest;
        self.forget(oldest)
    }

    fn settle(&mut self, name: &str, kind: Kind) {
        let stamp = self.next;
        self.next += 1;
        let name = match self.entries.get_key_value(name) {
            Some((name, entry)) => {
                self.by_age.remove(&(entry.kind, entry.stamp));
                self.absent -= usize::from(entry.kind == Kind::Absent);
                name.clone()
            }
            None => Arc::from(name),
        };
        self.absent += usize::from(kind == Kind::Absent);
        self.by_age.insert((kind, stamp), name.clone());
        let entry = self.entries.entry(name).or_insert_with(|| Entry { kind, stamp, waiting: Vec::new(), sweep: 0 });
        (entry.kind, entry.stamp) = (kind, stamp);
    }

    /// Makes room for one.
    fn give_up(&mut self) -> Option<Arc<str>> {
        // Of those that are waited for only the oldest are looked at: the others are waited for more probably still.
        const LOOK: usize = 32;
        let absent = self.by_age.range(..(Kind::Asked, 0)).next();
        let asked = || {
            let oldest = self.by_age.range((Kind::Asked, 0)..(Kind::Present, 0)).take(LOOK);
            oldest.into_iter().find(|(_, name)| !self.is_awaited(name))
        };
        let present = || self.by_age.range((Kind::Present, 0)..).next().filter(|_| self.limits.gives_up_present);
        let (key, _) = absent.or_else(asked).or_else(present)?;
        let key = *key;
        self.forget(key)
    }

    fn forget(&mut self, key: (Kind, u64)) -> Option<Arc<str>> {
        let name = self.by_age.remove(&key)?;
        self.entries.remove(&name);
        self.absent -= usize::from(key.0 == Kind::Absent);
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot::Receiver;

    fn names(names: usize, absent: usize, gives_up_present: bool) -> Names {
        Names::new(Limits { names, absent, gives_up_present, length: 8 })
    }

    fn ask(names: &mut Names, name: &str) -> (Option<Asked>, Receiver<()>) {
        let (answer, answered) = oneshot::channel();
        (names.ask(name, answer), answered)
    }

    fn is_answered(receiver: &mut Receiver<()>) -> bool {
        receiver.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn all_who_wait_for_a_name_are_answered_and_a_name_is_new_until_it_is_asked() {
        let mut names = names(10, 10, true);
        let (first, mut one) = ask(&mut names, "a");
        let (second, mut two) = ask(&mut names, "a");
        let (_, mut other) = ask(&mut names, "b");
        assert_eq!(first, Some(Asked { is_new: true, is_alone: true, given_up: Vec::new() }));
        assert_eq!(second, Some(Asked { is_new: false, is_alone: false, given_up: Vec::new() }));
        assert_eq!(names.answered("a", true), None);
        assert!(is_answered(&mut one) && is_answered(&mut two) && !is_answered(&mut other));
        assert!(names.is_settled("a") && !names.is_settled("b") && names.is_awaited("b") && !names.is_awaited("a"));
        assert!(ask(&mut names, "a").0.is_some_and(|asked| !asked.is_new && asked.is_alone));
        assert_eq!((names.answered("c", true), names.len()), (None, 2));
    }

    #[test]
    fn names_that_brought_nothing_are_bounded_and_the_oldest_goes() {
        let mut names = names(10, 2, true);
        for name in ["a", "b", "a", "c"] {
            ask(&mut names, name);
            let given_up = names.answered(name, false);
            assert_eq!(given_up.as_deref(), (name == "c").then_some("b"), "{name}");
        }
        assert_eq!((names.len(), names.absent, names.by_age.len()), (2, 2, 2));
    }

    #[test]
    fn room_is_made_by_what_is_needed_least() {
        let mut names = names(3, 3, true);
        let given_up = |asked: (Option<Asked>, Receiver<()>)| {
            let list = asked.0.expect("there is room").given_up;
            (list.first().map(|name| name.to_string()), asked.1)
        };
        ask(&mut names, "here");
        names.answered("here", true);
        // The first who asks has left.
        drop(ask(&mut names, "left"));
        ask(&mut names, "none");
        names.answered("none", false);
        let (first, _a) = given_up(ask(&mut names, "a"));
        let (second, _b) = given_up(ask(&mut names, "b"));
        let (third, _c) = given_up(ask(&mut names, "c"));
        assert_eq!([first.as_deref(), second.as_deref(), third.as_deref()], [Some("none"), Some("left"), Some("here")]);
        // All are waited for.
        assert_eq!(ask(&mut names, "d").0, None);
        assert_eq!(names.len(), 3);
    }

    #[test]
    fn what_is_there_stays_where_it_must_and_long_names_are_not_asked_for() {
        let mut names = names(1, 1, false);
        ask(&mut names, "a");
        names.answered("a", true);
        assert_eq!(ask(&mut names, "b").0, None);
        assert_eq!(ask(&mut names, "123456789").0, None);
        assert!(ask(&mut names, "a").0.is_some());
    }

    #[test]
    fn those_who_left_do_not_pile_up_behind_a_name_without_an_answer() {
        let mut names = names(1, 1, false);
        for _ in 0..10_000 {
            drop(ask(&mut names, "a"));
        }
        assert!(names.entries["a"].waiting.len() <= 32);
    }
}
