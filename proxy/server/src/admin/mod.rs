//! The admin interface: Envoy's commands as functions from a request to a response.
//!
//! The server's admin listener parses HTTP, calls [`handle`] and writes the answer; nothing here touches a socket. All data
//! comes through [`AdminSources`], which the server implements. Formats are Envoy's to the byte, except that help texts are
//! the project's own, that order is stable where Envoy's is by hash, and that a web page from elsewhere cannot change the
//! server's state (see `cross_site`).

mod certs;
mod clusters;
mod commands;
mod config_dump;
mod cross_site;
pub(crate) mod csds;
mod field_mask;
mod home;
mod json;
mod listeners;
mod logging;
mod query;
mod redact;
mod runtime;
mod server_info;
mod sources;
mod stats;
mod xds;

#[cfg(test)]
mod testing;

use std::borrow::Cow;

use bytes::Bytes;

pub use sources::{
    AddressStatus, AdminSources, CertificateSet, CertificateStatus, CircuitBreakerStatus, ClusterStatus,
    CommandLineOptions, ConfigDump, ConfigEntry, DrainListeners, EdsHealth, HealthFlags, HostStatus, InitManagerStatus,
    ListenerStatus, LogLevel, MemoryStatus, OutlierStatus, RuntimeLayerStatus, ServerInfo, ServerState, SubjectAltName,
    UpdateFailure,
};

/// A request to the admin interface.
#[derive(Clone, Debug, Default)]
pub struct AdminRequest {
    /// Method, for example `GET`.
    pub method: String,
    /// Path and query, for example `/stats?usedonly`.
    pub path_and_query: String,
    /// Header names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// Body; only `/runtime_modify` reads it.
    pub body: Bytes,
}

impl AdminRequest {
    /// The first header of this lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }
}

/// `text/plain; charset=UTF-8`, what most commands answer with.
pub const TEXT: &str = "text/plain; charset=UTF-8";
const PLAIN: &str = "text/plain";
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=UTF-8";

/// Headers that every answer has besides its content type.
pub const COMMON_HEADERS: [(&str, &str); 2] =
    [("cache-control", "no-cache, max-age=0"), ("x-content-type-options", "nosniff")];

/// An answer of the admin interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminResponse {
    /// Status code.
    pub status: u16,
    /// The `content-type` header; [`COMMON_HEADERS`] go with it.
    pub content_type: &'static str,
    /// Body; Envoy sends it chunked.
    pub body: Bytes,
}

impl AdminResponse {
    fn new(status: u16, content_type: &'static str, body: impl Into<Cow<'static, str>>) -> Self {
        let body = match body.into() {
            Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
            Cow::Owned(text) => Bytes::from(text),
        };
        Self { status, content_type, body }
    }

    fn text(status: u16, body: impl Into<Cow<'static, str>>) -> Self {
        Self::new(status, TEXT, body)
    }

    fn ok() -> Self {
        Self::text(200, "OK\n")
    }

    fn json(value: &serde_json::Value) -> Self {
        Self::new(200, JSON, json::pretty(value))
    }
}

/// Answers one request, whose path the connection manager has normalized.
pub fn handle(request: &AdminRequest, sources: &dyn AdminSources) -> AdminResponse {
    let (path, query) = request.path_and_query.split_once('?').unwrap_or((&request.path_and_query, ""));
    let Some(command) = commands::find(path) else {
        return AdminResponse::text(404, format!("invalid path. {}", commands::help()));
    };
    if command.mutates {
        if request.method != "POST" {
            return AdminResponse::text(405, format!("Method {} not allowed, POST required.", request.method));
        }
        if let Err(reason) = cross_site::check(request) {
            return AdminResponse::text(403, reason);
        }
    }
    (command.handler)(&commands::Call { request, query: query::Query::parse(query), sources })
}

#[cfg(test)]
mod tests {
    use super::testing::{FakeSources, get, post, text_of};
    use super::*;

    #[test]
    fn every_path_of_the_help_is_served_and_no_other() {
        let sources = FakeSources::default();
        for command in commands::COMMANDS {
            let method = if command.mutates { "POST" } else { "GET" };
            let request =
                AdminRequest { method: method.into(), path_and_query: command.path.into(), ..AdminRequest::default() };
            assert_ne!(handle(&request, &sources).status, 404, "{}", command.path);
        }
        for path in ["/bogus", "/stats/", "/Ready", "/ready/x", ""] {
            let response = get(&sources, path);
            assert_eq!((response.status, response.content_type), (404, TEXT), "{path}");
            assert!(text_of(&response).starts_with("invalid path. admin commands are:\n  /: "), "{path}");
        }
    }

