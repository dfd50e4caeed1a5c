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
use nuncio_benches::load;
use nuncio_benches::peers::{Entry, Peer, Upstreams};
use nuncio_tests::case::CertSpec;
use nuncio_tests::certs::Certs;

/// Scenarios and what a request may cost, in instructions: what was measured and a tenth more.
const CEILINGS: [(&str, u64); 4] = [("h1", 31_000), ("h2c", 32_500), ("tls", 38_500), ("policies", 33_500)];
const CONNECTIONS: usize = 8;
/// How long the requests of a run may take, under valgrind and on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> Result<()> {
    let mut requests = 8000;
    for arg in std::env::args().skip(1) {
        match arg.as_str() {
            "--smoke" => requests = 2000,
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
    tokio::task::LocalSet::new().block_on(&runtime, run(requests))
}

#[allow(clippy::print_stdout, reason = "the figures are the product")]
async fn run(requests: u64) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let sans = vec!["bench.example".to_owned()];
    let specs = BTreeMap::from([
        ("ca".to_owned(), CertSpec::default()),
        ("server".to_owned(), CertSpec { ca: Some("ca".to_owned()), sans }),
    ]);
    let certs = Certs::make(dir.path(), &specs)?;
    let upstreams = Upstreams::start().await?;
    let mut above = Vec::new();
    for (name, ceiling) in CEILINGS {
        let entry = Entry::named(name)?;
        let few = count(dir.path(), &certs, upstreams, entry, requests / 5).await?;
        let many = count(dir.path(), &certs, upstreams, entry, requests).await?;
        let each = many.saturating_sub(few) / (requests - requests / 5);
        println!("{name:<9} {each:>8} instructions per request   (ceiling {ceiling})");
        if each > ceiling {
            above.push(format!("{name}: {each} instructions per request, above {ceiling}"));
        }
    }
    ensure!(above.is_empty(), "{}", above.join("; "));
    Ok(())
}

/// Instructions of the process from its start to its end, with so many requests.
async fn count(dir: &Path, certs: &Certs, upstreams: Upstreams, entry: Entry, requests: u64) -> Result<u64> {
    let peer = Peer::start("nuncio counted", dir, certs, upstreams, &[])?.context("no proxy")?;
    let address = peer.address(entry).context("no such entry")?;
    let measured = load::run_requests(entry.protocol(), address, certs, CONNECTIONS, requests, PATIENCE).await?;
    ensure!(measured.errors == 0, "{} requests failed", measured.errors);
    ensure!(measured.requests == requests, "only {} of {requests} requests in {PATIENCE:?}", measured.requests);
    let log = peer.end()?;
    // `==123== I   refs:      542,070,437`
    let count =
        log.lines().find_map(|line| line.split_once(" refs:")).with_context(|| format!("no count in: {log}"))?.1;
    let digits: String = count.chars().filter(char::is_ascii_digit).collect();
    Ok(digits.parse()?)
}
