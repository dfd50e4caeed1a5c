//! Runs case files against both proxies and keeps the verdict of every case.
//!
//! The tests of the integration binary ask for one case each; the file it stands in runs once, with both proxies side
//! by side, and a bounded number of files at a time.

use crate::pending;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use regex::RegexSet;
use serde_json::{Value, json};
use tokio::sync::{OnceCell, Semaphore};

use crate::case::{Case, CaseFile};
use crate::certs::Certs;
use crate::client;
use crate::compare::{Mask, differences};
use crate::find;
use crate::proxy::Proxy;
use crate::upstream::Upstreams;

/// Stats of these families are compared, as changes over a case.
const STATS: &str = r"^(http|http1|http2|cluster|tcp|listener|tls_inspector|http_inspector|proxy_proto)\.";

/// Never compared: bytes and times of the wire, the admin interface's own traffic, per-worker and internal twins, gauges
/// of the moment, and what belongs to parts outside the data plane.
const NOT_STATS: &[&str] = &[
    r"bytes",
    r"\.admin\.",
    r"^http\.admin\.",
    r"\.worker_\d+\.",
    r"\.(external|internal)\.",
    r"_ms$",
    r"_time$",
    r"\.rq_time",
    r"\.circuit_breakers\.[a-z]+\.remaining",
    r"\.(load_assignment|lb_subset|lb_recalculate|lb_zone|assignment_|update_|version|warming|membership|max_host_weight)",
    r"\.lb_local_cluster_not_ok",
    r"\.upstream_(internal_redirect|flow_control)",
    r"\.downstream_flow_control",
    r"\.ssl\.(ciphers|curves|sigalgs|versions)",
    r"_(active|buffered)$",
    r"\.certificate\.",
    r"\.extension_config",
    r"nghttp2",
    r"\.(default|rds)\.",
];

type Verdicts = Result<BTreeMap<String, Result<(), String>>, String>;

struct Suite {
    runtime: tokio::runtime::Runtime,
    files: Mutex<HashMap<String, Arc<OnceCell<Verdicts>>>>,
    turns: Arc<Semaphore>,
    /// Files whose failure to run has been shown.
    told: Mutex<HashSet<String>>,
}

type Binaries = (PathBuf, PathBuf);

impl Suite {
    /// The verdicts of one file, which runs now unless it has.
    fn verdicts(&'static self, file: String, binaries: Binaries) -> impl Future<Output = Verdicts> + Send {
        let cell = {
            let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
            files.entry(file.clone()).or_default().clone()
        };
        async move {
            let run = async {
                let _turn = self.turns.acquire().await;
                match tokio::spawn(run_file(file, binaries.0, binaries.1)).await {
                    Ok(result) => result.map_err(|e| format!("{e:#}")),
                    Err(e) => Err(format!("the harness panicked: {e}")),
                }
            };
            cell.get_or_init(|| run).await.clone()
        }
    }

    /// Starts all files ahead of the tests that will ask, unless only some tests were asked for by name.
    fn begin_all(&'static self, binaries: &Binaries) {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            if std::env::args().skip(1).any(|a| !a.starts_with('-')) {
                return;
            }
            let mut names: Vec<String> = std::fs::read_dir(cases_dir())
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|e| e.file_name().into_string().ok())
                .filter(|name| name.ends_with(".yaml"))
                .collect();
            names.sort();
            for name in names {
                self.runtime.spawn(self.verdicts(name, binaries.clone()));
            }
        });
    }
}

static SUITE: LazyLock<Suite> = LazyLock::new(|| {
    let jobs = std::env::var("NUNCIO_SUITE_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    Suite {
        runtime: tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime for the suite"),
        files: Mutex::default(),
        turns: Arc::new(Semaphore::new(jobs)),
        told: Mutex::default(),
    }
});

/// The folder of the case files.
pub fn cases_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cases")
}

