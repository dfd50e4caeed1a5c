//! `Http1ProtocolOptions` and `Http2ProtocolOptions`, which listeners and clusters share.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;

use super::{HeaderKeyFormat, Http1Options, Http2Options, StringMatcherEq};
use crate::decode::{Context, bool_value, u32_value, u64_value};
use crate::extensions::type_of;
use crate::matchers::StringMatcher;

impl Http1Options {
    /// `invalid_message` is the listener's `stream_error_on_invalid_http_message`, which counts where this has none.
    pub(crate) fn decode(
        cx: &mut Context,
        message: &core::Http1ProtocolOptions,
        invalid_message: Option<bool>,
    ) -> Option<Self> {
        Some(Http1Options {
            allow_absolute_url: bool_value(&message.allow_absolute_url).unwrap_or(true),
            accept_http_10: message.accept_http_10,
            default_host_for_http_10: message.default_host_for_http_10.as_str().into(),
            header_key_format: cx
                .optional("header_key_format", &message.header_key_format, key_format)
                .unwrap_or_default(),
            enable_trailers: message.enable_trailers,
            allow_chunked_length: message.allow_chunked_length,
            stream_error_on_invalid_http_message: bool_value(&message.override_stream_error_on_invalid_http_message)
                .or(invalid_message),
            send_fully_qualified_url: message.send_fully_qualified_url,
            ignore_http_11_upgrade: cx.each("ignore_http_11_upgrade", &message.ignore_http_11_upgrade, |cx, m| {
                StringMatcher::decode(cx, m).map(StringMatcherEq)
            }),
            allow_custom_methods: message.allow_custom_methods,
        })
    }
}

fn key_format(cx: &mut Context, message: &core::http1_protocol_options::HeaderKeyFormat) -> Option<HeaderKeyFormat> {
    use core::http1_protocol_options::header_key_format::HeaderFormat;
    match message.header_format.as_ref()? {
        HeaderFormat::ProperCaseWords(_) => Some(HeaderKeyFormat::ProperCase),
        HeaderFormat::StatefulFormatter(extension) => {
            let name = type_of(extension);
            if name == "envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig" {
                return Some(HeaderKeyFormat::PreserveCase);
            }
            cx.at("stateful_formatter", |cx| {
                cx.refuse_extension("envoy.http.stateful_header_formatters", &extension.name, name);
            });
            None
        }
    }
}

impl Http2Options {
    /// `invalid_message` as in [`Http1Options::decode`].
    pub(crate) fn decode(
        cx: &mut Context,
        message: &core::Http2ProtocolOptions,
        invalid_message: Option<bool>,
    ) -> Option<Self> {
        let default = Http2Options::default();
        let or = |value: &Option<_>, default| u32_value(value).unwrap_or(default);
        let mut options = Http2Options {
            hpack_table_size: or(&message.hpack_table_size, default.hpack_table_size),
            max_concurrent_streams: or(&message.max_concurrent_streams, default.max_concurrent_streams),
            initial_stream_window_size: or(&message.initial_stream_window_size, default.initial_stream_window_size),
            initial_connection_window_size: or(
                &message.initial_connection_window_size,
                default.initial_connection_window_size,
            ),
            allow_connect: message.allow_connect,
            max_outbound_frames: or(&message.max_outbound_frames, default.max_outbound_frames),
            max_outbound_control_frames: or(&message.max_outbound_control_frames, default.max_outbound_control_frames),
            max_consecutive_inbound_frames_with_empty_payload: or(
                &message.max_consecutive_inbound_frames_with_empty_payload,
                default.max_consecutive_inbound_frames_with_empty_payload,
            ),
            max_inbound_priority_frames_per_stream: or(
                &message.max_inbound_priority_frames_per_stream,
                default.max_inbound_priority_frames_per_stream,
            ),
            max_inbound_window_update_frames_per_data_frame_sent: or(
                &message.max_inbound_window_update_frames_per_data_frame_sent,
                default.max_inbound_window_update_frames_per_data_frame_sent,
            ),
            stream_error_on_invalid_http_message: bool_value(&message.override_stream_error_on_invalid_http_message)
                .or(invalid_message)
                .or(message.stream_error_on_invalid_http_messaging.then_some(true)),
            stream_reset_burst: u64_value(&message.stream_reset_burst).unwrap_or(default.stream_reset_burst),
            stream_reset_rate: u64_value(&message.stream_reset_rate).unwrap_or(default.stream_reset_rate),
            max_header_field_size_kb: u32_value(&message.max_header_field_size_kb),
            disallow_obs_text: bool_value(&message.disallow_obs_text).unwrap_or(false),
            ..default
        };
        cx.at("custom_settings_parameters", |cx| custom_settings(cx, message, &mut options));
        if let Some(keepalive) = &message.connection_keepalive {
            cx.at("connection_keepalive", |cx| {
                options.keepalive_interval = cx.duration("interval", &keepalive.interval);
                options.keepalive_timeout =
                    cx.duration("timeout", &keepalive.timeout).unwrap_or(Duration::from_secs(20));
                if let Some(jitter) = &keepalive.interval_jitter {
                    options.keepalive_jitter = (jitter.value.clamp(0.0, 100.0) * 10.0) as u32;
                }
                options.keepalive_idle_interval =
                    cx.timeout("connection_idle_interval", &keepalive.connection_idle_interval, None);
            });
        }
        Some(options)
    }
}

