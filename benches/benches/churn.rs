//! Dynamic configuration of the release binary, driven by a control plane: changes under load, and large configurations.
//!
//! `cargo bench --bench churn [-- OPTIONS]`: 1,000 changes of routes, 1,000 of endpoints, 200 of listeners and 100 of
//! certificates within two minutes at 5,000 requests a second over HTTP/1.1, HTTP/2 and TLS. It fails when one request fails,
//! a change is refused, or memory grows after the first half.
//! - `--scale N`: instead, N clusters with endpoints and N routes: time until they serve, memory, and the cost of one change;
//! - `--delta`: the incremental form of the protocol; `--both`: one after the other;
//! - `--compare`: Envoy too, for which nothing is a failure;
//! - `--seconds N`, `--rate N`, `--rounds N` (of the scale), `--changes N` (of the scale);
//! - `--smoke`: a short run of everything that only shows that it works.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nuncio_benches::churn::{self, CERTIFICATES, Changes, Model};
use nuncio_benches::dynamic::{Proxy, Start};
use nuncio_benches::scale::{self, Scale};
use nuncio_benches::{procfs, steady, upstream};
use nuncio_tests::case::CertSpec;
use nuncio_tests::certs::Certs;
use nuncio_tests::snapshots::Snapshots;

/// What the allocator may move about after the first half, in KiB.
const NOISE_KIB: u64 = 1024;

#[derive(Clone)]
struct Options {
    protocols: Vec<bool>,
    peers: Vec<&'static str>,
    seconds: f64,
    rate: f64,
    scale: Option<usize>,
    rounds: usize,
    changes: usize,
    smoke: bool,
}

fn main() -> Result<()> {
    let Some(options) = options()? else { return Ok(()) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, run(options))
}

fn options() -> Result<Option<Options>> {
    let mut o = Options {
        protocols: vec![false],
        peers: vec!["nuncio"],
        seconds: 120.0,
        rate: 5000.0,
        scale: None,
        rounds: 3,
        changes: 200,
        smoke: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--delta" => o.protocols = vec![true],
            "--both" => o.protocols = vec![false, true],
            "--compare" => o.peers = vec!["envoy", "nuncio"],
            "--seconds" => o.seconds = value()?.parse()?,
            "--rate" => o.rate = value()?.parse()?,
            "--scale" => o.scale = Some(value()?.parse()?),
            "--rounds" => o.rounds = value()?.parse()?,
            "--changes" => o.changes = value()?.parse()?,
            "--smoke" => {
                (o.smoke, o.protocols) = (true, vec![false, true]);
                (o.seconds, o.rate, o.rounds, o.changes) = (5.0, 1000.0, 1, 10);
            }
            "--bench" => {}
            // `cargo bench NAME` passes the name to every bench.
            name if !name.starts_with('-') => {
                if !"churn".contains(name) {
                    return Ok(None);
                }
            }
            other => bail!("unknown option {other}"),
        }
    }
    Ok(Some(o))
}

async fn run(options: Options) -> Result<()> {
    for &delta in &options.protocols {
        if options.scale.is_none() {
            for peer in options.peers.iter().copied() {
                changes(&options, peer, delta).await?;
            }
        }
        if let Some(count) = options.scale.or(options.smoke.then_some(300)) {
            large(&options, count, delta).await?;
        }
    }
    Ok(())
}

fn form(delta: bool) -> &'static str {
    if delta { "delta" } else { "state of the world" }
}

