//! The command line: every flag of Envoy 1.40, with its defaults, and the few of our own.
//!
//! Envoy's parser takes a flag and its value from one argument when a space separates them (Contour's manifests rely on
//! it); so does this one. `--flag=value`, which Envoy refuses, is accepted as well.

use clap::{ArgAction, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// The Envoy version whose interface is spoken.
pub const ENVOY_VERSION: &str = "1.40.0";

/// Command line of the proxy.
#[derive(Parser, Debug, Clone)]
#[command(
    name = "nuncio",
    about = "An L7 proxy data plane that takes Envoy's place: same bootstrap, flags, admin interface, stats and logs.",
    after_help = "Start with `nuncio demo`, or `nuncio -c envoy.yaml`. `nuncio --mode validate -c envoy.yaml` checks a file, \
                  `nuncio xds-check -c envoy.yaml` what a control plane sends.",
    disable_version_flag = true,
    args_override_self = true
)]
pub struct Options {
    /// Path of the bootstrap: .yaml, .yml, .json, .pb, .pb_text, or any name (read as YAML or JSON). A FIFO works.
    #[arg(short = 'c', long, value_name = "FILE")]
    pub config_path: Option<PathBuf>,
    /// Bootstrap text in YAML or JSON, merged over the file.
    #[arg(long, value_name = "TEXT")]
    pub config_yaml: Option<String>,
    /// What to do.
    #[arg(long, value_enum, default_value_t = Mode::Serve)]
    pub mode: Mode,
    /// Form of configuration errors: text, or json for machines.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// Worker threads; one per core by default.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub concurrency: Option<u32>,
    /// Take the number of workers from the CPU set of the process. It always is; the flag changes nothing.
    #[arg(long)]
    pub cpuset_threads: bool,
    /// trace, debug, info, warning (warn), error, critical or off.
    #[arg(short = 'l', long, value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
    /// Levels of single components: `upstream:debug,config:trace`.
    #[arg(long, value_name = "LIST", default_value = "")]
    pub component_log_level: String,
    /// Log pattern in spdlog's syntax.
    #[arg(long, value_name = "PATTERN", default_value = crate::log::DEFAULT_PATTERN)]
    pub log_format: String,
    /// Escape control characters in log messages.
    #[arg(long)]
    pub log_format_escaped: bool,
    /// Write the log to this file instead of stderr.
    #[arg(long, value_name = "FILE")]
    pub log_path: Option<PathBuf>,
    /// No effect: every level applies to whole components.
    #[arg(long)]
    pub enable_fine_grain_logging: bool,
    /// No effect: a stack trace is one entry already.
    #[arg(long)]
    pub log_stacktrace_single_entry: bool,
    /// Do not log the use of deprecated fields.
    #[arg(long)]
    pub skip_deprecated_logs: bool,
    /// Node id; overrides the bootstrap's.
    #[arg(long, value_name = "ID")]
    pub service_node: Option<String>,
    /// Service cluster; overrides the bootstrap's.
    #[arg(long, value_name = "NAME")]
    pub service_cluster: Option<String>,
    /// Zone; overrides the bootstrap's.
    #[arg(long, value_name = "ZONE")]
    pub service_zone: Option<String>,
    /// Family of the address that stands for this machine: v4 or v6.
    #[arg(long, value_name = "VERSION", default_value = "v4")]
    pub local_address_ip_version: IpVersion,
    /// Accept unknown fields in the bootstrap and in dynamic configuration.
    #[arg(long)]
    pub allow_unknown_fields: bool,
    /// Accept unknown fields in the bootstrap.
    #[arg(long)]
    pub allow_unknown_static_fields: bool,
    /// Refuse unknown fields in dynamic configuration.
    #[arg(long)]
    pub reject_unknown_dynamic_fields: bool,
    /// Do not count unknown fields in dynamic configuration.
    #[arg(long)]
    pub ignore_unknown_dynamic_fields: bool,
    /// Write the address of the admin listener to this file once it is bound.
    #[arg(long, value_name = "FILE")]
    pub admin_address_path: Option<PathBuf>,
    /// Longest time for connections to end after SIGTERM, SIGINT or the removal of a listener, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, allow_negative_numbers = true)]
    pub drain_time_s: u64,
    /// Close connections with growing probability over the drain time, or with their next response.
    #[arg(long, value_enum, default_value_t = DrainStrategy::Gradual)]
    pub drain_strategy: DrainStrategy,
    /// Time until a hot-restarted parent is ended, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 900, allow_negative_numbers = true)]
    pub parent_shutdown_time_s: u64,
    /// Access logs are written at least this often, in milliseconds; at most a second passes in any case.
    #[arg(long, value_name = "MS", default_value_t = 1000, allow_negative_numbers = true)]
    pub file_flush_interval_msec: u64,
    /// Access logs are written once this many KiB wait.
    #[arg(long, value_name = "KB", default_value_t = 64, allow_negative_numbers = true)]
    pub file_flush_min_size_kb: u64,
    /// Adds a tag to every stat: `name:value`. May be repeated.
    #[arg(long, value_name = "TAG", action = ArgAction::Append)]
    pub stats_tag: Vec<String>,
    /// Extensions to switch off, separated by commas.
    #[arg(long, value_name = "LIST", default_value = "")]
    pub disable_extensions: String,
    /// Allow core dumps.
    #[arg(long)]
    pub enable_core_dump: bool,
    /// No effect: there are no mutexes to trace on the request path.
    #[arg(long)]
    pub enable_mutex_tracing: bool,
    /// No effect yet: there is no hot restart to switch off.
    #[arg(long)]
    pub disable_hot_restart: bool,
    /// Hot restart epoch; shown in stats and by the admin interface.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub restart_epoch: u32,
    /// No effect: listening sockets are shared by address.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub base_id: u32,
    /// No effect: listening sockets are shared by address.
    #[arg(long)]
    pub use_dynamic_base_id: bool,
    /// The base id is written to this file.
    #[arg(long, value_name = "FILE")]
    pub base_id_path: Option<PathBuf>,
    /// No effect without hot restart.
    #[arg(long)]
    pub skip_hot_restart_on_no_parent: bool,
    /// No effect without hot restart.
    #[arg(long)]
    pub skip_hot_restart_parent_stats: bool,
    /// No effect without hot restart.
    #[arg(long, value_name = "PATH", default_value = "@envoy_domain_socket")]
    pub socket_path: String,
    /// No effect without hot restart.
    #[arg(long, value_name = "MODE", default_value = "600")]
    pub socket_mode: String,
    /// Print the hot restart compatibility version and exit.
    #[arg(long)]
    pub hot_restart_version: bool,
    /// Exit at once on SIGTERM, as Envoy does, instead of draining.
    #[arg(long)]
    pub no_drain_on_sigterm: bool,
    /// Print the version and exit.
    #[arg(long)]
    pub version: bool,
    /// What to do instead of serving a bootstrap.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Subcommands.
#[derive(Subcommand, Debug, Clone)]
pub enum Command {
    /// Run an edge listener with two sample upstreams inside the process and print what to try.
    Demo {
        /// First of the three ports: edge, admin on the next.
        #[arg(long, default_value_t = 10000)]
        port: u16,
    },
    /// Fetch what a bootstrap asks for, print what would be applied or refused, and exit without serving.
    ///
    /// Connects to the control planes and files of the bootstrap, and reads clusters, endpoints, listeners, routes and
    /// secrets as a serving process does. No listener is bound, no admin interface runs, no host is health checked. Exits
    /// with 0 when all was accepted, and with 1 when something was refused or is missing.
    XdsCheck {
        /// The bootstrap.
        #[arg(long, short = 'c', visible_alias = "config-path", value_name = "FILE")]
        bootstrap: PathBuf,
        /// Longest time to wait, in seconds.
        #[arg(long, value_name = "SECONDS", default_value_t = 15)]
        timeout: u64,
        /// A table, or one JSON object.
        #[arg(long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Print the man page in roff.
    #[command(hide = true)]
    Man,
    /// Print a completion script.
    #[command(hide = true)]
    Completions {
        /// bash, zsh, fish, elvish or powershell.
        shell: clap_complete::Shell,
    },
}

/// `--mode`.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Serve.
    Serve,
    /// Check the configuration and exit.
    Validate,
    /// Build everything, bind nothing, exit.
    #[value(name = "init_only", hide = true)]
    InitOnly,
}

/// `--output`.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// `--local-address-ip-version`.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// `--drain-strategy`.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainStrategy {
    /// Growing probability.
    Gradual,
    /// At once.
    Immediate,
}

