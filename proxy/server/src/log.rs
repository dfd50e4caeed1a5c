//! The process log: Envoy's levels, component names and spdlog patterns over `tracing`.
//!
//! Components are the crates' targets mapped to Envoy's logger names, so that `--component-log-level` and the admin's
//! `/logging` work as agents expect. Levels live in atomics: changing one at run time costs nothing where it is off.

use arc_swap::ArcSwap;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Envoy's default pattern.
pub const DEFAULT_PATTERN: &str = "[%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v";

/// Envoy's levels, lowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// trace
    Trace,
    /// debug
    Debug,
    /// info
    Info,
    /// warning
    Warning,
    /// error
    Error,
    /// critical
    Critical,
    /// off
    Off,
}

const LEVELS: [Level; 7] =
    [Level::Trace, Level::Debug, Level::Info, Level::Warning, Level::Error, Level::Critical, Level::Off];

impl Level {
    /// By Envoy's name; `warn` is `warning`.
    pub fn parse(name: &str) -> Option<Level> {
        if name == "warn" {
            return Some(Level::Warning);
        }
        LEVELS.into_iter().find(|l| l.name() == name)
    }

    /// Envoy's name.
    pub fn name(self) -> &'static str {
        ["trace", "debug", "info", "warning", "error", "critical", "off"][self as usize]
    }

    fn of(level: &tracing::Level) -> Level {
        match *level {
            tracing::Level::TRACE => Level::Trace,
            tracing::Level::DEBUG => Level::Debug,
            tracing::Level::INFO => Level::Info,
            tracing::Level::WARN => Level::Warning,
            tracing::Level::ERROR => Level::Error,
        }
    }
}

/// Envoy's loggers, in its order of output.
const COMPONENTS: &[&str] = &[
    "a2a",
    "admin",
    "ai_protocol_manager",
    "alternate_protocols_cache",
    "aws",
    "assert",
    "backtrace",
    "basic_auth",
    "cache_filter",
    "client",
    "config",
    "connection",
    "conn_handler",
    "compression",
    "credential_injector",
    "decompression",
    "dns",
    "dubbo",
    "envoy_bug",
    "ext_authz",
    "ext_proc",
    "rocketmq",
    "file",
    "filter",
    "forward_proxy",
    "geolocation",
    "grpc",
    "happy_eyeballs",
    "hc",
    "health_checker",
    "http",
    "http2",
    "hystrix",
    "init",
    "io",
    "jwt",
    "json_rpc",
    "kafka",
    "key_value_store",
    "lua",
    "local_rate_limit",
    "main",
    "matcher",
    "mcp",
    "misc",
    "mongo",
    "multi_connection",
    "notification",
    "oauth2",
    "quic",
    "quic_stream",
    "pool",
    "rate_limit_quota",
    "rbac",
    "rds",
    "redis",
    "router",
    "runtime",
    "stats",
    "secret",
    "sse",
    "tap",
    "testing",
    "thrift",
    "tracing",
    "upstream",
    "udp",
    "wasm",
    "websocket",
    "golang",
    "stats_sinks",
    "dynamic_modules",
    "ip_tagging",
];

/// Envoy's logger for a tracing target: a target that is a logger's name is itself.
fn component_of(target: &str) -> usize {
    let name = match target.split("::").next().unwrap_or(target) {
        "nuncio_config" => "config",
        "nuncio_net" => "connection",
        "nuncio_http" => "http",
        "nuncio_upstream" => "upstream",
        "nuncio_extensions" => "filter",
        "nuncio" => "main",
        "h2" => "http2",
        "hickory_resolver" | "hickory_proto" | "hickory_net" => "dns",
        "rustls" | "tokio_rustls" => "connection",
        other => other,
    };
    COMPONENTS.iter().position(|c| *c == name).unwrap_or_else(|| position("misc"))
}

fn position(name: &str) -> usize {
    COMPONENTS.iter().position(|c| *c == name).unwrap_or(0)
}

struct Shared {
    levels: Vec<AtomicU8>,
    pattern: ArcSwap<Vec<Piece>>,
    escape: bool,
    out: Mutex<Box<dyn std::io::Write + Send>>,
}

/// Handle on the log, for the admin interface.
#[derive(Clone)]
pub struct Log(Arc<Shared>);

