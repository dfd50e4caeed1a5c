//! Instructions that a request costs the release binary in user space, counted by valgrind: the same on a busy machine
//! and on a quiet one, unlike time. Each scenario has a ceiling, and the bench fails above it.
//!
//! `cargo bench --bench instructions [-- --smoke]`. Without valgrind it measures nothing, and says so.
//!
//! The process is run twice, with few and with many requests: the difference has no start in it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nuncio_benches::load::{self, Protocol};
use nuncio_benches::peers::{Peer, Upstreams};
use nuncio_benches::upstream;
use nuncio_tests::case::CertSpec;
use nuncio_tests::certs::Certs;

/// Scenarios and what a request may cost, in instructions: what was measured and a tenth more.
const CEILINGS: [(&str, Protocol, u64); 3] =
    [("h1", Protocol::Http1, 31_000), ("h2c", Protocol::Http2, 32_500), ("tls", Protocol::Tls, 38_500)];
const CONNECTIONS: usize = 8;

fn main() -> Result<()> {
    let mut seconds = 4.0;
    for arg in std::env::args().skip(1) {
        match arg.as_str() {
            "--smoke" => seconds = 1.5,
            "--bench" => {}
            // `cargo bench NAME` passes the name to every bench.
            name if !name.starts_with('-') => {
                if !"instructions".contains(name) {
                    return Ok(());
                }
            }
            other => bail!("unknown option {other}"),
        }
    }
    if std::process::Command::new("valgrind").arg("--version").output().is_err() {
        eprintln!("NOTHING IS MEASURED: valgrind is not installed");
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, run(seconds))
}

#[allow(clippy::print_stdout, reason = "the figures are the product")]
async fn run(seconds: f64) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let sans = vec!["bench.example".to_owned()];
    let specs = BTreeMap::from([
        ("ca".to_owned(), CertSpec::default()),
        ("server".to_owned(), CertSpec { ca: Some("ca".to_owned()), sans }),
    ]);
    let certs = Certs::make(dir.path(), &specs)?;
    let upstreams = Upstreams { http: upstream::http().await?, echo: upstream::echo().await? };
    let mut above = Vec::new();
    for (name, protocol, ceiling) in CEILINGS {
        let few = count(dir.path(), &certs, upstreams, protocol, seconds / 5.0).await?;
        let many = count(dir.path(), &certs, upstreams, protocol, seconds).await?;
        let requests = many.requests.saturating_sub(few.requests);
        ensure!(requests > 100, "{name}: only {requests} requests, too few to tell");
        let each = many.instructions.saturating_sub(few.instructions) / requests;
        println!("{name:<6} {each:>8} instructions per request, {requests} requests   (ceiling {ceiling})");
        if each > ceiling {
            above.push(format!("{name}: {each} instructions per request, above {ceiling}"));
        }
    }
    ensure!(above.is_empty(), "{}", above.join("; "));
    Ok(())
}

struct Counted {
    requests: u64,
    instructions: u64,
}

/// A run of the process from its start to its end.
async fn count(dir: &Path, certs: &Certs, upstreams: Upstreams, protocol: Protocol, seconds: f64) -> Result<Counted> {
    let peer = Peer::start("nuncio counted", dir, certs, upstreams, &[])?.context("no proxy")?;
    let time = Duration::from_secs_f64(seconds);
    let measured = load::run(protocol, peer.address(protocol), certs, CONNECTIONS, None, time).await?;
    ensure!(measured.errors == 0, "{} requests failed", measured.errors);
    let log = peer.end()?;
    // `==123== I   refs:      542,070,437`
    let count =
        log.lines().find_map(|line| line.split_once(" refs:")).with_context(|| format!("no count in: {log}"))?.1;
    let digits: String = count.chars().filter(char::is_ascii_digit).collect();
    Ok(Counted { requests: measured.requests, instructions: digits.parse()? })
}
