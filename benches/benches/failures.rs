//! Upstreams that fail under load, and how many requests fail with them: beside the real Envoy on the same configuration.
//!
//! `cargo bench --bench failures [-- OPTIONS]`:
//! - `--hold`: failure where more requests fail than with Envoy (and some for chance), or any where none may;
//! - `--smoke`: a short run of Nuncio alone, held to those scenarios in which no request may fail;
//! - `--only NAME`, `--seconds N` (of each scenario), `--rate N` (requests per second).
//!
//! Without Envoy on the machine its column is left out, which is said.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nuncio_benches::faulty::{self, Habit, Upstream, Zone};
use nuncio_benches::load;
use nuncio_tests::case::CaseFile;
use nuncio_tests::certs::Certs;
use nuncio_tests::find;
use nuncio_tests::proxy::{Proxy, free_port};
use tokio::net::TcpStream;

/// What happens to an upstream (by number) or to the name server.
#[derive(Clone, Copy)]
enum Event {
    Kill(usize),
    Restart(usize),
    Freeze(usize),
    Thaw(usize),
    NamesFail,
    NamesReturn,
}

struct Scenario {
    name: &'static str,
    habits: [Habit; 3],
    /// Fields of the route action beside the cluster.
    route: &'static str,
    /// Fields of the cluster beside its name.
    cluster: &'static str,
    /// When, as a share of the run, and what.
    events: &'static [(f64, Event)],
    /// Retries make every failure invisible.
    none_may_fail: bool,
}

const RETRY: &str = "retry_policy: {retry_on: \"connect-failure,refused-stream,reset,gateway-error\", num_retries: 3, \
     retry_back_off: {base_interval: 0.01s}, host_selection_retry_max_attempts: 5, retry_host_predicate: [{name: \
     envoy.retry_host_predicates.previous_hosts, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.retry.\
     host.previous_hosts.v3.PreviousHostsPredicate}}]}";
const RETRY_SLOW: &str = "retry_policy: {retry_on: \"connect-failure,refused-stream,reset,gateway-error\", num_retries: 3, \
     per_try_timeout: 0.25s, retry_back_off: {base_interval: 0.01s}, host_selection_retry_max_attempts: 5, \
     retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts, typed_config: {\"@type\": \
     type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}]}";
const NO_RETRY: &str = "retry_policy: {num_retries: 0}";
const THREE: &str = "load_assignment: {cluster_name: up, endpoints: {{endpoints a b c}}}";
const CHECKED: &str = "load_assignment: {cluster_name: up, endpoints: {{endpoints a b c}}}, health_checks: [{timeout: 0.2s, \
     interval: 0.2s, unhealthy_threshold: 2, healthy_threshold: 1, no_traffic_interval: 0.2s, http_health_check: {path: /}}]";
const TWO_LOCALITIES: &str = "load_assignment: {cluster_name: up, endpoints: [{priority: 0, locality: {zone: near}, \
     lb_endpoints: [{endpoint: {address: {{addr a}}}}, {endpoint: {address: {{addr b}}}}]}, {priority: 1, locality: \
     {zone: far}, lb_endpoints: [{endpoint: {address: {{addr c}}}}]}]}, health_checks: [{timeout: 0.2s, interval: 0.2s, \
     unhealthy_threshold: 1, healthy_threshold: 1, no_traffic_interval: 0.2s, http_health_check: {path: /}}]";
const EJECTED: &str = "load_assignment: {cluster_name: up, endpoints: {{endpoints a b c}}}, outlier_detection: {interval: 0.5s, \
     consecutive_5xx: 1000, enforcing_success_rate: 0, failure_percentage_threshold: 20, enforcing_failure_percentage: 100, \
     failure_percentage_minimum_hosts: 3, failure_percentage_request_volume: 10, base_ejection_time: 30s, \
     max_ejection_percent: 50}";
const NAMED: &str = "type: STRICT_DNS, dns_refresh_rate: 0.1s, dns_failure_refresh_rate: {base_interval: 0.1s, max_interval: \
     0.1s}, dns_lookup_family: V4_ONLY, typed_dns_resolver_config: {name: envoy.network.dns_resolver.cares, typed_config: \
     {\"@type\": type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig, resolvers: \
     [{{addr names}}]}}, load_assignment: {cluster_name: up, endpoints: [{lb_endpoints: [{endpoint: {address: \
     {socket_address: {address: up.example, port_value: {{port a}}}}}}]}]}";