/// Settings by number, in Envoy's words where it refuses them. Those that have a field of their own become that.
fn custom_settings(cx: &mut Context, message: &core::Http2ProtocolOptions, options: &mut Http2Options) {
    let mut chosen: BTreeMap<u16, u32> = BTreeMap::new();
    let (mut inconsistent, mut collisions) = (BTreeSet::new(), BTreeSet::new());
    for parameter in &message.custom_settings_parameters {
        // Bounded by the constraint on the field.
        let identifier = u32_value(&parameter.identifier).unwrap_or(0) as u16;
        let value = u32_value(&parameter.value).unwrap_or(0);
        let named = match identifier {
            1 => message.hpack_table_size.is_some().then_some("hpack_table_size"),
            2 if value != 0 => {
                cx.error("server push is not supported by Envoy and can not be enabled via a SETTINGS parameter.");
                None
            }
            3 => message.max_concurrent_streams.is_some().then_some("max_concurrent_streams"),
            4 => message.initial_stream_window_size.is_some().then_some("initial_stream_window_size"),
            8 => {
                cx.error("the \"allow_connect\" SETTINGS parameter must only be configured through the named field");
                None
            }
            _ => None,
        };
        collisions.extend(named);
        if chosen.insert(identifier, value).is_some_and(|before| before != value) {
            inconsistent.insert(format!("0x{identifier:02x}"));
        }
    }
    let list = |names: Vec<String>| names.join(",");
    if !inconsistent.is_empty() {
        let identifiers = list(inconsistent.into_iter().collect());
        cx.error(format!("inconsistent HTTP/2 custom SETTINGS parameter(s) detected; identifiers = {{{identifiers}}}"));
    }
    if !collisions.is_empty() {
        let names = list(collisions.into_iter().map(str::to_owned).collect());
        cx.error(format!(
            "the {{{names}}} HTTP/2 SETTINGS parameter(s) can not be configured through both named and custom parameters"
        ));
    }
    for (identifier, field) in [
        (1, &mut options.hpack_table_size),
        (3, &mut options.max_concurrent_streams),
        (4, &mut options.initial_stream_window_size),
    ] {
        *field = chosen.remove(&identifier).unwrap_or(*field);
    }
    options.custom_settings = chosen.into_iter().collect();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;
    use envoy_types::pb::google::protobuf as google;

    #[test]
    fn empty_options_are_the_defaults() {
        let cx = &mut Context::default();
        assert_eq!(Http1Options::decode(cx, &Default::default(), None), Some(Http1Options::default()));
        assert_eq!(Http2Options::decode(cx, &Default::default(), None), Some(Http2Options::default()));
    }

    #[test]
    fn the_listeners_answer_to_invalid_messages_counts_where_the_protocol_has_none() {
        let cx = &mut Context::default();
        let own = core::Http1ProtocolOptions {
            override_stream_error_on_invalid_http_message: Some(google::BoolValue { value: false }),
            ..Default::default()
        };
        let decoded = |message| {
            Http1Options::decode(&mut Context::default(), message, Some(true))
                .unwrap()
                .stream_error_on_invalid_http_message
        };
        assert_eq!(decoded(&own), Some(false));
        assert_eq!(decoded(&core::Http1ProtocolOptions::default()), Some(true));
        let old = core::Http2ProtocolOptions { stream_error_on_invalid_http_messaging: true, ..Default::default() };
        let old = Http2Options::decode(cx, &old, None).unwrap();
        assert_eq!(old.stream_error_on_invalid_http_message, Some(true));
    }

    #[test]
    fn header_formatters_other_than_preserve_case_are_errors() {
        use super::core::http1_protocol_options::{HeaderKeyFormat as Format, header_key_format::HeaderFormat};
        let with = |name: &str| core::Http1ProtocolOptions {
            header_key_format: Some(Format {
                header_format: Some(HeaderFormat::StatefulFormatter(core::TypedExtensionConfig {
                    name: "f".into(),
                    typed_config: Some(google::Any { type_url: format!("x/{name}"), value: Vec::new() }),
                })),
            }),
            ..Default::default()
        };
        let preserve = with("envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig");
        let preserve = Http1Options::decode(&mut Context::default(), &preserve, None).unwrap();
        assert_eq!(preserve.header_key_format, HeaderKeyFormat::PreserveCase);
        let result = Context::default().run(|cx| Http1Options::decode(cx, &with("Other"), None));
        assert_eq!(
            errors(result),
            [
                "header_key_format.stateful_formatter: Didn't find a registered implementation for 'f' with type URL: 'Other'"
            ]
        );
    }

    #[test]
    fn settings_by_number_are_those_of_their_fields_or_sent_as_they_are() {
        let parameters = |list: &[(u32, u32)]| {
            let parameter = |(identifier, value): &(u32, u32)| core::http2_protocol_options::SettingsParameter {
                identifier: Some(google::UInt32Value { value: *identifier }),
                value: Some(google::UInt32Value { value: *value }),
            };
            core::Http2ProtocolOptions {
                custom_settings_parameters: list.iter().map(parameter).collect(),
                ..Default::default()
            }
        };
        let decode =
            |message: &core::Http2ProtocolOptions| Context::default().run(|cx| Http2Options::decode(cx, message, None));
        let options = decode(&parameters(&[(3, 7), (0x10, 5), (2, 0), (0x10, 5)])).unwrap();
        assert_eq!(options.max_concurrent_streams, 7);
        assert_eq!(*options.custom_settings, [(2, 0), (0x10, 5)]);
        let at = |text: &str| vec![format!("custom_settings_parameters: {text}")];
        let named = core::Http2ProtocolOptions {
            max_concurrent_streams: Some(google::UInt32Value { value: 8 }),
            ..parameters(&[(3, 7)])
        };
        for (message, expected) in [
            (
                parameters(&[(1, 5), (1, 6)]),
                "inconsistent HTTP/2 custom SETTINGS parameter(s) detected; identifiers = {0x01}",
            ),
            (
                parameters(&[(2, 1)]),
                "server push is not supported by Envoy and can not be enabled via a SETTINGS parameter.",
            ),
            (
                parameters(&[(8, 1)]),
                "the \"allow_connect\" SETTINGS parameter must only be configured through the named field",
            ),
            (
                named,
                "the {max_concurrent_streams} HTTP/2 SETTINGS parameter(s) can not be configured through both named and custom parameters",
            ),
        ] {
            assert_eq!(errors(decode(&message)), at(expected));
        }
    }

    #[test]
    fn keepalive_has_a_timeout_of_20_seconds() {
        let keepalive =
            core::KeepaliveSettings { interval: Some(google::Duration { seconds: 5, nanos: 0 }), ..Default::default() };
        let message = core::Http2ProtocolOptions { connection_keepalive: Some(keepalive), ..Default::default() };
        let options = Http2Options::decode(&mut Context::default(), &message, None).unwrap();
        assert_eq!(options.keepalive_interval, Some(Duration::from_secs(5)));
        assert_eq!(options.keepalive_timeout, Duration::from_secs(20));
    }
}
