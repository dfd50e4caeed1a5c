//! `request_headers_to_add` and its relatives. Values are format strings, compiled by the HTTP floor.

use envoy_types::pb::envoy::config::common::mutation_rules::v3 as rules;
use envoy_types::pb::envoy::config::core::v3 as core;

use crate::decode::{Context, lower};
use crate::matchers::StringMatcher;

/// `HeaderValueOption.append_action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendAction {
    /// Append if it exists (as a further line), add otherwise. Envoy's default.
    AppendIfExistsOrAdd,
    /// Add only where absent.
    AddIfAbsent,
    /// Overwrite where present, add otherwise.
    OverwriteIfExistsOrAdd,
    /// Overwrite only where present.
    OverwriteIfExists,
}

/// One header to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderValueOption {
    /// Lower-cased name.
    pub name: Box<str>,
    /// Format string with command operators such as `%DOWNSTREAM_REMOTE_ADDRESS%`.
    pub value: Box<str>,
    /// What happens when the header exists.
    pub append_action: AppendAction,
    /// Keep a header whose formatted value is empty (`keep_empty_value`).
    pub keep_empty_value: bool,
}

/// Mutations of one level (route, virtual host, route configuration, weighted cluster).
/// Envoy applies removals of a level before its additions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderMutations {
    /// Request headers to add.
    pub request_add: Vec<HeaderValueOption>,
    /// Request headers to remove, lower-cased.
    pub request_remove: Vec<Box<str>>,
    /// Response headers to add.
    pub response_add: Vec<HeaderValueOption>,
    /// Response headers to remove, lower-cased.
    pub response_remove: Vec<Box<str>>,
}

/// `envoy.config.common.mutation_rules.v3.HeaderMutation`: one step of a list that is applied in order.
#[derive(Debug, Clone)]
pub enum HeaderMutation {
    /// Remove this header, lower-cased.
    Remove(Box<str>),
    /// Add or overwrite.
    Append(HeaderValueOption),
    /// Remove the headers with such names.
    RemoveOnMatch(StringMatcher),
}

impl HeaderMutation {
    /// Decodes the message at the current path; errors are reported to `cx`.
    pub fn decode(cx: &mut Context, message: &rules::HeaderMutation) -> Option<Self> {
        use rules::header_mutation::Action;
        match message.action.as_ref()? {
            // Whatever it is: what a message cannot be without is missed when it is sent.
            Action::Remove(name) => Some(HeaderMutation::Remove(lower(name))),
            Action::Append(option) => {
                cx.at("append", |cx| HeaderValueOption::decode(cx, option)).map(HeaderMutation::Append)
            }
            Action::RemoveOnMatch(matcher) => cx
                .at("remove_on_match", |cx| cx.required("key_matcher", &matcher.key_matcher, StringMatcher::decode))
                .map(HeaderMutation::RemoveOnMatch),
        }
    }
}

impl HeaderValueOption {
    /// Decodes the message at the current path; errors are reported to `cx`.
    pub fn decode(cx: &mut Context, message: &core::HeaderValueOption) -> Option<Self> {
        use core::header_value_option::HeaderAppendAction as Action;
        let header = message.header.as_ref()?;
        if !is_modifiable(&header.key) {
            cx.at("header", |cx| cx.error_at("key", ":-prefixed or host headers may not be modified"));
            return None;
        }
        let value = match std::str::from_utf8(&header.raw_value) {
            Ok("") => header.value.as_str(),
            Ok(raw) => raw,
            Err(_) => {
                cx.at("header", |cx| cx.error_at("raw_value", "a header value has to be UTF-8"));
                return None;
            }
        };
        let append_action = match (&message.append, message.append_action()) {
            (Some(_), action) if action != Action::AppendIfExistsOrAdd => {
                cx.error("Both append and append_action are set and it's not allowed");
                return None;
            }
            (Some(append), _) if !append.value => AppendAction::OverwriteIfExistsOrAdd,
            (_, Action::AppendIfExistsOrAdd) => AppendAction::AppendIfExistsOrAdd,
            (_, Action::AddIfAbsent) => AppendAction::AddIfAbsent,
            (_, Action::OverwriteIfExistsOrAdd) => AppendAction::OverwriteIfExistsOrAdd,
            (_, Action::OverwriteIfExists) => AppendAction::OverwriteIfExists,
        };
        Some(HeaderValueOption {
            name: lower(&header.key),
            value: value.into(),
            append_action,
            keep_empty_value: message.keep_empty_value,
        })
    }
}

impl HeaderMutations {
    /// The four fields that every level has.
    pub fn decode(
        cx: &mut Context,
        request_add: &[core::HeaderValueOption],
        request_remove: &[String],
        response_add: &[core::HeaderValueOption],
        response_remove: &[String],
    ) -> Self {
        HeaderMutations {
            request_add: cx.each("request_headers_to_add", request_add, HeaderValueOption::decode),
            request_remove: cx.each("request_headers_to_remove", request_remove, |cx, name| removal(cx, name)),
            response_add: cx.each("response_headers_to_add", response_add, HeaderValueOption::decode),
            response_remove: cx.each("response_headers_to_remove", response_remove, |cx, name| removal(cx, name)),
        }
    }
}

fn removal(cx: &mut Context, name: &str) -> Option<Box<str>> {
    if !is_modifiable(name) {
        cx.error(":-prefixed or host headers may not be removed");
        return None;
    }
    Some(lower(name))
}

fn is_modifiable(name: &str) -> bool {
    !name.starts_with(':') && !name.eq_ignore_ascii_case("host")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;
    use envoy_types::pb::google::protobuf::BoolValue;

    fn header(key: &str, append: Option<bool>, action: i32) -> core::HeaderValueOption {
        core::HeaderValueOption {
            header: Some(core::HeaderValue { key: key.into(), value: "v".into(), ..Default::default() }),
            append: append.map(|value| BoolValue { value }),
            append_action: action,
            ..Default::default()
        }
    }

    #[test]
    fn appending_is_the_default_and_the_old_flag_still_works() {
        let action = |message| HeaderValueOption::decode(&mut Context::default(), &message).unwrap().append_action;
        assert_eq!(action(header("a", None, 0)), AppendAction::AppendIfExistsOrAdd);
        assert_eq!(action(header("a", Some(true), 0)), AppendAction::AppendIfExistsOrAdd);
        assert_eq!(action(header("a", Some(false), 0)), AppendAction::OverwriteIfExistsOrAdd);
        assert_eq!(action(header("a", None, 3)), AppendAction::OverwriteIfExists);
    }

    #[test]
    fn append_and_append_action_exclude_each_other() {
        let result = Context::default().run(|cx| HeaderValueOption::decode(cx, &header("a", Some(true), 1)));
        assert_eq!(errors(result), ["Both append and append_action are set and it's not allowed"]);
    }

    #[test]
    fn pseudo_headers_and_host_are_out_of_reach() {
        let add = [header(":path", None, 0), header("X-A", None, 0)];
        let remove = ["Host".to_owned(), "X-B".to_owned()];
        let result = Context::default().run(|cx| Some(HeaderMutations::decode(cx, &add, &remove, &[], &[])));
        assert_eq!(
            errors(result),
            [
                "request_headers_to_add[0].header.key: :-prefixed or host headers may not be modified",
                "request_headers_to_remove[0]: :-prefixed or host headers may not be removed",
            ]
        );
    }
}