fn scenarios() -> Vec<Scenario> {
    use Event::{Freeze, Kill, NamesFail, NamesReturn, Restart, Thaw};
    use Habit::{Errs, Good, Halves, Resets, Silent};
    let fine = Scenario { name: "", habits: [Good; 3], route: RETRY, cluster: THREE, events: &[], none_may_fail: true };
    vec![
        Scenario { name: "killed mid-request", events: &[(0.3, Kill(0)), (0.7, Restart(0))], ..fine },
        Scenario {
            name: "killed mid-body",
            habits: [Halves; 3],
            events: &[(0.3, Kill(0)), (0.7, Restart(0))],
            none_may_fail: false,
            ..fine
        },
        Scenario {
            name: "killed, no retries",
            route: NO_RETRY,
            events: &[(0.3, Kill(0)), (0.7, Restart(0))],
            none_may_fail: false,
            ..fine
        },
        Scenario { name: "accepts, never answers", habits: [Silent, Good, Good], route: RETRY_SLOW, ..fine },
        Scenario { name: "resets at random", habits: [Resets(20), Resets(20), Good], ..fine },
        Scenario {
            name: "half-open connections",
            route: RETRY_SLOW,
            cluster: CHECKED,
            events: &[(0.3, Freeze(0)), (0.7, Thaw(0))],
            ..fine
        },
        Scenario {
            name: "a locality lost",
            cluster: TWO_LOCALITIES,
            route: NO_RETRY,
            events: &[(0.3, Kill(0)), (0.3, Kill(1)), (0.7, Restart(0)), (0.7, Restart(1))],
            none_may_fail: false,
            ..fine
        },
        Scenario {
            name: "DNS fails and returns",
            cluster: NAMED,
            events: &[(0.3, NamesFail), (0.7, NamesReturn)],
            ..fine
        },
        Scenario {
            name: "one of three errs",
            habits: [Errs(30), Good, Good],
            cluster: EJECTED,
            route: NO_RETRY,
            none_may_fail: false,
            ..fine
        },
    ]
}

struct Options {
    hold: bool,
    smoke: bool,
    only: Option<String>,
    time: Duration,
    rate: f64,
}

fn main() -> Result<()> {
    faulty::serve_if_asked()?;
    let Some(options) = options()? else { return Ok(()) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, run(&options))
}

fn options() -> Result<Option<Options>> {
    let mut o = Options { hold: false, smoke: false, only: None, time: Duration::from_secs(6), rate: 400.0 };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--hold" => o.hold = true,
            "--smoke" => (o.smoke, o.time, o.rate) = (true, Duration::from_secs(2), 200.0),
            "--only" => o.only = Some(value()?),
            "--seconds" => o.time = Duration::from_secs_f64(value()?.parse()?),
            "--rate" => o.rate = value()?.parse()?,
            "--bench" => {}
            // `cargo bench NAME` passes the name to every bench.
            name if !name.starts_with('-') => {
                if !"failures".contains(name) {
                    return Ok(None);
                }
            }
            other => bail!("unknown option {other}"),
        }
    }
    Ok(Some(o))
}

#[allow(clippy::print_stdout, reason = "the figures are the product")]
async fn run(options: &Options) -> Result<()> {
    let envoy = if options.smoke { Err("not asked for".to_owned()) } else { find::envoy() };
    if let (Err(why), false) = (&envoy, options.smoke) {
        if options.hold {
            bail!("nothing to hold the figures against: {why}");
        }
        println!("Envoy is left out: {why}");
    }
    let nuncio = find::nuncio().map_err(anyhow::Error::msg)?;
    println!("{:<24} {:>8} {:>16} {:>16}", "", "requests", "envoy failed", "nuncio failed");
    let mut bad = Vec::new();
    for scenario in scenarios().iter().filter(|s| options.only.as_deref().is_none_or(|only| s.name.contains(only))) {
        let theirs = match &envoy {
            Ok(binary) => Some(play("envoy", binary, scenario, options).await?),
            Err(_) => None,
        };
        let own = play("nuncio", &nuncio, scenario, options).await?;
        let shown = theirs.as_ref().map_or_else(|| "-".to_owned(), Outcome::shown);
        println!("{:<24} {:>8} {shown:>16} {:>16}", scenario.name, own.sent, own.shown());
        for (what, count) in &own.failures {
            println!("    {count} x {what}");
        }
        // Chance: which requests are under way when something breaks.
        let allowed = theirs.map(|theirs| theirs.failed() + theirs.failed() / 4 + 5);
        if scenario.none_may_fail && own.failed() > 0 {
            bad.push(format!("{}: {} requests failed where none may", scenario.name, own.failed()));
        } else if let Some(allowed) = allowed.filter(|allowed| own.failed() > *allowed) {
            bad.push(format!("{}: {} requests failed, allowed are {allowed}", scenario.name, own.failed()));
        }
    }
    if (options.hold || options.smoke) && !bad.is_empty() {
        bail!("{}", bad.join("; "));
    }
    Ok(())
}