/// Runs one case of one file; called by the generated tests.
///
/// # Panics
/// The two proxies differ, one of them does not start, or (with `CI=true`) there is no Envoy to compare with.
pub fn check(file: &str, case: &str) {
    let Some(envoy) = find::envoy_or_loud() else { return };
    let nuncio = find::nuncio().unwrap_or_else(|why| panic!("no Nuncio to test: {why}"));
    let binaries = (envoy, nuncio);
    let suite = &*SUITE;
    suite.begin_all(&binaries);
    match suite.runtime.block_on(suite.verdicts(file.to_owned(), binaries)) {
        Err(why) => {
            let told = &mut *suite.told.lock().unwrap_or_else(PoisonError::into_inner);
            assert!(!told.insert(file.to_owned()), "{file}: {why}");
            panic!("{file} did not run: another of its tests says why");
        }
        Ok(cases) => match cases.get(case) {
            None => panic!("{file} has no case {case:?}"),
            Some(Ok(())) if pending::is_pending(file, case) => {
                panic!("{file}: {case} is as Envoy's now: take it off tests/cases/PENDING, and lower its number");
            }
            Some(Ok(())) => {}
            Some(Err(text)) if pending::is_pending(file, case) => {
                say(&format!("PENDING: {file}: {case} is not as Envoy's yet\n{text}"));
            }
            Some(Err(text)) => panic!("{file}: {case}\n{text}"),
        },
    }
}

/// Written past the capture of passing tests.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

async fn run_file(name: String, envoy: PathBuf, nuncio: PathBuf) -> Result<BTreeMap<String, Result<(), String>>> {
    let file = Arc::new(CaseFile::load(&cases_dir().join(&name))?);
    let dir = tempfile::tempdir()?;
    let certs = Arc::new(Certs::make(dir.path(), &file.certs)?);
    let self_check = envoy.canonicalize().ok() == nuncio.canonicalize().ok();
    let (left, right) = tokio::join!(
        Side::start("envoy", &envoy, dir.path(), file.clone(), certs.clone()),
        Side::start("nuncio", &nuncio, dir.path(), file.clone(), certs),
    );
    let (left, right) = (left.context("envoy")?, right.context("nuncio")?);
    let (left, right) = tokio::join!(tokio::spawn(left.run_all()), tokio::spawn(right.run_all()));
    let ((mut left, envoys), (mut right, nuncios)) = (left.context("envoy")?, right.context("nuncio")?);
    let mut verdicts = BTreeMap::new();
    for (i, case) in file.cases.iter().enumerate() {
        let (mut envoy, mut nuncio) = (envoys[i].clone(), nuncios[i].clone());
        let mut verdict = judge(case, &envoy, &nuncio, self_check);
        // On a busy machine either side may be late: what differs by chance does not differ again.
        // For the same reason a pending case is as Envoy's only when it is so again and again.
        let is_pending = pending::is_pending(&name, &case.case);
        let replays = if case.timing || is_pending { 3 } else { 1 };
        for _ in 0..replays {
            match &verdict {
                Ok(()) if !is_pending => break,
                Err(_) if is_pending => break,
                Ok(()) => {}
                Err(text) => say(&format!("PLAYED AGAIN: {name}: {}\n{text}", case.case)),
            }
            (envoy, nuncio) = tokio::join!(left.run(case), right.run(case));
            verdict = judge(case, &envoy, &nuncio, self_check);
        }
        if let Some(dir) = std::env::var_os("NUNCIO_SUITE_DUMP") {
            let stem = format!("{}.{}", name.trim_end_matches(".yaml"), case.case.replace(' ', "_"));
            for (side, outcome) in [("envoy", &envoy), ("nuncio", &nuncio)] {
                let text = serde_json::to_string_pretty(outcome)?;
                std::fs::write(Path::new(&dir).join(format!("{stem}.{side}.json")), text)?;
            }
        }
        verdicts.insert(case.case.clone(), verdict);
    }
    left.proxy.stop().await;
    right.proxy.stop().await;
    if std::env::var_os("NUNCIO_SUITE_KEEP").is_some() {
        eprintln!("{name}: kept {}", dir.keep().display());
    }
    Ok(verdicts)
}