impl Log {
    /// Makes the log and installs it as the process's subscriber. The second call in a process only returns a handle.
    ///
    /// # Errors
    /// A bad level, component or file, ready to print.
    pub fn install(
        level: &str,
        components: &str,
        pattern: &str,
        escape: bool,
        path: Option<&Path>,
    ) -> Result<Log, String> {
        let out: Box<dyn std::io::Write + Send> = match path {
            None => Box::new(std::io::stderr()),
            Some(path) => Box::new(
                std::fs::OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(path)
                    .map_err(|e| format!("--log-path: cannot open '{}': {e}", path.display()))?,
            ),
        };
        let log = Log(Arc::new(Shared {
            levels: COMPONENTS.iter().map(|_| AtomicU8::new(Level::Info as u8)).collect(),
            pattern: ArcSwap::from_pointee(parse_pattern(pattern)),
            escape,
            out: Mutex::new(out),
        }));
        let parsed = Level::parse(level).ok_or_else(|| bad_level(level))?;
        log.set_all(parsed);
        for pair in components.split(',').filter(|p| !p.is_empty()) {
            let (name, level) = pair
                .split_once(':')
                .filter(|(_, level)| !level.contains(':'))
                .ok_or_else(|| format!("error: component log level not correctly specified '{pair}'"))?;
            let parsed = Level::parse(level).ok_or_else(|| bad_level(level))?;
            if !log.set(name, parsed) {
                return Err(format!("error: invalid component specified '{name}'"));
            }
        }
        // Tests install more than one.
        let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Sink(log.0.clone())));
        Ok(log)
    }

    /// Lines look like this from now on (`application_log_config`).
    pub fn set_pattern(&self, pattern: &str) {
        self.0.pattern.store(Arc::new(parse_pattern(pattern)));
    }

    /// Loggers and their levels, in Envoy's order.
    pub fn levels(&self) -> Vec<(&'static str, &'static str)> {
        let mut seen = BTreeMap::new();
        for (i, name) in COMPONENTS.iter().enumerate() {
            let level = LEVELS[usize::from(self.0.levels[i].load(Ordering::Relaxed)).min(6)];
            seen.entry(*name).or_insert(level.name());
        }
        seen.into_iter().collect()
    }

    /// Sets all loggers.
    pub fn set_all(&self, level: Level) {
        for l in &self.0.levels {
            l.store(level as u8, Ordering::Relaxed);
        }
        tracing::callsite::rebuild_interest_cache();
    }

    /// Sets one logger; false when there is none of that name.
    pub fn set(&self, component: &str, level: Level) -> bool {
        let mut any = false;
        for (i, name) in COMPONENTS.iter().enumerate() {
            if *name == component {
                self.0.levels[i].store(level as u8, Ordering::Relaxed);
                any = true;
            }
        }
        tracing::callsite::rebuild_interest_cache();
        any
    }
}

fn bad_level(level: &str) -> String {
    format!("error: invalid log level specified '{level}'. Use trace, debug, info, warning, error, critical or off")
}

struct Sink(Arc<Shared>);

impl<S: Subscriber> Layer<S> for Sink {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        let level = self.0.levels[component_of(metadata.target())].load(Ordering::Relaxed);
        metadata.is_event() && Level::of(metadata.level()) as u8 >= level
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let meta = event.metadata();
        let mut message = Message(String::new());
        event.record(&mut message);
        let message = if self.0.escape { message.0.escape_default().to_string() } else { message.0 };
        let line = render(
            &self.0.pattern.load(),
            &Line {
                now: jiff::Zoned::now(),
                level: Level::of(meta.level()),
                component: COMPONENTS[component_of(meta.target())],
                file: meta.file().unwrap_or(""),
                line: meta.line().unwrap_or(0),
                message: &message,
            },
        );
        let mut out = self.0.out.lock().unwrap_or_else(PoisonError::into_inner);
        // There is nowhere to report that the log cannot be written.
        let _ = out.write_all(line.as_bytes());
        let _ = out.flush();
    }
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = if field.name() == "message" {
            write!(self.0, "{value:?}")
        } else {
            write!(self.0, " {}={value:?}", field.name())
        };
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Flag(char),
}

