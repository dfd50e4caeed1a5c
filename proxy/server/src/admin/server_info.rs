//! `/ready` and `/server_info`.

use std::time::Duration;

use nuncio_config::descriptors;
use prost_reflect::{DynamicMessage, SerializeOptions};
use serde_json::{Value, json};

use super::AdminResponse;
use super::commands::Call;
use super::sources::{CommandLineOptions, ServerState};

/// `/ready`.
pub(super) fn ready(call: &Call<'_>) -> AdminResponse {
    let state = call.sources.server_state();
    let status = if state == ServerState::Live { 200 } else { 503 };
    AdminResponse::text(status, format!("{}\n", state.as_str()))
}

/// `/server_info`, with every field, also those that have their default.
pub(super) fn server_info(call: &Call<'_>) -> AdminResponse {
    let info = call.sources.server_info();
    AdminResponse::json(&json!({
        "version": info.version,
        "state": call.sources.server_state().as_str(),
        "uptime_current_epoch": seconds(Duration::from_secs(info.uptime_current_epoch.as_secs())),
        "uptime_all_epochs": seconds(Duration::from_secs(info.uptime_all_epochs.as_secs())),
        "hot_restart_version": call.sources.hot_restart_version(),
        "command_line_options": options_json(&info.options),
        "node": with_defaults("envoy.config.core.v3.Node", &info.node),
        "hot_restart_initializing": false,
    }))
}

/// A message as JSON with its defaults.
fn with_defaults(message: &str, bytes: &[u8]) -> Value {
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .skip_default_fields(false)
        .stringify_64_bit_integers(true)
        .use_enum_numbers(false);
    let decoded = descriptors::message(message).and_then(|descriptor| DynamicMessage::decode(descriptor, bytes).ok());
    decoded
        .and_then(|message| message.serialize_with_options(serde_json::value::Serializer, &options).ok())
        .unwrap_or_else(|| json!({}))
}

/// A protobuf duration: seconds with no, three, six or nine digits of a fraction.
fn seconds(duration: Duration) -> String {
    let (whole, nanos) = (duration.as_secs(), duration.subsec_nanos());
    match nanos {
        0 => format!("{whole}s"),
        _ if nanos % 1_000_000 == 0 => format!("{whole}.{:03}s", nanos / 1_000_000),
        _ if nanos % 1_000 == 0 => format!("{whole}.{:06}s", nanos / 1_000),
        _ => format!("{whole}.{nanos:09}s"),
    }
}

fn options_json(options: &CommandLineOptions) -> Value {
    json!({
        "base_id": options.base_id.to_string(),
        "concurrency": options.concurrency,
        "config_path": options.config_path,
        "config_yaml": options.config_yaml,
        "allow_unknown_static_fields": options.allow_unknown_static_fields,
        "admin_address_path": options.admin_address_path,
        "local_address_ip_version": options.local_address_ip_version,
        "log_level": options.log_level,
        "component_log_level": options.component_log_level,
        "log_format": options.log_format,
        "log_path": options.log_path,
        "service_cluster": options.service_cluster,
        "service_node": options.service_node,
        "service_zone": options.service_zone,
        "file_flush_interval": seconds(options.file_flush_interval),
        "drain_time": seconds(options.drain_time),
        "parent_shutdown_time": seconds(options.parent_shutdown_time),
        "mode": options.mode,
        "disable_hot_restart": options.disable_hot_restart,
        "enable_mutex_tracing": options.enable_mutex_tracing,
        "restart_epoch": options.restart_epoch,
        "cpuset_threads": options.cpuset_threads,
        "reject_unknown_dynamic_fields": options.reject_unknown_dynamic_fields,
        "log_format_escaped": options.log_format_escaped,
        "disabled_extensions": options.disabled_extensions,
        "ignore_unknown_dynamic_fields": options.ignore_unknown_dynamic_fields,
        "use_dynamic_base_id": options.use_dynamic_base_id,
        "base_id_path": options.base_id_path,
        "drain_strategy": options.drain_strategy,
        "enable_fine_grain_logging": options.enable_fine_grain_logging,
        "socket_path": options.socket_path,
        "socket_mode": options.socket_mode,
        "enable_core_dump": options.enable_core_dump,
        "stats_tag": options.stats_tag,
        "skip_hot_restart_on_no_parent": options.skip_hot_restart_on_no_parent,
        "skip_hot_restart_parent_stats": options.skip_hot_restart_parent_stats,
        "skip_deprecated_logs": options.skip_deprecated_logs,
        "file_flush_min_size": options.file_flush_min_size,
        "log_stacktrace_single_entry": options.log_stacktrace_single_entry,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{FakeSources, get, text_of};
    use super::*;

    #[test]
    fn server_info_has_envoys_fields_in_envoys_order() {
        let sources = FakeSources::default();
        let response = get(&sources, "/server_info?x");
        assert_eq!((response.status, response.content_type), (200, super::super::JSON));
        assert_eq!(text_of(&response), include_str!("testdata/server_info.json"));
    }

    #[test]
    fn durations_have_as_many_digits_as_they_need() {
        let shown = [(600, 0), (0, 250_000_000), (1, 1_000), (0, 5)].map(|(s, n)| seconds(Duration::new(s, n)));
        assert_eq!(shown, ["600s", "0.250s", "1.000001s", "0.000000005s"]);
    }
}
