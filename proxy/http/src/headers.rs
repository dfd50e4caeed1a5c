//! The project's header type: one ordered list for pseudo-headers, headers and trailers, as Envoy's HeaderMap.
//!
//! Codecs fill it and write it out, filters edit it, formatters and matchers read it. Names that the proxy itself
//! cares about are interned, so that looking one up compares a byte; other names and all values are slices of the
//! buffer that they were read into. Pseudo-headers (`:method`, `:path`, `:authority`, `:scheme`, `:status`,
//! `:protocol`) are ordinary entries and stand first. The list does not parse and does not check values beyond what
//! [`HeaderValue`] promises.

use bytes::Bytes;
use std::fmt;

/// Names that the proxy reads or writes itself, by their lower-case text.
macro_rules! known_names {
    ($($konst:ident = $text:literal),+ $(,)?) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(u8)]
        pub(crate) enum Known { $($konst),+ }

        const KNOWN_TEXT: &[&str] = &[$($text),+];
        const KNOWN: &[Known] = &[$(Known::$konst),+];

        /// How many names are interned.
        pub(crate) const KNOWN_COUNT: usize = KNOWN_TEXT.len();

        /// Interned names as constants.
        pub mod names {
            use super::{HeaderName, Known, Repr};
            $(#[doc = concat!("`", $text, "`")] pub const $konst: HeaderName = HeaderName(Repr::Known(Known::$konst));)+
        }
    };
}

