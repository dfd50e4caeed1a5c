//! Conversations: the same scripted control plane for Nuncio and for Envoy, and what each of them asks.
//!
//! The scripts are data (`tests/conversations/*.yaml`, described in the README there). A script sends responses, waits for
//! requests of a type, and says when the talk has settled; everything that was asked until then is one record, in order.
//! The names within a request are sorted, since Envoy's order is that of a hash table.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryResponse, DiscoveryResponse, Resource as ProtoResource, ResourceError, ResourceName,
};
use envoy_types::pb::envoy::service::load_stats::v3::LoadStatsRequest;
use envoy_types::pb::google::protobuf::{Any, Duration as ProtoDuration};
use envoy_types::pb::google::rpc::Status;
use nuncio_config::descriptors;
use nuncio_config::ingest::{Syntax, parse};
use prost::Message as _;
use prost_reflect::DynamicMessage;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::case::KnownDifference;
use crate::compare::{Mask, differences};
use crate::control_plane::{Asked, ControlPlane, Request};
use crate::folder::Folder;
use crate::proxy::free_port;
use crate::{find, pending, text, yaml};

/// How long the other side may take to ask for what a script awaits.
const PATIENCE: Duration = Duration::from_secs(10);
/// The silence after which a talk has settled.
const SILENCE: Duration = Duration::from_millis(400);

/// A file of scripts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// What the scripts have in common, for the reader.
    pub about: String,
    /// The scripts.
    pub conversations: Vec<Conversation>,
}

/// One script.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conversation {
    /// Its name.
    pub conversation: String,
    /// How discovery is asked for.
    #[serde(default)]
    pub mode: Mode,
    /// More of the bootstrap.
    #[serde(default)]
    pub bootstrap: String,
    /// More of its `dynamic_resources`, a line each.
    #[serde(default)]
    pub dynamic: Vec<String>,
    /// Of the mode with files: what is in them first, with placeholders. `cds.yaml` and `lds.yaml` are always asked for.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// More of the API source, within its braces.
    #[serde(default = "node_once")]
    pub source: String,
    /// What happens.
    pub steps: Vec<Step>,
    /// Texts that differ without meaning.
    #[serde(default)]
    pub mask: Vec<(String, String)>,
    /// What differs on purpose, with pointers into Nuncio's record.
    #[serde(default)]
    pub known_difference: Option<KnownDifference>,
}

fn node_once() -> String {
    "set_node_on_first_message_only: true".to_owned()
}

fn example() -> String {
    "a.example".to_owned()
}

/// How discovery is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// One stream, state of the world.
    #[default]
    Ads,
    /// One stream, incremental.
    DeltaAds,
    /// A stream for each subscription, state of the world.
    Xds,
    /// A stream for each subscription, incremental.
    DeltaXds,
    /// Files in a folder that changes as a volume of Kubernetes does.
    Files,
}

impl Mode {
    fn delta(self) -> bool {
        matches!(self, Mode::DeltaAds | Mode::DeltaXds)
    }
}

/// One thing that a script does.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// Waits for a request of this type that has not been awaited yet.
    Await(String),
    /// Sends a response on the stream of the last request of its type.
    Send(Send),
    /// Forgets what was asked until there is silence: its order is chance.
    Forget,
    /// Says which loads are to be reported: a `LoadStatsResponse`.
    Loads(Value),
    /// Records what is asked until nothing has been for a while.
    Settle(Option<f64>),
    /// Changes files, all at once, with placeholders.
    Swap(BTreeMap<String, String>),
    /// Ends the stream of this type with a status.
    End(String, u32),
    /// Sends bytes that are no message on the stream of this type.
    Garbage(String),
    /// Records the status and the body of a request to a listener; retried until the listener answers with `until`.
    Get {
        /// The port's name.
        port: String,
        /// The path.
        path: String,
        /// What the body has to be for the answer to count; waits for it.
        #[serde(default)]
        until: Option<String>,
        /// `host`.
        #[serde(default = "example")]
        host: String,
    },
    /// Sends a request to a listener and goes on.
    Open {
        /// The port's name.
        port: String,
        /// The path.
        path: String,
        /// `host`.
        #[serde(default = "example")]
        host: String,
    },
    /// Waits for the answer to the oldest request that was sent and left, and records its status and body.
    Answer,
    /// Records these stats.
    Stats(Vec<String>),
    /// Records an answer of the admin interface.
    Admin {
        /// The path.
        path: String,
        /// What the body has to begin with; waits for it.
        #[serde(default)]
        until: Option<String>,
    },
}