#[derive(Default)]
struct Outcome {
    sent: u64,
    slowest: Duration,
    failures: BTreeMap<String, u64>,
}

impl Outcome {
    fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    fn shown(&self) -> String {
        format!("{} ({} ms)", self.failed(), self.slowest.as_millis())
    }
}

/// One scenario with one proxy.
async fn play(name: &'static str, binary: &Path, scenario: &Scenario, options: &Options) -> Result<Outcome> {
    let dir = tempfile::tempdir()?;
    let zone = Rc::new(RefCell::new(Zone::Addresses(vec![Ipv4Addr::LOCALHOST])));
    let names = faulty::name_server(zone.clone()).await?;
    let mut upstreams = Vec::new();
    for habit in scenario.habits {
        upstreams.push(Upstream::start(free_port(), habit)?);
    }
    let mut ports: BTreeMap<String, u16> =
        ["a", "b", "c"].iter().zip(&upstreams).map(|(name, upstream)| ((*name).to_owned(), upstream.port)).collect();
    ports.insert("names".to_owned(), names.port());
    let certs = Certs::make(dir.path(), &BTreeMap::new())?;
    let proxy = Proxy::start(name, binary, dir.path(), &case(scenario), &ports, &certs).await?;
    let address = proxy.address("main")?;
    let outcome = Rc::new(RefCell::new(Outcome::default()));
    let begin = Instant::now();
    const CLIENTS: usize = 40;
    let pause = Duration::from_secs_f64(CLIENTS as f64 / options.rate);
    let until = begin + options.time;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|i| {
            let first = begin + pause.mul_f64(i as f64 / CLIENTS as f64);
            tokio::task::spawn_local(client(address, first, pause, until, outcome.clone()))
        })
        .collect();
    for (share, event) in scenario.events {
        tokio::time::sleep_until((begin + options.time.mul_f64(*share)).into()).await;
        match event {
            Event::Kill(i) => upstreams[*i].kill(),
            Event::Restart(i) => upstreams[*i].restart()?,
            Event::Freeze(i) => upstreams[*i].freeze()?,
            Event::Thaw(i) => upstreams[*i].thaw()?,
            Event::NamesFail => *zone.borrow_mut() = Zone::Fails,
            Event::NamesReturn => *zone.borrow_mut() = Zone::Addresses(vec![Ipv4Addr::LOCALHOST]),
        }
    }
    for client in clients {
        client.await?;
    }
    proxy.stop().await;
    let outcome = outcome.take();
    if outcome.sent == 0 {
        bail!("{}: no request was sent", scenario.name);
    }
    Ok(outcome)
}

/// One connection, with a request every `pause`; opened again after a failure.
async fn client(address: SocketAddr, first: Instant, pause: Duration, until: Instant, outcome: Rc<RefCell<Outcome>>) {
    let mut due = first;
    let mut connection: Option<(TcpStream, Vec<u8>)> = None;
    while due < until {
        tokio::time::sleep_until(due.into()).await;
        let start = Instant::now();
        let exchange = async {
            let (stream, buffer) = match &mut connection {
                Some(open) => open,
                None => connection.insert((TcpStream::connect(address).await?, Vec::new())),
            };
            load::http1(stream, buffer).await
        };
        let result = match tokio::time::timeout(Duration::from_secs(5), exchange).await {
            Ok(result) => result,
            Err(_) => Err(anyhow::anyhow!("no answer within 5 s")),
        };
        let mut outcome = outcome.borrow_mut();
        outcome.sent += 1;
        outcome.slowest = outcome.slowest.max(start.elapsed());
        if let Err(error) = result {
            *outcome.failures.entry(error.to_string()).or_default() += 1;
            connection = None;
        }
        due = (due + pause).max(Instant::now());
    }
}

/// Three retries at once, the default, would be the limit that these runs measure.
fn case(scenario: &Scenario) -> CaseFile {
    let config = format!(
        "static_resources:\n  listeners:\n  {{{{http main}}}}\n          route_config: {{virtual_hosts: [{{name: all, \
         domains: [\"*\"], routes: [{{match: {{prefix: /}}, route: {{cluster: up, timeout: 3s, {}}}}}]}}]}}\n  clusters:\n  \
         - {{name: up, connect_timeout: 0.25s, circuit_breakers: {{thresholds: [{{max_retries: 1000}}]}}, {}}}\n",
        scenario.route, scenario.cluster
    );
    CaseFile {
        about: scenario.name.to_owned(),
        certs: BTreeMap::new(),
        upstreams: BTreeMap::new(),
        config,
        admin: String::new(),
        args: Vec::new(),
        mask: Vec::new(),
        stats_ignore: Vec::new(),
        listener: "main".to_owned(),
        cases: Vec::new(),
    }
}
