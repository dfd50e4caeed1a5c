//! The overload manager (`envoy.config.overload.v3.OverloadManager`), checked as Envoy checks it.
//!
//! Nothing of it has an effect yet; what Envoy would refuse is refused all the same. That its resource monitors exist is seen
//! to by the inspection of the ingest.

use envoy_types::pb::envoy::config::overload::v3 as pb;
use rustc_hash::FxHashSet;

use crate::decode::{Context, type_name};

const REDUCE_TIMEOUTS: &str = "envoy.overload_actions.reduce_timeouts";
const SHRINK_HEAP: &str = "envoy.overload_actions.shrink_heap";
const RESET_STREAMS: &str = "envoy.overload_actions.reset_high_memory_stream";

/// All actions.
const ACTIONS: [&str; 8] = [
    "envoy.overload_actions.close_idle_http_connections",
    "envoy.overload_actions.disable_http_keepalive",
    REDUCE_TIMEOUTS,
    "envoy.overload_actions.reject_incoming_connections",
    RESET_STREAMS,
    SHRINK_HEAP,
    "envoy.overload_actions.stop_accepting_connections",
    "envoy.overload_actions.stop_accepting_requests",
];

/// A monitor that is asked, and that no load-shed point hears of.
const PROACTIVE: &str = "envoy.resource_monitors.global_downstream_max_connections";

/// Reports what is wrong with the message at the current path.
pub(crate) fn check(cx: &mut Context, message: &pb::OverloadManager) {
    cx.duration("refresh_interval", &message.refresh_interval);
    let mut monitors = FxHashSet::default();
    cx.each("resource_monitors", &message.resource_monitors, |cx, monitor| {
        if !monitors.insert(monitor.name.as_str()) {
            cx.error_at("name", format!("Duplicate resource monitor {}", monitor.name));
        }
        Some(())
    });
    let mut seen = FxHashSet::default();
    cx.each("actions", &message.actions, |cx, action| {
        let name = action.name.as_str();
        if !ACTIONS.contains(&name) {
            cx.error_at("name", format!("Unknown Overload Manager Action {name}"));
        } else if !seen.insert(name) {
            cx.error_at("name", format!("Duplicate overload action {name}"));
        } else if name == RESET_STREAMS && message.buffer_factory_config.is_none() {
            cx.error(format!("Overload action \"{name}\" requires buffer_factory_config."));
        }
        typed_config(cx, action);
        let whose = format!("overload action {name}");
        triggers(cx, &action.triggers, &monitors, &whose, &whose);
        Some(())
    });
    monitors.remove(PROACTIVE);
    let mut seen = FxHashSet::default();
    cx.each("loadshed_points", &message.loadshed_points, |cx, point| {
        let name = point.name.as_str();
        if !seen.insert(name) {
            cx.error_at("name", format!("Duplicate loadshed point {name}"));
        }
        triggers(cx, &point.triggers, &monitors, &format!("LoadShedPoint {name}"), &format!("loadshed point {name}"));
        Some(())
    });
}

/// Some actions have a configuration of their own.
fn typed_config(cx: &mut Context, action: &pb::OverloadAction) {
    let name = action.name.as_str();
    let wanted = match name {
        REDUCE_TIMEOUTS => "envoy.config.overload.v3.ScaleTimersOverloadActionConfig",
        SHRINK_HEAP => "envoy.config.overload.v3.ShrinkHeapConfig",
        _ => "",
    };
    let found = action.typed_config.as_ref().map(|any| (any, type_name(&any.type_url)));
    match found {
        None if name == REDUCE_TIMEOUTS => cx.error(format!("Overload action \"{name}\" requires typed_config")),
        None => {}
        Some(_) if wanted.is_empty() => {
            let text = format!("Overload action \"{name}\" has an unexpected value for the typed_config field");
            cx.error_at("typed_config", text);
        }
        Some((_, found)) if found != wanted => {
            cx.error_at("typed_config", format!("typed_config resolves to {found} instead of {wanted}"));
        }
        Some((any, _)) if name == REDUCE_TIMEOUTS => cx.at("typed_config", |cx| {
            let Some(config) = cx.unpack::<pb::ScaleTimersOverloadActionConfig>(any) else { return };
            let mut seen = FxHashSet::default();
            cx.each("timer_scale_factors", &config.timer_scale_factors, |cx, factor| {
                if !seen.insert(factor.timer) {
                    let timer = factor.timer().as_str_name();
                    cx.error_at("timer", format!("Found duplicate entry for timer type {timer}"));
                }
                Some(())
            });
        }),
        Some(_) => {}
    }
}

