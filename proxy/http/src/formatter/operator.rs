//! Which operators exist, their arguments, and how a format string is split into them.

use std::sync::Arc;

use super::FormatError;
use super::eval::{AddressOf, Number, Optional, TimePoint};
use super::forwarded::ForwardedKey;
use super::grpc::GrpcForm;
use super::time::TimeFormat;
use super::tls::TlsField;
use crate::headers::HeaderName;
use crate::matchers::header_name;

/// A piece of a format.
#[derive(Debug, Clone)]
pub(super) enum Part {
    Literal(Box<[u8]>),
    Op(Op),
}

/// Which headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Request,
    Response,
    Trailers,
}

/// Part of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AddressPart {
    All,
    /// Without the port; with a prefix length, as a network (`10.1.0.0/16`).
    WithoutPort(Option<u8>),
    Port,
    EndpointId,
}

/// Which connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Downstream,
    Upstream,
}

/// Which metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MetadataOf {
    Dynamic,
    Route,
    Cluster,
    UpstreamHost,
    Listener,
    FilterChain,
    VirtualHost,
}

/// Which moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    Start,
    Emit,
    CertStart(Side),
    CertEnd(Side),
}

/// Unit of a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Precision {
    Millis,
    Micros,
    Nanos,
}

/// Which path, or which host: before it was rewritten, or now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathOf {
    Original,
    Current,
    OriginalOrCurrent,
}

/// Where `%REQUESTED_SERVER_NAME%` looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServerNameOf {
    SniOnly,
    SniFirst,
    HostFirst,
}

/// A compiled operator.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Header {
        source: Source,
        name: HeaderName,
        alternative: Option<HeaderName>,
        max: usize,
    },
    /// A request header, up to its `?`.
    HeaderWithoutQuery {
        name: HeaderName,
        alternative: Option<HeaderName>,
        max: usize,
    },
    Time {
        moment: Moment,
        format: TimeFormat,
    },
    Number(Number),
    Optional(Optional),
    CommonDuration {
        begin: TimePoint,
        end: TimePoint,
        precision: Precision,
    },
    Address {
        of: AddressOf,
        part: AddressPart,
    },
    Tls {
        side: Side,
        field: TlsField,
    },
    Metadata {
        of: MetadataOf,
        namespace: Box<str>,
        path: Box<[Box<str>]>,
        max: usize,
    },
    FilterState {
        key: Box<str>,
        plain: bool,
        /// A field of an object; only TLVs of PROXY headers have any.
        field: Option<Box<str>>,
        max: usize,
    },
    Path {
        query: bool,
        of: PathOf,
        max: usize,
    },
    QueryParam {
        name: Box<[u8]>,
        max: usize,
    },
    QueryParams {
        decoded: bool,
        max: usize,
    },
    /// A key of `x-forwarded-client-cert`.
    ForwardedCertificate {
        key: ForwardedKey,
        max: usize,
    },
    RequestedServerName(ServerNameOf, PathOf),
    ResponseCodeDetails {
        spaces: bool,
    },
    ResponseFlags {
        long: bool,
    },
    GrpcStatus(GrpcForm),
    HeadersBytes(Source),
    AccessLogType,
    LocalReplyBody,
    UniqueId,
    /// Known when the format was compiled.
    Static(Arc<[u8]>),
    /// The first of these that has a value.
    Coalesce(Box<[Op]>, usize),
    /// Data that is not collected.
    Nothing,
}

/// Splits a format.
pub(super) fn parse(format: &str) -> Result<Vec<Part>, FormatError> {
    let bytes = format.as_bytes();
    let (mut parts, mut literal, mut at) = (Vec::new(), Vec::new(), 0);
    while at < bytes.len() {
        if bytes[at] != b'%' {
            literal.push(bytes[at]);
            at += 1;
            continue;
        }
        if bytes.get(at + 1) == Some(&b'%') {
            literal.push(b'%');
            at += 2;
            continue;
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(std::mem::take(&mut literal).into()));
        }
        let command = Command::read(&format[at..]).ok_or_else(|| {
            FormatError(format!("Incorrect configuration: {format}. Couldn't find valid command at position {at}"))
        })?;
        parts.push(Part::Op(command.compile()?));
        at += command.len;
    }
    if !literal.is_empty() {
        parts.push(Part::Literal(literal.into()));
    }
    Ok(parts)
}

/// `%NAME(ARGUMENT):LENGTH%`.
struct Command<'a> {
    name: &'a str,
    argument: &'a str,
    max: Option<usize>,
    len: usize,
}

