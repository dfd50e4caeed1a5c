//! Headers that routes add and remove, compiled.
//!
//! One [`HeaderRules`] per level (route configuration, virtual host, route, weighted cluster) and direction; the route decides
//! the order of levels. Within a level: removals first, then all values are formatted, then overwrites, then additions.

use nuncio_config::header_mutation::{AppendAction, HeaderMutation, HeaderValueOption};
use nuncio_config::matchers::StringMatcher;
use smallvec::SmallVec;

use crate::formatter::{FormatContext, HeaderFormatter};
use crate::headers::{HeaderName, HeaderValue, Headers, names};
use crate::matchers::{header_name, string_matches};

/// Mutations of one level in one direction.
#[derive(Debug, Clone, Default)]
pub struct HeaderRules {
    remove: Box<[HeaderName]>,
    add: Box<[Add]>,
}

#[derive(Debug, Clone)]
struct Add {
    name: HeaderName,
    value: HeaderFormatter,
    action: AppendAction,
    keep_empty: bool,
}

impl HeaderRules {
    /// Compiles; errors come with the index of their entry, additions as `add[i]`, removals as `remove[i]`.
    pub fn build(add: &[HeaderValueOption], remove: &[Box<str>]) -> Result<Self, Vec<(String, String)>> {
        let mut errors = Vec::new();
        let mut removals = Vec::new();
        for (at, name) in remove.iter().enumerate() {
            match HeaderName::parse(name).filter(|name| !name.is_pseudo() && *name != names::HOST) {
                Some(name) => removals.push(name),
                None => errors.push((format!("remove[{at}]"), ":-prefixed or host headers may not be removed".into())),
            }
        }
        let mut additions = Vec::new();
        for (at, option) in add.iter().enumerate() {
            let path = || format!("add[{at}]");
            if option.name.starts_with(':') || option.name.eq_ignore_ascii_case("host") {
                errors.push((path(), ":-prefixed or host headers may not be modified".into()));
                continue;
            }
            let Some(name) = header_name(&option.name) else {
                errors.push((path(), format!("invalid header name: {:?}", option.name)));
                continue;
            };
            match HeaderFormatter::new(&option.value) {
                Ok(value) => additions.push(Add {
                    name,
                    value,
                    action: option.append_action,
                    keep_empty: option.keep_empty_value,
                }),
                Err(error) => errors.push((path(), error.0)),
            }
        }
        if errors.is_empty() { Ok(Self { remove: removals.into(), add: additions.into() }) } else { Err(errors) }
    }

    /// Whether nothing would happen.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }

    /// Applies them to request headers; values see the headers as they are after the removals. `cx.request` is ignored.
    pub fn apply_request(&self, headers: &mut Headers, cx: &FormatContext<'_>) {
        self.remove_from(headers);
        let values = self.evaluate(headers, &FormatContext { request: Some(headers), ..*cx });
        self.add_to(headers, values);
    }

    /// Applies them to headers of a request that is made here: values see no request but `cx.request`.
    pub fn apply_made(&self, headers: &mut Headers, cx: &FormatContext<'_>) {
        self.remove_from(headers);
        let values = self.evaluate(headers, cx);
        self.add_to(headers, values);
    }

    /// Applies them to response headers; `cx.response` is ignored.
    pub fn apply_response(&self, headers: &mut Headers, cx: &FormatContext<'_>) {
        self.remove_from(headers);
        let values = self.evaluate(headers, &FormatContext { response: Some(headers), ..*cx });
        self.add_to(headers, values);
    }

    /// Applies them to the trailers of a response; `cx.trailers` is ignored.
    fn apply_trailers(&self, headers: &mut Headers, cx: &FormatContext<'_>) {
        self.remove_from(headers);
        let values = self.evaluate(headers, &FormatContext { trailers: Some(headers), ..*cx });
        self.add_to(headers, values);
    }

    fn remove_from(&self, headers: &mut Headers) {
        for name in &self.remove {
            headers.remove(name);
        }
    }

