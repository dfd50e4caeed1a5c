//! HTTP filters between the router and an upstream: one run of a chain per try.
//!
//! The router makes a [`FilterRun`] for each try where the cluster or the router itself has such filters, and shows it what
//! passes in both directions. There is no terminal filter here: what comes out goes to the codec, into which Envoy's
//! configuration puts a filter of its own (`envoy.filters.http.upstream_codec`). Who waits, answers and sends is the router.

use crate::active_stream::missing_status;
use crate::codec::Frame;
use crate::filter::{DataAction, FilterChain, HeadersAction, Slot, StreamView};
use crate::headers::{Headers, names};
use crate::local_reply::LocalReply;
use crate::stream_info::ResponseFlags;
use arc_swap::ArcSwap;
use smallvec::SmallVec;
use std::any::Any;
use std::sync::Arc;

/// The upstream filters of a cluster or router.
#[derive(Clone)]
pub enum UpstreamFilters {
    /// They stay as they are.
    Fixed(Arc<FilterChain>),
    /// They are swapped when a filter has another configuration.
    Swapped {
        /// Those of now.
        current: Arc<ArcSwap<FilterChain>>,
        /// Who swaps them; lives as long as somebody may use them.
        owner: Arc<dyn Any + Send + Sync>,
    },
}

impl std::fmt::Debug for UpstreamFilters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UpstreamFilters")
    }
}

impl UpstreamFilters {
    /// The filters as they are now, for one try of a request with this route.
    pub fn run(&self, view: &StreamView<'_>) -> FilterRun {
        let chain = match self {
            UpstreamFilters::Fixed(chain) => chain.clone(),
            UpstreamFilters::Swapped { current, .. } => current.load_full(),
        };
        let mut slots = SmallVec::new();
        chain.slots(view.route, &mut slots);
        FilterRun { chain, slots, next: 0 }
    }
}

/// The filters of one try.
pub struct FilterRun {
    chain: Arc<FilterChain>,
    slots: SmallVec<[Slot; 2]>,
    /// The filter that sees the request's head next.
    next: usize,
}

impl FilterRun {
    /// Shows the request's head to the filters that have not seen it. With anything but [`HeadersAction::Continue`] it is
    /// called again to go on, unless the filter has answered. `end`: there is no body.
    pub fn decode_headers(&mut self, view: &mut StreamView<'_>, end: bool) -> HeadersAction {
        while let Some(entry) = self.chain.entries.get(self.next) {
            let slot = &mut self.slots[self.next];
            self.next += 1;
            if !entry.hooks.decode_headers || slot.is_off() {
                continue;
            }
            let action = entry.filter.decode_headers(slot, view, end);
            if !matches!(action, HeadersAction::Continue) {
                return action;
            }
        }
        HeadersAction::Continue
    }

    /// Shows a piece of the request's body. Some: a filter answers.
    pub fn decode_frame(&mut self, view: &mut StreamView<'_>, frame: &mut Frame) -> Option<LocalReply> {
        for (filter, slot) in self.chain.with_hook(&mut self.slots, |hooks| hooks.decode_body) {
            match frame {
                Frame::Data(data, end) => {
                    if let DataAction::Respond(reply) = filter.decode_data(slot, view, data, *end) {
                        return Some(reply);
                    }
                }
                Frame::Trailers(trailers) => filter.decode_trailers(slot, view, trailers),
            }
        }
        None
    }

    /// Shows the response's head. Some: a filter answers in its place.
    pub fn encode_headers(&mut self, view: &mut StreamView<'_>, head: &mut Headers, end: bool) -> Option<LocalReply> {
        for (filter, slot) in self.chain.with_hook(&mut self.slots, |hooks| hooks.encode_headers).rev() {
            if let DataAction::Respond(reply) = filter.encode_headers(slot, view, head, end) {
                return Some(reply);
            }
        }
        (!head.contains(&names::STATUS)).then(missing_status)
    }

    /// Shows a piece of the response's body.
    pub fn encode_frame(&mut self, view: &mut StreamView<'_>, frame: &mut Frame) {
        for (filter, slot) in self.chain.with_hook(&mut self.slots, |hooks| hooks.encode_body).rev() {
            match frame {
                Frame::Data(data, end) => filter.encode_data(slot, view, data, *end),
                Frame::Trailers(trailers) => filter.encode_trailers(slot, view, trailers),
            }
        }
    }

