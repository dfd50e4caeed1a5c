//! How HTTP filters see a stream, and the chain that runs them.
//!
//! An author writes [`HttpFilter`]: hooks on shared, immutable configuration with a typed state per stream. The chain
//! erases the types once, when it is built; a filter without state costs nothing per request, and body hooks cost
//! nothing to chains in which no filter has them. Header hooks are synchronous and return an action, so that only
//! filters that wait allocate. The last element of a chain is a [`TerminalFilter`], which answers the request.

use crate::active_stream::ActiveStream;
use crate::headers::Headers;
use crate::local_reply::LocalReply;
use crate::route::ActiveRoute;
use crate::stream_info::StreamInfo;
use bytes::Bytes;
use smallvec::SmallVec;
use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// A future on one worker.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// Which hooks a filter has; those it does not name are never called.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hooks {
    /// `decode_headers`
    pub decode_headers: bool,
    /// `decode_data` and `decode_trailers`
    pub decode_body: bool,
    /// `encode_headers`
    pub encode_headers: bool,
    /// `encode_data` and `encode_trailers`
    pub encode_body: bool,
    /// `complete`
    pub complete: bool,
}

/// The parts of a stream that a filter may read and change.
pub struct StreamView<'a> {
    /// Request headers.
    pub request: &'a mut Headers,
    /// What is known about the stream.
    pub info: &'a mut StreamInfo,
    /// The route; None where the request has none.
    pub route: Option<&'a ActiveRoute>,
}