impl<'a> Command<'a> {
    /// Reads one from the start of `text`. The argument ends at the first `)` that an optional length and `%` follow.
    fn read(text: &'a str) -> Option<Self> {
        let rest = text.strip_prefix('%')?;
        let end = rest.find(|c: char| !matches!(c, 'A'..='Z' | '0'..='9' | '_')).filter(|end| *end > 0)?;
        let (name, mut rest) = rest.split_at(end);
        let mut argument = "";
        if let Some(inner) = rest.strip_prefix('(') {
            // An argument does not span lines.
            let line = inner.find('\n').map_or(inner, |end| &inner[..end]);
            let close = line.match_indices(')').find(|(at, _)| Self::tail(&inner[at + 1..]).is_some())?.0;
            argument = &inner[..close];
            rest = &inner[close + 1..];
        }
        let (max, rest) = Self::tail(rest)?;
        Some(Self { name, argument, max, len: text.len() - rest.len() })
    }

    /// An optional `:LENGTH` and `%`; what follows.
    fn tail(text: &str) -> Option<(Option<usize>, &str)> {
        if let Some(rest) = text.strip_prefix('%') {
            return Some((None, rest));
        }
        let digits = text.strip_prefix(':')?;
        let end = digits.find('%')?;
        if end == 0 || !digits[..end].bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        Some((Some(digits[..end].parse().ok()?), &digits[end + 1..]))
    }

    fn error<T>(&self, what: &str) -> Result<T, FormatError> {
        Err(FormatError(format!("{} {what}", self.name)))
    }

    fn alone(&self) -> Result<(), FormatError> {
        if self.argument.is_empty() && self.max.is_none() {
            return Ok(());
        }
        self.error("does not take any parameters or length")
    }

    fn no_length(&self) -> Result<(), FormatError> {
        if self.max.is_some() { self.error("does not allow length to be specified.") } else { Ok(()) }
    }

    fn required(&self) -> Result<(), FormatError> {
        if self.argument.is_empty() { self.error("requires parameters") } else { Ok(()) }
    }

    fn max(&self) -> usize {
        self.max.unwrap_or(usize::MAX)
    }

    fn compile(&self) -> Result<Op, FormatError> {
        if let Some(op) = self.with_argument()? {
            return Ok(op);
        }
        let op = if let Some(op) = plain(self.name) {
            op
        } else {
            return Err(FormatError(format!("Not supported field in StreamInfo: {}", self.name)));
        };
        self.alone()?;
        Ok(op)
    }