    fn evaluate<'s>(&'s self, headers: &Headers, cx: &FormatContext<'_>) -> SmallVec<[(&'s Add, HeaderValue); 4]> {
        let mut values = SmallVec::new();
        for add in &self.add {
            let wanted = match add.action {
                AppendAction::AppendIfExistsOrAdd | AppendAction::OverwriteIfExistsOrAdd => true,
                AppendAction::AddIfAbsent => !headers.contains(&add.name),
                AppendAction::OverwriteIfExists => headers.contains(&add.name),
            };
            // What would break a message (a newline from a certificate or variable) is not sent.
            let Some(value) = wanted.then(|| add.value.value(cx)).flatten() else { continue };
            if add.keep_empty || !value.as_bytes().is_empty() {
                values.push((add, value));
            }
        }
        values
    }

    fn add_to(&self, headers: &mut Headers, values: SmallVec<[(&Add, HeaderValue); 4]>) {
        let overwrites =
            |action| matches!(action, AppendAction::OverwriteIfExists | AppendAction::OverwriteIfExistsOrAdd);
        for (add, value) in &values {
            if overwrites(add.action) {
                // The new line stands last, as in Envoy.
                headers.remove(&add.name);
                headers.append(add.name.clone(), value.clone());
            }
        }
        for (add, value) in values {
            if overwrites(add.action) {
                continue;
            }
            if is_single(&add.name) && headers.contains(&add.name) {
                headers.append_joined(add.name.clone(), value.as_bytes(), ",");
            } else {
                headers.append(add.name.clone(), value);
            }
        }
    }
}

/// Which headers a [`MutationList`] changes: where its format strings find them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Those of the request.
    Request,
    /// Those of the response.
    Response,
    /// The trailers of either.
    Trailers,
}

/// A list of mutations that are applied one after the other (`envoy.config.common.mutation_rules.v3.HeaderMutation`).
#[derive(Debug, Clone, Default)]
pub struct MutationList(Box<[Step]>);

#[derive(Debug, Clone)]
enum Step {
    Remove(HeaderName),
    RemoveOnMatch(StringMatcher),
    Add(HeaderRules),
}