/// A response.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Send {
    /// The short name of the type, such as `Cluster`.
    pub r#type: String,
    /// `version_info` or `system_version_info`.
    pub version: String,
    /// The nonce.
    pub nonce: String,
    /// The messages. `@type` makes one of another type; `@resource` wraps one (`name`, `version`, `ttl` in seconds,
    /// `aliases`, `empty`), as every one of a delta is, with the name inside and the version of the response if it says
    /// nothing else.
    pub resources: Vec<Value>,
    /// Delta: what is removed.
    pub removed: Vec<String>,
    /// Names for which there is an error, `NOT_FOUND`, in place of a resource.
    pub errors: Vec<String>,
}

/// Reads a file of scripts.
///
/// # Errors
/// It is none.
pub fn load(path: &Path) -> Result<File> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_value(yaml::read(&text)?).with_context(|| path.display().to_string())
}

/// The folder of the scripts.
pub fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conversations")
}

/// Plays one script with both proxies and compares what they asked.
///
/// # Panics
/// They differ, or the script cannot be played: the test fails.
pub fn check(file_name: &str, name: &str) {
    let nuncio = find::nuncio().unwrap_or_else(|e| panic!("no Nuncio: {e}"));
    let Some(envoy) = find::envoy_or_loud() else { return };
    let file = load(&dir().join(file_name)).unwrap_or_else(|e| panic!("{e:#}"));
    let pending = pending::read_in(&dir()).1.contains(&format!("{file_name}: {name}"));
    let script = file.conversations.iter().find(|c| c.conversation == name).unwrap_or_else(|| panic!("no {name}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap_or_else(|e| panic!("{e}"));
    let mut attempts = 0;
    loop {
        attempts += 1;
        let (theirs, ours) = runtime.block_on(async { tokio::join!(play(&envoy, script), play(&nuncio, script)) });
        let theirs = theirs.unwrap_or_else(|e| panic!("Envoy: {e:#}"));
        if let Some(dir) = std::env::var_os("NUNCIO_SUITE_DUMP") {
            let path = Path::new(&dir).join(format!("{name}.txt"));
            std::fs::write(&path, pretty(&theirs)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
        let ours = ours.and_then(|ours| match &script.known_difference {
            Some(known) => without(known, ours, &theirs),
            None => Ok(ours),
        });
        let verdict = match ours {
            Ok(ours) if ours == theirs => {
                assert!(!pending, "{name}: no longer differs; take it off conversations/PENDING");
                return;
            }
            Ok(ours) => {
                format!("{}\nEnvoy:\n{}\nNuncio:\n{}", differences(&theirs, &ours), pretty(&theirs), pretty(&ours))
            }
            Err(e) => format!("Nuncio: {e:#}\nEnvoy:\n{}", pretty(&theirs)),
        };
        if pending {
            eprintln!("PENDING {file_name}: {name}\n{verdict}");
            return;
        }
        // What depends on how fast a loaded machine is may differ once.
        assert!(attempts < 2, "{verdict}");
    }
}

/// Nuncio's record with Envoy's values where the two differ as they are meant to.
fn without(known: &KnownDifference, mut ours: Value, theirs: &Value) -> Result<Value> {
    for (pointer, wanted) in &known.nuncio {
        let envoy = theirs.pointer(pointer).cloned().unwrap_or_default();
        ensure!(envoy != *wanted, "{pointer} no longer differs from Envoy: remove known_difference {:?}", known.reason);
        let found = ours.pointer_mut(pointer).with_context(|| format!("{pointer} is not there"))?;
        ensure!(found == wanted, "{pointer} is {found}, not {wanted}");
        *found = envoy;
    }
    Ok(ours)
}

fn pretty(record: &Value) -> String {
    let lines = record.as_array().into_iter().flatten().map(|entry| match entry.as_array() {
        Some(items) => items.iter().map(|item| format!("  {item}\n")).collect::<String>() + "  --\n",
        None => format!("  {entry}\n"),
    });
    lines.collect()
}

struct Talk<'a> {
    script: &'a Conversation,
    server: ControlPlane,
    ports: BTreeMap<String, u16>,
    folder: Folder,
    /// The stream of the last request of each type.
    streams: BTreeMap<String, usize>,
    /// What was asked and not recorded yet.
    asked: Vec<Value>,
    /// How many requests of each type were awaited, of how many.
    awaited: BTreeMap<String, (usize, usize)>,
    record: Vec<Value>,
    /// Requests whose answers are still to come.
    open: VecDeque<tokio::task::JoinHandle<Result<(u16, String)>>>,
}

async fn play(binary: &Path, script: &Conversation) -> Result<Value> {
    let dir = tempfile::tempdir()?;
    let server = ControlPlane::start().await?;
    let mut ports = BTreeMap::from([("admin".to_owned(), free_port()), ("xds".to_owned(), server.address.port())]);
    let mut folder = Folder::new(dir.path().join("volume"))?;
    if script.mode == Mode::Files {
        let files = expand_files(&script.files, folder.path(), &mut ports, script)?;
        folder.swap(files)?;
    }
    let bootstrap = bootstrap(script);
    let bootstrap = text::expand(&bootstrap, |words| placeholder(words, folder.path(), &mut ports, script))?;
    let path = dir.path().join("bootstrap.yaml");
    std::fs::write(&path, bootstrap)?;
    let stderr = dir.path().join("stderr");
    let mut command = tokio::process::Command::new(binary);
    command.arg("-c").arg(&path).args(["--concurrency", "1", "--disable-hot-restart", "-l", "warning"]);
    command.args(["--drain-time-s", "1"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(std::fs::File::create(&stderr)?).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| binary.display().to_string())?;
    let mut talk = Talk {
        script,
        server,
        ports,
        folder,
        streams: BTreeMap::new(),
        asked: Vec::new(),
        awaited: BTreeMap::new(),
        record: Vec::new(),
        open: VecDeque::new(),
    };
    let said = || {
        let text = std::fs::read_to_string(&stderr).unwrap_or_default();
        text.lines().rev().take(15).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
    };
    for (number, step) in script.steps.iter().enumerate() {
        let done = talk.step(step).await;
        if let Some(status) = child.try_wait()? {
            bail!("it ended with {status} in step {}: {}", number + 1, said());
        }
        done.with_context(|| format!("step {}: {step:?}\n{}\n{}", number + 1, pretty(&json!(talk.record)), said()))?;
    }
    let mut record = Value::Array(talk.record);
    Mask::new(&talk.ports, &script.mask)?.apply(&mut record);
    let _ = child.kill().await;
    Ok(record)
}

fn bootstrap(script: &Conversation) -> String {
    let api = if script.mode.delta() { "DELTA_GRPC" } else { "GRPC" };
    let source = format!(
        "{{api_type: {api}, transport_api_version: V3, {}{}grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]}}",
        script.source,
        if script.source.is_empty() { "" } else { ", " },
    );
    let ads = match script.mode {
        Mode::Ads | Mode::DeltaAds => format!("  ads_config: {source}\n"),
        Mode::Xds | Mode::DeltaXds | Mode::Files => String::new(),
    };
    let (clusters, listeners) = match script.mode {
        Mode::Files => ("{{file cds.yaml}}", "{{file lds.yaml}}"),
        _ => ("{{source}}", "{{source}}"),
    };
    let mut out = format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {{{{port admin}}}}}}}}}}\n\
         node: {{id: test-id, cluster: test-cluster}}\n\
         dynamic_resources:\n{ads}  cds_config: {{{clusters}}}\n  lds_config: {{{listeners}}}\n"
    );
    out.extend(script.dynamic.iter().map(|line| format!("  {line}\n")));
    if !script.bootstrap.contains("static_resources:") {
        out += "static_resources: {clusters: [{{xds cluster}}]}\n";
    }
    out + &script.bootstrap
}

