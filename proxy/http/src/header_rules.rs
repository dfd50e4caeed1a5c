//! What the connection manager does to headers: hop-by-hop cleaning, forwarded addresses, request ids, `via`, `server`,
//! `date`. Pure functions on header lists; called by the active stream. Envoy's `ConnectionManagerUtility`.

use crate::headers::{HeaderName, HeaderValue, Headers, NameSet, names};
use nuncio_base::random;
use nuncio_config::hcm::{
    ClientCertForwarding, ForwardClientCert, HcmConfig, OriginalIpDetection, ServerHeaderTransformation,
};
use nuncio_net::address::Address;
use nuncio_net::connection::ConnectionInfo;
use std::net::{IpAddr, SocketAddr};

/// Hop-by-hop headers and marks that no peer may set.
const ALWAYS_REMOVED: NameSet =
    NameSet::of(&["x-envoy-internal", "keep-alive", "proxy-connection", "transfer-encoding"]);
/// Removed unless the request is an upgrade.
const NOT_UPGRADE: NameSet = NameSet::of(&["connection", "upgrade", "http2-settings"]);
/// Removed from external requests.
const INTERNAL_ONLY: NameSet = NameSet::of(&[
    "x-envoy-retriable-status-codes",
    "x-envoy-retriable-header-names",
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-max-retries",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-stream-duration-ms",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-force-trace",
    "x-envoy-ip-tags",
    "x-envoy-original-url",
    "x-envoy-hedge-on-per-try-timeout",
]);
/// Removed from external requests where this proxy is the edge.
const EDGE_ONLY: NameSet = NameSet::of(&[
    "x-envoy-decorator-operation",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-original-path",
]);

/// What the rules need to know of the process.
#[derive(Debug, Clone)]
pub struct LocalInfo {
    /// First address of the machine that is not a loopback; stands in x-forwarded-for for loopback peers.
    pub address: HeaderValue,
    /// Node id.
    pub node: HeaderValue,
    /// Service cluster, for `add_user_agent`.
    pub cluster: HeaderValue,
}

/// Result of [`mutate_request`].
#[derive(Debug, Default)]
pub struct RequestFacts {
    /// Remote address after x-forwarded-for and its like; None: the connection's.
    pub remote: Option<Address>,
    /// The request comes from an internal address.
    pub internal: bool,
    /// The status that an original IP detector rejects with.
    pub rejected: Option<u16>,
}

/// True when the request asks to switch protocols: `connection: upgrade` with an `upgrade` header.
pub fn is_upgrade(headers: &Headers) -> bool {
    headers.contains(&names::UPGRADE) && has_token(headers, &names::CONNECTION, b"upgrade")
}

/// True when a comma-separated header has `token`, whatever the case.
pub fn has_token(headers: &Headers, name: &HeaderName, token: &[u8]) -> bool {
    headers
        .get_all(name)
        .any(|v| v.as_bytes().split(|&b| b == b',').any(|t| t.trim_ascii().eq_ignore_ascii_case(token)))
}

/// Keeps only `trailers` of a `te` header.
fn sanitize_te(headers: &mut Headers) {
    if !headers.contains(&names::TE) {
        return;
    }
    if has_token(headers, &names::TE, b"trailers") {
        headers.set(names::TE, HeaderValue::from_static("trailers"));
    } else {
        headers.remove(&names::TE);
    }
}

