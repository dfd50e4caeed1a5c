//! `envoy.filters.http.header_mutation`: changes headers, trailers and the query, towards upstreams too.
//!
//! Mutations are applied in their order, those of the filter first and those of the request's route behind them. Texts of
//! errors are Envoy's.

use super::query::Query;
use crate::registry::HttpFilterEntry;
use bytes::Bytes;
use envoy_types::pb::envoy::config::common::mutation_rules::v3::HeaderMutation as PbMutation;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::http::header_mutation::v3 as pb;
use envoy_types::pb::google::protobuf::value::Kind;
use nuncio_config::decode::Context;
use nuncio_config::header_mutation::{AppendAction, HeaderMutation as Mutation};
use nuncio_config::typed_config::TypedConfig;
use nuncio_http::filter::{DataAction, HeadersAction, Hooks, HttpFilter, StreamView};
use nuncio_http::formatter::{FormatContext, Formatter};
use nuncio_http::header_mutation::{MutationList, Side};
use nuncio_http::headers::{HeaderValue, Headers, names};
use nuncio_http::route::ActiveRoute;
use smallvec::SmallVec;
use std::any::Any;
use std::sync::Arc;

/// The filter.
struct HeaderMutation {
    name: Arc<str>,
    own: Mutations,
    most_specific_wins: bool,
}

/// `Mutations`, compiled.
#[derive(Debug, Default)]
struct Mutations {
    request: MutationList,
    response: MutationList,
    request_trailers: MutationList,
    response_trailers: MutationList,
    query: Box<[QueryStep]>,
}

/// One change of the query.
#[derive(Debug)]
enum QueryStep {
    Remove(Box<str>),
    Set { key: Box<str>, value: Formatter, action: AppendAction },
}

impl Mutations {
    fn decode(message: Option<&pb::Mutations>) -> Result<Self, String> {
        let Some(message) = message else { return Ok(Mutations::default()) };
        Ok(Mutations {
            request: list("request_mutations", &message.request_mutations)?,
            response: list("response_mutations", &message.response_mutations)?,
            request_trailers: list("request_trailers_mutations", &message.request_trailers_mutations)?,
            response_trailers: list("response_trailers_mutations", &message.response_trailers_mutations)?,
            query: message.query_parameter_mutations.iter().map(QueryStep::decode).collect::<Result<_, _>>()?,
        })
    }

    fn on_request(&self, request: &mut Headers, info: &nuncio_http::stream_info::StreamInfo) {
        let cx = FormatContext::new(info);
        self.request.apply(Side::Request, request, &cx);
        if self.query.is_empty() {
            return;
        }
        let Some(path) = request.get(&names::PATH).cloned() else { return };
        let mut query = Query::parse(path.as_bytes());
        let cx = FormatContext { request: Some(request), ..cx };
        for step in &self.query {
            step.apply(&mut query, &cx);
        }
        if let Some(path) = HeaderValue::parse(query.replace_in(path.as_bytes())) {
            request.set(names::PATH, path);
        }
    }
}

fn list(field: &str, messages: &[PbMutation]) -> Result<MutationList, String> {
    let mut cx = Context::default();
    let place = |at: usize| format!("mutations.{field}[{at}]");
    let mut decoded = Vec::with_capacity(messages.len());
    for (at, message) in messages.iter().enumerate() {
        match cx.run(|cx| Mutation::decode(cx, message)) {
            Ok(mutation) => decoded.push(mutation),
            Err(errors) => {
                let text = errors.first().map(ToString::to_string).unwrap_or_default();
                return Err(format!("{}.{text}", place(at)));
            }
        }
    }
    MutationList::build(&decoded).map_err(|errors| {
        let text = |(at, text): &(usize, String)| format!("{}: {text}", place(*at));
        errors.iter().map(text).collect::<Vec<_>>().join("; ")
    })
}