/// Commit that the binary was made from, forty zeros where that is not known.
pub const REVISION: &str = env!("NUNCIO_REVISION");
/// Whether the sources were those of the commit: `Clean` or `Modified`.
pub const REVISION_STATUS: &str = env!("NUNCIO_REVISION_STATUS");
/// The TLS library.
pub const TLS_LIBRARY: &str = "AWS-LC";

/// Revision, version of Envoy that is spoken, state of the sources, kind of build and TLS library, as Envoy joins them.
pub fn build_version() -> String {
    format!("{REVISION}/{ENVOY_VERSION}/{REVISION_STATUS}/RELEASE/{TLS_LIBRARY}")
}

impl Options {
    /// Parses arguments, the program's name first. The error is ready to print; `true` beside it means that it is not
    /// an error (`--help`).
    pub fn parse_args(args: impl IntoIterator<Item = String>) -> Result<Options, (String, bool)> {
        let options = Options::try_parse_from(split_spaces(args)).map_err(|e| {
            let help = !e.use_stderr();
            (if help { e.to_string() } else { e.render().to_string() }, help)
        })?;
        options.check().map_err(|problem| (format!("error: {problem}\n"), false))?;
        Ok(options)
    }

    /// What is wrong with values that stand alone or beside each other, in Envoy's words.
    fn check(&self) -> Result<(), String> {
        for tag in &self.stats_tag {
            let misformatted = format!("misformatted stats-tag '{tag}'");
            let (name, value) = tag.split_once(':').ok_or_else(|| misformatted.clone())?;
            let bad_name = !name.bytes().all(|byte| byte.is_ascii_alphanumeric());
            if bad_name || value.is_empty() || value.contains('.') {
                return Err(format!(
                    "{misformatted} contains invalid char in '{}'",
                    if bad_name { name } else { value }
                ));
            }
        }
        if self.use_dynamic_base_id && self.restart_epoch > 0 {
            return Err(format!("cannot use --restart-epoch={} with --use-dynamic-base-id", self.restart_epoch));
        }
        if self.enable_fine_grain_logging && !self.component_log_level.is_empty() {
            return Err("--component-log-level will not work with --enable-fine-grain-logging".to_owned());
        }
        Ok(())
    }

