//! What a case file says: the configuration, the scripted upstreams, the cases with their steps.
//!
//! `tests/cases/README.md` describes the format for authors. This file only reads it; `run` acts on it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::Value;

/// One file of `tests/cases`: cases that share a configuration and a pair of running proxies.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseFile {
    /// One line for the reader.
    pub about: String,
    /// Certificates to make, by name.
    #[serde(default)]
    pub certs: BTreeMap<String, CertSpec>,
    /// The scripted upstreams, by name.
    #[serde(default)]
    pub upstreams: BTreeMap<String, UpstreamSpec>,
    /// The bootstrap, with placeholders.
    pub config: String,
    /// More fields of `admin`, as in braces.
    #[serde(default)]
    pub admin: String,
    /// More arguments for both proxies.
    #[serde(default)]
    pub args: Vec<String>,
    /// Replacements (regular expression, text) in every string of the outcomes.
    #[serde(default)]
    pub mask: Vec<(String, String)>,
    /// Stats (regular expressions over the name) that are not compared in this file.
    #[serde(default)]
    pub stats_ignore: Vec<String>,
    /// What the steps talk to unless they say otherwise.
    #[serde(default = "main_listener")]
    pub listener: String,
    /// The cases.
    pub cases: Vec<Case>,
}

/// One case: steps on fresh connections, and what to compare.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// The name; `build.rs` makes a test of it.
    pub case: String,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// Parts that are not compared: `upstream`, `log`, `stats`.
    #[serde(default)]
    pub ignore: Vec<String>,
    /// Lines to wait for in the access log; by default one per request.
    pub log_lines: Option<usize>,
    /// More stats (regular expressions) that are not compared.
    #[serde(default)]
    pub stats_ignore: Vec<String>,
    /// More replacements.
    #[serde(default)]
    pub mask: Vec<(String, String)>,
    /// The order in which the upstream saw the requests does not matter.
    #[serde(default)]
    pub unordered: bool,
    /// The case depends on short times: where the sides differ it is played once more.
    #[serde(default)]
    pub timing: bool,
    /// JSON pointers into the outcome, and values that Envoy's must have: what the case is there to show.
    #[serde(default)]
    pub expect: BTreeMap<String, Value>,
    /// A deliberate difference; then the case holds what Nuncio does instead.
    pub known_difference: Option<KnownDifference>,
}

/// A difference that is wanted.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownDifference {
    /// A heading of `docs/differences.md`.
    pub reason: String,
    /// JSON pointers into Nuncio's outcome, and the values they must have.
    pub nuncio: BTreeMap<String, Value>,
}

/// One step of a case. Exactly one of the actions is set.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// The listener, by the name of its `{{addr NAME}}` placeholder.
    pub listener: Option<String>,
    /// TLS on the connection.
    pub tls: Option<ClientTls>,
    /// Bytes (with placeholders) sent before TLS and HTTP, such as a PROXY protocol header.
    pub preamble: Option<String>,
    /// GET requests on one connection, with `headers`.
    pub get: Option<OneOrMany<String>>,
    /// For `get`: request headers.
    #[serde(default)]
    pub headers: Headers,
    /// HTTP/1.1 requests on one connection.
    pub requests: Option<Vec<Request>>,
    /// Raw bytes (Latin-1), delays between them; the answers are read as HTTP/1.
    pub send: Option<OneOrMany<Piece>>,
    /// For `send`: how many responses to read.
    pub replies: Option<usize>,
    /// A raw TCP conversation.
    pub tcp: Option<Vec<TcpStep>>,
    /// HTTP/2 requests on one connection, one after the other.
    pub h2: Option<Vec<Request>>,
    /// For `h2`: all at once.
    #[serde(default)]
    pub concurrent: bool,
    /// Raw HTTP/2: the preface, then frames of one sort, many times.
    pub flood: Option<Flood>,
    /// A call to the admin interface.
    pub admin: Option<AdminCall>,
    /// The same GET many times on one connection, and how often each body must come.
    pub share: Option<Share>,
    /// Several connections at once.
    pub parallel: Option<Vec<Step>>,
    /// Seconds to wait.
    pub sleep: Option<f64>,
    /// A cluster; waits until no request to it is at hand: what was copied to it has ended, and its connections are free.
    pub idle: Option<String>,
    /// How long (seconds) to watch for the end of the connection after the last response.
    pub watch_close: Option<f64>,
    /// How long (seconds) to wait for a response at all.
    pub wait: Option<f64>,
    /// Tolerate that the bytes of the last response's date and the like differ: only these keys of the step's outcome
    /// are kept.
    pub keep: Option<Vec<String>>,
}

