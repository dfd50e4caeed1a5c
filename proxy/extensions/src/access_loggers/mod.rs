//! Access loggers that are more than lines in a file.

pub mod http_grpc;
