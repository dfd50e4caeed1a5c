//! `nuncio xds-check`: fetches what a bootstrap asks for, and tells what would be applied and what refused.
//!
//! The same discovery client, decoders and managers as in a process that serves, without sockets and workers: what is
//! accepted here is accepted there, but for addresses that are in use. Called by `main`.

use crate::server::Server;
use crate::xds::wants::Want;
use crate::xds::{Discovery, Unusable};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;
use xds_client::TypeUrl;
use xds_client::status::{ResourceState, ResourceStatus, SourceState, TypeState};

/// How often is looked whether what is late has come.
const AGAIN: Duration = Duration::from_millis(20);

/// What would happen to a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It would be applied.
    Accepted,
    /// It would be refused.
    Rejected,
    /// It was asked for, and has not come.
    Missing,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Verdict::Accepted => "accepted",
            Verdict::Rejected => "rejected",
            Verdict::Missing => "missing",
        }
    }
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Full name of the message.
    pub kind: String,
    /// Name of the resource; `*` for all of the type.
    pub name: String,
    /// The version that was judged.
    pub version: String,
    /// What would happen.
    pub verdict: Verdict,
    /// Why, unless it would be applied.
    pub error: String,
    /// Where it was asked for: kind and name of the source.
    pub source: String,
}

/// What came of it all.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// All resources, in the order of the types' first use.
    pub rows: Vec<Row>,
    /// Sources that could not be reached, with the reason.
    pub unreachable: Vec<(String, String)>,
    /// What kept the rest from being fetched.
    pub error: Option<String>,
}

/// Fetches until everything has come, or `timeout` is over.
pub(crate) async fn run(server: &Arc<Server>, wanted: UnboundedReceiver<Want>, timeout: Duration) -> Outcome {
    nuncio_base::timer::start();
    let deadline = Instant::now() + timeout;
    let contexts = server.context.contexts.clone();
    let watcher = tokio::task::spawn_local(async move { contexts.run().await });
    let discovery = match Discovery::start(server, wanted) {
        Ok(discovery) => discovery,
        Err(error) => return Outcome { error: Some(error), ..Outcome::default() },
    };
    let fetched = tokio::time::timeout_at(deadline, async {
        discovery.clusters().await?;
        discovery.listeners().await
    });
    let error = match fetched.await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error),
        Err(_) => waits_for(server, &discovery),
    };
    // `initial_fetch_timeout` may be shorter than the time that there is.
    let mut rows = rows(&discovery.snapshot());
    while error.is_none() && rows.iter().any(|row| row.verdict == Verdict::Missing) && Instant::now() < deadline {
        tokio::time::sleep(AGAIN).await;
        rows = self::rows(&discovery.snapshot());
    }
    rows.extend(discovery.unusable().into_iter().map(unusable));
    let unreachable = unreachable(&discovery.snapshot());
    watcher.abort();
    Outcome { rows, unreachable, error }
}

/// What a check that ran out of time before it asked for listeners was waiting for.
fn waits_for(server: &Server, discovery: &Discovery) -> Option<String> {
    if discovery.listeners_asked() {
        return None;
    }
    if discovery.awaits_runtime() {
        return Some(
            "clusters and listeners were not asked for: layers of the runtime have not come in time".to_owned(),
        );
    }
    let clusters = &server.context.clusters;
    let unready = clusters.clusters().into_iter().filter(|cluster| cluster.stats.warming_state().value() > 0);
    let names: Vec<_> = unready.chain(clusters.warming()).map(|cluster| format!("'{}'", cluster.name())).collect();
    Some(match names.is_empty() {
        true => "listeners were not asked for: clusters have not come in time".to_owned(),
        false => format!("listeners were not asked for: not ready in time: cluster(s) {}", names.join(", ")),
    })
}

fn unusable(what: Unusable) -> Row {
    Row {
        kind: what.type_url.message().to_owned(),
        name: what.name,
        version: String::new(),
        verdict: Verdict::Missing,
        error: what.error,
        source: String::new(),
    }
}

fn source_name(source: &SourceState) -> String {
    format!("{} {}", source.kind, source.name)
}

/// A file that cannot be read is refused rather than out of reach; its rows say so.
fn unreachable(sources: &[SourceState]) -> Vec<(String, String)> {
    let mut out: Vec<(String, String)> = Vec::new();
    for source in sources.iter().filter(|source| !source.connected && source.kind != "path") {
        let asked = source.types.iter().any(|kind| kind.subscriptions > 0 && kind.received.is_none());
        let one = (source_name(source), source.last_failure.clone());
        if asked && !out.contains(&one) {
            out.push(one);
        }
    }
    out
}

fn rows(sources: &[SourceState]) -> Vec<Row> {
    let mut out = Vec::new();
    for source in sources {
        for kind in source.types.iter().filter(|kind| kind.subscriptions > 0) {
            type_rows(&mut out, source, kind);
        }
    }
    // One stream for each subscription: bring those of a type together, in the order in which the server needs them.
    out.sort_by_cached_key(|row: &Row| (order(&row.kind), row.kind.clone(), row.name.clone()));
    out.dedup();
    out
}

fn order(kind: &str) -> usize {
    const TYPES: [TypeUrl; 6] = [
        TypeUrl::RUNTIME,
        TypeUrl::CLUSTER,
        TypeUrl::CLUSTER_LOAD_ASSIGNMENT,
        TypeUrl::LISTENER,
        TypeUrl::ROUTE_CONFIGURATION,
        TypeUrl::SECRET,
    ];
    TYPES.iter().position(|known| known.message() == kind).unwrap_or(TYPES.len())
}