    /// The text of `--version`. Its first `x.y.z` is the Envoy version that is spoken: tools look for it.
    pub fn version_text(program: &str) -> String {
        format!("{program}  version: {}\nNuncio {}\n", build_version(), env!("CARGO_PKG_VERSION").replace('.', "-"))
    }

    /// Lines about given flags that have no effect.
    pub fn no_effect(&self) -> Vec<String> {
        let mut out = Vec::new();
        let mut say = |on: bool, flag: &str, why: &str| {
            if on {
                out.push(format!("{flag} has no effect: {why}"));
            }
        };
        say(self.cpuset_threads, "--cpuset-threads", "the CPU set of the process is always respected");
        say(self.enable_fine_grain_logging, "--enable-fine-grain-logging", "levels apply to whole components");
        say(self.log_stacktrace_single_entry, "--log-stacktrace-single-entry", "a stack trace is one entry already");
        say(self.enable_mutex_tracing, "--enable-mutex-tracing", "no mutex is taken on the request path");
        say(self.use_dynamic_base_id, "--use-dynamic-base-id", "there is no hot restart to keep apart");
        say(self.base_id != 0, "--base-id", "there is no hot restart to keep apart");
        say(self.skip_hot_restart_on_no_parent, "--skip-hot-restart-on-no-parent", "there is no hot restart");
        say(self.skip_hot_restart_parent_stats, "--skip-hot-restart-parent-stats", "there is no hot restart");
        say(self.socket_path != "@envoy_domain_socket", "--socket-path", "there is no hot restart");
        say(self.socket_mode != "600", "--socket-mode", "there is no hot restart");
        say(self.parent_shutdown_time_s != 900, "--parent-shutdown-time-s", "there is no hot restart");
        say(
            !self.disable_extensions.is_empty(),
            "--disable-extensions",
            "extensions that no configuration names never run",
        );
        out
    }
}

