//! The nuncio binary: options, assembly, workers, admin, drain.
//!
//! Reading order: the command line (`options`), the bootstrap (`loading`), the assembly and life of the process
//! (`server`), what it is made of (`listeners`, `hcm_builder`, `named_routes`, `worker`, `runtime`, `signals`), what
//! is fetched while it runs (`xds`), and the admin interface.

pub mod loading;
pub mod log;
pub mod options;

mod config_dump;
pub mod discovered;
mod empty_chain;
pub mod grpc_logs;
pub mod hcm_builder;
pub mod init;
mod listener_log;
pub mod listeners;
mod memory;
pub mod named_routes;
mod on_demand_clusters;
pub mod resources;
pub mod runtime;
pub mod scoped_routes;
pub mod server;
pub mod signals;
pub mod source_check;
pub mod stats;
mod stats_config;
pub mod worker;
pub mod xds;
pub mod xds_check;

pub mod admin;
mod admin_grpc;
mod admin_listener;
mod sources;

pub mod demo;