fn expand_files(
    files: &BTreeMap<String, String>,
    folder: &Path,
    ports: &mut BTreeMap<String, u16>,
    script: &Conversation,
) -> Result<BTreeMap<String, String>> {
    let expand = |(name, text): (&String, &String)| {
        Ok((name.clone(), text::expand(text, |words| placeholder(words, folder, ports, script))?))
    };
    files.iter().map(expand).collect()
}

/// `{{port NAME}}`, `{{source}}` (the fields of a config source, for the mode), `{{file NAME}}` (those of a file as the
/// source), `{{folder}}` and `{{xds cluster}}`.
fn placeholder(
    words: &[&str],
    folder: &Path,
    ports: &mut BTreeMap<String, u16>,
    script: &Conversation,
) -> Option<String> {
    Some(match words {
        ["port", name] => ports.entry((*name).to_owned()).or_insert_with(free_port).to_string(),
        ["source"] => {
            let api = if script.mode.delta() { "DELTA_GRPC" } else { "GRPC" };
            match script.mode {
                Mode::Ads | Mode::DeltaAds => "ads: {}, resource_api_version: V3".to_owned(),
                Mode::Files => return None,
                Mode::Xds | Mode::DeltaXds => format!(
                    "resource_api_version: V3, api_config_source: {{api_type: {api}, transport_api_version: V3, {}{}\
                     grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]}}",
                    script.source,
                    if script.source.is_empty() { "" } else { ", " }
                ),
            }
        }
        ["folder"] => folder.display().to_string(),
        ["file", name] => format!(
            "resource_api_version: V3, path_config_source: {{path: \"{0}/{name}\", watched_directory: {{path: \"{0}\"}}}}",
            folder.display()
        ),
        ["xds", "cluster"] => format!(
            "{{name: xds, type: STATIC, connect_timeout: 1s, load_assignment: {{cluster_name: xds, endpoints: \
             [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]}}, \
             typed_extension_protocol_options: {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{\"@type\": \
             type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: \
             {{http2_protocol_options: {{}}}}}}}}}}",
            ports.get("xds")?
        ),
        _ => return None,
    })
}