fn type_rows(out: &mut Vec<Row>, source: &SourceState, kind: &TypeState) {
    let row = |name: &str, version: &str, verdict: Verdict, error: &str| Row {
        kind: kind.type_url.message().to_owned(),
        name: name.to_owned(),
        version: version.to_owned(),
        verdict,
        error: error.to_owned(),
        source: source_name(source),
    };
    let unread = source.kind == "path" && !source.connected;
    let mut told = false;
    // A file or a poll may bring more than was asked for by name.
    let named = kind.resources.iter().any(|resource| resource.requested.is_some());
    for resource in kind.resources.iter().filter(|resource| !named || resource.requested.is_some()) {
        let (verdict, version, error) = judge(source, kind, resource, unread);
        told |= verdict == Verdict::Rejected;
        out.push(row(&resource.name, version, verdict, &error));
    }
    if unread && kind.resources.is_empty() {
        out.push(row("*", "", Verdict::Rejected, &source.last_failure));
    } else if !kind.error.is_empty() && !told {
        // An answer that was refused as a whole: no resource has the error.
        out.push(row("*", "", Verdict::Rejected, &kind.error));
    } else if kind.received.is_none() && kind.resources.is_empty() {
        out.push(row("*", "", Verdict::Missing, &why_missing(source)));
    }
}

fn judge<'a>(
    source: &SourceState,
    kind: &TypeState,
    resource: &'a ResourceState,
    unread: bool,
) -> (Verdict, &'a str, String) {
    match resource.status {
        ResourceStatus::Acked => (Verdict::Accepted, &resource.version, String::new()),
        ResourceStatus::Nacked => (Verdict::Rejected, &resource.rejected_version, resource.error.clone()),
        _ if unread => (Verdict::Rejected, "", source.last_failure.clone()),
        // The answer was another than what was asked for.
        _ if !kind.error.is_empty() => (Verdict::Rejected, "", kind.error.clone()),
        ResourceStatus::DoesNotExist => (Verdict::Missing, "", "the source says that it does not exist".to_owned()),
        ResourceStatus::Requested | ResourceStatus::Timeout => (Verdict::Missing, "", why_missing(source)),
    }
}

fn why_missing(source: &SourceState) -> String {
    match (source.connected, source.last_failure.is_empty()) {
        (true, _) => "asked for, and not sent in time".to_owned(),
        (false, true) => format!("no connection to {} in time", source.name),
        (false, false) => format!("no connection to {}: {}", source.name, source.last_failure),
    }
}

impl Outcome {
    /// Whether all would be applied.
    pub fn is_good(&self) -> bool {
        self.error.is_none() && self.unreachable.is_empty() && self.count(Verdict::Accepted) == self.rows.len()
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.rows.iter().filter(|row| row.verdict == verdict).count()
    }

    /// The outcome in one line.
    pub fn summary(&self) -> String {
        if let Some(error) = &self.error
            && self.rows.is_empty()
            && self.unreachable.is_empty()
        {
            return error.clone();
        }
        if self.rows.is_empty() && self.unreachable.is_empty() {
            return "nothing is fetched: the bootstrap names no source of resources".to_owned();
        }
        let [accepted, rejected, missing] =
            [Verdict::Accepted, Verdict::Rejected, Verdict::Missing].map(|verdict| self.count(verdict));
        let mut out = format!("{accepted} accepted, {rejected} rejected, {missing} missing");
        for (source, why) in &self.unreachable {
            let _ = write!(out, "; {source} cannot be reached");
            if !why.is_empty() {
                let _ = write!(out, ": {why}");
            }
        }
        if let Some(error) = &self.error {
            let _ = write!(out, "; {error}");
        }
        out
    }

    /// A table, one line for each resource, and the summary if all is good.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        if !self.rows.is_empty() {
            let short = |row: &Row| row.kind.rsplit('.').next().unwrap_or_default().to_owned();
            let mut cells = vec![["TYPE", "NAME", "VERSION", "VERDICT", "ERROR"].map(str::to_owned)];
            cells.extend(self.rows.iter().map(|row| {
                let version = if row.version.is_empty() { "-" } else { &row.version };
                [short(row), row.name.clone(), version.to_owned(), row.verdict.name().to_owned(), row.error.clone()]
            }));
            let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
            let widths = [width(0), width(1), width(2), width(3)];
            for row in &cells {
                let mut line = String::new();
                for (cell, width) in row.iter().zip(widths) {
                    let _ = write!(line, "{cell:width$}  ");
                }
                line.push_str(&row[4]);
                out.push_str(line.trim_end());
                out.push('\n');
            }
        }
        if self.is_good() {
            out.push_str(&self.summary());
            out.push('\n');
        }
        out
    }

    /// One object with the same facts.
    pub fn to_json(&self) -> Value {
        let row = |row: &Row| {
            json!({
                "type": row.kind, "name": row.name, "version": row.version, "verdict": row.verdict.name(),
                "error": row.error, "source": row.source,
            })
        };
        let unreachable = |(source, why): &(String, String)| json!({"source": source, "error": why});
        json!({
            "ok": self.is_good(),
            "summary": self.summary(),
            "error": self.error,
            "accepted": self.count(Verdict::Accepted),
            "rejected": self.count(Verdict::Rejected),
            "missing": self.count(Verdict::Missing),
            "unreachable": self.unreachable.iter().map(unreachable).collect::<Vec<_>>(),
            "resources": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }
}