    /// Operators that take an argument or a length.
    fn with_argument(&self) -> Result<Option<Op>, FormatError> {
        Ok(Some(match self.name {
            "REQ" | "REQUEST_HEADER" => self.header(Source::Request)?,
            // Envoy has it from a formatter that is to be configured; here it is always there.
            "REQ_WITHOUT_QUERY" => match self.header(Source::Request)? {
                Op::Header { name, alternative, max, .. } => Op::HeaderWithoutQuery { name, alternative, max },
                other => other,
            },
            "RESP" | "RESPONSE_HEADER" => self.header(Source::Response)?,
            "TRAILER" | "RESPONSE_TRAILER" => self.header(Source::Trailers)?,
            "START_TIME" => self.time(Moment::Start, false)?,
            "START_TIME_LOCAL" => self.time(Moment::Start, true)?,
            "EMIT_TIME" => self.time(Moment::Emit, false)?,
            "EMIT_TIME_LOCAL" => self.time(Moment::Emit, true)?,
            "DOWNSTREAM_PEER_CERT_V_START" => self.time(Moment::CertStart(Side::Downstream), false)?,
            "DOWNSTREAM_PEER_CERT_V_END" => self.time(Moment::CertEnd(Side::Downstream), false)?,
            "UPSTREAM_PEER_CERT_V_START" => self.time(Moment::CertStart(Side::Upstream), false)?,
            "UPSTREAM_PEER_CERT_V_END" => self.time(Moment::CertEnd(Side::Upstream), false)?,
            "COMMON_DURATION" => self.common_duration()?,
            "DYNAMIC_METADATA" => self.metadata(MetadataOf::Dynamic, true)?,
            "CLUSTER_METADATA" => self.metadata(MetadataOf::Cluster, false)?,
            "UPSTREAM_METADATA" => self.metadata(MetadataOf::UpstreamHost, false)?,
            "METADATA" => self.typed_metadata()?,
            "FILTER_STATE" => self.filter_state()?,
            "UPSTREAM_FILTER_STATE" => {
                self.filter_state()?;
                Op::Nothing
            }
            "ENVIRONMENT" => {
                self.required()?;
                let mut value = std::env::var(self.argument).unwrap_or_else(|_| "-".into()).into_bytes();
                value.truncate(self.max());
                Op::Static(value.into())
            }
            "PATH" => self.path()?,
            "QUERY_PARAM" => {
                self.required()?;
                Op::QueryParam { name: self.argument.as_bytes().into(), max: self.max() }
            }
            "QUERY_PARAMS" => {
                let decoded = match self.argument {
                    "" | "ORIG" => false,
                    "DECODED" => true,
                    other => {
                        return Err(FormatError(format!(
                            "Invalid QUERY_PARAMS option: '{other}', only 'ORIG'/'DECODED' are allowed"
                        )));
                    }
                };
                Op::QueryParams { decoded, max: self.max() }
            }
            "REQUESTED_SERVER_NAME" => {
                self.no_length()?;
                let (order, host) = self.argument.split_once(':').unwrap_or((self.argument, ""));
                let host = match host {
                    "" | "ORIG_OR_HOST" => PathOf::OriginalOrCurrent,
                    "ORIG" => PathOf::Original,
                    "HOST" => PathOf::Current,
                    other => {
                        return Err(FormatError(format!(
                            "Invalid REQUESTED_SERVER_NAME option: '{other}', only 'ORIG_OR_HOST'/'HOST'/'ORIG' are allowed"
                        )));
                    }
                };
                let order = match order {
                    "" | "SNI_ONLY" => ServerNameOf::SniOnly,
                    "SNI_FIRST" => ServerNameOf::SniFirst,
                    "HOST_FIRST" => ServerNameOf::HostFirst,
                    other => {
                        return Err(FormatError(format!(
                            "Invalid REQUESTED_SERVER_NAME option: '{other}', only 'SNI_ONLY'/'SNI_FIRST'/'HOST_FIRST' are allowed"
                        )));
                    }
                };
                Op::RequestedServerName(order, host)
            }
            "RESPONSE_CODE_DETAILS" => {
                self.no_length()?;
                Op::ResponseCodeDetails { spaces: self.argument == "ALLOW_WHITESPACES" }
            }
            "GRPC_STATUS" => {
                self.no_length()?;
                Op::GrpcStatus(GrpcForm::parse(self.argument)?)
            }
            "CEL" => return Err(FormatError("CEL is not supported: expressions are not there yet".into())),
            "XFCC_VALUE" => {
                if self.argument.is_empty() {
                    return Err(FormatError("XFCC_VALUE command requires a subcommand".into()));
                }
                let key = ForwardedKey::named(self.argument).ok_or_else(|| {
                    let key = self.argument.to_ascii_lowercase();
                    FormatError(format!("XFCC_VALUE command does not support subcommand: {key}"))
                })?;
                Op::ForwardedCertificate { key, max: self.max() }
            }
            "COALESCE" => self.coalesce()?,
            "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => self.without_port(AddressOf::DownstreamLocal)?,
            "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT" => self.without_port(AddressOf::DownstreamDirectLocal)?,
            "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => self.without_port(AddressOf::DownstreamRemote)?,
            "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => self.without_port(AddressOf::DownstreamDirectRemote)?,
            "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => self.without_port(AddressOf::UpstreamLocal)?,
            "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => self.without_port(AddressOf::UpstreamRemote)?,
            _ => return Ok(None),
        }))
    }

    fn header(&self, source: Source) -> Result<Op, FormatError> {
        self.required()?;
        let mut names = self.argument.split('?');
        let (main, alternative) = (names.next().unwrap_or_default(), names.next().unwrap_or_default());
        if names.next().is_some() {
            return Err(FormatError(format!("More than 1 alternative header specified in token: {}", self.argument)));
        }
        let bad = || FormatError("Invalid header configuration. Format string contains invalid characters.".into());
        let name = |text: &str| match text {
            "" => Ok(None),
            text => header_name(text).map(Some).ok_or_else(bad),
        };
        Ok(match (name(main)?, name(alternative)?) {
            (Some(name), alternative) => Op::Header { source, name, alternative, max: self.max() },
            (None, Some(name)) => Op::Header { source, name, alternative: None, max: self.max() },
            (None, None) => Op::Nothing,
        })
    }

