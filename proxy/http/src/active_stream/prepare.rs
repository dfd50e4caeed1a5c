//! What happens to a request between its head and the first filter: checks, path and host, forwarded headers, the route,
//! upgrades. A request that fails here has been answered.

use super::*;
use crate::header_mutation::Side;
use nuncio_base::clock;
use nuncio_config::hcm::ClientCertForwarding;

impl ActiveStream<'_> {
    /// The checks before routing; false when the stream has been answered.
    pub(super) fn prepare(&mut self) -> bool {
        let connection = self.connection;
        let hcm = &connection.hcm;
        let config = &hcm.config;
        if !config.proxy_100_continue && self.request.bytes(&names::EXPECT).is_some_and(is_100_continue) {
            self.request.remove(&names::EXPECT);
            self.send_continue();
        }
        if header_rules::has_token(&self.request, &names::PROXY_CONNECTION, b"close") {
            self.downstream.close_after();
        }
        if !self.request.contains(&names::AUTHORITY) {
            let close = !config.stream_error_on_invalid_http_message;
            let reply = LocalReply::new(400, "", "missing_host_header");
            self.local_reply(if close { reply.close() } else { reply });
            return false;
        }
        let connect = self.request.method() == b"CONNECT";
        let path = self.request.path();
        if !connect || !path.is_empty() {
            let details = match path.first() {
                None => Some("missing_path_rejected"),
                Some(b'/') => None,
                Some(_) => Some("absolute_path_rejected"),
            };
            if let Some(details) = details {
                hcm.stats.downstream_rq_non_relative_path().inc();
                self.local_reply(LocalReply::new(404, "", details));
                return false;
            }
            if let Some(reply) = self.normalize_path() {
                self.local_reply(reply);
                return false;
            }
        }
        self.normalize_host();
        self.upgrade = connect || header_rules::is_upgrade(&self.request);
        if self.upgrade && self.upgrade_ignored() {
            self.upgrade = connect;
        }
        // A redirected request has been through this before, and what was added since is to stay.
        if self.redirects.count == 0
            && let Some(status) = self.sanitize()
        {
            hcm.stats.downstream_rq_rejected_via_ip_detection().inc();
            self.local_reply(LocalReply::new(status, "", "rejecting_because_detection_failed"));
            return false;
        }
        self.refresh_route();
        // A CONNECT that no route takes is a request without a route.
        let unrouted = self.route.is_none() && self.request.method() == b"CONNECT";
        if self.upgrade && !unrouted && !self.choose_upgrade_chain() {
            hcm.stats.downstream_rq_ws_on_non_ws_route().inc();
            self.local_reply(LocalReply::new(403, "", "upgrade_failed").close());
            return false;
        }
        if hcm.config.flush_access_log_on_new_request {
            self.log_start();
        }
        true
    }

    /// The line of the access log that a request has at its beginning.
    fn log_start(&self) {
        let cx = FormatContext {
            request: Some(&self.request),
            log_type: AccessLogType::DownstreamStart,
            ..FormatContext::new(&self.info)
        };
        self.connection.hcm.access_logs.log(&cx);
    }

    /// Whether the response has made a tunnel of the stream.
    pub(super) fn is_tunnel(&self) -> bool {
        let code = self.response.status();
        code == 101 || (code / 100 == 2 && self.request.method() == b"CONNECT")
    }

    /// The line of the access log that a tunnel has at its beginning.
    pub(super) fn log_tunnel(&self) {
        let cx = FormatContext {
            request: Some(&self.request),
            response: Some(&self.response),
            log_type: AccessLogType::DownstreamTunnelSuccessfullyEstablished,
            ..FormatContext::new(&self.info)
        };
        self.connection.hcm.access_logs.log(&cx);
    }

    /// Forwarded headers, request id and the like; the status to reject the request with, if it is to be.
    fn sanitize(&mut self) -> Option<u16> {
        let connection = self.connection;
        let hcm = &connection.hcm;
        if let Some(rules) = &hcm.rules {
            for list in &rules.early {
                list.apply(Side::Request, &mut self.request, &FormatContext::new(&self.info));
            }
        }
        let table = hcm.routes.load(&self.request);
        let facts = header_rules::mutate_request(
            &mut self.request,
            &connection.info,
            &hcm.config,
            table.as_ref().map_or(&[], |table| table.internal_only_headers()),
            &hcm.local,
            matches!(self.downstream.protocol(), Protocol::Http10 | Protocol::Http11),
        );
        self.info.remote_address = facts.remote;
        self.internal = facts.internal;
        if let Some(id) = self.request.bytes(&names::X_REQUEST_ID) {
            self.info.request_id = id.try_into().ok();
        }
        if facts.rejected.is_none() {
            let forwarding = self.client_cert_forwarding();
            header_rules::mutate_client_cert(&mut self.request, &connection.info, forwarding);
        }
        facts.rejected
    }

    fn client_cert_forwarding(&self) -> ClientCertForwarding {
        let hcm = &self.connection.hcm;
        let by_tree = hcm.rules.as_deref().and_then(|rules| rules.client_cert.as_ref()).and_then(|tree| {
            let random = nuncio_base::random::u64();
            tree.find(&RouteRequest::new(&self.request, &self.info, random, &*hcm.runtime)).copied()
        });
        by_tree.unwrap_or(ClientCertForwarding {
            mode: hcm.config.forward_client_cert,
            details: hcm.config.client_cert_details,
        })
    }

    fn send_continue(&mut self) {
        let mut head = Headers::with_capacity(1);
        head.set_status(100);
        self.connection.hcm.charge(100);
        // A peer that has left is noticed by the next poll.
        let _ = self.downstream.send_informational(&head);
    }

    fn upgrade_ignored(&self) -> bool {
        let ignored = &self.connection.hcm.config.http1.ignore_http_11_upgrade;
        let Some(value) = self.request.bytes(&names::UPGRADE) else { return false };
        value.eq_ignore_ascii_case(b"h2c") || ignored.iter().any(|m| crate::matchers::string_matches(&m.0, value))
    }

    fn normalize_path(&mut self) -> Option<LocalReply> {
        use crate::path::{Normalized, PathRules, normalize};
        let hcm = &self.connection.hcm;
        let path = self.request.path();
        let failed = || Some(LocalReply::new(400, "", "path_normalization_failed").close());
        if memchr::memchr(b'#', path).is_some() {
            hcm.stats.downstream_rq_failed_path_normalization().inc();
            return failed();
        }
        let rules = PathRules {
            normalize: hcm.config.normalize_path,
            merge_slashes: hcm.config.merge_slashes,
            escaped_slashes: hcm.config.escaped_slashes_action,
        };
        match normalize(path, rules) {
            Normalized::Same => None,
            Normalized::Changed(new) => {
                self.request.set(names::PATH, HeaderValue::parse(new)?);
                None
            }
            Normalized::Rejected(seen) => {
                hcm.stats.downstream_rq_failed_path_normalization().inc();
                if let Some(seen) = seen.and_then(HeaderValue::parse) {
                    self.request.set(names::PATH, seen);
                }
                failed()
            }
            Normalized::Redirect(new) => {
                hcm.stats.downstream_rq_redirected_with_normalized_path().inc();
                let location = HeaderValue::parse(new)?;
                self.request.set(names::PATH, location.clone());
                Some(LocalReply::new(307, "", "path_normalization_failed").header(names::LOCATION, location))
            }
        }
    }

    fn normalize_host(&mut self) {
        use nuncio_config::hcm::StripPort;
        let config = &self.connection.hcm.config;
        if config.strip_port == StripPort::No && !config.strip_trailing_host_dot {
            return;
        }
        let Some(value) = self.request.get(&names::AUTHORITY).cloned() else { return };
        let mut host = value.bytes().clone();
        if config.strip_port != StripPort::No && self.request.method() != b"CONNECT" {
            let own = self.connection.info.local_address.port();
            if let Some((at, port)) = split_port(&host)
                && (config.strip_port == StripPort::Any || own == Some(port))
            {
                host.truncate(at);
            }
        }
        if config.strip_trailing_host_dot {
            match split_port(&host) {
                Some((at, _)) if host[..at].ends_with(b".") => {
                    let mut joined = BytesMut::from(&host[..at - 1]);
                    joined.extend_from_slice(&host[at..]);
                    host = joined.freeze();
                }
                None if host.ends_with(b".") => host.truncate(host.len() - 1),
                _ => {}
            }
        }
        self.request.set(names::AUTHORITY, HeaderValue::from_checked(host));
    }

    /// Chooses the route anew; filters that change what routes look at call it.
    pub fn refresh_route(&mut self) {
        let hcm = &self.connection.hcm;
        let began = self.info.route_resolution_begins();
        let table = hcm.routes.load(&self.request);
        let random = nuncio_base::random::u64();
        let request = RouteRequest::new(&self.request, &self.info, random, &*hcm.runtime);
        self.tls_redirect = None;
        self.route = match table.as_ref().map(|table| table.route(&request, None)) {
            Some(RouteOutcome::Route(route)) => Some(route),
            Some(RouteOutcome::NotFound) | None => None,
            Some(RouteOutcome::TlsRedirect(_)) => {
                self.tls_redirect = RouteTable::tls_location(&self.request);
                None
            }
        };
        self.info.route_resolution_ends(began);
        let Some(route) = &self.route else { return };
        self.info.note_route(Some(route));
        let entry = route.entry();
        if let Some(idle) = entry.route_action().and_then(|action| action.idle_timeout) {
            self.timers.idle = idle.map(|d| (timer::sleep(d), d));
        }
        self.limit_duration();
    }

    /// The route's limit on the whole stream: a client's own deadline as far as the route lets it count. Upstreams of
    /// gRPC requests are told.
    fn limit_duration(&mut self) {
        let action = self.route.as_ref().and_then(|route| route.entry().route_action());
        let Some(limits) = action.and_then(|action| action.max_stream_duration) else { return };
        let asked = self.request.str(&names::GRPC_TIMEOUT).and_then(crate::grpc_timeout::parse);
        let of_listener = self.connection.hcm.config.max_stream_duration;
        let limit = match (limits.grpc_timeout_header_max, asked) {
            (Some(max), Some(asked)) => {
                let capped = if max.is_zero() { asked } else { asked.min(max) };
                Some(capped.saturating_sub(limits.grpc_timeout_header_offset.unwrap_or_default()))
            }
            _ => limits.max_stream_duration.map_or(of_listener, |max| Some(max).filter(|max| !max.is_zero())),
        };
        match limit {
            Some(limit) => {
                if self.grpc {
                    self.request.set(names::GRPC_TIMEOUT, crate::grpc_timeout::value(limit));
                }
                let left = limit.saturating_sub(clock::now().saturating_duration_since(self.info.start));
                // No response is quicker than a deadline that is over.
                self.timers.duration = Some(if left.is_zero() { timer::over() } else { timer::sleep(left) });
            }
            None => {
                if self.timers.duration.take().is_some() && self.grpc {
                    self.request.remove(&names::GRPC_TIMEOUT);
                }
            }
        }
    }

    /// False when the route and the connection manager do not allow the upgrade.
    fn choose_upgrade_chain(&mut self) -> bool {
        let hcm = &self.connection.hcm;
        let connect = self.request.method() == b"CONNECT";
        let kind: &[u8] = if connect { b"CONNECT" } else { self.request.bytes(&names::UPGRADE).unwrap_or_default() };
        let action = self.route.as_ref().and_then(|r| r.entry().route_action());
        let by_route = action
            .and_then(|a| a.upgrades.iter().find(|u| u.upgrade_type.as_bytes().eq_ignore_ascii_case(kind)))
            .map(|u| u.enabled);
        let by_hcm = hcm.config.upgrades.iter().find(|u| u.upgrade_type.as_bytes().eq_ignore_ascii_case(kind));
        let allowed = match (by_route, by_hcm) {
            (Some(on), _) => on,
            (None, Some(u)) => u.enabled,
            (None, None) => false,
        };
        if allowed
            && let Some((_, chain)) =
                self.chains.upgrades.iter().find(|(name, _)| name.as_bytes().eq_ignore_ascii_case(kind))
        {
            self.chain = chain;
        }
        if allowed {
            hcm.stats.downstream_cx_upgrades_total().inc();
            // A request that is served again is the same upgrade.
            if !self.upgrade_counted {
                self.upgrade_counted = true;
                hcm.stats.downstream_cx_upgrades_active().inc();
            }
        }
        self.upgrade = allowed;
        allowed
    }
}

fn is_100_continue(value: &[u8]) -> bool {
    value.eq_ignore_ascii_case(b"100-continue")
}

/// Position of the `:` before a port, and the port.
fn split_port(host: &[u8]) -> Option<(usize, u16)> {
    let at = memchr::memrchr(b':', host)?;
    // The colons of an IPv6 literal are inside brackets.
    if memchr::memchr(b']', &host[at..]).is_some() {
        return None;
    }
    let port = std::str::from_utf8(&host[at + 1..]).ok()?.parse().ok()?;
    Some((at, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_split_off_a_host_but_not_off_an_ipv6_literal() {
        assert_eq!(split_port(b"a.example:80"), Some((9, 80)));
        assert_eq!(split_port(b"[::1]:443"), Some((5, 443)));
        assert_eq!(split_port(b"[::1]"), None);
        assert_eq!(split_port(b"a.example"), None);
        assert_eq!(split_port(b"a:b"), None);
    }
}
