//! h2spec, the conformance suite for HTTP/2 servers, against Nuncio: what it answers itself and what it forwards.
//!
//! h2spec is a Go program; `tests/h2spec/go.mod` pins it. It knows RFC 7540 and is stricter than the RFC in places, so
//! that Envoy fails some of its cases. Nuncio may fail those, and no other.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nuncio_tests::case::CaseFile;
use nuncio_tests::certs::Certs;
use nuncio_tests::find;
use nuncio_tests::proxy::Proxy;
use nuncio_tests::upstream::Upstreams;
use regex::Regex;
use tokio::process::Command;
use tokio::task::JoinSet;

/// What Envoy 1.40.0 fails, with both listeners: section and number of the case.
const ENVOY_FAILS: [&str; 11] = [
    // PING after GOAWAY is not answered: the connection is closed.
    "generic/3.8/1",
    "http2/7/1",
    // Frames on closed streams are ignored.
    "http2/5.1/8",
    "http2/5.1/9",
    "http2/5.1/11",
    "http2/5.1/12",
    // A stream number lower than one before is taken for a closed stream.
    "http2/5.1.1/2",
    // PRIORITY is not looked at.
    "http2/5.3.1/2",
    "http2/6.3/1",
    // Windows that overflow end the connection without GOAWAY, or are not noticed.
    "http2/6.9.1/2",
    "http2/6.9.1/3",
];

/// The number of cases of this version.
const CASES: usize = 145;

#[test]
fn what_nuncio_answers_itself_passes_h2spec() {
    run("direct");
}

#[test]
fn what_nuncio_forwards_passes_h2spec() {
    run("proxied");
}

fn run(listener: &str) {
    let nuncio = find::nuncio().unwrap_or_else(|why| panic!("no Nuncio to test: {why}"));
    let h2spec = match find::h2spec() {
        Ok(h2spec) => h2spec,
        Err(why) => {
            let bar = "!".repeat(100);
            // Written past the capture of passing tests.
            let _ = writeln!(std::io::stderr(), "{bar}\nNOT TESTED with h2spec, which needs Go: {why}\n{bar}");
            assert!(std::env::var("CI").as_deref() != Ok("true"), "no h2spec: {why}");
            return;
        }
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let failed = runtime.block_on(failures(&h2spec, &nuncio, listener)).unwrap_or_else(|e| panic!("{e:#}"));
    let wrong: Vec<String> = failed
        .into_iter()
        .filter(|(id, _)| !ENVOY_FAILS.contains(&id.as_str()))
        .map(|(id, why)| format!("{id} {why}"))
        .collect();
    assert!(wrong.is_empty(), "h2spec fails with {listener}:\n{}", wrong.join("\n"));
}

/// The cases that fail and, told what each wants, fail again: on a busy machine an answer may be late.
async fn failures(h2spec: &Path, nuncio: &Path, listener: &str) -> Result<Vec<(String, String)>> {
    let file = CaseFile::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("h2spec/proxy.yaml"))?;
    let dir = tempfile::tempdir()?;
    let certs = Certs::make(dir.path(), &file.certs)?;
    let upstreams = Upstreams::start(&file.upstreams, &certs).await?;
    let mut proxy = Proxy::start("nuncio", nuncio, dir.path(), &file, &upstreams.ports, &certs).await?;
    let address = proxy.address(listener)?;
    let mut parts = JoinSet::new();
    for part in ["generic", "http2/3", "http2/4", "http2/5", "http2/6", "http2/7", "http2/8", "hpack"] {
        let (h2spec, report) = (h2spec.to_owned(), dir.path().join(format!("{}.xml", part.replace('/', "-"))));
        parts.spawn(async move { report_of(&h2spec, address, part, 2, &report).await });
    }
    let mut cases = Vec::new();
    while let Some(part) = parts.join_next().await {
        cases.extend(part??);
    }
    if let Some(why) = proxy.ended() {
        bail!("{why}");
    }
    ensure!(cases.len() == CASES, "h2spec ran {} cases", cases.len());
    let mut failed = Vec::new();
    for (id, _) in cases.into_iter().filter(|(_, failure)| failure.is_some()) {
        if ENVOY_FAILS.contains(&id.as_str()) {
            continue;
        }
        let again = report_of(h2spec, address, &id, 10, &dir.path().join("again.xml")).await?;
        ensure!(again.len() == 1, "{id} is not one case");
        failed.extend(again.into_iter().filter_map(|(id, failure)| Some((id, failure?))));
    }
    proxy.stop().await;
    Ok(failed)
}

/// Runs a part of h2spec: each case's section and number, and why it failed.
async fn report_of(
    h2spec: &Path,
    address: SocketAddr,
    part: &str,
    timeout: u32,
    report: &PathBuf,
) -> Result<Vec<(String, Option<String>)>> {
    let mut command = Command::new(h2spec);
    command.args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()]);
    command.args(["-o", &timeout.to_string(), "-j"]).arg(report).arg(part).kill_on_drop(true);
    let run = tokio::time::timeout(Duration::from_secs(300), command.output());
    let output = run.await.context("h2spec does not end")??;
    let text = std::fs::read(report).with_context(|| String::from_utf8_lossy(&output.stdout).into_owned())?;
    let text = String::from_utf8_lossy(&text);
    let case = Regex::new(r#"(?s)<testcase package="([^"]*)" classname="(.*?)" time="[^"]*">(.*?)</testcase>"#)?;
    let mut cases: Vec<(String, Option<String>)> = Vec::new();
    let (mut section, mut number) = (String::new(), 0);
    for found in case.captures_iter(&text) {
        number = if section == found[1] { number + 1 } else { 1 };
        section = found[1].to_owned();
        // Of a single case the number is the asked one.
        let id = if part.starts_with(&format!("{section}/")) { part.to_owned() } else { format!("{section}/{number}") };
        let failure = found[3].trim();
        let failure = (!failure.is_empty()).then(|| format!("{}: wanted one of, then got: {failure}", &found[2]));
        cases.push((id, failure));
    }
    Ok(cases)
}
