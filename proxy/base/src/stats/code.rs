//! Response-code counters: `upstream_rq_200`, `upstream_rq_2xx`, `upstream_rq_completed`.
//!
//! Envoy creates these when a code first occurs. Here one add per response serves all three names: the class and the
//! total are sums over the codes, made for output. A class of codes is allocated per worker when it first occurs.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};

use super::block::bump;
use super::registry::{Inner, NameMatcher, Registry, StatValue};
use crate::worker;

const CLASSES: usize = 5;

/// Stands for codes outside of all classes.
const UNKNOWN: u16 = 600;
/// Stands for responses of which only that they came is counted.
const UNCODED: u16 = 601;

type Class = OnceLock<Box<[AtomicU64; 100]>>;

/// Counts responses by status code under one prefix, for example `cluster.foo.` or `cluster.foo.external.`.
#[derive(Clone)]
pub struct CodeStats {
    body: Arc<CodeBody>,
}

pub(super) struct CodeBody {
    pub(super) prefix: Arc<str>,
    shards: Box<[OnceLock<Box<CodeShard>>]>,
    /// What each code showed at the last reset (100..=599), then the unknown ones and those without code.
    baseline: OnceLock<Box<[AtomicU64]>>,
    /// The total is shown before anything was counted.
    total_shown: AtomicBool,
    /// Says which of the names exist, before the configured matcher.
    pub(super) matcher: Option<Arc<NameMatcher>>,
    registry: Weak<Inner>,
}

#[derive(Default)]
struct CodeShard {
    classes: [Class; CLASSES],
    unknown: AtomicU64,
    uncoded: AtomicU64,
}

impl CodeStats {
    /// Counters `<prefix>upstream_rq_<code>`, `<prefix>upstream_rq_<class>xx` and `<prefix>upstream_rq_completed`. They
    /// appear in the output once counted. The same prefix gives the same counters.
    pub fn new(registry: &Registry, prefix: &str) -> Self {
        Self { body: registry.codes(prefix) }
    }

    /// As [`CodeStats::new`], but `<prefix>upstream_rq_completed` is there from the start, as clusters have it.
    pub fn with_total(registry: &Registry, prefix: &str) -> Self {
        let stats = Self::new(registry, prefix);
        stats.body.total_shown.store(true, Relaxed);
        stats
    }

    /// Counts one response. Codes outside 100..=599 count as `upstream_rq_unknown`.
    #[inline]
    pub fn count(&self, code: u16) {
        self.body.count(if code == UNCODED { UNKNOWN } else { code });
    }

    /// Counts one response in `upstream_rq_completed` alone.
    #[inline]
    pub fn count_uncoded(&self) {
        self.body.count(UNCODED);
    }

    /// How often `code` was counted.
    pub fn value(&self, code: u16) -> u64 {
        self.body.code(code)
    }
}

impl CodeBody {
    pub(super) fn new(
        prefix: Arc<str>,
        shards: usize,
        matcher: Option<Arc<NameMatcher>>,
        registry: Weak<Inner>,
    ) -> Self {
        Self {
            prefix,
            shards: std::iter::repeat_with(OnceLock::new).take(shards).collect(),
            baseline: OnceLock::new(),
            total_shown: AtomicBool::new(false),
            matcher,
            registry,
        }
    }

    #[inline]
    fn count(&self, code: u16) {
        let index = worker::index();
        let shard = if index < self.shards.len() { index } else { worker::CONTROL };
        let cells = self.shards[shard].get_or_init(Box::default);
        let atom = match code {
            100..=599 => {
                let class = cells.classes[usize::from(code) / 100 - 1]
                    .get_or_init(|| Box::new(std::array::from_fn(|_| AtomicU64::new(0))));
                &class[usize::from(code) % 100]
            }
            UNCODED => &cells.uncoded,
            _ => &cells.unknown,
        };
        bump(shard, atom, 1);
    }

    fn raw(&self, code: u16) -> u64 {
        self.shards
            .iter()
            .filter_map(OnceLock::get)
            .map(|shard| match code {
                100..=599 => shard.classes[usize::from(code) / 100 - 1]
                    .get()
                    .map_or(0, |class| class[usize::from(code) % 100].load(Relaxed)),
                UNCODED => shard.uncoded.load(Relaxed),
                _ => shard.unknown.load(Relaxed),
            })
            .fold(0, u64::wrapping_add)
    }

    /// Value since the last reset.
    fn code(&self, code: u16) -> u64 {
        self.raw(code).wrapping_sub(self.base(code))
    }

    fn base(&self, code: u16) -> u64 {
        self.baseline.get().map_or(0, |base| base[slot(code)].load(Relaxed))
    }

    pub(super) fn reset(&self) {
        if self.shards.iter().all(|shard| shard.get().is_none()) {
            return;
        }
        let base = self.baseline.get_or_init(|| (0..=501).map(|_| AtomicU64::new(0)).collect());
        for code in 100..=UNCODED {
            base[slot(code)].store(self.raw(code), Relaxed);
        }
    }

    /// Calls `visit` with the suffix and value of each counter that exists.
    pub(super) fn visit(&self, mut visit: impl FnMut(Cow<'static, str>, StatValue)) {
        let shown = self.total_shown.load(Relaxed);
        if self.shards.iter().all(|shard| shard.get().is_none()) && !shown {
            return;
        }
        let used = |value| StatValue { value, used: true };
        let mut completed = 0u64;
        let mut any = false;
        for class in 1..=CLASSES as u16 {
            if self.shards.iter().filter_map(OnceLock::get).all(|s| s.classes[usize::from(class) - 1].get().is_none()) {
                continue;
            }
            let mut sum = 0u64;
            for code in class * 100..class * 100 + 100 {
                if self.raw(code) != 0 {
                    let value = self.code(code);
                    sum = sum.wrapping_add(value);
                    visit(format!("upstream_rq_{code}").into(), used(value));
                }
            }
            any = true;
            completed = completed.wrapping_add(sum);
            visit(format!("upstream_rq_{class}xx").into(), used(sum));
        }
        if self.raw(UNKNOWN) != 0 {
            any = true;
            completed = completed.wrapping_add(self.code(UNKNOWN));
            visit("upstream_rq_unknown".into(), used(self.code(UNKNOWN)));
        }
        if self.raw(UNCODED) != 0 {
            any = true;
            completed = completed.wrapping_add(self.code(UNCODED));
        }
        if any || shown {
            visit("upstream_rq_completed".into(), StatValue { value: completed, used: any });
        }
    }
}

fn slot(code: u16) -> usize {
    match code {
        100..=599 => usize::from(code) - 100,
        UNCODED => 501,
        _ => 500,
    }
}

impl Drop for CodeBody {
    fn drop(&mut self) {
        if let Some(inner) = self.registry.upgrade() {
            inner.forget_codes(&self.prefix);
        }
    }
}