/// Applies Envoy's rules to the headers of a request.
pub fn mutate_request(
    headers: &mut Headers,
    connection: &ConnectionInfo,
    config: &HcmConfig,
    internal_only: &[HeaderName],
    local: &LocalInfo,
    h1: bool,
) -> RequestFacts {
    let upgrade = is_upgrade(headers);
    let removed = if upgrade { ALWAYS_REMOVED } else { ALWAYS_REMOVED.and(NOT_UPGRADE) };
    headers.remove_all(removed);
    sanitize_te(headers);
    sanitize_referer(headers);

    let mut facts = RequestFacts::default();
    let mut trusted = false;
    let tls = connection.is_tls();
    let peer = &connection.remote_address;
    if config.use_remote_address {
        trusted = !headers.contains(&names::X_FORWARDED_FOR);
        if config.xff_num_trusted_hops > 0 {
            facts.remote = last_xff_address(headers, config.xff_num_trusted_hops as usize - 1);
        }
        if facts.remote.is_none() {
            facts.remote = Some(peer.clone());
        }
        if !config.skip_xff_append {
            append_xff(headers, connection, local);
        }
        let untrusted_hop = config.xff_num_trusted_hops == 0;
        if untrusted_hop || !headers.contains(&names::X_FORWARDED_PROTO) {
            headers.set(names::X_FORWARDED_PROTO, client_proto(connection, config));
        }
        if config.append_x_forwarded_port && (untrusted_hop || !headers.contains(&names::X_FORWARDED_PORT)) {
            set_forwarded_port(headers, connection);
        }
    } else {
        match detect_original_ip(headers, config, connection, local) {
            Ok(Some((address, trust))) => {
                facts.remote = Some(address);
                trusted = trust;
            }
            Ok(None) => {}
            Err(status) => {
                facts.rejected = Some(status);
                return facts;
            }
        }
    }
    if !headers.contains(&names::X_FORWARDED_PROTO) {
        headers.set(names::X_FORWARDED_PROTO, client_proto(connection, config));
    }
    if config.append_x_forwarded_port && !headers.contains(&names::X_FORWARDED_PORT) {
        set_forwarded_port(headers, connection);
    }
    if let Some(scheme) = config.scheme_overwrite.as_deref().and_then(|s| HeaderValue::parse(s.to_owned())) {
        headers.set(names::SCHEME, scheme.clone());
        headers.set(names::X_FORWARDED_PROTO, scheme);
    }
    // An HTTP/1 codec knows only its own transport; x-forwarded-proto knows what the client used.
    if h1 || !headers.contains(&names::SCHEME) {
        let forwarded = match headers.bytes(&names::X_FORWARDED_PROTO) {
            Some(b"http") => proto(false),
            Some(b"https") => proto(true),
            _ => proto(tls),
        };
        headers.set(names::SCHEME, forwarded);
    }

    facts.internal = trusted && facts.remote.as_ref().is_some_and(|a| is_internal(a, config));
    let edge = !facts.internal && config.use_remote_address;
    if facts.internal {
        headers.set(names::X_ENVOY_INTERNAL, HeaderValue::from_static("true"));
    } else {
        let set = if edge { INTERNAL_ONLY.and(EDGE_ONLY) } else { INTERNAL_ONLY };
        headers.remove_all(set);
        for name in internal_only {
            headers.remove(name);
        }
    }
    if config.add_user_agent && !local.cluster.as_bytes().is_empty() {
        headers.set(names::X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER, local.cluster.clone());
        if headers.bytes(&names::USER_AGENT).is_none_or(<[u8]>::is_empty) {
            headers.set(names::USER_AGENT, local.cluster.clone());
        }
        if !local.node.as_bytes().is_empty() {
            headers.set(names::X_ENVOY_DOWNSTREAM_SERVICE_NODE, local.node.clone());
        }
    }
    if !config.via.is_empty() {
        headers.append_joined(names::VIA, config.via.as_bytes(), ", ");
    }
    if edge && let Some(ip) = facts.remote.as_ref().unwrap_or(peer).ip() {
        let own = connection.remote_ip_text().filter(|_| peer.ip() == Some(ip));
        let text = own.unwrap_or_else(|| ip.to_string().into());
        headers.set(names::X_ENVOY_EXTERNAL_ADDRESS, HeaderValue::from_checked(text));
    }
    if config.generate_request_id {
        let force = !config.preserve_external_request_id && edge;
        if force || !headers.contains(&names::X_REQUEST_ID) {
            headers
                .set(names::X_REQUEST_ID, HeaderValue::from_checked(bytes::Bytes::copy_from_slice(&random::uuid_v4())));
        }
    }
    facts
}

/// Applies Envoy's rules to the headers of a response.
pub fn mutate_response(response: &mut Headers, request: &Headers, config: &HcmConfig, server: &HeaderValue) {
    let upgrade = response.status() == 101 || (is_upgrade(request) && is_upgrade(response));
    const RESPONSE_REMOVED: NameSet = NameSet::of(&["keep-alive", "proxy-connection", "transfer-encoding"]);
    const CONNECTION: NameSet = NameSet::of(&["connection"]);
    let removed = if upgrade { RESPONSE_REMOVED } else { RESPONSE_REMOVED.and(CONNECTION) };
    response.remove_all(removed);
    if !response.contains(&names::DATE) {
        response.append(names::DATE, HeaderValue::from_checked(nuncio_base::date::http_date()));
    }
    match config.server_header_transformation {
        ServerHeaderTransformation::Overwrite => response.set(names::SERVER, server.clone()),
        ServerHeaderTransformation::AppendIfAbsent if !response.contains(&names::SERVER) => {
            response.append(names::SERVER, server.clone());
        }
        _ => {}
    }
    if (config.always_set_request_id_in_response || request.contains(&names::X_ENVOY_FORCE_TRACE))
        && let Some(id) = request.get(&names::X_REQUEST_ID)
    {
        response.set(names::X_REQUEST_ID, id.clone());
    }
    if !config.via.is_empty() {
        response.append_joined(names::VIA, config.via.as_bytes(), ", ");
    }
}

fn proto(tls: bool) -> HeaderValue {
    HeaderValue::from_static(if tls { "https" } else { "http" })
}