    fn time(&self, moment: Moment, local: bool) -> Result<Op, FormatError> {
        self.no_length()?;
        Ok(Op::Time { moment, format: TimeFormat::new(self.argument, local)? })
    }

    fn common_duration(&self) -> Result<Op, FormatError> {
        self.required()?;
        self.no_length()?;
        let pieces: Vec<&str> = self.argument.split(':').collect();
        let (begin, end, precision) = match pieces[..] {
            [begin, end] => (begin, end, "ms"),
            [begin, end, precision] => (begin, end, precision),
            _ => return Err(FormatError(format!("Invalid common duration configuration: {}.", self.argument))),
        };
        let precision = match precision {
            "ms" => Precision::Millis,
            "us" => Precision::Micros,
            "ns" => Precision::Nanos,
            other => return Err(FormatError(format!("Invalid common duration precision: {other}."))),
        };
        Ok(Op::CommonDuration { begin: TimePoint::named(begin), end: TimePoint::named(end), precision })
    }

    fn metadata(&self, of: MetadataOf, length: bool) -> Result<Op, FormatError> {
        self.required()?;
        if !length {
            self.no_length()?;
        }
        Ok(self.metadata_at(of, self.argument))
    }

    fn metadata_at(&self, of: MetadataOf, argument: &str) -> Op {
        let mut pieces = argument.split(':');
        let namespace = pieces.next().unwrap_or_default().into();
        Op::Metadata { of, namespace, path: pieces.map(Into::into).collect(), max: self.max() }
    }

    fn typed_metadata(&self) -> Result<Op, FormatError> {
        let (kind, rest) = self.argument.split_once(':').unwrap_or((self.argument, ""));
        let of = match kind {
            "DYNAMIC" => MetadataOf::Dynamic,
            "CLUSTER" => MetadataOf::Cluster,
            "ROUTE" => MetadataOf::Route,
            "UPSTREAM_HOST" => MetadataOf::UpstreamHost,
            "LISTENER" => MetadataOf::Listener,
            "LISTENER_FILTER_CHAIN" => MetadataOf::FilterChain,
            "VIRTUAL_HOST" => MetadataOf::VirtualHost,
            other => return Err(FormatError(format!("{other} is not supported type of metadata"))),
        };
        Ok(self.metadata_at(of, rest))
    }

    fn filter_state(&self) -> Result<Op, FormatError> {
        let mut pieces = self.argument.splitn(3, ':');
        let key = pieces.next().unwrap_or_default();
        if key.is_empty() {
            return Err(FormatError("Invalid filter state configuration, key cannot be empty.".into()));
        }
        let kind = pieces.next().unwrap_or("TYPED");
        let field = pieces.next().unwrap_or_default();
        if !matches!(kind, "" | "PLAIN" | "TYPED" | "FIELD") {
            return Err(FormatError("Invalid filter state serialize type, only support PLAIN/TYPED/FIELD.".into()));
        }
        if (kind == "FIELD") == field.is_empty() {
            return Err(FormatError(
                "Invalid filter state serialize type, FIELD should be used with the field name.".into(),
            ));
        }
        let field = (kind == "FIELD").then(|| field.into());
        Ok(Op::FilterState { key: key.into(), plain: kind == "PLAIN", field, max: self.max() })
    }

    fn path(&self) -> Result<Op, FormatError> {
        let (query, of) = self.argument.split_once(':').unwrap_or((self.argument, ""));
        let query = match query {
            "" | "WQ" => true,
            "NQ" => false,
            other => return Err(FormatError(format!("Invalid PATH option: '{other}', only 'WQ'/'NQ' are allowed"))),
        };
        let of = match of {
            "" | "ORIG_OR_PATH" => PathOf::OriginalOrCurrent,
            "ORIG" => PathOf::Original,
            "PATH" => PathOf::Current,
            other => {
                return Err(FormatError(format!(
                    "Invalid PATH option: '{other}', only 'ORIG'/'PATH'/'ORIG_OR_PATH' are allowed"
                )));
            }
        };
        Ok(Op::Path { query, of, max: self.max() })
    }

    fn without_port(&self, of: AddressOf) -> Result<Op, FormatError> {
        self.no_length()?;
        Ok(Op::Address { of, part: AddressPart::WithoutPort(self.argument.parse().ok()) })
    }