/// A single item or a list.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    /// One.
    One(T),
    /// Several.
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    /// The items.
    pub fn items(&self) -> &[T] {
        match self {
            Self::One(item) => std::slice::from_ref(item),
            Self::Many(items) => items,
        }
    }
}

/// Header fields: a mapping, or a list of pairs where names repeat.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Headers {
    /// In file order, repeats allowed.
    Pairs(Vec<(String, Value)>),
    /// Without repeats.
    Map(serde_json::Map<String, Value>),
}

impl Default for Headers {
    fn default() -> Self {
        Self::Pairs(Vec::new())
    }
}

impl Headers {
    /// The fields in order.
    pub fn pairs(&self) -> Vec<(String, String)> {
        let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        match self {
            Self::Pairs(pairs) => pairs.iter().map(|(k, v)| (k.clone(), text(v))).collect(),
            Self::Map(map) => map.iter().map(|(k, v)| (k.clone(), text(v))).collect(),
        }
    }
}

/// An HTTP request.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Method; GET by default.
    #[serde(default = "get_method")]
    pub method: String,
    /// Request target, `/` by default.
    #[serde(default = "slash")]
    pub path: String,
    /// Host or `:authority`; `host.example` by default, none when null.
    #[serde(default = "default_host")]
    pub host: Option<String>,
    /// Other fields, sent as written.
    #[serde(default)]
    pub headers: Headers,
    /// Body with a content-length (HTTP/1) or as DATA.
    pub body: Option<String>,
    /// Body in chunks.
    pub chunks: Option<Vec<String>>,
    /// Trailers after the chunks.
    #[serde(default)]
    pub trailers: Headers,
    /// HTTP/2: further pseudo headers such as `:protocol`.
    #[serde(default)]
    pub scheme: Option<String>,
    /// HTTP/2: leave the request open after the headers.
    #[serde(default)]
    pub open: bool,
    /// Protocol version of the request line.
    #[serde(default = "http11")]
    pub version: String,
}

/// A piece of a raw conversation.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Piece {
    /// Bytes, one per character.
    Text(String),
    /// A pause in seconds.
    Delay {
        /// Seconds.
        delay: f64,
    },
    /// Ends the sending direction.
    Shutdown {
        /// Always true.
        shutdown: bool,
    },
    /// Reads until this text has come (kept for the responses).
    Until {
        /// The text.
        until: String,
    },
}

/// A step of a TCP conversation.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TcpStep {
    /// Bytes to send.
    Send(String),
    /// Reads exactly this many bytes.
    Read(usize),
    /// Reads to the end of the stream, at most this many seconds.
    Eof(f64),
    /// Ends the sending direction.
    Shutdown(bool),
    /// A pause in seconds.
    Delay(f64),
}

/// HTTP/2 frames that no well-behaved client sends; `frames` knows the sorts.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flood {
    /// Which frames, by a name of the harness.
    #[serde(default)]
    pub sort: String,
    /// Which frames, written out: `HEADERS 5 1 8284 86` is a type (name or number), flags, a stream and the payload in
    /// hexadecimal digits, where `00x9` stands for nine bytes; `3* PING 0 0 00x8` stands for three of them.
    #[serde(default)]
    pub frames: Vec<String>,
    /// How many.
    #[serde(default = "once")]
    pub count: u32,
}

/// A call to the admin interface.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminCall {
    /// Path with query.
    pub path: String,
    /// GET by default.
    #[serde(default = "get_method")]
    pub method: String,
    /// Seconds to wait first, beside other steps of a `parallel`.
    #[serde(default)]
    pub after: f64,
    /// Only the lines (text) that match.
    pub lines: Option<String>,
    /// Asked again, for a while, until there are so many of these lines.
    #[serde(default)]
    pub at_least: usize,
    /// Replace values by their types (JSON) or cut after the first `: ` (text).
    #[serde(default)]
    pub shape: bool,
    /// JSON pointer of the part that counts.
    pub pointer: Option<String>,
    /// Sort the lines.
    #[serde(default)]
    pub sort: bool,
}