known_names! {
    METHOD = ":method", PATH = ":path", AUTHORITY = ":authority", SCHEME = ":scheme", STATUS = ":status",
    PROTOCOL = ":protocol",
    HOST = "host", CONNECTION = "connection", KEEP_ALIVE = "keep-alive", PROXY_CONNECTION = "proxy-connection",
    TRANSFER_ENCODING = "transfer-encoding", CONTENT_LENGTH = "content-length", CONTENT_TYPE = "content-type",
    UPGRADE = "upgrade", TE = "te", TRAILER = "trailer", EXPECT = "expect", HTTP2_SETTINGS = "http2-settings",
    DATE = "date", SERVER = "server", VIA = "via", LOCATION = "location", USER_AGENT = "user-agent",
    ACCEPT = "accept", ACCEPT_ENCODING = "accept-encoding", ACCEPT_LANGUAGE = "accept-language",
    CONTENT_ENCODING = "content-encoding", VARY = "vary", ETAG = "etag", LAST_MODIFIED = "last-modified",
    CACHE_CONTROL = "cache-control", EXPIRES = "expires", AGE = "age", PRAGMA = "pragma", RANGE = "range",
    IF_NONE_MATCH = "if-none-match", IF_MODIFIED_SINCE = "if-modified-since", ACCEPT_RANGES = "accept-ranges",
    COOKIE = "cookie", SET_COOKIE = "set-cookie", AUTHORIZATION = "authorization", REFERER = "referer",
    ORIGIN = "origin", WWW_AUTHENTICATE = "www-authenticate", PROXY_AUTHORIZATION = "proxy-authorization",
    PROXY_AUTHENTICATE = "proxy-authenticate", RETRY_AFTER = "retry-after",
    X_REQUEST_ID = "x-request-id", X_FORWARDED_FOR = "x-forwarded-for", X_FORWARDED_PROTO = "x-forwarded-proto",
    X_FORWARDED_HOST = "x-forwarded-host", X_FORWARDED_PORT = "x-forwarded-port",
    X_FORWARDED_CLIENT_CERT = "x-forwarded-client-cert", X_CLIENT_TRACE_ID = "x-client-trace-id",
    X_ENVOY_EXTERNAL_ADDRESS = "x-envoy-external-address", X_ENVOY_INTERNAL = "x-envoy-internal",
    X_ENVOY_FORCE_TRACE = "x-envoy-force-trace", X_ENVOY_DECORATOR_OPERATION = "x-envoy-decorator-operation",
    X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER = "x-envoy-downstream-service-cluster",
    X_ENVOY_DOWNSTREAM_SERVICE_NODE = "x-envoy-downstream-service-node",
    X_ENVOY_EXPECTED_RQ_TIMEOUT_MS = "x-envoy-expected-rq-timeout-ms",
    X_ENVOY_ORIGINAL_PATH = "x-envoy-original-path", X_ENVOY_ORIGINAL_HOST = "x-envoy-original-host",
    X_ENVOY_ORIGINAL_METHOD = "x-envoy-original-method", X_ENVOY_ORIGINAL_URL = "x-envoy-original-url",
    X_ENVOY_ATTEMPT_COUNT = "x-envoy-attempt-count", X_ENVOY_IS_TIMEOUT_RETRY = "x-envoy-is-timeout-retry",
    X_ENVOY_MAX_RETRIES = "x-envoy-max-retries", X_ENVOY_RETRY_ON = "x-envoy-retry-on",
    X_ENVOY_RETRY_GRPC_ON = "x-envoy-retry-grpc-on",
    X_ENVOY_RETRIABLE_STATUS_CODES = "x-envoy-retriable-status-codes",
    X_ENVOY_RETRIABLE_HEADER_NAMES = "x-envoy-retriable-header-names",
    X_ENVOY_HEDGE_ON_PER_TRY_TIMEOUT = "x-envoy-hedge-on-per-try-timeout",
    X_ENVOY_UPSTREAM_ALT_STAT_NAME = "x-envoy-upstream-alt-stat-name",
    X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS = "x-envoy-upstream-rq-timeout-ms",
    X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS = "x-envoy-upstream-rq-per-try-timeout-ms",
    X_ENVOY_UPSTREAM_RQ_TIMEOUT_ALT_RESPONSE = "x-envoy-upstream-rq-timeout-alt-response",
    X_ENVOY_UPSTREAM_STREAM_DURATION_MS = "x-envoy-upstream-stream-duration-ms",
    X_ENVOY_UPSTREAM_SERVICE_TIME = "x-envoy-upstream-service-time",
    X_ENVOY_UPSTREAM_CANARY = "x-envoy-upstream-canary",
    X_ENVOY_UPSTREAM_HEALTHCHECKED_CLUSTER = "x-envoy-upstream-healthchecked-cluster",
    X_ENVOY_IMMEDIATE_HEALTH_CHECK_FAIL = "x-envoy-immediate-health-check-fail",
    X_ENVOY_OVERLOADED = "x-envoy-overloaded", X_ENVOY_LOCAL_OVERLOADED = "x-envoy-local-overloaded",
    X_ENVOY_DROP_OVERLOAD = "x-envoy-drop-overload",
    X_ENVOY_UNCONDITIONAL_DROP_OVERLOAD = "x-envoy-unconditional-drop-overload",
    X_ENVOY_RATELIMITED = "x-envoy-ratelimited", X_ENVOY_DEGRADED = "x-envoy-degraded",
    X_ENVOY_IP_TAGS = "x-envoy-ip-tags", X_ENVOY_HOPS = "x-envoy-hops",
    GRPC_STATUS = "grpc-status", GRPC_MESSAGE = "grpc-message", GRPC_TIMEOUT = "grpc-timeout",
    GRPC_ENCODING = "grpc-encoding", GRPC_ACCEPT_ENCODING = "grpc-accept-encoding",
    TRACEPARENT = "traceparent", TRACESTATE = "tracestate", B3 = "b3", X_B3_TRACEID = "x-b3-traceid",
    X_B3_SPANID = "x-b3-spanid", X_B3_SAMPLED = "x-b3-sampled", X_B3_PARENTSPANID = "x-b3-parentspanid",
    X_B3_FLAGS = "x-b3-flags", X_OT_SPAN_CONTEXT = "x-ot-span-context",
    SEC_WEBSOCKET_KEY = "sec-websocket-key", SEC_WEBSOCKET_VERSION = "sec-websocket-version",
    SEC_WEBSOCKET_ACCEPT = "sec-websocket-accept", SEC_WEBSOCKET_PROTOCOL = "sec-websocket-protocol",
    SEC_WEBSOCKET_EXTENSIONS = "sec-websocket-extensions", SEC_FETCH_SITE = "sec-fetch-site",
    ACCESS_CONTROL_ALLOW_ORIGIN = "access-control-allow-origin",
    STRICT_TRANSPORT_SECURITY = "strict-transport-security", CAPSULE_PROTOCOL = "capsule-protocol",
}

const SLOTS: usize = 1024;