impl QueryStep {
    fn decode(message: &core::KeyValueMutation) -> Result<Self, String> {
        use core::key_value_append::KeyValueAppendAction as Action;
        let append = match (&message.append, &*message.remove) {
            (None, "") => return Err("One of 'append'/'remove' must be specified.".to_owned()),
            (Some(_), key) if !key.is_empty() => {
                return Err("Only one of 'append'/'remove can be specified.".to_owned());
            }
            (None, key) => return Ok(QueryStep::Remove(key.into())),
            (Some(append), _) => append,
        };
        let Some(record) = &append.record else { return Err("No record specified for append mutation.".to_owned()) };
        let Some(Kind::StringValue(value)) = record.value.as_ref().and_then(|value| value.kind.as_ref()) else {
            return Err("Only string value is allowed for record value.".to_owned());
        };
        let action = match append.action() {
            Action::AppendIfExistsOrAdd => AppendAction::AppendIfExistsOrAdd,
            Action::AddIfAbsent => AppendAction::AddIfAbsent,
            Action::OverwriteIfExistsOrAdd => AppendAction::OverwriteIfExistsOrAdd,
            Action::OverwriteIfExists => AppendAction::OverwriteIfExists,
        };
        let value = Formatter::new(value, true).map_err(|error| error.0)?;
        Ok(QueryStep::Set { key: record.key.as_str().into(), value, action })
    }

    fn apply(&self, query: &mut Query, cx: &FormatContext<'_>) {
        let (key, value, action) = match self {
            QueryStep::Remove(key) => return query.remove(key.as_bytes()),
            QueryStep::Set { key, value, action } => (key.as_bytes(), value, action),
        };
        let present = query.contains(key);
        let formatted = || {
            let mut text = Vec::new();
            value.write(cx, &mut text);
            text
        };
        match action {
            AppendAction::AppendIfExistsOrAdd => query.add(key, formatted()),
            AppendAction::AddIfAbsent if !present => query.add(key, formatted()),
            AppendAction::OverwriteIfExists if !present => {}
            AppendAction::AddIfAbsent => {}
            AppendAction::OverwriteIfExistsOrAdd | AppendAction::OverwriteIfExists => {
                query.remove(key);
                query.add(key, formatted());
            }
        }
    }
}

impl HeaderMutation {
    /// What the route says, in the order in which it is applied.
    fn of_route<'r>(&self, route: Option<&'r ActiveRoute>) -> SmallVec<[&'r Mutations; 4]> {
        let Some(route) = route else { return SmallVec::new() };
        let levels = route.filter_configs(&self.name).filter_map(|config| config.downcast_ref::<Mutations>());
        let mut levels: SmallVec<[&Mutations; 4]> = levels.collect();
        if self.most_specific_wins {
            levels.reverse();
        }
        levels
    }
}

impl HttpFilter for HeaderMutation {
    type State = ();

    fn hooks(&self) -> Hooks {
        // Which of them have something to do is for each route to say.
        Hooks { decode_headers: true, encode_headers: true, decode_body: true, encode_body: true, complete: false }
    }

    fn decode_headers(&self, (): &mut (), view: &mut StreamView<'_>, _: bool) -> HeadersAction {
        self.own.on_request(view.request, view.info);
        for mutations in self.of_route(view.route) {
            mutations.on_request(view.request, view.info);
        }
        HeadersAction::Continue
    }

    fn decode_data(&self, (): &mut (), _: &mut StreamView<'_>, _: &mut Bytes, _: bool) -> DataAction {
        DataAction::Continue
    }

    fn decode_trailers(&self, (): &mut (), view: &mut StreamView<'_>, trailers: &mut Headers) {
        let cx = FormatContext { request: Some(view.request), ..FormatContext::new(view.info) };
        self.own.request_trailers.apply(Side::Trailers, trailers, &cx);
        for mutations in self.of_route(view.route) {
            mutations.request_trailers.apply(Side::Trailers, trailers, &cx);
        }
    }