/// Replaces the strings of a resource that are placeholders, by what they stand for as YAML.
fn fill(value: &mut Value, folder: &Path, ports: &mut BTreeMap<String, u16>, script: &Conversation) -> Result<()> {
    match value {
        Value::String(text) if text.starts_with("{{") => {
            let expanded = text::expand(text, |words| placeholder(words, folder, ports, script))?;
            let flow = if expanded.contains(": ") { format!("{{{expanded}}}") } else { expanded };
            *value = yaml::read(&flow)?;
        }
        Value::Array(items) => items.iter_mut().try_for_each(|item| fill(item, folder, ports, script))?,
        Value::Object(fields) => fields.values_mut().try_for_each(|field| fill(field, folder, ports, script))?,
        _ => {}
    }
    Ok(())
}

impl Talk<'_> {
    async fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Await(kind) => self.wait_for(kind).await?,
            Step::Send(send) => self.send(send)?,
            Step::Forget => {
                self.listen(SILENCE).await;
                self.asked.clear();
            }
            Step::Loads(fields) => {
                let message = encoded(fields, "type.googleapis.com/envoy.service.load_stats.v3.LoadStatsResponse")?;
                self.server.send(self.stream("LoadStats")?, &message.value)?;
            }
            Step::Settle(seconds) => {
                self.listen(seconds.map_or(SILENCE, Duration::from_secs_f64)).await;
                self.record.push(Value::Array(std::mem::take(&mut self.asked)));
            }
            Step::Swap(files) => {
                let files = expand_files(files, self.folder.path(), &mut self.ports, self.script)?;
                self.folder.swap(files)?;
            }
            Step::End(kind, code) => self.server.end(self.stream(kind)?, *code)?,
            Step::Garbage(kind) => {
                let garbage = bytes::Bytes::from_static(b"\0\0\0\0\x04\xff\xff\xff\xff");
                self.server.raw(self.stream(kind)?, garbage)?;
            }
            Step::Get { port, path, until, host } => {
                let port = *self.ports.get(port).with_context(|| format!("no port {port}"))?;
                let enough = |body: &str| until.as_ref().is_none_or(|until| body == until);
                let answer = self.get(port, path, host, enough).await?;
                self.record.push(json!({"get": path, "status": answer.0, "body": answer.1}));
            }
            Step::Open { port, path, host } => {
                let port = *self.ports.get(port).with_context(|| format!("no port {port}"))?;
                let (path, host) = (path.clone(), host.clone());
                self.open.push_back(tokio::spawn(async move { once(port, &path, &host).await }));
            }
            Step::Answer => {
                let answer = self.open.pop_front().context("no request was left open")?.await?;
                self.record.push(match answer {
                    Ok((status, body)) => json!({"status": status, "body": body}),
                    Err(_) => json!("closed"),
                });
            }
            Step::Stats(names) => {
                let port = self.ports["admin"];
                let (_, text) = self.get(port, "/stats", "a.example", |_| true).await?;
                let value = |name: &String| text.lines().find_map(|l| l.strip_prefix(&format!("{name}: ")));
                let stats: BTreeMap<&String, Option<&str>> = names.iter().map(|n| (n, value(n))).collect();
                self.record.push(json!({ "stats": stats }));
            }
            Step::Admin { path, until } => {
                let port = self.ports["admin"];
                let begins = |body: &str| until.as_ref().is_none_or(|until| body.starts_with(until.as_str()));
                let (status, body) = self.get(port, path, "a.example", begins).await?;
                self.record.push(json!({"admin": path, "status": status, "body": body}));
            }
        }
        Ok(())
    }

    /// Takes what is asked until nothing has been for a while.
    async fn listen(&mut self, silence: Duration) {
        while let Ok(Some(asked)) = tokio::time::timeout(silence, self.server.asked()).await {
            self.note(&asked);
        }
    }

    fn stream(&self, kind: &str) -> Result<usize> {
        self.streams.get(kind).copied().with_context(|| format!("{kind} was never asked for"))
    }

    fn note(&mut self, asked: &Asked) {
        let kind = asked.request.type_url().rsplit('.').next().unwrap_or_default().to_owned();
        self.streams.insert(kind.clone(), asked.stream);
        self.awaited.entry(kind.clone()).or_default().1 += 1;
        let sorted = |names: &[String]| {
            let mut names = names.to_vec();
            names.sort();
            names
        };
        let error =
            |status: &Option<Status>| status.as_ref().map(|s| format!("{}: {}", s.code, without_paths(&s.message)));
        let mut entry = match &asked.request {
            Request::Sotw(r) => json!({
                "type": kind, "version": r.version_info, "nonce": r.response_nonce, "names": sorted(&r.resource_names),
                "error": error(&r.error_detail), "node": r.node.is_some(),
            }),
            Request::Delta(r) => json!({
                "type": kind, "nonce": r.response_nonce, "subscribe": sorted(&r.resource_names_subscribe),
                "unsubscribe": sorted(&r.resource_names_unsubscribe),
                "held": r.initial_resource_versions.iter().collect::<BTreeMap<_, _>>(),
                "error": error(&r.error_detail), "node": r.node.is_some(),
            }),
            Request::Load(r) => loads(r),
        };
        if matches!(self.script.mode, Mode::Xds | Mode::DeltaXds) {
            entry["path"] = asked.path.clone().into();
        }
        self.asked.push(entry);
    }

    async fn wait_for(&mut self, kind: &str) -> Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let (awaited, seen) = self.awaited.entry(kind.to_owned()).or_default();
            if awaited < seen {
                *awaited += 1;
                return Ok(());
            }
            let asked = tokio::time::timeout_at(deadline, self.server.asked()).await;
            let asked = asked.with_context(|| format!("{kind} was not asked for; this was: {:#?}", self.asked))?;
            self.note(&asked.context("the control plane has ended")?);
        }
    }

    fn send(&mut self, send: &Send) -> Result<()> {
        let stream = self.stream(&send.r#type)?;
        let type_url = type_url(&send.r#type)?;
        let mut resources = send.resources.clone();
        for resource in &mut resources {
            fill(resource, self.folder.path(), &mut self.ports, self.script)?;
        }
        let error = |name: &String| ResourceError {
            resource_name: Some(ResourceName { name: name.clone(), ..ResourceName::default() }),
            error_detail: Some(Status { code: 5, message: "there is none".to_owned(), ..Status::default() }),
        };
        let resource_errors: Vec<ResourceError> = send.errors.iter().map(error).collect();
        let message = if self.script.mode.delta() {
            let mut list = Vec::new();
            for resource in &resources {
                list.push(wrapped(resource, &type_url, &send.version)?);
            }
            DeltaDiscoveryResponse {
                system_version_info: send.version.clone(),
                nonce: send.nonce.clone(),
                type_url,
                resources: list,
                removed_resources: send.removed.clone(),
                resource_errors,
                ..DeltaDiscoveryResponse::default()
            }
            .encode_to_vec()
        } else {
            let mut list = Vec::new();
            for resource in &resources {
                list.push(if resource.get("@resource").is_some() {
                    let wrapped = wrapped(resource, &type_url, &send.version)?;
                    Any {
                        type_url: "type.googleapis.com/envoy.service.discovery.v3.Resource".to_owned(),
                        value: wrapped.encode_to_vec(),
                    }
                } else {
                    encoded(resource, &type_url)?
                });
            }
            DiscoveryResponse {
                version_info: send.version.clone(),
                nonce: send.nonce.clone(),
                type_url,
                resources: list,
                resource_errors,
                ..DiscoveryResponse::default()
            }
            .encode_to_vec()
        };
        self.server.send(stream, &message)
    }

    /// One request, repeated until there is an answer that will do.
    async fn get(&mut self, port: u16, path: &str, host: &str, enough: impl Fn(&str) -> bool) -> Result<(u16, String)> {
        let deadline = Instant::now() + PATIENCE;
        let mut last = String::from("nothing listens");
        loop {
            match once(port, path, host).await {
                Ok((status, body)) if enough(&body) => return Ok((status, body)),
                Ok((status, body)) => last = format!("{status} {body}"),
                Err(e) => last = format!("{last}; {e:#}"),
            }
            if Instant::now() > deadline {
                bail!("no such answer to {path}: {last}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn once(port: u16, path: &str, host: &str) -> Result<(u16, String)> {
    let call = async {
        let mut stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        let head = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut reader = crate::http1::Reader::default();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let n = stream.read(&mut buffer).await?;
            reader.push(&buffer[..n]);
            if let Some(response) = reader.response(false, n == 0)? {
                return Ok((response.status, response.body));
            }
            if n == 0 {
                bail!("an incomplete answer");
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), call).await.context("no answer")?
}

/// A load report: what is counted, without the times.
fn loads(report: &LoadStatsRequest) -> Value {
    let mut report = report.clone();
    // Envoy counts its streams to the control plane as requests of that cluster.
    report.cluster_stats.retain(|stats| stats.cluster_name != "xds");
    report.cluster_stats.sort_by(|a, b| a.cluster_name.cmp(&b.cluster_name));
    let clusters = report.cluster_stats.iter_mut().map(|stats| {
        for locality in &mut stats.upstream_locality_stats {
            // In any order.
            locality.load_metric_stats.sort_by(|a, b| a.metric_name.cmp(&b.metric_name));
            for endpoint in &mut locality.upstream_endpoint_stats {
                endpoint.load_metric_stats.sort_by(|a, b| a.metric_name.cmp(&b.metric_name));
            }
        }
        let measured = stats.load_report_interval.take().is_some();
        let descriptor = descriptors::message("envoy.config.endpoint.v3.ClusterStats");
        let message = descriptor.and_then(|d| DynamicMessage::decode(d, &stats.encode_to_vec()[..]).ok());
        let shown = message.and_then(|message| descriptors::dynamic_to_json(&message));
        json!({"measured": measured, "stats": shown})
    });
    let features = report.node.as_ref().map(|node| node.client_features.clone());
    json!({"type": "LoadStats", "features": features, "clusters": clusters.collect::<Vec<_>>()})
}

/// The type URL of a short name.
pub(crate) fn type_url(kind: &str) -> Result<String> {
    let name = match kind {
        "Cluster" => "envoy.config.cluster.v3.Cluster",
        "Listener" => "envoy.config.listener.v3.Listener",
        "RouteConfiguration" => "envoy.config.route.v3.RouteConfiguration",
        "ScopedRouteConfiguration" => "envoy.config.route.v3.ScopedRouteConfiguration",
        "VirtualHost" => "envoy.config.route.v3.VirtualHost",
        "ClusterLoadAssignment" => "envoy.config.endpoint.v3.ClusterLoadAssignment",
        "LbEndpoint" => "envoy.config.endpoint.v3.LbEndpoint",
        "Secret" => "envoy.extensions.transport_sockets.tls.v3.Secret",
        "Runtime" => "envoy.service.runtime.v3.Runtime",
        "TypedExtensionConfig" => "envoy.config.core.v3.TypedExtensionConfig",
        other => bail!("no type {other}"),
    };
    Ok(format!("type.googleapis.com/{name}"))
}

/// A message of the script as an `Any`.
///
/// # Errors
/// It is no such message.
pub fn encoded(resource: &Value, type_url: &str) -> Result<Any> {
    let mut resource = resource.clone();
    let mut type_url = type_url.to_owned();
    if let Some(fields) = resource.as_object_mut() {
        fields.remove("@resource");
        if let Some(Value::String(other)) = fields.remove("@type") {
            type_url = other;
        }
    }
    let name = descriptors::type_name(&type_url);
    let Some(descriptor) = descriptors::message(name) else {
        return Ok(Any { type_url, value: Vec::new() });
    };
    let parsed = parse(&descriptor, &resource.to_string(), Syntax::Json, 0, false);
    if !parsed.errors.is_empty() {
        bail!("{name}: {:?}", parsed.errors);
    }
    Ok(Any { type_url, value: parsed.bytes })
}

fn wrapped(resource: &Value, type_url: &str, version: &str) -> Result<ProtoResource> {
    let outer = resource.get("@resource").cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let inner = resource.get("name").or_else(|| resource.get("cluster_name")).and_then(text);
    let aliases = outer["aliases"].as_array().into_iter().flatten().filter_map(text).collect();
    Ok(ProtoResource {
        name: text(&outer["name"]).or(inner).unwrap_or_default(),
        version: text(&outer["version"]).unwrap_or_else(|| version.to_owned()),
        aliases,
        ttl: outer["ttl"].as_i64().map(|seconds| ProtoDuration { seconds, nanos: 0 }),
        resource: if outer["empty"] == true { None } else { Some(encoded(resource, type_url)?) },
        ..ProtoResource::default()
    })
}
/// The text of an error without the paths that Nuncio names behind Envoy's words: ` (in a.b[0])`.
fn without_paths(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(" (in ") {
        let Some(end) = rest[at..].find(')') else { break };
        out.push_str(&rest[..at]);
        rest = &rest[at + end + 1..];
    }
    out + rest
}