#[allow(clippy::print_stdout, reason = "the figures are the product")]
async fn changes(options: &Options, peer: &'static str, delta: bool) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut specs = BTreeMap::from([("ca".to_owned(), CertSpec::default())]);
    for name in CERTIFICATES {
        let sans = vec!["a.example".to_owned(), "b.example".to_owned()];
        specs.insert(name.to_owned(), CertSpec { ca: Some("ca".to_owned()), sans });
    }
    let certs = Rc::new(Certs::make(dir.path(), &specs)?);
    let mut upstreams = [Vec::new(), Vec::new()];
    for n in 0..4 {
        // Some are slow, so that requests are on their way to endpoints that go.
        let wait = Duration::from_millis(if n == 0 { 20 } else { 0 });
        upstreams[0].push(upstream::slow(wait).await?);
        upstreams[1].push(upstream::slow_http2(wait).await?);
    }
    let mut model = Model::new(upstreams, certs.clone());
    let server = Snapshots::start(0, 0)?;
    server.change(model.all()?, &[])?;
    let start = Start { xds: server.address, delta, workers: 2, drain: 20 };
    let mut proxy = Proxy::start(peer, dir.path(), start)?;
    proxy.answers(model.port(), "/some/path", Duration::from_secs(30)).await?;

    let time = Duration::from_secs_f64(options.seconds);
    let part = options.seconds / 120.0;
    let of = |n: f64| (n * part).round() as u32;
    let count = Changes { routes: of(1000.0), endpoints: of(1000.0), listeners: of(200.0), certificates: of(100.0) };
    let targets = model.targets();
    let pid = proxy.pid();
    let begin = Instant::now();
    let memory = tokio::task::spawn_local(async move {
        let mut samples: Vec<(f64, u64)> = Vec::new();
        while begin.elapsed() < time {
            samples.push((begin.elapsed().as_secs_f64() / time.as_secs_f64(), procfs::resident_kib(pid)?));
            tokio::time::sleep(time / 240).await;
        }
        Ok::<_, anyhow::Error>(samples)
    });
    let (outcome, changed) =
        tokio::join!(steady::run(&targets, options.rate, time, certs), churn::run(&mut model, &server, count, time));
    let (outcome, samples) = (outcome?, memory.await??);
    // Of the time just after the first half, and of the end.
    let highest =
        |from: f64, to: f64| samples.iter().filter(|(at, _)| (from..to).contains(at)).map(|(_, kib)| *kib).max();
    let (half, end) = (highest(0.45, 0.6).unwrap_or(0), highest(0.85, 1.0).unwrap_or(0));
    let at = |q: f64| outcome.latency.value_at_quantile(q) as f64 / 1e6;
    println!(
        "{peer}, {}: {:.0} s, {} changes ({} routes, {} endpoints, {} listeners, {} certificates)",
        form(delta),
        options.seconds,
        count.total(),
        count.routes,
        count.endpoints,
        count.listeners,
        count.certificates
    );
    println!("  requests {} (failed {}), connections {}", outcome.sent, outcome.failed(), outcome.connections);
    println!("  p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, longest {:.2} ms", at(0.5), at(0.99), at(0.999), at(1.0));
    println!("  resident KiB: at half time {half}, at the end {end}; certificates seen {:?}", outcome.certificates);
    for name in ["listener_in_place_updated", "listener_modified", "listener_added", "listener_removed"] {
        println!("  listener_manager.{name}: {}", proxy.stat(&format!("listener_manager.{name}")).await?);
    }
    for (what, times) in &outcome.failures {
        println!("  FAILED {times} x {what}");
    }
    if peer == "envoy" {
        if let Err(error) = changed {
            println!("  {error:#}");
        }
        return Ok(());
    }
    changed?;
    ensure!(outcome.failed() == 0, "{} of {} requests failed", outcome.failed(), outcome.sent);
    // A short run has no time to come to rest.
    ensure!(options.smoke || end <= half + NOISE_KIB, "memory grew from {half} KiB to {end} KiB");
    if count.certificates as usize >= CERTIFICATES.len() {
        ensure!(outcome.certificates.len() == CERTIFICATES.len(), "certificates seen: {:?}", outcome.certificates);
    }
    Ok(())
}

#[allow(clippy::print_stdout, reason = "the figures are the product")]
async fn large(options: &Options, count: usize, delta: bool) -> Result<()> {
    println!("{count} clusters and routes, {}", form(delta));
    println!(
        "{:<8} {:>10} {:>10} {:>10} {:>10} | {:>9} {:>9} {:>9} {:>9}",
        "", "ready ms", "CPU ms", "RSS MiB", "peak MiB", "applied", "p99 ms", "max ms", "CPU us"
    );
    for _ in 0..options.rounds {
        for peer in options.peers.iter().copied() {
            let dir = tempfile::tempdir()?;
            let mut row = scale::run(peer, dir.path(), Scale { count, changes: options.changes, delta }).await?;
            row.applied.sort_unstable();
            let at = |share: f64| {
                let index = (row.applied.len() as f64 * share) as usize;
                row.applied.get(index.min(row.applied.len().saturating_sub(1))).map_or(0.0, |d| d.as_secs_f64() * 1e3)
            };
            println!(
                "{peer:<8} {:>10.0} {:>10.0} {:>10.1} {:>10.1} | {:>9.2} {:>9.2} {:>9.2} {:>9.0}",
                row.ready.as_secs_f64() * 1e3,
                row.ready_cpu.as_secs_f64() * 1e3,
                row.resident_kib as f64 / 1024.0,
                row.peak_kib as f64 / 1024.0,
                at(0.5),
                at(0.99),
                at(1.0),
                row.change_cpu.as_secs_f64() * 1e6
            );
        }
    }
    Ok(())
}