    #[test]
    fn a_path_is_taken_as_it_is() {
        let sources = FakeSources::default();
        assert_eq!(get(&sources, "/ready?a=b").status, 200);
        for path in ["//ready", "/./ready", "/x/../ready", "/ready/", "/%72eady"] {
            assert_eq!(get(&sources, path).status, 404, "{path}");
        }
    }

    #[test]
    fn readiness_is_the_servers_state() {
        let sources = FakeSources::default();
        assert_eq!(get(&sources, "/ready"), AdminResponse::text(200, "LIVE\n"));
        for (state, name) in [
            (ServerState::Draining, "DRAINING\n"),
            (ServerState::PreInitializing, "PRE_INITIALIZING\n"),
            (ServerState::Initializing, "INITIALIZING\n"),
        ] {
            sources.state.set(state);
            assert_eq!(get(&sources, "/ready"), AdminResponse::text(503, name));
        }
    }

    #[test]
    fn changes_need_post() {
        let sources = FakeSources::default();
        for path in ["/quitquitquit", "/healthcheck/fail", "/drain_listeners", "/reset_counters", "/logging"] {
            let response = get(&sources, path);
            assert_eq!((response.status, text_of(&response)), (405, "Method GET not allowed, POST required."));
        }
        assert!(sources.actions.borrow().is_empty());
        assert_eq!(post(&sources, "/quitquitquit"), AdminResponse::ok());
        assert_eq!(*sources.actions.borrow(), ["quit"]);
    }

    #[test]
    fn changes_from_another_site_are_refused() {
        let sources = FakeSources::default();
        let from = |headers: &[(&str, &str)]| {
            let request = AdminRequest {
                method: "POST".into(),
                path_and_query: "/quitquitquit".into(),
                headers: headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
                ..AdminRequest::default()
            };
            handle(&request, &sources).status
        };
        assert_eq!(from(&[("host", "localhost:1"), ("sec-fetch-site", "cross-site")]), 403);
        assert_eq!(from(&[("host", "localhost:1"), ("origin", "http://evil.example")]), 403);
        assert_eq!(from(&[("host", "localhost:1"), ("origin", "null")]), 403);
        assert_eq!(from(&[("host", "localhost:1"), ("origin", "http://localhost:2")]), 403);
        assert!(sources.actions.borrow().is_empty());
        assert_eq!(
            from(&[("host", "localhost:1"), ("origin", "http://LOCALHOST:1"), ("sec-fetch-site", "same-origin")]),
            200
        );
        assert_eq!(from(&[("host", "localhost:1")]), 200);
    }

    #[test]
    fn actions_reach_the_server() {
        let sources = FakeSources::default();
        for path in [
            "/healthcheck/fail",
            "/healthcheck/ok",
            "/drain_listeners?graceful&inboundonly",
            "/drain_listeners?skip_exit",
            "/reopen_logs",
        ] {
            assert_eq!(post(&sources, path), AdminResponse::ok(), "{path}");
        }
        let expected = [
            "health check fails: true",
            "health check fails: false",
            "drain DrainListeners { graceful: true, skip_exit: false, inbound_only: true }",
            "drain DrainListeners { graceful: false, skip_exit: true, inbound_only: false }",
            "reopen logs",
        ];
        assert_eq!(*sources.actions.borrow(), expected);
    }

    #[test]
    fn memory_is_shown_as_strings() {
        let sources = FakeSources::default();
        let expected = "{\n \"allocated\": \"1\",\n \"heap_size\": \"2\",\n \"pageheap_unmapped\": \"3\",\n \
                        \"pageheap_free\": \"4\",\n \"total_thread_cache\": \"5\",\n \"total_physical_bytes\": \"6\"\n}\n";
        assert_eq!(get(&sources, "/memory"), AdminResponse::new(200, JSON, expected));
    }

    #[test]
    fn unready_targets_are_listed_by_component() {
        let sources = FakeSources::default();
        assert_eq!(text_of(&get(&sources, "/init_dump")), "{}\n");
        sources.unready.borrow_mut().push(InitManagerStatus {
            component: "listener".into(),
            name: "init manager listener-a".into(),
            targets: vec!["target RdsRouteConfigSubscription x".into()],
        });
        let expected = "{\n \"unready_targets_dumps\": [\n  {\n   \"name\": \"init manager listener-a\",\n   \
                        \"target_names\": [\n    \"target RdsRouteConfigSubscription x\"\n   ]\n  }\n ]\n}\n";
        assert_eq!(text_of(&get(&sources, "/init_dump?mask=listener")), expected);
        assert_eq!(text_of(&get(&sources, "/init_dump?mask=cluster")), "{}\n");
    }
}