fn judge(case: &Case, envoy: &Value, nuncio: &Value, self_check: bool) -> Result<(), String> {
    let surprise = mismatches(&case.expect, envoy);
    if !surprise.is_empty() {
        return Err(format!("Envoy itself does not do what the case says:\n{}", surprise.join("\n")));
    }
    // Two equal failures to get anywhere are no agreement.
    let text = envoy.to_string();
    if let Some(why) = ["ConnectionRefused", "no listener"].iter().find(|w| text.contains(**w)) {
        return Err(format!("nothing was compared ({why}): {text}"));
    }
    let diff = differences(envoy, nuncio);
    let Some(known) = case.known_difference.as_ref().filter(|_| !self_check) else {
        return if diff.is_empty() { Ok(()) } else { Err(diff) };
    };
    if diff.is_empty() {
        return Err(format!("no longer differs from Envoy: remove known_difference {:?}", known.reason));
    }
    let wrong = mismatches(&known.nuncio, nuncio);
    if wrong.is_empty() { Ok(()) } else { Err(format!("{}\n  against Envoy:\n{diff}", wrong.join("\n"))) }
}

fn mismatches(wanted: &BTreeMap<String, Value>, outcome: &Value) -> Vec<String> {
    wanted
        .iter()
        .filter(|(pointer, want)| outcome.pointer(pointer).unwrap_or(&Value::Null) != *want)
        .map(|(pointer, want)| {
            format!("  {pointer}: wanted {want}, was {}", outcome.pointer(pointer).unwrap_or(&Value::Null))
        })
        .collect()
}

/// One proxy with its upstreams.
struct Side {
    proxy: Proxy,
    upstreams: Upstreams,
    file: Arc<CaseFile>,
    certs: Arc<Certs>,
    /// Cases that did not end.
    stuck: usize,
}

/// The longest that a case may take.
const CASE_LIMIT: Duration = Duration::from_secs(20);

impl Side {
    async fn start(
        name: &'static str,
        binary: &Path,
        dir: &Path,
        file: Arc<CaseFile>,
        certs: Arc<Certs>,
    ) -> Result<Self> {
        let upstreams = Upstreams::start(&file.upstreams, &certs).await?;
        let proxy = Proxy::start(name, binary, dir, &file, &upstreams.ports, &certs).await?;
        Ok(Self { proxy, upstreams, file, certs, stuck: 0 })
    }

    async fn run_all(mut self) -> (Self, Vec<Value>) {
        let mut outcomes = Vec::new();
        for case in &self.file.clone().cases {
            outcomes.push(self.run(case).await);
        }
        (self, outcomes)
    }

    async fn run(&mut self, case: &Case) -> Value {
        if let Some(why) = self.proxy.ended() {
            return json!({"error": why});
        }
        if self.stuck >= 2 {
            return json!({"error": "given up: cases before this one did not end"});
        }
        let run = run_case(case, &self.file, &mut self.proxy, &self.upstreams, &self.certs);
        match tokio::time::timeout(CASE_LIMIT, run).await {
            Ok(outcome) => outcome.unwrap_or_else(|e| json!({"error": format!("{e:#}")})),
            Err(_) => {
                self.stuck += 1;
                json!({"error": format!("the case did not end within {CASE_LIMIT:?}")})
            }
        }
    }
}