/// Envoy takes `"--log-level info"` as one argument, and nothing after `--`.
fn split_spaces(args: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut out = Vec::new();
    for arg in args {
        // What follows is nobody's: Envoy passes over it.
        if arg == "--" || arg == "--ignore_rest" {
            break;
        }
        match arg.split_once(' ') {
            Some((flag, value)) if flag.starts_with('-') && flag.len() > 1 && !flag.contains('=') => {
                out.push(flag.to_owned());
                out.push(value.trim_start().to_owned());
            }
            _ => out.push(arg),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, (String, bool)> {
        Options::parse_args(std::iter::once("nuncio").chain(args.iter().copied()).map(String::from))
    }

    #[test]
    fn a_flag_and_its_value_may_share_one_argument() {
        let o = parse(&["-c", "/config/envoy.json", "--service-cluster projectcontour", "--base-id 0"]).unwrap();
        assert_eq!(o.service_cluster.as_deref(), Some("projectcontour"));
        assert_eq!(o.base_id, 0);
    }

    #[test]
    fn istio_starts_it() {
        let line = "-c etc/istio/proxy/envoy-rev.json --drain-time-s 45 --drain-strategy immediate \
                    --local-address-ip-version v4 --file-flush-interval-msec 1000 --disable-hot-restart \
                    --allow-unknown-static-fields -l warning --component-log-level misc:error --concurrency 2";
        let o = parse(&line.split_whitespace().collect::<Vec<_>>()).unwrap();
        assert_eq!((o.drain_time_s, o.drain_strategy, o.concurrency), (45, DrainStrategy::Immediate, Some(2)));
    }

    #[test]
    fn an_unknown_flag_is_an_error_with_a_suggestion() {
        let (text, help) = parse(&["--concurency", "2"]).unwrap_err();
        assert!(!help && text.contains("--concurrency"), "{text}");
    }

    #[test]
    fn the_version_has_one_number_of_three_parts_and_it_is_envoys() {
        let text = Options::version_text("envoy");
        let numbers: Vec<_> =
            regex::Regex::new(r"(\d+\.\d+\.\d+)").unwrap().find_iter(&text).map(|m| m.as_str()).collect();
        assert_eq!(numbers, ["1.40.0"]);
    }

    #[test]
    fn values_that_envoy_refuses_are_refused_in_its_words() {
        for (args, expected) in [
            (&["--stats-tag", "foo"][..], "misformatted stats-tag 'foo'"),
            (&["--stats-tag", "f_o:bar"], "misformatted stats-tag 'f_o:bar' contains invalid char in 'f_o'"),
            (&["--stats-tag", "foo:"], "misformatted stats-tag 'foo:' contains invalid char in ''"),
            (&["--stats-tag", "foo:a.b"], "misformatted stats-tag 'foo:a.b' contains invalid char in 'a.b'"),
            (
                &["--use-dynamic-base-id", "--restart-epoch", "1"],
                "cannot use --restart-epoch=1 with --use-dynamic-base-id",
            ),
            (
                &["--enable-fine-grain-logging", "--component-log-level", "http:debug"],
                "--component-log-level will not work with --enable-fine-grain-logging",
            ),
        ] {
            assert_eq!(parse(args).unwrap_err(), (format!("error: {expected}\n"), false));
        }
        let (text, _) = parse(&["--concurrency", "-1"]).unwrap_err();
        assert!(text.starts_with("error: invalid value '-1' for '--concurrency <N>'"), "{text}");
        assert_eq!(parse(&["--stats-tag", "a1:b:c d"]).unwrap().stats_tag, ["a1:b:c d"]);
    }

    #[test]
    fn nothing_is_read_after_two_dashes() {
        assert_eq!(parse(&["--base-id", "3", "--", "extra", "--bogus"]).unwrap().base_id, 3);
        assert_eq!(parse(&["--base-id", "3", "--ignore_rest", "extra"]).unwrap().base_id, 3);
    }

    #[test]
    fn flags_without_effect_say_so() {
        assert_eq!(parse(&["--enable-mutex-tracing"]).unwrap().no_effect().len(), 1);
        assert!(parse(&[]).unwrap().no_effect().is_empty());
    }
}