    /// The try has ended, however it did.
    pub fn complete(&mut self, view: &mut StreamView<'_>) {
        for (filter, slot) in self.chain.with_hook(&mut self.slots, |hooks| hooks.complete) {
            filter.complete(slot, view);
        }
    }
}

/// The answer to a request from which filters have taken what cannot be done without.
pub fn missing_header(request: &Headers) -> Option<LocalReply> {
    let (name, body) = if !request.contains(&names::METHOD) {
        (":method", "missing required header: :method")
    } else if request.method() != b"CONNECT" && !request.contains(&names::PATH) {
        (":path", "missing required header: :path")
    } else {
        return None;
    };
    let details = format!("filter_removed_required_request_headers{{missing_required_header:_{name}}}");
    Some(LocalReply::new(503, body, details).flags(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::{Hooks, HttpFilter};
    use crate::formatter::tests::{headers, info};
    use crate::headers::{HeaderName, HeaderValue};

    /// Adds its name to whatever passes.
    struct Mark(&'static str);

    impl HttpFilter for Mark {
        type State = u32;

        fn hooks(&self) -> Hooks {
            Hooks { decode_headers: true, encode_headers: true, decode_body: true, ..Hooks::default() }
        }

        fn decode_headers(&self, seen: &mut u32, view: &mut StreamView<'_>, _: bool) -> HeadersAction {
            *seen += 1;
            view.request.append(HeaderName::parse("x-mark").unwrap(), HeaderValue::from_static(self.0));
            if self.0 == "wait" { HeadersAction::Buffer } else { HeadersAction::Continue }
        }

        fn decode_data(&self, seen: &mut u32, _: &mut StreamView<'_>, _: &mut bytes::Bytes, _: bool) -> DataAction {
            match *seen {
                1 => DataAction::Continue,
                _ => DataAction::Respond(LocalReply::new(500, "", "state")),
            }
        }

        fn encode_headers(&self, _: &mut u32, _: &mut StreamView<'_>, head: &mut Headers, _: bool) -> DataAction {
            head.append(HeaderName::parse("x-mark").unwrap(), HeaderValue::from_static(self.0));
            DataAction::Continue
        }
    }

    fn marks(headers: &Headers) -> String {
        let name = HeaderName::parse("x-mark").unwrap();
        headers.get_all(&name).map(|value| value.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn requests_pass_forward_and_responses_backward_and_a_filter_that_waits_is_gone_on_behind() {
        let mut chain = FilterChain::new();
        for name in ["a", "wait", "b"] {
            chain.push(name.into(), Mark(name));
        }
        let mut off = FilterChain::new();
        off.push("off".into(), Mark("off"));
        off.disable();
        chain.extend(&off);
        let (mut request, mut info) = (headers(&[]), info());
        let mut view = StreamView { request: &mut request, info: &mut info, route: None };
        let mut run = UpstreamFilters::Fixed(Arc::new(chain)).run(&view);
        assert!(matches!(run.decode_headers(&mut view, false), HeadersAction::Buffer));
        assert!(matches!(run.decode_headers(&mut view, false), HeadersAction::Continue));
        let mut frame = Frame::Data(bytes::Bytes::new(), true);
        assert!(run.decode_frame(&mut view, &mut frame).is_none());
        let mut head = headers(&[(":status", "200")]);
        assert!(run.encode_headers(&mut view, &mut head, true).is_none());
        assert_eq!((marks(&request), marks(&head)), ("a wait b".to_owned(), "b wait a".to_owned()));
    }

    #[test]
    fn what_codecs_cannot_do_without_is_missed() {
        let details = |list: &[(&str, &str)]| missing_header(&headers(list)).map(|reply| reply.details.into_owned());
        assert_eq!(details(&[(":method", "GET"), (":path", "/")]), None);
        assert_eq!(details(&[(":method", "CONNECT")]), None);
        let text = |name| Some(format!("filter_removed_required_request_headers{{missing_required_header:_{name}}}"));
        assert_eq!(details(&[(":method", "GET")]), text(":path"));
        assert_eq!(details(&[(":path", "/")]), text(":method"));
    }
}
