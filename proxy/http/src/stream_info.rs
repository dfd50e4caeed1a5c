//! What is known about one stream: times, bytes, flags, route and upstream names. Filters write it, access logs,
//! stats and formatters read it. Envoy's `StreamInfo`.

use crate::codec::{BytesMeter, Protocol};
use crate::route::ActiveRoute;
use nuncio_base::clock;
use nuncio_net::connection::{ConnectionInfo, DetectedClose};
use smallvec::SmallVec;
use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

macro_rules! response_flags {
    ($($konst:ident = $bit:literal, $short:literal, $long:literal;)+) => {
        /// Envoy's response flags: a set that remembers in which order its first ten members came.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
        pub struct ResponseFlags {
            bits: u64,
            /// Six bits for each member, its number plus one, the oldest lowest.
            order: u64,
        }
        impl ResponseFlags {
            $(#[doc = $long] pub const $konst: ResponseFlags = ResponseFlags { bits: 1 << $bit, order: $bit + 1 };)+
            /// All flags with their short and long names, in Envoy's order of numbers.
            pub const ALL: &'static [(ResponseFlags, &'static str, &'static str)] =
                &[$((ResponseFlags::$konst, $short, $long)),+];
        }
    };
}

response_flags! {
    FAILED_LOCAL_HEALTH_CHECK = 0, "LH", "FailedLocalHealthCheck";
    NO_HEALTHY_UPSTREAM = 1, "UH", "NoHealthyUpstream";
    UPSTREAM_REQUEST_TIMEOUT = 2, "UT", "UpstreamRequestTimeout";
    LOCAL_RESET = 3, "LR", "LocalReset";
    UPSTREAM_REMOTE_RESET = 4, "UR", "UpstreamRemoteReset";
    UPSTREAM_CONNECTION_FAILURE = 5, "UF", "UpstreamConnectionFailure";
    UPSTREAM_CONNECTION_TERMINATION = 6, "UC", "UpstreamConnectionTermination";
    UPSTREAM_OVERFLOW = 7, "UO", "UpstreamOverflow";
    NO_ROUTE_FOUND = 8, "NR", "NoRouteFound";
    DELAY_INJECTED = 9, "DI", "DelayInjected";
    FAULT_INJECTED = 10, "FI", "FaultInjected";
    RATE_LIMITED = 11, "RL", "RateLimited";
    UNAUTHORIZED_EXTERNAL_SERVICE = 12, "UAEX", "UnauthorizedExternalService";
    RATELIMIT_SERVICE_ERROR = 13, "RLSE", "RateLimitServiceError";
    DOWNSTREAM_CONNECTION_TERMINATION = 14, "DC", "DownstreamConnectionTermination";
    UPSTREAM_RETRY_LIMIT_EXCEEDED = 15, "URX", "UpstreamRetryLimitExceeded";
    STREAM_IDLE_TIMEOUT = 16, "SI", "StreamIdleTimeout";
    INVALID_ENVOY_REQUEST_HEADERS = 17, "IH", "InvalidEnvoyRequestHeaders";
    DOWNSTREAM_PROTOCOL_ERROR = 18, "DPE", "DownstreamProtocolError";
    UPSTREAM_MAX_STREAM_DURATION_REACHED = 19, "UMSDR", "UpstreamMaxStreamDurationReached";
    RESPONSE_FROM_CACHE_FILTER = 20, "RFCF", "ResponseFromCacheFilter";
    NO_FILTER_CONFIG_FOUND = 21, "NFCF", "NoFilterConfigFound";
    DURATION_TIMEOUT = 22, "DT", "DurationTimeout";
    UPSTREAM_PROTOCOL_ERROR = 23, "UPE", "UpstreamProtocolError";
    NO_CLUSTER_FOUND = 24, "NC", "NoClusterFound";
    OVERLOAD_MANAGER = 25, "OM", "OverloadManagerTerminated";
    DNS_RESOLUTION_FAILED = 26, "DF", "DnsResolutionFailed";
    DROP_OVERLOAD = 27, "DO", "DropOverload";
    DOWNSTREAM_REMOTE_RESET = 28, "DR", "DownstreamRemoteReset";
    UNCONDITIONAL_DROP_OVERLOAD = 29, "UDO", "UnconditionalDropOverload";
}

/// Bits that a member takes in the order.
const ORDER_BITS: u32 = 6;

impl ResponseFlags {
    /// Adds flags.
    pub fn insert(&mut self, other: ResponseFlags) {
        for flag in other.members() {
            if !self.contains(flag) {
                let used = u64::BITS - self.order.leading_zeros();
                self.bits |= flag.bits;
                self.order |= flag.order.checked_shl(used.div_ceil(ORDER_BITS) * ORDER_BITS).unwrap_or(0);
            }
        }
    }

    /// The members one by one, in the order in which they were added.
    pub fn members(self) -> impl Iterator<Item = ResponseFlags> {
        (0..u64::BITS / ORDER_BITS).map_while(move |at| {
            let number = (self.order >> (at * ORDER_BITS)) & ((1 << ORDER_BITS) - 1);
            (number != 0).then(|| ResponseFlags { bits: 1 << (number - 1), order: number })
        })
    }

    /// Short and long name of each member, in the order in which they were added: that of Envoy's logs.
    pub fn names(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.members().filter_map(|flag| {
            ResponseFlags::ALL.iter().find(|(known, ..)| *known == flag).map(|(_, short, long)| (*short, *long))
        })
    }

    /// True when all of `other` are set.
    pub fn contains(self, other: ResponseFlags) -> bool {
        self.bits & other.bits == other.bits
    }

    /// True when none is set.
    pub fn is_empty(self) -> bool {
        self.bits == 0
    }
}

/// Response code details: mostly static text.
pub type Details = Cow<'static, str>;

/// What is known about the upstream side of a stream.
#[derive(Debug, Clone, Default)]
pub struct UpstreamInfo {
    /// Cluster that was chosen (`%UPSTREAM_CLUSTER_RAW%`).
    pub cluster: Option<Arc<str>>,
    /// Its observability name (`%UPSTREAM_CLUSTER%`).
    pub cluster_alt_name: Option<Arc<str>>,
    /// Address of the host (`%UPSTREAM_HOST%`), as text.
    pub host: Option<Arc<str>>,
    /// Name of the host (`%UPSTREAM_HOST_NAME%`).
    pub host_name: Option<Arc<str>>,
    /// Address and name of each host to which there was a connection: of the last try of a request, of all tries of a TCP
    /// connection.
    pub hosts_attempted: SmallVec<[(Arc<str>, Arc<str>); 1]>,
    /// Connection to the upstream: addresses, TLS, id. Shared with the pool.
    pub connection: Option<Rc<ConnectionInfo>>,
    /// Ids of the connections of the same.
    pub connection_ids_attempted: SmallVec<[u64; 2]>,
    /// Protocol spoken.
    pub protocol: Option<Protocol>,
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub transport_failure_reason: Option<Box<str>>,
    /// How it ended, where that is not how its connection ends.
    pub detected_close: Option<DetectedClose>,
    /// Bytes on the upstream wire.
    pub meter: BytesMeter,
    /// Time to get a stream from the pool.
    pub pool_ready: Option<Duration>,
    /// First byte of the request sent.
    pub first_tx: Option<Instant>,
    /// Last byte of the request sent.
    pub last_tx: Option<Instant>,
    /// First byte of the response received.
    pub first_rx: Option<Instant>,
    /// Last byte of the response received.
    pub last_rx: Option<Instant>,
    /// Host metadata, as JSON.
    pub host_metadata: Option<Arc<serde_json::Value>>,
    /// Cluster metadata, as JSON.
    pub cluster_metadata: Option<Arc<serde_json::Value>>,
}

impl UpstreamInfo {
    /// Another try begins: what is told of the one before is of no interest any more, as in Envoy.
    #[cold]
    pub fn begin_again(&mut self) {
        self.hosts_attempted.clear();
        self.connection_ids_attempted.clear();
        self.connection = None;
        self.protocol = None;
        self.transport_failure_reason = None;
        self.pool_ready = None;
        (self.first_tx, self.last_tx, self.first_rx, self.last_rx) = (None, None, None, None);
    }
}

/// Key of the filter state: the port that a forward proxy goes to.
pub const UPSTREAM_DYNAMIC_PORT: &str = "envoy.upstream.dynamic_port";
/// Key of the filter state: the head of a tunnel's answer, as a message in JSON.
pub const TUNNEL_RESPONSE_HEADERS: &str = "envoy.tcp_proxy.propagate_response_headers";
/// Key of the filter state: the trailers of a tunnel's answer, as a message in JSON.
pub const TUNNEL_RESPONSE_TRAILERS: &str = "envoy.tcp_proxy.propagate_response_trailers";

/// Filter state as text by key, in the order in which it was written.
pub type FilterState = Vec<(Arc<str>, Box<str>)>;

/// Everything known about one stream (or one TCP connection, for the TCP proxy's log).
#[derive(Debug, Clone)]
pub struct StreamInfo {
    /// The downstream connection.
    pub connection: Rc<ConnectionInfo>,
    /// Wall-clock start.
    pub start_time: SystemTime,
    /// Monotonic start.
    pub start: Instant,
    /// Unique within the process (`%STREAM_ID%`).
    pub stream_id: u64,
    /// Downstream protocol; None for TCP.
    pub protocol: Option<Protocol>,
    /// Remote address after XFF and original-IP detection; None: the connection's.
    pub remote_address: Option<nuncio_net::address::Address>,
    /// Status sent, 0 before.
    pub response_code: u16,
    /// Details of it.
    pub response_code_details: Option<Details>,
    /// `%CONNECTION_TERMINATION_DETAILS%`.
    pub connection_termination_details: Option<Details>,
    /// Flags.
    pub flags: ResponseFlags,
    /// Body bytes received from downstream.
    pub bytes_received: u64,
    /// Body bytes sent downstream.
    pub bytes_sent: u64,
    /// Bytes on the downstream wire.
    pub meter: BytesMeter,
    /// Last byte of the request received.
    pub request_complete: Option<Instant>,
    /// First byte of the response sent.
    pub response_first_tx: Option<Instant>,
    /// Last byte of the response sent.
    pub response_last_tx: Option<Instant>,
    /// End of the stream.
    pub complete: Option<Instant>,
    /// Route name.
    pub route_name: Option<Arc<str>>,
    /// Virtual host name.
    pub virtual_host: Option<Arc<str>>,
    /// Virtual cluster name.
    pub virtual_cluster: Option<Arc<str>>,
    /// Route metadata, as JSON.
    pub route_metadata: Option<Arc<serde_json::Value>>,
    /// Virtual host metadata, as JSON.
    pub virtual_host_metadata: Option<Arc<serde_json::Value>>,
    /// How often a route was looked for.
    pub route_resolutions: u32,
    /// How long that took, in a process where a log shows it.
    pub route_resolution_time: Option<Duration>,
    /// Upstream side.
    pub upstream: UpstreamInfo,
    /// Tries so far; 0 when none was made.
    pub attempt_count: u32,
    /// `x-request-id`'s value, for sampling decisions.
    pub request_id: Option<[u8; 36]>,
    /// Dynamic metadata by filter; None until a filter writes.
    pub dynamic_metadata: Option<Box<serde_json::Map<String, serde_json::Value>>>,
    /// Filter state as text by key; None until a filter writes.
    pub filter_state: Option<Box<FilterState>>,
    /// The request is a health check answered or marked by a filter.
    pub health_check: bool,
    /// Traced.
    pub traced: bool,
    /// Bytes of the local reply's body, kept only when a format asks for it.
    pub local_reply_body: Option<bytes::Bytes>,
}

/// Some format of this process has `%ROUTE_RESOLUTION_TIME_US%`: only then is the clock looked at.
static ROUTE_RESOLUTIONS_TIMED: AtomicBool = AtomicBool::new(false);

/// From now on streams note how long it takes to find their routes.
pub(crate) fn time_route_resolutions() {
    ROUTE_RESOLUTIONS_TIMED.store(true, Ordering::Relaxed);
}

/// Key of the filter state that holds the TLVs of a PROXY header, as a JSON object.
pub const PROXY_PROTOCOL_TLVS: &str = "envoy.network.proxy_protocol.tlv";

type Metadata = Box<serde_json::Map<String, serde_json::Value>>;

/// What the rules of the PROXY protocol filter kept. The metadata belongs to the connection: HTTP streams do not see it.
fn of_proxy_header(connection: &ConnectionInfo, http: bool) -> (Option<Metadata>, Option<Box<FilterState>>) {
    let Some(header) = connection.proxy_protocol.as_deref().filter(|header| !header.kept.is_empty()) else {
        return (None, None);
    };
    let text = |bytes: &[u8]| -> serde_json::Value {
        let pieces = bytes.utf8_chunks().map(|chunk| format!("{}{}", chunk.valid(), "!".repeat(chunk.invalid().len())));
        pieces.collect::<String>().into()
    };
    if header.kept_in_filter_state {
        let values = header.kept.iter().map(|kept| (kept.key.to_string(), text(&kept.value)));
        let values = serde_json::Value::Object(values.collect()).to_string();
        return (None, Some(Box::new(vec![(PROXY_PROTOCOL_TLVS.into(), values.into())])));
    }
    if http {
        return (None, None);
    }
    let mut all = Metadata::default();
    for kept in &header.kept {
        let namespace = all.entry(&*kept.namespace).or_insert_with(|| serde_json::json!({}));
        if let Some(namespace) = namespace.as_object_mut() {
            namespace.insert(kept.key.to_string(), text(&kept.value));
        }
    }
    (Some(all), None)
}

impl StreamInfo {
    /// Notes that a route is looked for.
    #[inline]
    pub(crate) fn route_resolution_begins(&mut self) -> Option<Instant> {
        self.route_resolutions += 1;
        ROUTE_RESOLUTIONS_TIMED.load(Ordering::Relaxed).then(Instant::now)
    }

    /// Adds the time that it took.
    #[inline]
    pub(crate) fn route_resolution_ends(&mut self, began: Option<Instant>) {
        if let Some(began) = began {
            *self.route_resolution_time.get_or_insert_default() += began.elapsed();
        }
    }

    /// A stream that begins now on `connection`.
    pub fn new(connection: Rc<ConnectionInfo>, stream_id: u64, protocol: Option<Protocol>) -> StreamInfo {
        let (dynamic_metadata, filter_state) = of_proxy_header(&connection, protocol.is_some());
        StreamInfo {
            connection,
            start_time: SystemTime::now(),
            start: clock::now(),
            stream_id,
            protocol,
            remote_address: None,
            response_code: 0,
            response_code_details: None,
            connection_termination_details: None,
            flags: ResponseFlags::default(),
            bytes_received: 0,
            bytes_sent: 0,
            meter: BytesMeter::default(),
            request_complete: None,
            response_first_tx: None,
            response_last_tx: None,
            complete: None,
            route_name: None,
            virtual_host: None,
            virtual_cluster: None,
            route_metadata: None,
            virtual_host_metadata: None,
            route_resolutions: 0,
            route_resolution_time: None,
            upstream: UpstreamInfo::default(),
            attempt_count: 0,
            request_id: None,
            dynamic_metadata,
            filter_state,
            health_check: false,
            traced: false,
            local_reply_body: None,
        }
    }

    /// Writes down which route was found; None where there is none.
    pub(crate) fn note_route(&mut self, route: Option<&ActiveRoute>) {
        let entry = route.map(ActiveRoute::entry);
        self.upstream.cluster = route.and_then(|route| route.cluster().cloned());
        self.upstream.cluster_alt_name.clone_from(&self.upstream.cluster);
        self.upstream.cluster_metadata = None;
        self.route_name = entry.map(|entry| entry.name().clone()).filter(|name| !name.is_empty());
        self.virtual_host = entry.map(|entry| entry.virtual_host().name().clone());
        let named = route.and_then(|route| route.virtual_cluster()).filter(|cluster| !cluster.is_rest());
        self.virtual_cluster = named.map(|cluster| cluster.name.clone());
        self.route_metadata = entry.and_then(|entry| entry.config().metadata.clone());
        self.virtual_host_metadata = entry.and_then(|entry| entry.virtual_host().config().metadata.clone());
    }
}