const fn slot(name: &[u8]) -> usize {
    let n = name.len();
    let h = (n as u32).wrapping_mul(0x9E37_79B1)
        ^ ((name[0] as u32) << 3)
        ^ ((name[n - 1] as u32) << 9)
        ^ ((name[n / 2] as u32) << 5)
        ^ ((name[n / 3] as u32) << 14)
        ^ ((name[2 * n / 3] as u32) << 1);
    ((h.wrapping_mul(0x85EB_CA6B)) >> 22) as usize & (SLOTS - 1)
}

/// Open-addressed table made at compile time; `u8::MAX` marks a free slot.
static TABLE: [u8; SLOTS] = {
    let mut t = [u8::MAX; SLOTS];
    let mut i = 0;
    while i < KNOWN_TEXT.len() {
        let mut s = slot(KNOWN_TEXT[i].as_bytes());
        while t[s] != u8::MAX {
            s = (s + 1) & (SLOTS - 1);
        }
        t[s] = i as u8;
        i += 1;
    }
    t
};

fn known(name: &[u8]) -> Option<Known> {
    if name.is_empty() {
        return None;
    }
    let mut s = slot(name);
    loop {
        match TABLE[s] {
            u8::MAX => return None,
            i if KNOWN_TEXT[i as usize].as_bytes() == name => return Some(KNOWN[i as usize]),
            _ => s = (s + 1) & (SLOTS - 1),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Repr {
    Known(Known),
    Custom(Bytes),
}

/// A header name in lower case.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct HeaderName(Repr);

impl HeaderName {
    /// Takes a name that is already in lower case and made of token characters (or a pseudo-header);
    /// the bytes are kept only when the name is not interned.
    pub fn from_lower(name: Bytes) -> HeaderName {
        match known(&name) {
            Some(k) => HeaderName(Repr::Known(k)),
            None => HeaderName(Repr::Custom(name)),
        }
    }

    /// As [`HeaderName::from_lower`], from a piece of a larger buffer that is only referenced when needed.
    pub fn from_lower_slice(buf: &Bytes, range: std::ops::Range<usize>) -> HeaderName {
        match known(&buf[range.clone()]) {
            Some(k) => HeaderName(Repr::Known(k)),
            None => HeaderName(Repr::Custom(buf.slice(range))),
        }
    }

    /// The interned name of these bytes, if there is one.
    #[inline]
    pub(crate) fn from_known(name: &[u8]) -> Option<HeaderName> {
        known(name).map(|k| HeaderName(Repr::Known(k)))
    }

    /// Takes a name that [`HeaderName::from_known`] does not find, without looking again.
    pub(crate) fn from_unknown(name: Bytes) -> HeaderName {
        debug_assert!(known(&name).is_none(), "an interned name has one form");
        HeaderName(Repr::Custom(name))
    }

    /// A name in lower case known at compile time.
    pub(crate) const fn from_static(name: &'static str) -> HeaderName {
        match find_interned(name.as_bytes()) {
            Some(i) => HeaderName(Repr::Known(KNOWN[i])),
            None => HeaderName(Repr::Custom(Bytes::from_static(name.as_bytes()))),
        }
    }

    /// Any text, lower-cased. None when it is not a token (RFC 9110 5.6.2) nor a token after one `:`.
    pub fn parse(name: &str) -> Option<HeaderName> {
        let token = name.strip_prefix(':').unwrap_or(name);
        if token.is_empty() || !token.bytes().all(is_token) {
            return None;
        }
        Some(HeaderName::from_lower(Bytes::from(name.to_ascii_lowercase())))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or("")
    }

    /// The name as bytes.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Repr::Known(k) => KNOWN_TEXT[*k as usize].as_bytes(),
            Repr::Custom(b) => b,
        }
    }

    /// True for `:method` and its like.
    #[inline]
    pub fn is_pseudo(&self) -> bool {
        match &self.0 {
            Repr::Known(k) => (*k as u8) <= Known::PROTOCOL as u8,
            Repr::Custom(b) => b.first() == Some(&b':'),
        }
    }

    /// Which interned name it is, for a `match`.
    #[inline]
    pub(crate) fn known(&self) -> Option<Known> {
        match &self.0 {
            Repr::Known(k) => Some(*k),
            Repr::Custom(_) => None,
        }
    }

    /// True for interned names: comparing against one costs a byte.
    pub fn is_interned(&self) -> bool {
        matches!(self.0, Repr::Known(_))
    }
}

impl fmt::Debug for HeaderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for HeaderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Position of an interned name, at compile time.
pub(crate) const fn find_interned(text: &[u8]) -> Option<usize> {
    let mut i = 0;
    while i < KNOWN_TEXT.len() {
        let known = KNOWN_TEXT[i].as_bytes();
        let mut at = 0;
        while at < known.len() && at < text.len() && known[at] == text[at] {
            at += 1;
        }
        if at == known.len() && at == text.len() {
            return Some(i);
        }
        i += 1;
    }
    None
}

/// Position of a name that must be interned.
const fn interned(text: &[u8]) -> usize {
    match find_interned(text) {
        Some(i) => i,
        None => panic!("not an interned header name"),
    }
}

/// A set of interned names, so that many headers are found in one pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NameSet([u64; 2]);

impl NameSet {
    /// The set of these interned names, by their lower-case text. Another name is an error at compile time.
    pub const fn of(texts: &[&str]) -> NameSet {
        let mut bits = [0; 2];
        let mut i = 0;
        while i < texts.len() {
            let at = interned(texts[i].as_bytes());
            bits[at / 64] |= 1 << (at % 64);
            i += 1;
        }
        NameSet(bits)
    }

    /// Both sets.
    pub const fn and(self, other: NameSet) -> NameSet {
        NameSet([self.0[0] | other.0[0], self.0[1] | other.0[1]])
    }

    /// Whether `name` is in it.
    #[inline]
    pub fn contains(self, name: &HeaderName) -> bool {
        match &name.0 {
            Repr::Known(k) => self.has(*k),
            Repr::Custom(_) => false,
        }
    }

    #[inline]
    fn has(self, known: Known) -> bool {
        let at = usize::from(known as u8);
        self.0[at / 64 % 2] >> (at % 64) & 1 != 0
    }

    #[inline]
    fn insert(&mut self, name: &HeaderName) {
        if let Repr::Known(k) = &name.0 {
            let at = usize::from(*k as u8);
            self.0[at / 64 % 2] |= 1 << (at % 64);
        }
    }

    fn take(&mut self, name: &HeaderName) {
        if let Repr::Known(k) = &name.0 {
            let at = usize::from(*k as u8);
            self.0[at / 64 % 2] &= !(1 << (at % 64));
        }
    }

    fn meets(self, other: NameSet) -> bool {
        (self.0[0] & other.0[0]) | (self.0[1] & other.0[1]) != 0
    }

    fn without(self, other: NameSet) -> NameSet {
        NameSet([self.0[0] & !other.0[0], self.0[1] & !other.0[1]])
    }
}

/// True for the token characters of RFC 9110 5.6.2.
pub const fn is_token(b: u8) -> bool {
    matches!(b, b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z')
}

/// A header value. Holds no CR, LF or NUL: whoever makes one from input checks that.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct HeaderValue(Bytes);

impl HeaderValue {
    /// A value known at compile time.
    pub const fn from_static(v: &'static str) -> HeaderValue {
        HeaderValue(Bytes::from_static(v.as_bytes()))
    }

    /// Takes bytes that the caller has checked, such as a parser that refuses control characters.
    pub fn from_checked(v: Bytes) -> HeaderValue {
        debug_assert!(is_valid_value(&v), "header value with CR, LF or NUL");
        HeaderValue(v)
    }

    /// Checks and takes; None when there is a CR, LF or NUL.
    pub fn parse(v: impl Into<Bytes>) -> Option<HeaderValue> {
        let v = v.into();
        is_valid_value(&v).then_some(HeaderValue(v))
    }

    /// The bytes.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, shared.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The value as text, or None where it is not UTF-8.
    pub fn to_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

fn is_valid_value(v: &[u8]) -> bool {
    !v.iter().any(|&b| matches!(b, b'\r' | b'\n' | 0))
}

impl From<u64> for HeaderValue {
    fn from(n: u64) -> HeaderValue {
        HeaderValue(Bytes::copy_from_slice(itoa::Buffer::new().format(n).as_bytes()))
    }
}

impl fmt::Debug for HeaderValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// Headers or trailers of one message, in order.
#[derive(Clone, Default)]
pub struct Headers {
    entries: Vec<(HeaderName, HeaderValue)>,
    /// Interned names that may be there. Most that are looked for are not, and then nothing is compared.
    seen: NameSet,
    /// Names as the peer wrote them, where a `preserve_case` formatter asked for it.
    original_names: Option<Box<[Bytes]>>,
}

impl PartialEq for Headers {
    fn eq(&self, other: &Headers) -> bool {
        self.entries == other.entries && self.original_names == other.original_names
    }
}

impl Eq for Headers {}

impl Headers {
    /// An empty list that allocates nothing.
    pub const fn new() -> Headers {
        Headers { entries: Vec::new(), seen: NameSet::of(&[]), original_names: None }
    }

    /// An empty list with room.
    pub fn with_capacity(n: usize) -> Headers {
        Headers { entries: Vec::with_capacity(n), seen: NameSet::of(&[]), original_names: None }
    }

    /// Number of entries, pseudo-headers included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when there is nothing.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Sum of the lengths of names and values: Envoy's `byteSize`.
    pub fn byte_size(&self) -> usize {
        self.entries.iter().map(|(n, v)| n.as_bytes().len() + v.as_bytes().len()).sum()
    }

    /// First value of `name`. Matching by value wants [`Headers::joined`], which sees all of them.
    #[inline]
    pub fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.position(name).map(|i| &self.entries[i].1)
    }

    /// First value of `name` as bytes.
    #[inline]
    pub fn bytes(&self, name: &HeaderName) -> Option<&[u8]> {
        self.get(name).map(HeaderValue::as_bytes)
    }

    /// First value of `name` as text; None when absent or not UTF-8.
    pub fn str(&self, name: &HeaderName) -> Option<&str> {
        self.get(name).and_then(HeaderValue::to_str)
    }

    /// True when `name` is there.
    #[inline]
    pub fn contains(&self, name: &HeaderName) -> bool {
        self.position(name).is_some()
    }

    #[inline]
    fn position(&self, name: &HeaderName) -> Option<usize> {
        match &name.0 {
            Repr::Known(k) if !self.seen.has(*k) => None,
            Repr::Known(k) => self.entries.iter().position(|(n, _)| matches!(&n.0, Repr::Known(x) if x == k)),
            Repr::Custom(c) => self.entries.iter().position(|(n, _)| matches!(&n.0, Repr::Custom(x) if x == c)),
        }
    }

    /// All values of `name` in order.
    pub fn get_all<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a HeaderValue> {
        let absent = matches!(&name.0, Repr::Known(k) if !self.seen.has(*k));
        let entries = if absent { &[] } else { &self.entries[..] };
        entries.iter().filter(move |(n, _)| n == name).map(|(_, v)| v)
    }

    /// All values of `name` joined with "," as Envoy matches them; borrowed when there is one.
    pub fn joined(&self, name: &HeaderName) -> Option<std::borrow::Cow<'_, [u8]>> {
        let first = self.position(name)?;
        let mut out = std::borrow::Cow::Borrowed(self.entries[first].1.as_bytes());
        for (n, v) in &self.entries[first + 1..] {
            if n == name {
                let o = out.to_mut();
                o.push(b',');
                o.extend_from_slice(v.as_bytes());
            }
        }
        Some(out)
    }

    /// Adds a line after the others, whatever is there.
    #[inline]
    pub fn append(&mut self, name: HeaderName, value: HeaderValue) {
        self.seen.insert(&name);
        if name.is_pseudo() {
            let at = self.entries.iter().take_while(|(n, _)| n.is_pseudo()).count();
            self.entries.insert(at, (name, value));
        } else {
            self.entries.push((name, value));
        }
    }

    /// Adds an entry at the very end; a codec that puts pseudo-headers first itself saves the search for their place.
    #[inline]
    pub(crate) fn push(&mut self, name: HeaderName, value: HeaderValue) {
        debug_assert!(!name.is_pseudo() || self.entries.last().is_none_or(|(n, _)| n.is_pseudo()));
        self.seen.insert(&name);
        self.entries.push((name, value));
    }

    /// Remembers how the peer wrote the names, for [`Headers::original_name`].
    pub fn set_original_names(&mut self, names: Box<[Bytes]>) {
        self.original_names = Some(names);
    }

    /// True when the names are remembered as the peer wrote them.
    #[inline]
    pub fn preserves_case(&self) -> bool {
        self.original_names.is_some()
    }

    /// `name` as the peer wrote it first; None for names that it did not send.
    pub fn original_name(&self, name: &[u8]) -> Option<&[u8]> {
        let names = self.original_names.as_deref()?;
        names.iter().find(|n| n.eq_ignore_ascii_case(name)).map(|n| &n[..])
    }

    /// Gives the first entry another value.
    #[inline]
    pub(crate) fn replace_first(&mut self, value: HeaderValue) {
        if let Some(first) = self.entries.first_mut() {
            first.1 = value;
        }
    }

    /// Makes `value` the only value: the first line is overwritten in place, further ones are removed.
    pub fn set(&mut self, name: HeaderName, value: HeaderValue) {
        match self.position(&name) {
            None => self.append(name, value),
            Some(i) => {
                self.entries[i].1 = value;
                if self.entries[i + 1..].iter().any(|(n, _)| *n == name) {
                    let mut at = 0;
                    self.entries.retain(|(n, _)| {
                        at += 1;
                        at - 1 <= i || *n != name
                    });
                }
            }
        }
    }

    /// Joins `value` to the first line with `separator`, or adds a line.
    pub fn append_joined(&mut self, name: HeaderName, value: &[u8], separator: &str) {
        match self.position(&name) {
            Some(i) if !self.entries[i].1.as_bytes().is_empty() => {
                let old = self.entries[i].1.as_bytes();
                let mut v = Vec::with_capacity(old.len() + separator.len() + value.len());
                v.extend_from_slice(old);
                v.extend_from_slice(separator.as_bytes());
                v.extend_from_slice(value);
                self.entries[i].1 = HeaderValue::from_checked(v.into());
            }
            Some(i) => self.entries[i].1 = HeaderValue::from_checked(Bytes::copy_from_slice(value)),
            None => self.append(name, HeaderValue::from_checked(Bytes::copy_from_slice(value))),
        }
    }

    /// Removes all lines of `name`; true when there were any.
    pub fn remove(&mut self, name: &HeaderName) -> bool {
        let Some(first) = self.position(name) else { return false };
        self.entries.remove(first);
        if self.entries[first..].iter().any(|(n, _)| n == name) {
            self.entries.retain(|(n, _)| n != name);
        }
        self.seen.take(name);
        true
    }

    /// Removes all lines of the names in `set`; costs next to nothing when there are none, which is the usual case.
    #[inline]
    pub fn remove_all(&mut self, set: NameSet) {
        if self.seen.meets(set) {
            self.entries.retain(|(n, _)| !set.contains(n));
            self.seen = self.seen.without(set);
        }
    }

    /// Removes what `drop` chooses, in one pass.
    pub fn remove_if(&mut self, mut drop: impl FnMut(&HeaderName, &HeaderValue) -> bool) {
        self.entries.retain(|(n, v)| !drop(n, v));
    }

    /// Entries in order, pseudo-headers first.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.entries.iter().map(|(n, v)| (n, v))
    }

    /// Removes everything and keeps the room.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.seen = NameSet::default();
    }

    /// `:path`, empty when absent.
    pub fn path(&self) -> &[u8] {
        self.bytes(&names::PATH).unwrap_or_default()
    }

    /// `:method`, empty when absent.
    pub fn method(&self) -> &[u8] {
        self.bytes(&names::METHOD).unwrap_or_default()
    }

    /// `:authority`, empty when absent.
    pub fn authority(&self) -> &[u8] {
        self.bytes(&names::AUTHORITY).unwrap_or_default()
    }

    /// `:status` as a number; 0 when absent.
    pub fn status(&self) -> u16 {
        match self.bytes(&names::STATUS) {
            Some([a @ b'0'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9']) => {
                u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0')
            }
            _ => 0,
        }
    }

    /// Sets `:status`. Codes outside 100..=999 are clamped.
    pub fn set_status(&mut self, code: u16) {
        self.set(names::STATUS, status_value(code));
    }
}