impl MutationList {
    /// Compiles; errors come with the index of their entry.
    ///
    /// # Errors
    /// Names and formats that are wrong.
    pub fn build(mutations: &[HeaderMutation]) -> Result<Self, Vec<(usize, String)>> {
        let (mut steps, mut errors) = (Vec::with_capacity(mutations.len()), Vec::new());
        for (at, mutation) in mutations.iter().enumerate() {
            match mutation {
                HeaderMutation::Remove(name) => match HeaderName::parse(name) {
                    // The line is the authority of the message.
                    Some(name) if name == names::HOST => steps.push(Step::Remove(names::AUTHORITY)),
                    Some(name) => steps.push(Step::Remove(name)),
                    None => errors.push((at, format!("invalid header name: {name:?}"))),
                },
                HeaderMutation::RemoveOnMatch(matcher) => steps.push(Step::RemoveOnMatch(matcher.clone())),
                HeaderMutation::Append(option) => match HeaderRules::build(std::slice::from_ref(option), &[]) {
                    Ok(rules) => steps.push(Step::Add(rules)),
                    Err(list) => errors.extend(list.into_iter().map(|(_, text)| (at, text))),
                },
            }
        }
        if errors.is_empty() { Ok(Self(steps.into())) } else { Err(errors) }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Applies them in their order.
    pub fn apply(&self, side: Side, headers: &mut Headers, cx: &FormatContext<'_>) {
        for step in &self.0 {
            match (step, side) {
                (Step::Remove(name), _) => {
                    headers.remove(name);
                }
                (Step::RemoveOnMatch(matcher), _) => {
                    headers.remove_if(|name, _| !name.is_pseudo() && string_matches(matcher, name.as_bytes()));
                }
                (Step::Add(rules), Side::Request) => rules.apply_request(headers, cx),
                (Step::Add(rules), Side::Response) => rules.apply_response(headers, cx),
                (Step::Add(rules), Side::Trailers) => rules.apply_trailers(headers, cx),
            }
        }
    }
}

/// Headers of which Envoy keeps one line: further values are joined to it with a comma.
fn is_single(name: &HeaderName) -> bool {
    const SINGLE: &[HeaderName] = &[
        names::ACCEPT,
        names::ACCEPT_ENCODING,
        names::AUTHORIZATION,
        names::CACHE_CONTROL,
        names::CONTENT_ENCODING,
        names::GRPC_ACCEPT_ENCODING,
        names::IF_MODIFIED_SINCE,
        names::IF_NONE_MATCH,
        names::ORIGIN,
        names::PRAGMA,
        names::REFERER,
        names::CONNECTION,
        names::CONTENT_LENGTH,
        names::CONTENT_TYPE,
        names::DATE,
        names::EXPECT,
        names::GRPC_MESSAGE,
        names::GRPC_STATUS,
        names::GRPC_TIMEOUT,
        names::KEEP_ALIVE,
        names::LOCATION,
        names::PROXY_CONNECTION,
        names::SERVER,
        names::TE,
        names::TRANSFER_ENCODING,
        names::UPGRADE,
        names::USER_AGENT,
        names::VIA,
        names::X_CLIENT_TRACE_ID,
        names::X_ENVOY_ATTEMPT_COUNT,
        names::X_ENVOY_DECORATOR_OPERATION,
        names::X_ENVOY_DEGRADED,
        names::X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER,
        names::X_ENVOY_DOWNSTREAM_SERVICE_NODE,
        names::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS,
        names::X_ENVOY_EXTERNAL_ADDRESS,
        names::X_ENVOY_FORCE_TRACE,
        names::X_ENVOY_HEDGE_ON_PER_TRY_TIMEOUT,
        names::X_ENVOY_IMMEDIATE_HEALTH_CHECK_FAIL,
        names::X_ENVOY_INTERNAL,
        names::X_ENVOY_IP_TAGS,
        names::X_ENVOY_IS_TIMEOUT_RETRY,
        names::X_ENVOY_MAX_RETRIES,
        names::X_ENVOY_ORIGINAL_HOST,
        names::X_ENVOY_ORIGINAL_PATH,
        names::X_ENVOY_RATELIMITED,
        names::X_ENVOY_RETRIABLE_HEADER_NAMES,
        names::X_ENVOY_RETRIABLE_STATUS_CODES,
        names::X_ENVOY_RETRY_GRPC_ON,
        names::X_ENVOY_RETRY_ON,
        names::X_ENVOY_UPSTREAM_ALT_STAT_NAME,
        names::X_ENVOY_UPSTREAM_CANARY,
        names::X_ENVOY_UPSTREAM_HEALTHCHECKED_CLUSTER,
        names::X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS,
        names::X_ENVOY_UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE,
        names::X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS,
        names::X_ENVOY_UPSTREAM_SERVICE_TIME,
        names::X_FORWARDED_CLIENT_CERT,
        names::X_FORWARDED_FOR,
        names::X_FORWARDED_HOST,
        names::X_FORWARDED_PORT,
        names::X_FORWARDED_PROTO,
        names::X_REQUEST_ID,
    ];
    const SINGLE_CUSTOM: &[&str] = &["access-control-request-method", "if-match", "if-range", "proxy-status"];
    if name.is_interned() { SINGLE.contains(name) } else { SINGLE_CUSTOM.contains(&name.as_str()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formatter::tests::{headers, info};

    fn option(name: &str, value: &str, append_action: AppendAction) -> HeaderValueOption {
        HeaderValueOption { name: name.into(), value: value.into(), append_action, keep_empty_value: false }
    }

    fn applied(add: &[HeaderValueOption], remove: &[&str], before: &[(&str, &str)]) -> String {
        let remove: Vec<Box<str>> = remove.iter().map(|name| (*name).into()).collect();
        let mut list = headers(before);
        let info = info();
        HeaderRules::build(add, &remove).unwrap().apply_request(&mut list, &FormatContext::new(&info));
        format!("{list:?}")
    }

    #[test]
    fn every_append_action_does_what_it_says() {
        use AppendAction as A;
        let before = [("x-a", "1"), ("x-b", "2")];
        let table = [
            (option("x-a", "n", A::AppendIfExistsOrAdd), "{x-a: 1, x-b: 2, x-a: n}"),
            (option("x-c", "n", A::AppendIfExistsOrAdd), "{x-a: 1, x-b: 2, x-c: n}"),
            (option("x-a", "n", A::AddIfAbsent), "{x-a: 1, x-b: 2}"),
            (option("x-c", "n", A::AddIfAbsent), "{x-a: 1, x-b: 2, x-c: n}"),
            (option("x-a", "n", A::OverwriteIfExistsOrAdd), "{x-b: 2, x-a: n}"),
            (option("x-c", "n", A::OverwriteIfExists), "{x-a: 1, x-b: 2}"),
            (option("x-a", "n", A::OverwriteIfExists), "{x-b: 2, x-a: n}"),
        ];
        for (add, wanted) in table {
            assert_eq!(applied(std::slice::from_ref(&add), &[], &before), wanted, "{add:?}");
        }
    }

    #[test]
    fn values_are_formatted_before_any_is_set_and_after_removals() {
        use AppendAction as A;
        let add = [
            option("x-a", "%REQ(X-B)%", A::OverwriteIfExistsOrAdd),
            option("x-b", "%REQ(X-A)%", A::OverwriteIfExistsOrAdd),
            option("x-gone", "%REQ(X-GONE)%", A::AppendIfExistsOrAdd),
        ];
        let before = [("x-a", "1"), ("x-b", "2"), ("x-gone", "3")];
        assert_eq!(applied(&add, &["x-gone"], &before), "{x-a: 2, x-b: 1}");
    }

    #[test]
    fn empty_values_are_kept_only_when_asked() {
        let mut add = option("x-a", "%REQ(NO)%", AppendAction::AppendIfExistsOrAdd);
        assert_eq!(applied(std::slice::from_ref(&add), &[], &[]), "{}");
        add.keep_empty_value = true;
        assert_eq!(applied(std::slice::from_ref(&add), &[], &[]), "{x-a: }");
    }

    #[test]
    fn single_headers_are_joined() {
        let add = option("x-forwarded-for", "9", AppendAction::AppendIfExistsOrAdd);
        assert_eq!(applied(&[add], &[], &[("x-forwarded-for", "1")]), "{x-forwarded-for: 1,9}");
    }

    #[test]
    fn a_list_is_applied_step_by_step() {
        let steps = [
            HeaderMutation::Append(option("x-a", "%REQ(x-b)%", AppendAction::AppendIfExistsOrAdd)),
            HeaderMutation::Append(option("x-b", "3", AppendAction::OverwriteIfExistsOrAdd)),
            HeaderMutation::Append(option("x-a", "%REQ(x-b)%", AppendAction::AppendIfExistsOrAdd)),
            HeaderMutation::Remove("x-gone".into()),
            HeaderMutation::RemoveOnMatch(StringMatcher::Prefix("x-z".into(), false)),
            HeaderMutation::Remove("host".into()),
        ];
        let list = MutationList::build(&steps).unwrap();
        let before = [(":authority", "h"), ("x-b", "2"), ("x-gone", "1"), ("x-zz", "1")];
        let (mut headers, info) = (headers(&before), info());
        list.apply(Side::Request, &mut headers, &FormatContext::new(&info));
        assert_eq!(format!("{headers:?}"), "{x-a: 2, x-b: 3, x-a: 3}");
        let bad = [HeaderMutation::Append(option(":path", "x", AppendAction::AddIfAbsent))];
        let errors = MutationList::build(&bad).unwrap_err();
        assert_eq!(errors, [(0, ":-prefixed or host headers may not be modified".to_owned())]);
    }

    #[test]
    fn pseudo_headers_are_refused() {
        let add = [option(":path", "x", AppendAction::AddIfAbsent), option("x", "%NO%", AppendAction::AddIfAbsent)];
        let remove = [Box::from("host"), Box::from(":authority")];
        let errors = HeaderRules::build(&add, &remove).unwrap_err();
        let wanted = [
            ("remove[0]", ":-prefixed or host headers may not be removed"),
            ("remove[1]", ":-prefixed or host headers may not be removed"),
            ("add[0]", ":-prefixed or host headers may not be modified"),
            ("add[1]", "Not supported field in StreamInfo: NO"),
        ];
        assert_eq!(errors, wanted.map(|(path, text)| (path.to_owned(), text.to_owned())));
    }
}
