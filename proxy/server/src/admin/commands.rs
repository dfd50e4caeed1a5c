//! The table of admin commands: path, help, whether it changes state, and its handler.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::query::Query;
use super::sources::DrainListeners;
use super::{
    AdminRequest, AdminResponse, AdminSources, certs, clusters, config_dump, csds, home, listeners, logging, runtime,
};
use super::{server_info, stats, xds};

/// What a handler works on.
pub(super) struct Call<'a> {
    pub(super) request: &'a AdminRequest,
    pub(super) query: Query,
    pub(super) sources: &'a dyn AdminSources,
}

/// One command.
pub(super) struct Command {
    pub(super) path: &'static str,
    pub(super) help: &'static str,
    /// Parameters and their help.
    params: &'static [(&'static str, &'static str)],
    /// Changes the server's state and therefore needs POST.
    pub(super) mutates: bool,
    pub(super) handler: fn(&Call<'_>) -> AdminResponse,
}

const fn show(path: &'static str, help: &'static str, handler: fn(&Call<'_>) -> AdminResponse) -> Command {
    Command { path, help, params: &[], mutates: false, handler }
}

const fn change(path: &'static str, help: &'static str, handler: fn(&Call<'_>) -> AdminResponse) -> Command {
    Command { path, help, params: &[], mutates: true, handler }
}

impl Command {
    const fn with(mut self, params: &'static [(&'static str, &'static str)]) -> Self {
        self.params = params;
        self
    }
}

/// All commands, in the order of the help.
pub(super) const COMMANDS: &[Command] = &[
    show("/", "this interface as a page", home::page),
    change("/allocprofiler", "allocation profiler; not in this build", |_| absent("allocation profiler"))
        .with(&[("enable", "y or n")]),
    show("/certs", "certificates in use, and when they expire", certs::certs),
    show("/clusters", "clusters and their hosts", clusters::clusters)
        .with(&[("format", "text or json"), ("filter", "only clusters whose name this regex is found in")]),
    show("/config_dump", "the configuration in use", config_dump::config_dump).with(&[
        ("resource", "only this repeated field, for example dynamic_listeners"),
        ("mask", "only these fields (a field mask); with resource, of each of its elements"),
        ("name_regex", "only resources with a name that this regex matches as a whole"),
        ("include_eds", "the endpoints, too"),
    ]),
    show("/contention", "mutex contention", |_| {
        AdminResponse::text(
            200,
            "Mutex contention tracing is not enabled. To enable, run Envoy with flag --enable-mutex-tracing.",
        )
    }),
    change("/cpuprofiler", "CPU profiler; not in this build", |_| absent("cpu profiler")).with(&[("enable", "y or n")]),
    change("/drain_listeners", "drain the listeners", drain_listeners).with(&[
        ("graceful", "let connections end over the drain time before the listeners close"),
        ("skip_exit", "drain connections, but leave the listeners open"),
        ("inboundonly", "only listeners with traffic_direction INBOUND"),
    ]),
    change("/healthcheck/fail", "fail health checks from now on", |call| {
        call.sources.fail_health_check(true);
        AdminResponse::ok()
    }),
    change("/healthcheck/ok", "pass health checks again", |call| {
        call.sources.fail_health_check(false);
        AdminResponse::ok()
    }),
    show("/heap_dump", "heap dump; not in this build", |_| absent("heap dump")),
    change("/heapprofiler", "heap profiler; not in this build", |_| absent("heap profiler"))
        .with(&[("enable", "y or n")]),
    show("/help", "this list", |_| AdminResponse::text(200, help())),
    show("/hot_restart_version", "what a process must speak to take over from this one", |call| {
        AdminResponse::text(200, call.sources.hot_restart_version())
    }),
    show("/init_dump", "what initialization still waits for", init_dump)
        .with(&[("mask", "only this component, for example listener")]),
    show("/listeners", "listeners and their addresses", listeners::listeners).with(&[("format", "text or json")]),
    change("/logging", "show or set log levels", logging::logging).with(&[
        ("paths", "several loggers: name:level,name:level"),
        ("group", "loggers by pattern; needs fine-grain logging, which this build has not"),
        ("level", "all loggers: trace, debug, info, warning, error, critical or off"),
    ]),
    show("/memory", "memory in use", memory),
    show("/memory/tcmalloc", "allocator statistics; not in this build", |_| absent("TCMalloc stats")),
    show("/peak_heap_dump", "heap dump at its peak; not in this build", |_| absent("peak heap dump")),
    change("/quitquitquit", "stop the server", |call| {
        call.sources.quit();
        AdminResponse::ok()
    }),
    show("/ready", "the server's state; status 200 if LIVE, else 503", server_info::ready),
    change("/reopen_logs", "open the access logs anew", |call| {
        call.sources.reopen_logs();
        AdminResponse::ok()
    }),
    change("/reset_counters", "set all counters to zero", |call| {
        call.sources.stats().reset_counters();
        AdminResponse::ok()
    }),
    show("/runtime", "runtime values by layer", runtime::runtime),
    change("/runtime_modify", "set values in the admin layer: ?key=value; an empty value removes one", runtime::modify),
    show("/server_info", "version, state, options and node", server_info::server_info),
    show("/stats", "stats", stats::stats).with(&[
        ("usedonly", "only stats that were ever written"),
        ("filter", "only stats whose name this regex is found in"),
        ("invert_filter", "only stats whose name it is not found in"),
        ("format", "text, json, prometheus or html"),
        ("type", "All, Counters, Gauges, Histograms or TextReadouts"),
        ("histogram_buckets", "cumulative, disjoint, detailed or summary"),
        ("prom_protobuf", "with format=prometheus: in protobuf, as for a request that accepts it"),
    ]),
    show("/stats/prometheus", "stats for Prometheus", stats::prometheus).with(&[
        ("usedonly", "only stats that were ever written"),
        ("text_readouts", "text readouts as gauges with value 0, too"),
        ("filter", "only stats whose name this regex is found in"),
        ("invert_filter", "only stats whose name it is not found in"),
        ("histogram_buckets", "cumulative or summary; prometheusnative in protobuf"),
        ("native_histogram_max_buckets", "how many buckets a native histogram has at most; 20 by default"),
        ("prom_protobuf", "in protobuf, as for a request that accepts it"),
    ]),
    show("/stats/recentlookups", "recent stat-name lookups; always none", |_| {
        AdminResponse::text(
            200,
            "Lookup tracking is not enabled. Use /stats/recentlookups/enable to enable.\n\ntotal: 0\n",
        )
    }),
    change("/stats/recentlookups/clear", "accepted, no effect", |_| AdminResponse::ok()),
    change("/stats/recentlookups/disable", "accepted, no effect", |_| AdminResponse::ok()),
    change("/stats/recentlookups/enable", "accepted, no effect: stat names are not looked up", |_| AdminResponse::ok()),
    change("/v3/discovery:client_status", "client status discovery (CSDS), as JSON; gRPC is served too", csds::rest),
    show(
        "/xds",
        "every fetched resource: version, when it was asked for, received, taken or refused, and why",
        xds::xds,
    )
    .with(&[("format", "text or json")]),
];

/// The command at this path.
pub(super) fn find(path: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.path == path)
}

/// The list of commands, in Envoy's layout.
pub(super) fn help() -> String {
    let mut out = String::from("admin commands are:\n");
    for command in COMMANDS {
        let post = if command.mutates { " (POST)" } else { "" };
        let _ = writeln!(out, "  {}{post}: {}", command.path, command.help);
        for (name, help) in command.params {
            let _ = writeln!(out, "      {name}: {help}");
        }
    }
    out
}

fn absent(what: &str) -> AdminResponse {
    AdminResponse::text(501, format!("The current build does not support {what}"))
}

fn drain_listeners(call: &Call<'_>) -> AdminResponse {
    call.sources.drain_listeners(DrainListeners {
        graceful: call.query.has("graceful"),
        skip_exit: call.query.has("skip_exit"),
        inbound_only: call.query.has("inboundonly"),
    });
    AdminResponse::ok()
}

fn memory(call: &Call<'_>) -> AdminResponse {
    let memory = call.sources.memory();
    let text = |bytes: u64| Value::from(bytes.to_string());
    AdminResponse::json(&json!({
        "allocated": text(memory.allocated),
        "heap_size": text(memory.heap_size),
        "pageheap_unmapped": text(memory.pageheap_unmapped),
        "pageheap_free": text(memory.pageheap_free),
        "total_thread_cache": text(memory.total_thread_cache),
        "total_physical_bytes": text(memory.total_physical_bytes),
    }))
}

fn init_dump(call: &Call<'_>) -> AdminResponse {
    let mask = call.query.get("mask");
    let unready = call.sources.unready_targets();
    let wanted = unready.iter().filter(|one| mask.is_none_or(|mask| mask.split(',').any(|part| part == one.component)));
    let dumps: Vec<_> = wanted.map(|one| json!({"name": one.name, "target_names": one.targets})).collect();
    let mut out = Map::new();
    if !dumps.is_empty() {
        out.insert("unready_targets_dumps".into(), dumps.into());
    }
    AdminResponse::json(&Value::Object(out))
}