    fn encode_headers(&self, (): &mut (), view: &mut StreamView<'_>, head: &mut Headers, _: bool) -> DataAction {
        let cx = FormatContext { request: Some(view.request), ..FormatContext::new(view.info) };
        self.own.response.apply(Side::Response, head, &cx);
        for mutations in self.of_route(view.route) {
            mutations.response.apply(Side::Response, head, &cx);
        }
        DataAction::Continue
    }

    fn encode_trailers(&self, (): &mut (), view: &mut StreamView<'_>, trailers: &mut Headers) {
        let cx = FormatContext { request: Some(view.request), ..FormatContext::new(view.info) };
        self.own.response_trailers.apply(Side::Trailers, trailers, &cx);
        for mutations in self.of_route(view.route) {
            mutations.response_trailers.apply(Side::Trailers, trailers, &cx);
        }
    }
}

/// Decodes `HeaderMutationPerRoute`.
///
/// # Errors
/// As for the filter itself.
pub fn per_route(config: &TypedConfig) -> Result<Arc<dyn Any + Send + Sync>, String> {
    let message =
        <pb::HeaderMutationPerRoute as prost::Message>::decode(config.value.clone()).map_err(|e| e.to_string())?;
    Ok(Arc::new(Mutations::decode(message.mutations.as_ref())?))
}

/// The filter in the registry.
pub const ENTRY: HttpFilterEntry = HttpFilterEntry {
    name: "envoy.filters.http.header_mutation",
    message: "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
    terminal: false,
    build: |filter, _, chain| {
        let message = <pb::HeaderMutation as prost::Message>::decode(filter.config.value.clone());
        let message = message.map_err(|e| e.to_string())?;
        let own = Mutations::decode(message.mutations.as_ref())?;
        let most_specific_wins = message.most_specific_header_mutations_wins;
        chain.push(filter.name.clone(), HeaderMutation { name: filter.name.clone(), own, most_specific_wins });
        Ok(())
    },
};

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::google::protobuf::Value;

    fn set(key: &str, value: Kind, action: i32) -> core::KeyValueMutation {
        let record = core::KeyValuePair { key: key.into(), value: Some(Value { kind: Some(value) }) };
        let append = core::KeyValueAppend { record: Some(record), action, ..Default::default() };
        core::KeyValueMutation { append: Some(append), remove: String::new() }
    }

    fn error(message: &core::KeyValueMutation) -> String {
        QueryStep::decode(message).err().unwrap_or_default()
    }

    #[test]
    fn changes_of_the_query_that_say_too_little_or_too_much_are_refused() {
        let mut both = set("a", Kind::StringValue("1".into()), 0);
        assert_eq!(error(&both), "");
        both.remove = "b".into();
        assert_eq!(error(&both), "Only one of 'append'/'remove can be specified.");
        assert_eq!(error(&Default::default()), "One of 'append'/'remove' must be specified.");
        assert_eq!(error(&set("a", Kind::BoolValue(true), 0)), "Only string value is allowed for record value.");
        let empty = core::KeyValueMutation { append: Some(Default::default()), ..Default::default() };
        assert_eq!(error(&empty), "No record specified for append mutation.");
    }

    #[test]
    fn headers_out_of_reach_are_refused_with_their_place() {
        use envoy_types::pb::envoy::config::common::mutation_rules::v3::header_mutation::Action;
        let header = core::HeaderValue { key: ":path".into(), value: "x".into(), ..Default::default() };
        let option = core::HeaderValueOption { header: Some(header), ..Default::default() };
        let mutations = [PbMutation { action: Some(Action::Append(option)) }];
        let text = list("request_mutations", &mutations).unwrap_err();
        assert!(text.starts_with("mutations.request_mutations[0].append.header.key"), "{text}");
        assert!(text.ends_with(":-prefixed or host headers may not be modified"), "{text}");
    }
}