async fn run_case(
    case: &Case,
    file: &CaseFile,
    proxy: &mut Proxy,
    upstreams: &Upstreams,
    certs: &Certs,
) -> Result<Value> {
    let compares = |part: &str| !case.ignore.iter().any(|i| i == part);
    let before = if compares("stats") { settled(proxy).await? } else { BTreeMap::new() };
    upstreams.take();
    let mut steps = Vec::new();
    for step in &case.steps {
        steps.push(client::play(step, proxy, certs, &file.listener).await?);
    }
    let mut outcome = json!({"steps": steps});
    let logged = ["{{log", "{{http"].iter().any(|holder| file.config.contains(holder)) && compares("log");
    let lines = case.log_lines.unwrap_or_else(|| case.steps.iter().map(client::requests_in).sum());
    if logged {
        outcome["log"] = json!(proxy.log_lines(lines).await);
    }
    if compares("stats") {
        let after = settled(proxy).await?;
        let skip = RegexSet::new(
            NOT_STATS.iter().map(|s| (*s).to_owned()).chain(file.stats_ignore.clone()).chain(case.stats_ignore.clone()),
        )?;
        let family = regex::Regex::new(STATS)?;
        let changes: serde_json::Map<String, Value> = after
            .iter()
            .filter(|(name, _)| family.is_match(name) && !skip.is_match(name))
            .map(|(name, now)| (name.clone(), now - before.get(name).copied().unwrap_or(0)))
            .filter(|(_, change)| *change != 0)
            .map(|(name, change)| (name, json!(format!("{change:+}"))))
            .collect();
        outcome["stats"] = changes.into();
    }
    if !logged {
        // What lines there are belong to this case, not to the next one.
        proxy.log_lines(0).await;
    }
    let mut seen = upstreams.take();
    if compares("upstream") {
        // What a TCP upstream saw is known when its connection ends: in no order.
        let tcp = |list: &[Value]| list.iter().all(|seen| seen.get("received").is_some());
        for list in seen.values_mut().filter(|list| case.unordered || tcp(list)) {
            list.sort_by_key(ToString::to_string);
        }
        outcome["upstream"] = json!(seen);
    }
    let rules: Vec<(String, String)> = file.mask.iter().chain(&case.mask).cloned().collect();
    Mask::new(&proxy.ports, &rules)?.apply(&mut outcome);
    // Their order is that of the ends of the requests, which may be together; times would sort them were they not masked.
    if let Some(lines) = outcome.get_mut("log").and_then(Value::as_array_mut) {
        lines.sort_by_key(ToString::to_string);
    }
    Ok(outcome)
}

/// The stats once two looks in a row agree on everything but the admin interface's own traffic.
async fn settled(proxy: &Proxy) -> Result<BTreeMap<String, i64>> {
    let family = regex::Regex::new(STATS)?;
    let skip = RegexSet::new(NOT_STATS)?;
    let relevant = |stats: &BTreeMap<String, i64>| -> Vec<(String, i64)> {
        stats.iter().filter(|(n, _)| family.is_match(n) && !skip.is_match(n)).map(|(n, v)| (n.clone(), *v)).collect()
    };
    let mut last = proxy.stats().await?;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(15)).await;
        let next = proxy.stats().await?;
        if relevant(&next) == relevant(&last) {
            return Ok(next);
        }
        last = next;
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(extra: &str) -> Case {
        serde_json::from_str(&format!("{{\"case\": \"c\", \"steps\": []{extra}}}")).unwrap()
    }

    #[test]
    fn equal_outcomes_pass_and_others_fail() {
        let one = json!({"steps": [{"line": "HTTP/1.1 200 OK"}]});
        let other = json!({"steps": [{"line": "HTTP/1.1 404 Not Found"}]});
        assert!(judge(&case(""), &one, &one, false).is_ok());
        assert!(judge(&case(""), &one, &other, false).unwrap_err().contains("404"));
    }

    #[test]
    fn two_equal_failures_to_connect_are_no_agreement() {
        let failed = json!({"steps": [{"error": "ConnectionRefused"}]});
        assert!(judge(&case(""), &failed, &failed, false).is_err());
    }

    #[test]
    fn envoy_must_do_what_the_case_expects() {
        let outcome = json!({"steps": [1]});
        assert!(judge(&case(r#", "expect": {"/steps/0": 1}"#), &outcome, &outcome, false).is_ok());
        assert!(judge(&case(r#", "expect": {"/steps/0": 2}"#), &outcome, &outcome, false).is_err());
    }

    #[test]
    fn a_known_difference_must_exist_and_be_as_described() {
        let known = case(r#", "known_difference": {"reason": "r", "nuncio": {"/steps/0": 2}}"#);
        let (envoy, nuncio) = (json!({"steps": [1]}), json!({"steps": [2]}));
        assert!(judge(&known, &envoy, &nuncio, false).is_ok());
        assert!(judge(&known, &envoy, &envoy, false).unwrap_err().contains("no longer differs"));
        assert!(judge(&known, &envoy, &json!({"steps": [3]}), false).is_err());
        assert!(judge(&known, &envoy, &envoy, true).is_ok());
    }
}