/// The value of `:status` for a code; common codes are static.
pub fn status_value(code: u16) -> HeaderValue {
    HeaderValue::from_static(match code {
        200 => "200",
        204 => "204",
        206 => "206",
        301 => "301",
        302 => "302",
        304 => "304",
        400 => "400",
        401 => "401",
        403 => "403",
        404 => "404",
        500 => "500",
        502 => "502",
        503 => "503",
        504 => "504",
        c => return HeaderValue::from(u64::from(c.clamp(100, 999))),
    })
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(s: &str) -> HeaderName {
        HeaderName::parse(s).unwrap()
    }

    #[test]
    fn every_interned_name_finds_itself() {
        for (i, t) in KNOWN_TEXT.iter().enumerate() {
            assert_eq!(known(t.as_bytes()), Some(KNOWN[i]), "{t}");
        }
        assert_eq!(known(b"x-not-known"), None);
        assert!(KNOWN_TEXT.len() <= 128, "NameSet holds 128 names");
    }

    #[test]
    fn pseudo_headers_stand_first_whenever_they_are_added() {
        let mut h = Headers::new();
        h.append(name("accept"), HeaderValue::from_static("*/*"));
        h.append(names::METHOD, HeaderValue::from_static("GET"));
        h.append(names::PATH, HeaderValue::from_static("/"));
        let order: Vec<_> = h.iter().map(|(n, _)| n.as_str().to_owned()).collect();
        assert_eq!(order, [":method", ":path", "accept"]);
    }

    #[test]
    fn set_overwrites_the_first_line_and_removes_the_others() {
        let mut h = Headers::new();
        h.append(name("x-a"), HeaderValue::from_static("1"));
        h.append(name("x-b"), HeaderValue::from_static("2"));
        h.append(name("x-a"), HeaderValue::from_static("3"));
        h.set(name("X-A"), HeaderValue::from_static("9"));
        assert_eq!(format!("{h:?}"), "{x-a: 9, x-b: 2}");
    }

    #[test]
    fn what_may_be_there_follows_what_is_there() {
        let mut h = Headers::new();
        for (n, v) in [("via", "1"), ("x-a", "2"), ("via", "3"), ("keep-alive", "4")] {
            h.append(name(n), HeaderValue::from_static(v));
        }
        assert!(h.contains(&names::VIA) && !h.contains(&names::TE));
        assert_eq!(h.get_all(&names::TE).count(), 0);
        assert!(h.remove(&names::VIA) && !h.remove(&names::VIA) && !h.contains(&names::VIA));
        h.set(names::TE, HeaderValue::from_static("5"));
        h.remove_all(NameSet::of(&["via", "date"]));
        assert_eq!(format!("{h:?}"), "{x-a: 2, keep-alive: 4, te: 5}");
        h.remove_all(NameSet::of(&["keep-alive", "date"]));
        assert!(!h.contains(&names::KEEP_ALIVE));
        h.remove_if(|n, _| *n == names::TE);
        h.append(names::KEEP_ALIVE, HeaderValue::from_static("6"));
        assert_eq!(format!("{h:?}"), "{x-a: 2, keep-alive: 6}");
        let mut other = Headers::new();
        other.append(name("x-a"), HeaderValue::from_static("2"));
        other.append(names::KEEP_ALIVE, HeaderValue::from_static("6"));
        assert_eq!(h, other, "what was there once does not count");
        h.clear();
        assert!(!h.contains(&names::KEEP_ALIVE));
    }

    #[test]
    fn values_of_one_name_are_joined_with_a_comma() {
        let mut h = Headers::new();
        h.append(name("x-a"), HeaderValue::from_static("1"));
        h.append(name("x-a"), HeaderValue::from_static("2"));
        assert_eq!(h.joined(&name("x-a")).unwrap().as_ref(), b"1,2");
        assert!(h.joined(&name("x-b")).is_none());
    }

    #[test]
    fn values_with_line_breaks_are_refused() {
        assert!(HeaderValue::parse("a\r\nb").is_none());
        assert!(HeaderValue::parse("a\0").is_none());
        assert!(HeaderValue::parse("ok").is_some());
        assert!(HeaderName::parse("a b").is_none());
        assert!(HeaderName::parse("").is_none());
    }
}
