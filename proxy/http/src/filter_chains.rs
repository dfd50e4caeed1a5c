//! The filter chains of a connection manager, and how a stream gets hold of them.
//!
//! Chains whose filters are all configured in place never change. A chain with a filter whose configuration is fetched is
//! put together anew when another configuration has come, and all chains are swapped together: a stream pins what is
//! there when it begins and keeps it to its end. Who puts chains together is not known here.

use crate::filter::{FilterChain, HeadersAction, Hooks, HttpFilter, StreamView};
use crate::local_reply::LocalReply;
use crate::stream_info::ResponseFlags;
use arc_swap::ArcSwap;
use std::ops::Deref;
use std::sync::Arc;

/// All filter chains of a connection manager.
#[derive(Clone, Default)]
pub struct FilterChains {
    /// Filters of ordinary requests.
    pub ordinary: FilterChain,
    /// Filters of upgrades that have their own, by upgrade type.
    pub upgrades: Vec<(Box<str>, FilterChain)>,
}

impl From<FilterChain> for FilterChains {
    fn from(ordinary: FilterChain) -> FilterChains {
        FilterChains { ordinary, upgrades: Vec::new() }
    }
}

/// Where streams find their chains.
pub enum ChainSource {
    /// They stay as they are.
    Fixed(FilterChains),
    /// They are swapped when a filter has another configuration.
    Swapped(Arc<ArcSwap<FilterChains>>),
}

/// Chains as they were when a stream began.
pub enum Pinned<'a> {
    /// Those that stay.
    Fixed(&'a FilterChains),
    /// Those that may be replaced.
    Taken(Arc<FilterChains>),
}

impl ChainSource {
    /// The chains as they are now. Neither allocates nor waits.
    pub fn pin(&self) -> Pinned<'_> {
        match self {
            ChainSource::Fixed(chains) => Pinned::Fixed(chains),
            ChainSource::Swapped(chains) => Pinned::Taken(chains.load_full()),
        }
    }
}

impl Deref for Pinned<'_> {
    type Target = FilterChains;

    fn deref(&self) -> &FilterChains {
        match self {
            Pinned::Fixed(chains) => chains,
            Pinned::Taken(chains) => chains,
        }
    }
}

/// Stands in for a filter whose configuration has not come: requests are answered 500.
pub struct MissingConfig;

impl HttpFilter for MissingConfig {
    type State = ();

    fn hooks(&self) -> Hooks {
        Hooks { decode_headers: true, ..Hooks::default() }
    }

    fn decode_headers(&self, (): &mut (), _: &mut StreamView<'_>, _: bool) -> HeadersAction {
        let mut reply = LocalReply::new(500, "", "");
        reply.flags.insert(ResponseFlags::NO_FILTER_CONFIG_FOUND);
        HeadersAction::Respond(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pinned_stays_when_other_chains_come() {
        let mut first = FilterChain::new();
        first.push("f".into(), MissingConfig);
        let swapped = Arc::new(ArcSwap::from_pointee(FilterChains::from(first)));
        let source = ChainSource::Swapped(swapped.clone());
        let pinned = source.pin();
        swapped.store(Arc::new(FilterChains::default()));
        assert_eq!((pinned.ordinary.entries.len(), source.pin().ordinary.entries.len()), (1, 0));
    }

    #[test]
    fn a_chain_that_is_put_together_has_the_hooks_of_its_parts() {
        let mut part = FilterChain::new();
        part.push("f".into(), MissingConfig);
        let mut whole = FilterChain::new();
        whole.extend(&part);
        whole.extend(&FilterChain::new());
        assert!(whole.any.decode_headers && !whole.any.encode_body && !whole.has_terminal());
        assert!(Arc::ptr_eq(&whole.entries[0].filter, &part.entries[0].filter));
    }
}
