//! Statistics of virtual clusters and of routes with a `stat_prefix`.

use nuncio_base::stats::{CodeStats, Registry};
use std::sync::OnceLock;

nuncio_base::stat_family! {
    /// What exists from the start under `vhost.<name>.vcluster.<name>.` and `vhost.<name>.route.<prefix>.`.
    pub struct RequestFamily {
        counters {
            upstream_rq_retry, upstream_rq_retry_limit_exceeded, upstream_rq_retry_overflow,
            upstream_rq_retry_success, upstream_rq_timeout, upstream_rq_total,
        }
    }
}

nuncio_base::stat_family! {
    /// Times of the same.
    pub struct RequestTimes {
        histograms { upstream_rq_time: Milliseconds }
    }
}

/// Statistics of one virtual cluster or route. Derefs to [`RequestFamily`].
pub struct RequestStats {
    family: RequestFamily,
    responses: OnceLock<(CodeStats, RequestTimes)>,
    registry: Registry,
    prefix: Box<str>,
}

impl RequestStats {
    pub(super) fn new(registry: &Registry, prefix: String) -> Self {
        Self {
            family: RequestFamily::new(registry, &prefix),
            responses: OnceLock::new(),
            registry: registry.clone(),
            prefix: prefix.into(),
        }
    }

    fn responses(&self) -> &(CodeStats, RequestTimes) {
        let make = || (CodeStats::new(&self.registry, &self.prefix), RequestTimes::new(&self.registry, &self.prefix));
        self.responses.get_or_init(make)
    }

    /// Counts a response by its code.
    pub fn charge(&self, code: u16) {
        self.responses().0.count(code);
    }

    /// Records how long a request took, in milliseconds.
    pub fn record_time(&self, millis: u64) {
        self.responses().1.upstream_rq_time().record(millis);
    }
}

impl std::ops::Deref for RequestStats {
    type Target = RequestFamily;

    fn deref(&self) -> &RequestFamily {
        &self.family
    }
}

impl std::fmt::Debug for RequestStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestStats").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}