/// A distribution.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Path of the GET.
    pub get: String,
    /// How many.
    pub n: usize,
    /// Body -> lowest and highest share.
    pub expect: BTreeMap<String, (f64, f64)>,
}

/// TLS of a client connection.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientTls {
    /// Server name to send; none when absent.
    pub sni: Option<String>,
    /// Protocols to offer.
    #[serde(default)]
    pub alpn: Vec<String>,
    /// Client certificate, by name.
    pub cert: Option<String>,
    /// Highest version: `1.2` or `1.3`.
    pub max: Option<String>,
}

/// A scripted upstream.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamSpec {
    /// `h1` (default), `h2` or `tcp`.
    #[serde(default = "h1_kind")]
    pub kind: String,
    /// TLS on the upstream.
    pub tls: Option<ServerTls>,
    /// Answers by path; a key that ends in `*` is a prefix. The default answer is a 200 that echoes the name.
    #[serde(default)]
    pub paths: BTreeMap<String, Answer>,
    /// `tcp`: the conversation; `echo` by default.
    #[serde(default)]
    pub script: Vec<TcpStep>,
    /// Note on which connection (counted from 0 within the case) each request came.
    #[serde(default)]
    pub connections: bool,
    /// Connections begin with a PROXY header, which is noted with each request.
    #[serde(default)]
    pub proxy_header: bool,
    /// Listens on the loopback of IPv6.
    #[serde(default)]
    pub ipv6: bool,
}

/// TLS of an upstream.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerTls {
    /// Certificate, by name.
    pub cert: String,
    /// Protocols to accept.
    #[serde(default)]
    pub alpn: Vec<String>,
    /// Ask for a client certificate of this authority.
    pub client_ca: Option<String>,
}

/// How a scripted upstream answers one path.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Status; 200 by default.
    pub status: Option<u16>,
    /// Header fields.
    #[serde(default)]
    pub headers: Headers,
    /// Body; content-length is added unless `headers` frames it.
    pub body: Option<String>,
    /// Body sent as chunks (h1) or DATA frames (h2).
    pub chunks: Option<Vec<String>>,
    /// Trailers after the chunks.
    #[serde(default)]
    pub trailers: Headers,
    /// Seconds before the answer.
    pub delay: Option<f64>,
    /// Seconds between the chunks.
    pub pace: Option<f64>,
    /// h1: these bytes instead of a made-up response.
    pub raw: Option<String>,
    /// The first answers of this path in a case, before this one holds: for retries.
    #[serde(default)]
    pub first: Vec<Answer>,
    /// Afterwards: `close`, `reset`, or keep the connection (default). h2: `reset` of the stream, `goaway`.
    pub then: Option<String>,
    /// After the head, everything the client sends comes back (upgrades, CONNECT).
    #[serde(default)]
    pub tunnel: bool,
    /// Answer before the request's body has come.
    #[serde(default)]
    pub early: bool,
    /// h1: answer 200 with `early`, and with `late` when the request's body, read after `delay`, has come. What was seen
    /// of the body is its length.
    #[serde(default)]
    pub around_body: bool,
}

/// A certificate to make.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertSpec {
    /// Name of the signing authority; absent: this is an authority itself.
    pub ca: Option<String>,
    /// Subject alternative names: DNS names, addresses, URIs.
    #[serde(default)]
    pub sans: Vec<String>,
}

fn main_listener() -> String {
    "main".to_owned()
}
fn get_method() -> String {
    "GET".to_owned()
}
fn slash() -> String {
    "/".to_owned()
}
#[allow(clippy::unnecessary_wraps, reason = "serde's default for an optional field")]
fn default_host() -> Option<String> {
    Some("host.example".to_owned())
}
fn http11() -> String {
    "HTTP/1.1".to_owned()
}
fn once() -> u32 {
    1
}
fn h1_kind() -> String {
    "h1".to_owned()
}

impl CaseFile {
    /// Reads a case file.
    ///
    /// # Errors
    /// The file cannot be read, or does not fit the format.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
        let value = crate::yaml::read(&text).with_context(|| format!("{}", path.display()))?;
        serde_json::from_value(value).with_context(|| format!("{}", path.display()))
    }
}