/// The scheme that the client used: that of the port it meant, where the configuration says so, else that of the connection.
fn client_proto(connection: &ConnectionInfo, config: &HcmConfig) -> HeaderValue {
    let restored = connection.proxy_protocol.is_some() || connection.local_address != connection.direct_local_address;
    if let Some(ports) = config.forward_proto.as_deref().filter(|_| restored)
        && let Some(port) = connection.local_address.port().map(u32::from)
    {
        if ports.https_ports.contains(&port) {
            return proto(true);
        }
        if ports.http_ports.contains(&port) {
            return proto(false);
        }
    }
    proto(connection.is_tls())
}

fn set_forwarded_port(headers: &mut Headers, connection: &ConnectionInfo) {
    if let Some(port) = connection.local_address.port() {
        headers.set(names::X_FORWARDED_PORT, HeaderValue::from(u64::from(port)));
    }
}

fn append_xff(headers: &mut Headers, connection: &ConnectionInfo, local: &LocalInfo) {
    let Some(text) = connection.remote_ip_text() else { return };
    let loopback = connection.remote_address.ip().is_some_and(|ip| ip.is_loopback());
    let value = if loopback { local.address.clone() } else { HeaderValue::from_checked(text) };
    if headers.contains(&names::X_FORWARDED_FOR) {
        // Several lines are one list; the append goes to the last address of the whole.
        if headers.get_all(&names::X_FORWARDED_FOR).nth(1).is_some()
            && let Some(all) = headers.joined(&names::X_FORWARDED_FOR).map(std::borrow::Cow::into_owned)
        {
            headers.set(names::X_FORWARDED_FOR, HeaderValue::from_checked(all.into()));
        }
        headers.append_joined(names::X_FORWARDED_FOR, value.as_bytes(), ",");
    } else {
        headers.append(names::X_FORWARDED_FOR, value);
    }
}

/// The address `hops` to the left of the end of x-forwarded-for.
fn last_xff_address(headers: &Headers, hops: usize) -> Option<Address> {
    let all = headers.joined(&names::X_FORWARDED_FOR)?;
    let text = all.rsplit(|&b| b == b',').nth(hops)?;
    parse_ip(text)
}

fn parse_ip(text: &[u8]) -> Option<Address> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let addr = match text.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, 0),
        Err(_) => text.parse::<SocketAddr>().ok()?,
    };
    Some(Address::Ip(addr))
}

type Detected = Option<(Address, bool)>;