/// Envoy adds `%_`, `%j` and `%*`; what is unknown stays as it is written.
fn parse_pattern(pattern: &str) -> Vec<Piece> {
    let mut out = Vec::new();
    let mut text = String::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        match chars.next() {
            Some('%') => text.push('%'),
            Some(flag) => {
                if !text.is_empty() {
                    out.push(Piece::Text(std::mem::take(&mut text)));
                }
                out.push(Piece::Flag(flag));
            }
            None => text.push('%'),
        }
    }
    if !text.is_empty() {
        out.push(Piece::Text(text));
    }
    out
}

struct Line<'a> {
    now: jiff::Zoned,
    level: Level,
    component: &'a str,
    file: &'a str,
    line: u32,
    message: &'a str,
}

fn render(pattern: &[Piece], l: &Line<'_>) -> String {
    let mut out = String::with_capacity(l.message.len() + 80);
    let t = &l.now;
    for piece in pattern {
        let flag = match piece {
            Piece::Text(text) => {
                out.push_str(text);
                continue;
            }
            Piece::Flag(flag) => *flag,
        };
        // Writing to a String cannot fail.
        let _ = match flag {
            'v' => write!(out, "{}", l.message),
            '_' => write!(out, "{}", l.message.escape_default()),
            'j' => {
                let quoted = serde_json::to_string(l.message).unwrap_or_default();
                write!(out, "{}", quoted.trim_matches('"'))
            }
            'l' => write!(out, "{}", l.level.name()),
            'L' => write!(out, "{}", l.level.name()[..1].to_ascii_uppercase()),
            'n' => write!(out, "{}", l.component),
            't' => write!(out, "{}", rustix::thread::gettid().as_raw_nonzero()),
            'P' => write!(out, "{}", std::process::id()),
            'g' => write!(out, "{}", l.file),
            's' => write!(out, "{}", l.file.rsplit('/').next().unwrap_or("")),
            '#' => write!(out, "{}", l.line),
            '@' => write!(out, "{}:{}", l.file, l.line),
            '!' => Ok(()),
            'e' => write!(out, "{:03}", t.millisecond()),
            'f' => write!(out, "{:06}", i32::from(t.millisecond()) * 1000 + i32::from(t.microsecond())),
            'F' => write!(out, "{:09}", t.subsec_nanosecond()),
            'E' => write!(out, "{}", t.timestamp().as_second()),
            'z' => write!(out, "{}", t.strftime("%:z")),
            'T' => write!(out, "{}", t.strftime("%H:%M:%S")),
            'Y' | 'm' | 'd' | 'H' | 'M' | 'S' | 'y' | 'D' | 'b' | 'B' | 'a' | 'A' | 'p' | 'I' | 'R' | 'c' | 'X' => {
                write!(out, "{}", t.strftime(&format!("%{flag}")))
            }
            other => write!(out, "%{other}"),
        };
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(pattern: &str) -> String {
        // Not parsed with its zone: that needs a time zone database, which slim images lack.
        let now = "2026-11-23T01:02:03.456789Z".parse::<jiff::Timestamp>().unwrap().to_zoned(jiff::tz::TimeZone::UTC);
        let l =
            Line { now, level: Level::Warning, component: "main", file: "src/a.rs", line: 7, message: "say \"hi\"\n" };
        render(&parse_pattern(pattern), &l)
    }

    #[test]
    fn envoys_default_pattern_is_understood() {
        let text = line(DEFAULT_PATTERN);
        assert!(text.starts_with("[2026-11-23 01:02:03.456]["), "{text}");
        assert!(text.ends_with("][warning][main] [src/a.rs:7] say \"hi\"\n\n"), "{text}");
    }

    #[test]
    fn json_patterns_escape_the_message() {
        assert_eq!(line("{\"m\":\"%j\",\"l\":\"%l\"}"), "{\"m\":\"say \\\"hi\\\"\\n\",\"l\":\"warning\"}\n");
    }

    #[test]
    fn consuls_pattern_has_a_zone() {
        assert_eq!(line("%Y-%m-%dT%T.%eZ%z [%L]"), "2026-11-23T01:02:03.456Z+00:00 [W]\n");
    }

    #[test]
    fn targets_belong_to_envoys_loggers() {
        assert_eq!(COMPONENTS[component_of("nuncio_upstream::pool")], "upstream");
        assert_eq!(COMPONENTS[component_of("router")], "router");
        assert_eq!(COMPONENTS[component_of("who_knows")], "misc");
    }
}