/// What happens after a header hook.
pub enum HeadersAction {
    /// The next filter runs.
    Continue,
    /// The request is answered here.
    Respond(LocalReply),
    /// The whole body is read first (up to the buffer limit, then 413); the filters after this one see it complete.
    Buffer,
    /// Routes of a request that has none are asked for, then the cluster of its route if it is not there. The stream waits for
    /// the answer; then the next filter runs, with the route that the request has by then.
    OnDemand(Option<Arc<dyn OnDemandCluster>>),
    /// The stream waits; what the future yields decides how it goes on.
    Wait(LocalFuture<'static, Resume>),
}

/// Fetches the cluster of a request's route.
pub trait OnDemandCluster: Send + Sync {
    /// Asks for the cluster of a route; None if it is there, or is not to be asked for. The future is ready once an answer
    /// has come, whatever it is, or has not come in time.
    fn fetch(&self, route: &ActiveRoute) -> Option<LocalFuture<'static, ()>>;
}

/// How a stream goes on after [`HeadersAction::Wait`]: applied to the stream when the future is ready.
pub type Resume = Box<dyn FnOnce(&mut StreamView<'_>) -> HeadersAction>;

/// What happens after a body hook.
pub enum DataAction {
    /// Pass on what is left in the buffer.
    Continue,
    /// The stream is answered here (requests) or reset (responses that have begun).
    Respond(LocalReply),
}

/// An HTTP filter. One value serves all streams of a worker and all workers.
pub trait HttpFilter: Send + Sync + 'static {
    /// What the filter keeps per stream; `()` for nothing.
    type State: Default + 'static;

    /// The hooks it has.
    fn hooks(&self) -> Hooks;

    /// The request head, pseudo-headers included, is there.
    fn decode_headers(&self, _: &mut Self::State, _: &mut StreamView<'_>, _end_stream: bool) -> HeadersAction {
        HeadersAction::Continue
    }

    /// A piece of the request body. The filter may replace it.
    fn decode_data(&self, _: &mut Self::State, _: &mut StreamView<'_>, _: &mut Bytes, _end: bool) -> DataAction {
        DataAction::Continue
    }

    /// Request trailers.
    fn decode_trailers(&self, _: &mut Self::State, _: &mut StreamView<'_>, _trailers: &mut Headers) {}

    /// The response head. Called for local replies too.
    fn encode_headers(
        &self,
        _: &mut Self::State,
        _: &mut StreamView<'_>,
        _response: &mut Headers,
        _end_stream: bool,
    ) -> DataAction {
        DataAction::Continue
    }

    /// A piece of the response body.
    fn encode_data(&self, _: &mut Self::State, _: &mut StreamView<'_>, _: &mut Bytes, _end: bool) {}

    /// Response trailers.
    fn encode_trailers(&self, _: &mut Self::State, _: &mut StreamView<'_>, _trailers: &mut Headers) {}

    /// The stream has ended, however it did.
    fn complete(&self, _: &mut Self::State, _: &mut StreamView<'_>) {}
}

/// The filter that answers requests; the router, above all.
pub trait TerminalFilter: Send + Sync + 'static {
    /// Serves one stream to its end. Dropping the future must release everything it holds.
    fn serve<'a>(&'a self, stream: &'a mut ActiveStream<'_>) -> LocalFuture<'a, ()>;
}

/// State of one filter in one stream; empty for filters without state.
#[derive(Default)]
pub(crate) struct Slot {
    state: Option<Box<dyn Any>>,
    /// The route does without the filter, or has not switched it on.
    off: bool,
}

impl Slot {
    fn with<S: Default + 'static, R>(&mut self, run: impl FnOnce(&mut S) -> R) -> R {
        if size_of::<S>() == 0 {
            return run(&mut S::default());
        }
        match self.state.get_or_insert_with(|| Box::new(S::default())).downcast_mut() {
            Some(state) => run(state),
            // A slot belongs to one filter, so its type never differs; a fresh state is the harmless answer.
            None => run(&mut S::default()),
        }
    }

    /// Whether this stream does without the filter.
    pub(crate) fn is_off(&self) -> bool {
        self.off
    }
}

/// [`HttpFilter`] with its state type erased.
pub(crate) trait ErasedFilter: Send + Sync {
    fn decode_headers(&self, slot: &mut Slot, view: &mut StreamView<'_>, end: bool) -> HeadersAction;
    fn decode_data(&self, slot: &mut Slot, view: &mut StreamView<'_>, data: &mut Bytes, end: bool) -> DataAction;
    fn decode_trailers(&self, slot: &mut Slot, view: &mut StreamView<'_>, trailers: &mut Headers);
    fn encode_headers(&self, slot: &mut Slot, view: &mut StreamView<'_>, head: &mut Headers, end: bool) -> DataAction;
    fn encode_data(&self, slot: &mut Slot, view: &mut StreamView<'_>, data: &mut Bytes, end: bool);
    fn encode_trailers(&self, slot: &mut Slot, view: &mut StreamView<'_>, trailers: &mut Headers);
    fn complete(&self, slot: &mut Slot, view: &mut StreamView<'_>);
}

impl<F: HttpFilter> ErasedFilter for F {
    fn decode_headers(&self, slot: &mut Slot, view: &mut StreamView<'_>, end: bool) -> HeadersAction {
        slot.with(|state| HttpFilter::decode_headers(self, state, view, end))
    }
    fn decode_data(&self, slot: &mut Slot, view: &mut StreamView<'_>, data: &mut Bytes, end: bool) -> DataAction {
        slot.with(|state| HttpFilter::decode_data(self, state, view, data, end))
    }
    fn decode_trailers(&self, slot: &mut Slot, view: &mut StreamView<'_>, trailers: &mut Headers) {
        slot.with(|state| HttpFilter::decode_trailers(self, state, view, trailers));
    }
    fn encode_headers(&self, slot: &mut Slot, view: &mut StreamView<'_>, head: &mut Headers, end: bool) -> DataAction {
        slot.with(|state| HttpFilter::encode_headers(self, state, view, head, end))
    }
    fn encode_data(&self, slot: &mut Slot, view: &mut StreamView<'_>, data: &mut Bytes, end: bool) {
        slot.with(|state| HttpFilter::encode_data(self, state, view, data, end));
    }
    fn encode_trailers(&self, slot: &mut Slot, view: &mut StreamView<'_>, trailers: &mut Headers) {
        slot.with(|state| HttpFilter::encode_trailers(self, state, view, trailers));
    }
    fn complete(&self, slot: &mut Slot, view: &mut StreamView<'_>) {
        slot.with(|state| HttpFilter::complete(self, state, view));
    }
}

/// One filter of a chain.
#[derive(Clone)]
pub struct ChainEntry {
    /// Configured name; per-route configuration refers to it.
    pub name: Arc<str>,
    pub(crate) filter: Arc<dyn ErasedFilter>,
    pub(crate) hooks: Hooks,
    /// Off unless a route switches it on.
    pub(crate) disabled: bool,
}

/// The filters of an HTTP connection manager, compiled when it is configured. A clone shares the filters.
#[derive(Clone)]
pub struct FilterChain {
    pub(crate) entries: Vec<ChainEntry>,
    pub(crate) any: Hooks,
    pub(crate) terminal: Option<Arc<dyn TerminalFilter>>,
}

impl FilterChain {
    /// A chain without filters: every request is answered 404, as Envoy does for an empty list.
    pub fn new() -> FilterChain {
        FilterChain { entries: Vec::new(), any: Hooks::default(), terminal: None }
    }

    /// Adds a filter before the terminal one.
    pub fn push(&mut self, name: Arc<str>, filter: impl HttpFilter) {
        let hooks = HttpFilter::hooks(&filter);
        self.add(ChainEntry { name, filter: Arc::new(filter), hooks, disabled: false });
    }

    fn add(&mut self, entry: ChainEntry) {
        self.any.decode_headers |= entry.hooks.decode_headers;
        self.any.decode_body |= entry.hooks.decode_body;
        self.any.encode_headers |= entry.hooks.encode_headers;
        self.any.encode_body |= entry.hooks.encode_body;
        self.any.complete |= entry.hooks.complete;
        self.entries.push(entry);
    }

    /// Sets the filter that answers.
    pub fn set_terminal(&mut self, terminal: Box<dyn TerminalFilter>) {
        self.terminal = Some(terminal.into());
    }

    /// Adds the filters of another chain behind those that are there; they are shared with it.
    pub fn extend(&mut self, other: &FilterChain) {
        other.entries.iter().for_each(|entry| self.add(entry.clone()));
        if let Some(terminal) = &other.terminal {
            self.terminal = Some(terminal.clone());
        }
    }

    /// Switches the filters that are there off, until a route switches them on.
    pub fn disable(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.disabled = true);
    }

    /// Whether there is no filter but the one that answers.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A stream's slots, each on or off as `route` wants it.
    pub(crate) fn slots<const N: usize>(&self, route: Option<&ActiveRoute>, slots: &mut SmallVec<[Slot; N]>) {
        slots.clear();
        slots.extend(self.entries.iter().map(|entry| {
            let off = route.and_then(|route| route.filter_disabled(&entry.name)).unwrap_or(entry.disabled);
            Slot { state: None, off }
        }));
    }

    /// The filters that have a hook and are on in this stream, with their slots.
    #[inline]
    pub(crate) fn with_hook<'s>(
        &'s self,
        slots: &'s mut [Slot],
        has: impl Fn(Hooks) -> bool + 's,
    ) -> impl DoubleEndedIterator<Item = (&'s dyn ErasedFilter, &'s mut Slot)> + 's {
        self.entries
            .iter()
            .zip(slots)
            .filter(move |(entry, slot)| has(entry.hooks) && !slot.off)
            .map(|(entry, slot)| (&*entry.filter, slot))
    }

    /// True when there is a filter that answers.
    pub fn has_terminal(&self) -> bool {
        self.terminal.is_some()
    }
}

impl Default for FilterChain {
    fn default() -> Self {
        FilterChain::new()
    }
}
