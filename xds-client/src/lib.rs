#![doc = include_str!("../README.md")]

mod type_url;
pub use type_url::{ADS_DELTA_PATH, ADS_SOTW_PATH, TypeUrl};

mod resource;
pub use resource::{
    FetchFailure, Interest, Resource, ResourceError, ResourceHandler, SubscriptionOptions, Update, Verdict,
};

mod timing;
pub use timing::{Backoff, Now, RateLimit};

pub mod names;

pub mod mux;
pub use mux::Protocol;

pub mod load;
pub mod stats;
pub mod status;
pub mod transport;

mod client;
mod driver;
pub use client::{
    Aggregated, Client, ClientOptions, GrpcSource, JsonCodec, ParseFile, PathSource, Pause, RestSource, Source,
    SubscribeError, Subscription,
};