/// `twice` and `unknown` say whose triggers they are, each in its error.
fn triggers(cx: &mut Context, messages: &[pb::Trigger], monitors: &FxHashSet<&str>, twice: &str, unknown: &str) {
    let mut seen = FxHashSet::default();
    cx.each("triggers", messages, |cx, trigger| {
        let name = trigger.name.as_str();
        if !monitors.contains(name) {
            cx.error_at("name", format!("Unknown trigger resource {name} for {unknown}"));
        } else if !seen.insert(name) {
            cx.error_at("name", format!("Duplicate trigger resource for {twice}"));
        }
        if let Some(pb::trigger::TriggerOneof::Scaled(scaled)) = &trigger.trigger_oneof
            && scaled.scaling_threshold >= scaled.saturation_threshold
        {
            cx.error_at("scaled", "scaling_threshold must be less than saturation_threshold");
        }
        Some(())
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;
    use envoy_types::pb::google::protobuf::Any;
    use prost::Message as _;

    fn trigger(name: &str, scaled: Option<(f64, f64)>) -> pb::Trigger {
        use pb::trigger::TriggerOneof;
        let kind = match scaled {
            Some((scaling_threshold, saturation_threshold)) => {
                TriggerOneof::Scaled(pb::ScaledTrigger { scaling_threshold, saturation_threshold })
            }
            None => TriggerOneof::Threshold(pb::ThresholdTrigger { value: 0.5 }),
        };
        pb::Trigger { name: name.into(), trigger_oneof: Some(kind) }
    }

    fn action(name: &str, triggers: Vec<pb::Trigger>) -> pb::OverloadAction {
        pb::OverloadAction { name: format!("envoy.overload_actions.{name}"), triggers, typed_config: None }
    }

    fn found(message: pb::OverloadManager) -> Vec<String> {
        let monitor = |name: &str| pb::ResourceMonitor { name: name.into(), ..Default::default() };
        let monitors = vec![monitor("m"), monitor(PROACTIVE)];
        let message = pb::OverloadManager { resource_monitors: monitors, ..message };
        let checked = Context::default().run(|cx| {
            check(cx, &message);
            Some(())
        });
        if checked.is_ok() { Vec::new() } else { errors(checked) }
    }

    #[test]
    fn actions_and_points_are_held_against_the_monitors() {
        let both = || vec![trigger("m", None), trigger(PROACTIVE, None)];
        let actions = |actions| pb::OverloadManager { actions, ..Default::default() };
        assert_eq!(found(actions(vec![action("stop_accepting_requests", both())])), Vec::<String>::new());
        let wrong = vec![
            action("nope", vec![trigger("m", None), trigger("m", None)]),
            action("stop_accepting_requests", vec![trigger("x", None)]),
            action("stop_accepting_requests", vec![trigger("m", Some((0.5, 0.5)))]),
            action("reset_high_memory_stream", vec![trigger("m", Some((0.4, 0.5)))]),
        ];
        assert_eq!(
            found(actions(wrong)),
            [
                "actions[0].name: Unknown Overload Manager Action envoy.overload_actions.nope",
                "actions[0].triggers[1].name: Duplicate trigger resource for overload action envoy.overload_actions.nope",
                "actions[1].triggers[0].name: Unknown trigger resource x for overload action envoy.overload_actions.stop_accepting_requests",
                "actions[2].name: Duplicate overload action envoy.overload_actions.stop_accepting_requests",
                "actions[2].triggers[0].scaled: scaling_threshold must be less than saturation_threshold",
                "actions[3]: Overload action \"envoy.overload_actions.reset_high_memory_stream\" requires buffer_factory_config.",
            ]
        );
        let point = |triggers| pb::LoadShedPoint { name: "p".into(), triggers };
        let points = vec![point(both()), point(vec![trigger("m", None), trigger("m", None)])];
        assert_eq!(
            found(pb::OverloadManager { loadshed_points: points, ..Default::default() }),
            [
                format!(
                    "loadshed_points[0].triggers[1].name: Unknown trigger resource {PROACTIVE} for loadshed point p"
                ),
                "loadshed_points[1].name: Duplicate loadshed point p".to_owned(),
                "loadshed_points[1].triggers[1].name: Duplicate trigger resource for LoadShedPoint p".to_owned(),
            ]
        );
    }

    #[test]
    fn only_some_actions_are_configured() {
        let typed = |name: &str, kind: &str, value| {
            let any = Any { type_url: format!("type.googleapis.com/envoy.config.overload.v3.{kind}"), value };
            let action = pb::OverloadAction { typed_config: Some(any), ..action(name, vec![trigger("m", None)]) };
            found(pb::OverloadManager { actions: vec![action], ..Default::default() })
        };
        let factor = pb::scale_timers_overload_action_config::ScaleTimer { timer: 1, overload_adjust: None };
        let twice = pb::ScaleTimersOverloadActionConfig { timer_scale_factors: vec![factor, factor] };
        let timers = "ScaleTimersOverloadActionConfig";
        assert_eq!(typed("shrink_heap", "ShrinkHeapConfig", Vec::new()), Vec::<String>::new());
        assert_eq!(
            typed("reduce_timeouts", timers, twice.encode_to_vec()),
            [
                "actions[0].typed_config.timer_scale_factors[1].timer: Found duplicate entry for timer type HTTP_DOWNSTREAM_CONNECTION_IDLE"
            ]
        );
        assert_eq!(
            typed("reduce_timeouts", "ShrinkHeapConfig", Vec::new()),
            [
                "actions[0].typed_config: typed_config resolves to envoy.config.overload.v3.ShrinkHeapConfig instead of envoy.config.overload.v3.ScaleTimersOverloadActionConfig"
            ]
        );
        assert_eq!(
            typed("stop_accepting_requests", timers, Vec::new()),
            [
                "actions[0].typed_config: Overload action \"envoy.overload_actions.stop_accepting_requests\" has an unexpected value for the typed_config field"
            ]
        );
        let plain = pb::OverloadManager {
            actions: vec![action("reduce_timeouts", vec![trigger("m", None)])],
            ..Default::default()
        };
        assert_eq!(
            found(plain),
            ["actions[0]: Overload action \"envoy.overload_actions.reduce_timeouts\" requires typed_config"]
        );
    }
}
