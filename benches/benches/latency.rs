//! Latency, throughput, CPU and memory of the release binary under load of our own making.
//!
//! `cargo bench --bench latency [-- OPTIONS]`:
//! - `--compare`: Envoy, nginx and haproxy, where installed, in the same run, with ratios;
//! - `--hold`: that, and failure where p99 at half of Envoy's highest rate or CPU per request is above its limit;
//! - `--smoke`: a short run that only shows that it works;
//! - `--scenarios h1,h2c,tls,tcp,policies`, `--seconds N`, `--rounds N` (medians), `--connections N`, `--rate N` (of the open
//!   loop; by default half of Envoy's highest rate with `--compare`, else half of the proxy's own).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nuncio_benches::load::{self, Protocol};
use nuncio_benches::peers::{Entry, Peer, Upstreams};
use nuncio_benches::procfs;
use nuncio_benches::report::{self, Figures};
use nuncio_tests::case::CertSpec;
use nuncio_tests::certs::Certs;

struct Options {
    compare: bool,
    hold: bool,
    scenarios: Vec<String>,
    seconds: f64,
    rounds: usize,
    connections: usize,
    rate: Option<f64>,
}

fn main() -> Result<()> {
    let Some(options) = options()? else { return Ok(()) };
    // The proxy on the first core, load and upstream on another, where there is another.
    let cores = procfs::cores();
    let (proxy_core, load_core) = match cores.as_slice() {
        [first, .., last] => (vec![*first], vec![*last]),
        _ => (Vec::new(), Vec::new()),
    };
    procfs::bind_to(&load_core);
    let runtime = tokio::runtime::Builder::new_current_thread().event_interval(4).enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, run(&options, &proxy_core))
}

fn options() -> Result<Option<Options>> {
    let mut o = Options {
        compare: false,
        hold: false,
        scenarios: ["h1", "h2c", "tls", "tcp", "policies"].map(str::to_owned).into(),
        seconds: 3.0,
        rounds: 3,
        connections: 64,
        rate: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--compare" => o.compare = true,
            "--hold" => (o.compare, o.hold) = (true, true),
            "--smoke" => (o.seconds, o.rounds, o.connections) = (0.3, 1, 8),
            "--scenarios" => o.scenarios = value()?.split(',').map(str::to_owned).collect(),
            "--seconds" => o.seconds = value()?.parse()?,
            "--rounds" => o.rounds = value()?.parse()?,
            "--connections" => o.connections = value()?.parse()?,
            "--rate" => o.rate = Some(value()?.parse()?),
            "--bench" => {}
            // `cargo bench NAME` passes the name to every bench.
            name if !name.starts_with('-') => {
                if !"latency".contains(name) {
                    return Ok(None);
                }
            }
            other => bail!("unknown option {other}"),
        }
    }
    Ok(Some(o))
}

#[allow(clippy::print_stdout, reason = "the figures are the product")]
async fn run(options: &Options, proxy_core: &[usize]) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let sans = vec!["bench.example".to_owned()];
    let specs = BTreeMap::from([
        ("ca".to_owned(), CertSpec::default()),
        ("server".to_owned(), CertSpec { ca: Some("ca".to_owned()), sans }),
    ]);
    let certs = Certs::make(dir.path(), &specs)?;
    let upstreams = Upstreams::start().await?;
    let names: &[&'static str] = if options.compare { &["envoy", "nginx", "haproxy", "nuncio"] } else { &["nuncio"] };
    let mut peers = Vec::new();
    for name in names {
        peers.extend(Peer::start(name, dir.path(), &certs, upstreams, proxy_core)?);
    }
    let mut kept = Vec::new();
    let mut above = Vec::new();
    for scenario in &options.scenarios {
        let entry = Entry::named(scenario)?;
        let rows = measure(options, entry, &peers, &certs).await?;
        report::table(scenario, &rows);
        if let Some(bad) = rows.iter().find(|r| r.proxy == "nuncio" && r.errors > 0) {
            bail!("{scenario}: {} of nuncio's requests failed", bad.errors);
        }
        above.extend(report::above_limits(scenario, &rows));
        kept.push((scenario.clone(), rows));
    }
    println!("\nkept in {}", report::keep("latency", &kept)?.display());
    if options.hold && !above.is_empty() {
        bail!("{}", above.join("; "));
    }
    Ok(())
}

/// All proxies in one scenario, in turn, round by round; medians over the rounds.
async fn measure(options: &Options, entry: Entry, peers: &[Peer], certs: &Certs) -> Result<Vec<Figures>> {
    let protocol = entry.protocol();
    let peers: Vec<(&Peer, SocketAddr)> = peers.iter().filter_map(|peer| Some((peer, peer.address(entry)?))).collect();
    let time = Duration::from_secs_f64(options.seconds);
    // HTTP/2 has its streams: fewer connections carry as much.
    let connections = if protocol == Protocol::Http2 { options.connections.div_ceil(8) } else { options.connections };
    let mut rounds: Vec<Vec<Figures>> = Vec::new();
    for _ in 0..options.rounds {
        let mut rows = Vec::new();
        for &(peer, address) in &peers {
            load::run(protocol, address, certs, connections, None, time / 10).await?;
            let before = procfs::cpu_time(peer.pid())?;
            let closed = load::run(protocol, address, certs, connections, None, time).await?;
            let cpu = procfs::cpu_time(peer.pid())?.saturating_sub(before);
            rows.push(Figures {
                proxy: peer.name,
                rate: closed.requests as f64 / closed.elapsed.as_secs_f64(),
                cpu_us: cpu.as_secs_f64() * 1e6 / closed.requests.max(1) as f64,
                errors: closed.errors,
                ..Figures::default()
            });
        }
        let envoy = rows.iter().find(|row| row.proxy == "envoy").map(|row| row.rate);
        for (&(peer, address), row) in peers.iter().zip(&mut rows) {
            let rate = options.rate.or(envoy.map(|r| r / 2.0)).unwrap_or(row.rate / 2.0);
            let open = load::run(protocol, address, certs, connections, Some(rate), time).await?;
            let at = |q: f64| open.latency.value_at_quantile(q) as f64 / 1e3;
            row.open_rate = open.requests as f64 / open.elapsed.as_secs_f64();
            row.latency_us = [at(0.5), at(0.9), at(0.99), at(0.999), at(0.9999)];
            row.errors += open.errors;
            row.resident_kib = procfs::resident_kib(peer.pid())?;
        }
        rounds.push(rows);
    }
    Ok((0..peers.len()).map(|i| median(rounds.iter().map(|rows| &rows[i]))).collect())
}

fn median<'a>(rows: impl Iterator<Item = &'a Figures>) -> Figures {
    let rows: Vec<&Figures> = rows.collect();
    let middle = |figure: &dyn Fn(&Figures) -> f64| {
        let mut values: Vec<f64> = rows.iter().map(|r| figure(r)).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Figures {
        proxy: rows[0].proxy,
        rate: middle(&|r| r.rate),
        cpu_us: middle(&|r| r.cpu_us),
        open_rate: middle(&|r| r.open_rate),
        latency_us: std::array::from_fn(|i| middle(&|r| r.latency_us[i])),
        resident_kib: middle(&|r| r.resident_kib as f64) as u64,
        errors: rows.iter().map(|r| r.errors).sum(),
    }
}