    /// `%COALESCE({"operators": ["NAME", {"command": "NAME", "param": "X", "max_length": 1}]})%`.
    fn coalesce(&self) -> Result<Op, FormatError> {
        let error = |what: String| FormatError(format!("COALESCE: {what}"));
        let json: serde_json::Value = serde_json::from_str(self.argument)
            .map_err(|e| error(format!("failed to parse JSON configuration: {e}")))?;
        let list = json.get("operators").and_then(|list| list.as_array()).filter(|list| !list.is_empty());
        let list = list.ok_or_else(|| error("requires a non-empty 'operators' array".into()))?;
        let mut ops = Vec::new();
        for item in list {
            let text = |key: &str| item.get(key).and_then(|value| value.as_str()).unwrap_or_default();
            let max = item.get("max_length").and_then(serde_json::Value::as_u64);
            let (name, argument) = match item.as_str() {
                Some(name) => (name, ""),
                None => (text("command"), text("param")),
            };
            let command = Command { name, argument, max: max.map(|max| max as usize), len: 0 };
            ops.push(command.compile()?);
        }
        Ok(Op::Coalesce(ops.into(), self.max()))
    }
}

/// Operators that stand alone.
fn plain(name: &str) -> Option<Op> {
    use AddressOf as A;
    let address = |of, part| Op::Address { of, part };
    if let Some(number) = Number::named(name) {
        return Some(Op::Number(number));
    }
    if let Some(optional) = Optional::named(name) {
        if optional == Optional::RouteResolutionTime {
            crate::stream_info::time_route_resolutions();
        }
        return Some(Op::Optional(optional));
    }
    if let Some((side, field)) = TlsField::named(name) {
        return Some(Op::Tls { side, field });
    }
    Some(match name {
        "ACCESS_LOG_TYPE" => Op::AccessLogType,
        "CUSTOM_FLAGS" => Op::Static(Arc::from(&b""[..])),
        "DOWNSTREAM_LOCAL_ADDRESS" => address(A::DownstreamLocal, AddressPart::All),
        "DOWNSTREAM_LOCAL_PORT" => address(A::DownstreamLocal, AddressPart::Port),
        "DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID" => address(A::DownstreamLocal, AddressPart::EndpointId),
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS" => address(A::DownstreamDirectLocal, AddressPart::All),
        "DOWNSTREAM_DIRECT_LOCAL_PORT" => address(A::DownstreamDirectLocal, AddressPart::Port),
        "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID" => address(A::DownstreamDirectLocal, AddressPart::EndpointId),
        "DOWNSTREAM_REMOTE_ADDRESS" => address(A::DownstreamRemote, AddressPart::All),
        "DOWNSTREAM_REMOTE_PORT" => address(A::DownstreamRemote, AddressPart::Port),
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => address(A::DownstreamDirectRemote, AddressPart::All),
        "DOWNSTREAM_DIRECT_REMOTE_PORT" => address(A::DownstreamDirectRemote, AddressPart::Port),
        "UPSTREAM_LOCAL_ADDRESS" => address(A::UpstreamLocal, AddressPart::All),
        "UPSTREAM_LOCAL_PORT" => address(A::UpstreamLocal, AddressPart::Port),
        "UPSTREAM_REMOTE_ADDRESS" => address(A::UpstreamRemote, AddressPart::All),
        "UPSTREAM_REMOTE_PORT" => address(A::UpstreamRemote, AddressPart::Port),
        "UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID" => address(A::UpstreamRemote, AddressPart::EndpointId),
        "GRPC_STATUS_NUMBER" => Op::GrpcStatus(GrpcForm::Number),
        "HOSTNAME" => hostname().map_or(Op::Nothing, |name| Op::Static(name.into_bytes().into())),
        "LOCAL_REPLY_BODY" => Op::LocalReplyBody,
        "REQUEST_HEADERS_BYTES" => Op::HeadersBytes(Source::Request),
        "RESPONSE_HEADERS_BYTES" => Op::HeadersBytes(Source::Response),
        "RESPONSE_TRAILERS_BYTES" => Op::HeadersBytes(Source::Trailers),
        "RESPONSE_FLAGS" => Op::ResponseFlags { long: false },
        "RESPONSE_FLAGS_LONG" => Op::ResponseFlags { long: true },
        "UNIQUE_ID" => Op::UniqueId,
        // Collected by parts that do not exist: tracers, and acknowledgements that only QUIC shows.
        "ROUNDTRIP_DURATION" | "SPAN_ID" | "TRACE_ID" => Op::Nothing,
        _ => return None,
    })
}

fn hostname() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| std::env::var("HOSTNAME")).ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}