fn detect_original_ip(
    headers: &mut Headers,
    config: &HcmConfig,
    connection: &ConnectionInfo,
    local: &LocalInfo,
) -> Result<Detected, u16> {
    let peer = &connection.remote_address;
    if config.original_ip_detection.is_empty() {
        return Ok(detect_xff(headers, config.xff_num_trusted_hops as usize));
    }
    for detection in &config.original_ip_detection {
        match detection {
            OriginalIpDetection::CustomHeader { header, trusted, reject_with } => {
                let name = HeaderName::parse(header);
                let found = name.and_then(|n| headers.bytes(&n).and_then(parse_ip));
                match (found, reject_with) {
                    (Some(address), _) => return Ok(Some((address, *trusted))),
                    (None, Some(status)) => return Err(*status),
                    (None, None) => {}
                }
            }
            OriginalIpDetection::Xff { num_trusted_hops, trusted_cidrs, skip_append } => {
                let found = if trusted_cidrs.is_empty() {
                    detect_xff(headers, *num_trusted_hops as usize)
                } else {
                    detect_xff_by_cidr(headers, trusted_cidrs, peer)
                };
                if !*skip_append {
                    append_xff(headers, connection, local);
                }
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
    }
    Ok(None)
}

/// Envoy trusts a single address only.
fn detect_xff(headers: &Headers, hops: usize) -> Detected {
    let all = headers.joined(&names::X_FORWARDED_FOR)?;
    let single = !all.contains(&b',');
    last_xff_address(headers, hops).map(|a| (a, single))
}

/// The last address that is not in a trusted range, when the peer itself is trusted.
fn detect_xff_by_cidr(headers: &Headers, trusted: &[ipnet::IpNet], peer: &Address) -> Detected {
    let within = |ip: IpAddr| trusted.iter().any(|net| net.contains(&ip));
    if !peer.ip().is_some_and(within) {
        return Some((peer.clone(), false));
    }
    let all = headers.joined(&names::X_FORWARDED_FOR)?;
    let mut last = None;
    for text in all.rsplit(|&b| b == b',') {
        let address = parse_ip(text)?;
        let inside = address.ip().is_some_and(within);
        last = Some((address, false));
        if !inside {
            break;
        }
    }
    last
}

fn is_internal(address: &Address, config: &HcmConfig) -> bool {
    match address {
        Address::Ip(addr) => config.internal_cidrs.iter().any(|net| net.contains(&addr.ip())),
        Address::Pipe(_) => config.internal_unix_sockets,
        Address::Internal(_) => false,
    }
}

fn sanitize_referer(headers: &mut Headers) {
    let mut values = headers.get_all(&names::REFERER);
    let Some(first) = values.next() else { return };
    let bad = values.next().is_some() || !is_referer(first.as_bytes());
    drop(values);
    if bad {
        headers.remove(&names::REFERER);
    }
}

/// RFC 9110 10.1.3, as Envoy reads it: an absolute URL without user and fragment, or a relative reference without fragment.
fn is_referer(value: &[u8]) -> bool {
    if let Some(host) = host_of(value) {
        return !host.contains(&b'@') && !value.contains(&b'#');
    }
    // The first segment of a relative reference has no colon (RFC 3986 4.2).
    let segment = value.iter().position(|&b| b == b'/').unwrap_or(value.len());
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%:@/?".contains(b);
    !value[..segment].contains(&b':') && value.iter().all(allowed)
}

/// The host, port and user of an absolute URL.
fn host_of(url: &[u8]) -> Option<&[u8]> {
    let at = memchr::memmem::find(url, b"://")?;
    let host = url[at + 3..].split(|&b| matches!(b, b'/' | b'?' | b'#')).next()?;
    let good = at > 0 && url[..at].iter().all(u8::is_ascii_alphabetic) && !host.is_empty() && !host.contains(&b' ');
    good.then_some(host)
}

/// Removes, keeps or sets `x-forwarded-client-cert`, after [`mutate_request`].
pub fn mutate_client_cert(headers: &mut Headers, connection: &ConnectionInfo, forwarding: ClientCertForwarding) {
    use ForwardClientCert as F;
    let mode = forwarding.mode;
    if mode == F::AlwaysForwardOnly {
        return;
    }
    let peer = connection.tls.as_ref().filter(|tls| tls.peer_certificate_presented());
    let Some(tls) = peer.filter(|_| mode != F::Sanitize) else {
        headers.remove(&names::X_FORWARDED_CLIENT_CERT);
        return;
    };
    if mode == F::ForwardOnly {
        return;
    }
    let element = crate::client_cert::element(tls, &forwarding.details);
    match mode {
        F::AppendForward => headers.append_joined(names::X_FORWARDED_CLIENT_CERT, element.as_bytes(), ","),
        _ => headers.set(names::X_FORWARDED_CLIENT_CERT, HeaderValue::from_checked(element.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> Headers {
        let mut h = Headers::new();
        for (n, v) in lines {
            h.append(HeaderName::parse(n).unwrap(), HeaderValue::from_static(v));
        }
        h
    }

    #[test]
    fn te_is_reduced_to_trailers() {
        let mut h = headers(&[("te", "gzip, trailers")]);
        sanitize_te(&mut h);
        assert_eq!(h.bytes(&names::TE), Some(&b"trailers"[..]));
        let mut h = headers(&[("te", "gzip")]);
        sanitize_te(&mut h);
        assert!(!h.contains(&names::TE));
    }

    #[test]
    fn addresses_are_counted_from_the_right_of_xff() {
        let h = headers(&[("x-forwarded-for", "1.1.1.1, 2.2.2.2,3.3.3.3")]);
        let ip = |hops| last_xff_address(&h, hops).and_then(|a| a.ip()).map(|ip| ip.to_string());
        assert_eq!(ip(0).as_deref(), Some("3.3.3.3"));
        assert_eq!(ip(2).as_deref(), Some("1.1.1.1"));
        assert_eq!(ip(3), None);
    }

    #[test]
    fn a_referer_that_is_no_reference_is_removed() {
        let good = [
            "",
            "r",
            "/p?q=1",
            "//x/y",
            "/a:b",
            "a/b:c",
            "x%20y",
            "HTTP://A",
            "https://a.example/x",
            "http://a.example:80/",
            "http://a.example/\"",
        ];
        let bad = [
            "not a url",
            "about:blank",
            "a:b",
            "/a\"b",
            "/a<",
            "/a#b",
            "http:///x",
            "http://",
            "http://a b/",
            "https://u@a.example/x",
            "https://a.example/x#f",
        ];
        let kept = |value: &&'static str| {
            let mut h = headers(&[("referer", *value)]);
            sanitize_referer(&mut h);
            !h.is_empty()
        };
        assert_eq!(good.iter().filter(|value| !kept(value)).count(), 0);
        assert_eq!(bad.iter().filter(|value| kept(value)).count(), 0);
        let mut two = headers(&[("referer", "/a"), ("referer", "/b")]);
        sanitize_referer(&mut two);
        assert!(two.is_empty());
    }
}
