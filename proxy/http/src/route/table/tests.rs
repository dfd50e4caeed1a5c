//! Tests of the route table, and its agreement with a matcher that scans.

use nuncio_config::header_mutation::{AppendAction, HeaderMutations, HeaderValueOption};
use nuncio_config::matchers::{HeaderMatchKind, HeaderMatcher, StringMatcher};
use nuncio_config::route::*;

use super::*;
use crate::formatter::FormatContext;
use crate::formatter::tests::{headers, info};
use crate::matchers::NoRuntime;

fn action(cluster: ClusterSpecifier) -> RouteAction {
    RouteAction {
        cluster,
        cluster_not_found_response_code: 503,
        metadata_match: None,
        path_rewrite: PathRewrite::None,
        host_rewrite: HostRewrite::None,
        append_x_forwarded_host: false,
        timeout: None,
        flush_timeout: None,
        idle_timeout: None,
        retry_policy: None,
        high_priority: false,
        hash_policy: Vec::new(),
        upgrades: Vec::new(),
        max_stream_duration: None,
        request_mirror_policies: Vec::new(),
        internal_redirect_policy: None,
        hedge_on_per_try_timeout: false,
        max_grpc_timeout: None,
        grpc_timeout_offset: None,
        rate_limits: Vec::new(),
        include_vh_rate_limits: false,
    }
}

fn route(name: &str, path: PathMatch) -> Route {
    Route {
        name: name.into(),
        matches: RouteMatch {
            path,
            case_sensitive: true,
            runtime_fraction: None,
            headers: Vec::new(),
            query_parameters: Vec::new(),
            cookies: Vec::new(),
            grpc: false,
            tls_context: None,
            dynamic_metadata: Vec::new(),
            filter_state: Vec::new(),
        },
        action: RouteActionKind::Route(Box::new(action(ClusterSpecifier::Cluster("up".into())))),
        headers: HeaderMutations::default(),
        typed_per_filter_config: Vec::new(),
        metadata: None,
        decorator_operation: None,
        per_request_buffer_limit_bytes: None,
        stat_prefix: None,
        path: format!("routes[{name}]").into(),
    }
}

fn host(name: &str, domains: &[&str], routes: Vec<Route>) -> VirtualHost {
    VirtualHost {
        metadata: None,
        name: name.into(),
        domains: domains.iter().map(|domain| (*domain).into()).collect(),
        routes,
        require_tls: RequireTls::None,
        virtual_clusters: Vec::new(),
        matcher: None,
        headers: HeaderMutations::default(),
        typed_per_filter_config: Vec::new(),
        retry_policy: None,
        include_request_attempt_count: false,
        include_attempt_count_in_response: false,
        include_is_timeout_retry_header: false,
        per_request_buffer_limit_bytes: None,
        request_mirror_policies: Vec::new(),
        rate_limits: Vec::new(),
        path: format!("virtual_hosts[{name}]").into(),
    }
}

pub(in crate::route) fn config(virtual_hosts: Vec<VirtualHost>) -> RouteConfiguration {
    RouteConfiguration {
        name: "rc".into(),
        virtual_hosts,
        internal_only_headers: Vec::new(),
        headers: HeaderMutations::default(),
        most_specific_header_mutations_wins: false,
        validate_clusters: false,
        typed_per_filter_config: Vec::new(),
        max_direct_response_body_size_bytes: 4096,
        ignore_port_in_host_matching: false,
        ignore_path_parameters_in_path_matching: false,
        vhost_header: None,
        request_mirror_policies: Vec::new(),
        vhds: None,
        path: "route_config".into(),
    }
}

fn table(config: RouteConfiguration) -> RouteTable {
    RouteTable::build(Arc::new(config)).unwrap()
}

fn request<'a>(headers: &'a Headers, random: u64) -> RouteRequest<'a> {
    RouteRequest {
        headers,
        scheme: b"http",
        internal: false,
        random,
        tls: None,
        dynamic_metadata: None,
        info: None,
        filter_state: None,
        runtime: &NoRuntime,
    }
}

fn found(table: &RouteTable, headers: &Headers, random: u64) -> Option<ActiveRoute> {
    match table.route(&request(headers, random), None) {
        RouteOutcome::Route(active) => Some(active),
        RouteOutcome::TlsRedirect(_) | RouteOutcome::NotFound => None,
    }
}

fn name(table: &RouteTable, host: &str, path: &str) -> String {
    let list = headers(&[(":method", "GET"), (":authority", host), (":path", path)]);
    found(table, &list, 0).map_or("-".into(), |active| active.entry().name().to_string())
}

fn regex(text: &str) -> PathMatch {
    PathMatch::Regex(regex::bytes::Regex::new(&format!("^(?:{text})$")).unwrap())
}

#[test]
fn the_first_route_that_matches_wins_whatever_its_kind() {
    let mut folded = route("folded", PathMatch::Prefix("/CASE".into()));
    folded.matches.case_sensitive = false;
    let mut folded_exact = route("folded-exact", PathMatch::Exact("/Exact".into()));
    folded_exact.matches.case_sensitive = false;
    let routes = vec![
        route("exact", PathMatch::Exact("/a/b".into())),
        route("regex", regex("/r/\\d+")),
        route("separated", PathMatch::SeparatedPrefix("/sep".into())),
        route("long", PathMatch::Prefix("/a/long".into())),
        folded,
        folded_exact,
        route("a", PathMatch::Prefix("/a".into())),
        route("shadowed", PathMatch::Exact("/a/x".into())),
        route("late-regex", regex(".*\\.png")),
        route("connect", PathMatch::Connect),
    ];
    let table = table(config(vec![host("v", &["*"], routes)]));
    let expected = [
        ("/a/b", "exact"),
        ("/a/b?x", "exact"),
        ("/a/b/", "a"),
        ("/a/x", "a"),
        ("/a/longer", "long"),
        ("/r/12", "regex"),
        ("/r/12x", "-"),
        ("/sep", "separated"),
        ("/sep/x", "separated"),
        ("/sep?q", "separated"),
        ("/separate", "-"),
        ("/case/x", "folded"),
        ("/EXACT", "folded-exact"),
        ("/x.png?y", "late-regex"),
        ("/", "-"),
    ];
    for (path, wanted) in expected {
        assert_eq!(name(&table, "h", path), wanted, "{path}");
    }
    let connect = headers(&[(":method", "CONNECT"), (":authority", "h:443")]);
    assert_eq!(&**found(&table, &connect, 0).unwrap().entry().name(), "connect");
}

#[test]
fn ports_and_path_parameters_are_ignored_when_asked() {
    let mut config = config(vec![host("v", &["a.com"], vec![route("r", PathMatch::Exact("/p".into()))])]);
    assert_eq!(name(&table(config.clone()), "a.com:80", "/p"), "-");
    assert_eq!(name(&table(config.clone()), "a.com", "/p;x=1?q"), "-");
    config.ignore_port_in_host_matching = true;
    config.ignore_path_parameters_in_path_matching = true;
    let table = table(config);
    assert_eq!(name(&table, "A.com:80", "/p;x=1?q"), "r");
    // Those of each segment, so that nothing behind them is overlooked.
    assert_eq!(name(&table, "a.com", "/p;x=1/other"), "-");
    assert_eq!(name(&table, "a.com", "/;x=1/p"), "-");
}

#[test]
fn require_tls_redirects_by_scheme() {
    let mut host = host("v", &["*"], vec![route("r", PathMatch::Prefix("/".into()))]);
    host.require_tls = RequireTls::ExternalOnly;
    let table = table(config(vec![host]));
    let list = headers(&[(":authority", "a:80"), (":path", "/p?q")]);
    let base = request(&list, 0);
    assert!(matches!(table.route(&base, None), RouteOutcome::TlsRedirect(_)));
    assert!(matches!(table.route(&RouteRequest { internal: true, ..base }, None), RouteOutcome::Route(_)));
    assert!(matches!(table.route(&RouteRequest { scheme: b"https", ..base }, None), RouteOutcome::Route(_)));
    assert!(matches!(table.route(&RouteRequest { scheme: b"", ..base }, None), RouteOutcome::NotFound));
    assert_eq!(RouteTable::tls_location(&list).unwrap().as_bytes(), b"https://a:80/p?q");
}

#[test]
fn weights_are_shares_of_the_random_value() {
    let entry = |name: &str, weight| WeightedClusterEntry {
        name: name.into(),
        header: None,
        weight,
        headers: HeaderMutations::default(),
        host_rewrite_literal: None,
        metadata_match: None,
        typed_per_filter_config: Vec::new(),
    };
    let mut weighted = WeightedClusters {
        use_hash_policy: false,
        clusters: vec![entry("a", 20), entry("b", 0), entry("c", 80)],
        total: 100,
        random_value_header: Some("x-random".into()),
        runtime_key_prefix: "".into(),
    };
    weighted.clusters[2].host_rewrite_literal = Some("c.host".into());
    let mut only = route("r", PathMatch::Prefix("/".into()));
    only.action = RouteActionKind::Route(Box::new(action(ClusterSpecifier::Weighted(weighted))));
    let table = table(config(vec![host("v", &["*"], vec![only])]));
    let mut list = headers(&[(":authority", "a"), (":path", "/")]);
    for (random, wanted) in [(0, "a"), (19, "a"), (20, "c"), (99, "c"), (119, "a")] {
        assert_eq!(&**found(&table, &list, random).unwrap().cluster().unwrap(), wanted, "{random}");
    }
    let active = found(&table, &list, 50).unwrap();
    active.finalize_request_headers(&mut list, &FormatContext::new(&info()), true);
    assert_eq!(list.authority(), b"c.host");
    list.append(HeaderName::parse("x-random").unwrap(), HeaderValue::from_static("25"));
    assert_eq!(&**found(&table, &list, 0).unwrap().cluster().unwrap(), "c");
}

#[test]
fn headers_name_clusters_and_hosts() {
    let mut only = route("r", PathMatch::Prefix("/api/".into()));
    let mut forward = action(ClusterSpecifier::Header("x-cluster".into()));
    forward.host_rewrite = HostRewrite::Header("x-host".into());
    forward.append_x_forwarded_host = true;
    forward.path_rewrite = PathRewrite::Prefix("/".into());
    only.action = RouteActionKind::Route(Box::new(forward));
    let table = table(config(vec![host("v", &["*"], vec![only])]));
    let mut list = headers(&[(":authority", "a"), (":path", "/api/x?q"), ("x-cluster", "up"), ("x-host", "b")]);
    let active = found(&table, &list, 0).unwrap();
    assert_eq!(&**active.cluster().unwrap(), "up");
    active.finalize_request_headers(&mut list, &FormatContext::new(&info()), true);
    assert_eq!((list.path(), list.authority()), (&b"/x?q"[..], &b"b"[..]));
    assert_eq!(list.str(&names::X_ENVOY_ORIGINAL_PATH), Some("/api/x?q"));
    assert_eq!(list.str(&names::X_FORWARDED_HOST), Some("a"));
    let without = headers(&[(":authority", "a"), (":path", "/api/x")]);
    assert!(found(&table, &without, 0).unwrap().cluster().is_none());
}

#[test]
fn the_last_level_that_is_applied_wins() {
    let set = |value: &str| HeaderMutations {
        request_add: vec![HeaderValueOption {
            name: "x-level".into(),
            value: value.into(),
            append_action: AppendAction::OverwriteIfExistsOrAdd,
            keep_empty_value: false,
        }],
        ..HeaderMutations::default()
    };
    let mut only = route("r", PathMatch::Prefix("/".into()));
    only.headers = set("route");
    let mut host = host("v", &["*"], vec![only]);
    host.headers = set("host");
    let mut config = config(vec![host]);
    config.headers = set("global");
    for (specific_wins, wanted) in [(false, "global"), (true, "route")] {
        config.most_specific_header_mutations_wins = specific_wins;
        let table = table(config.clone());
        let mut list = headers(&[(":authority", "a"), (":path", "/")]);
        found(&table, &list, 0).unwrap().finalize_request_headers(&mut list, &FormatContext::new(&info()), true);
        assert_eq!(list.str(&HeaderName::parse("x-level").unwrap()), Some(wanted));
    }
}

#[test]
fn all_errors_are_reported_with_their_paths() {
    let mut bad = route("r", PathMatch::Prefix("/".into()));
    bad.headers.request_add.push(HeaderValueOption {
        name: "x".into(),
        value: "%NO%".into(),
        append_action: AppendAction::AddIfAbsent,
        keep_empty_value: false,
    });
    bad.action = RouteActionKind::DirectResponse(DirectResponse {
        status: 200,
        body: Some(nuncio_config::data_source::DataSource::Inline(vec![b'x'; 5000])),
        body_format: None,
    });
    let error = RouteTable::build(Arc::new(config(vec![host("v", &["a", "A", "*", "*"], vec![bad])]))).unwrap_err();
    let wanted = [
        ("routes[r].direct_response.body", "response body size is 5000 bytes; maximum is 4096"),
        ("routes[r].request_headers_to_add[0]", "Not supported field in StreamInfo: NO"),
        (
            "virtual_hosts[v].domains[1]",
            "Only unique values for domains are permitted. Duplicate entry of domain a in route rc",
        ),
        ("virtual_hosts[v].domains[3]", "Only a single wildcard domain is permitted in route rc"),
    ];
    assert_eq!(error, wanted.map(|(path, text)| (path.to_owned(), text.to_owned())));
}

#[test]
fn direct_responses_and_redirects_answer() {
    let mut direct = route("d", PathMatch::Exact("/d".into()));
    direct.action = RouteActionKind::DirectResponse(DirectResponse {
        status: 403,
        body: Some(nuncio_config::data_source::DataSource::Inline(b"no".to_vec())),
        body_format: None,
    });
    let mut redirect = route("r", PathMatch::Prefix("/old".into()));
    redirect.action = RouteActionKind::Redirect(Box::new(RedirectAction {
        scheme: RedirectScheme::Https,
        host: "".into(),
        port: 0,
        path: RedirectPath::Prefix("/new".into()),
        response_code: 302,
        strip_query: false,
    }));
    let table = table(config(vec![host("v", &["*"], vec![direct, redirect])]));
    let list = headers(&[(":authority", "a"), (":path", "/d"), (":scheme", "http")]);
    let active = found(&table, &list, 0).unwrap();
    assert_eq!(
        active.entry().direct_response().unwrap(),
        crate::route::DirectResponseBody { status: 403, body: "no".into() }
    );
    assert!(active.cluster().is_none() && active.entry().new_location(&list, &info()).is_none());
    let list = headers(&[(":authority", "a"), (":path", "/old/x?q"), (":scheme", "http")]);
    let active = found(&table, &list, 0).unwrap();
    assert_eq!(active.entry().direct_response().unwrap().status, 302);
    assert_eq!(active.entry().new_location(&list, &info()).unwrap().as_bytes(), b"https://a/new/x?q");
}

#[derive(Default)]
struct Log(Vec<String>);

impl Tracer for Log {
    fn virtual_host(&mut self, host: &VirtualHostEntry, rule: DomainRule) {
        self.0.push(format!("{} by {rule:?}", host.name()));
    }

    fn route(&mut self, route: &RouteEntry, verdict: Result<(), Mismatch>) {
        self.0.push(format!("{} {verdict:?}", route.name()));
    }
}

#[test]
fn a_tracer_is_told_the_decisions() {
    let mut first = route("first", PathMatch::Prefix("/".into()));
    first.matches.headers.push(HeaderMatcher {
        name: "x".into(),
        kind: HeaderMatchKind::String(StringMatcher::Exact("1".into(), false)),
        invert: false,
        missing_as_empty: false,
    });
    let routes =
        vec![first, route("other", PathMatch::Exact("/y".into())), route("last", PathMatch::Prefix("/".into()))];
    let table = table(config(vec![host("v", &["*.com"], routes)]));
    let list = headers(&[(":authority", "a.com"), (":path", "/x")]);
    let mut log = Log::default();
    table.route(&request(&list, 0), Some(&mut log));
    assert_eq!(log.0, ["v by Suffix", "first Err(Header(0))", "other Err(Path)", "last Ok(())"]);
}

/// The first route by Envoy's rules, by looking at all of them.
fn scan(routes: &[Route], path: &str, x: Option<&str>) -> String {
    let plain = path.split(['?', '#']).next().unwrap_or_default();
    let matches = |route: &&Route| {
        let fold = |text: &str| if route.matches.case_sensitive { text.to_owned() } else { text.to_ascii_lowercase() };
        let folded = fold(plain);
        let by_path = match &route.matches.path {
            PathMatch::Exact(path) => folded == fold(path),
            PathMatch::Prefix(path) => folded.starts_with(&fold(path)),
            PathMatch::SeparatedPrefix(path) => {
                folded.strip_prefix(&fold(path)).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            // `case_sensitive` says nothing about regexes.
            PathMatch::Regex(regex) => regex.is_match(plain.as_bytes()),
            _ => false,
        };
        by_path && (route.matches.headers.is_empty() || x == Some("1"))
    };
    routes.iter().find(matches).map_or("-".into(), |route| route.name.to_string())
}

#[test]
fn the_index_agrees_with_a_scan() {
    let mut rng = fastrand::Rng::with_seed(3);
    let word = |rng: &mut fastrand::Rng| -> String {
        let pieces = ["/a", "/b", "/A", "/ab", "a", "/"];
        let count = rng.usize(1..4);
        format!("/{}", (0..count).map(|_| pieces[rng.usize(..pieces.len())]).collect::<String>())
    };
    for _ in 0..400 {
        let routes: Vec<Route> = (0..rng.usize(1..30))
            .map(|number| {
                let text = word(&mut rng);
                let path = match rng.u8(..10) {
                    0..=3 => PathMatch::Prefix(text.into()),
                    4..=6 => PathMatch::Exact(text.into()),
                    7..=8 => PathMatch::SeparatedPrefix(text.trim_end_matches('/').to_owned().into()),
                    _ => regex(&format!("{text}.?")),
                };
                let mut route = route(&number.to_string(), path);
                route.matches.case_sensitive = rng.u8(..4) != 0;
                if rng.u8(..3) == 0 {
                    route.matches.headers.push(HeaderMatcher {
                        name: "x".into(),
                        kind: HeaderMatchKind::Present(true),
                        invert: false,
                        missing_as_empty: false,
                    });
                }
                route
            })
            .collect();
        let table = table(config(vec![host("v", &["*"], routes.clone())]));
        for _ in 0..20 {
            let path = word(&mut rng) + ["", "?q=/a", "#f"][rng.usize(..3)];
            let x = rng.bool().then_some("1");
            let mut list = headers(&[(":method", "GET"), (":authority", "h"), (":path", &path)]);
            if let Some(x) = x {
                list.append(HeaderName::parse("x").unwrap(), HeaderValue::from_static(x));
            }
            let got = found(&table, &list, 0).map_or("-".into(), |active| active.entry().name().to_string());
            assert_eq!(got, scan(&routes, &path, x), "{path}");
        }
    }
}

/// Nanoseconds per lookup among so many prefix routes, or so many virtual hosts.
fn lookup_time(routes: usize, hosts: usize) -> f64 {
    let list: Vec<Route> =
        (0..routes).map(|number| route("r", PathMatch::Prefix(format!("/service-{number}/api/").into()))).collect();
    let hosts: Vec<VirtualHost> =
        (0..hosts).map(|number| host("v", &[&format!("host-{number}.example.com")], list.clone())).collect();
    let count = hosts.len();
    let table = table(config(hosts));
    let requests: Vec<Headers> = (0..64)
        .map(|number| {
            let path = format!("/service-{}/api/v1?x=1", number * 7919 % routes);
            let host = format!("host-{}.example.com", number * 104_729 % count);
            headers(&[(":method", "GET"), (":authority", &host), (":path", &path)])
        })
        .collect();
    let mut best = f64::MAX;
    for _ in 0..20 {
        let start = std::time::Instant::now();
        for list in &requests {
            assert!(found(&table, list, 0).is_some());
        }
        best = best.min(start.elapsed().as_nanos() as f64 / requests.len() as f64);
    }
    best
}

#[test]
fn lookups_do_not_grow_with_the_table() {
    let small = lookup_time(10, 10);
    // A scan would take hundreds of times as long; the limit leaves room for a busy machine and an unoptimized build.
    for (routes, hosts) in [(10_000, 1), (10, 10_000)] {
        let large = lookup_time(routes, hosts);
        assert!(large < small * 8.0, "{routes} routes, {hosts} hosts: {large} ns instead of {small} ns");
    }
}

#[test]
fn virtual_hosts_of_other_tables_join_without_being_compiled_again() {
    let table =
        |name: &str, domains: &[&str]| RouteTable::build(Arc::new(config(vec![host(name, domains, Vec::new())])));
    let base = table("static", &["a.example"]).unwrap();
    let (one, two) = (table("one", &["b.example"]).unwrap(), table("two", &["*.c.example", "d.example"]).unwrap());
    let none = || std::iter::empty();
    let joined = base.with_virtual_hosts(none(), [&one, &two].into_iter()).unwrap();
    for (host, name) in [
        ("a.example", Some("static")),
        ("B.example", Some("one")),
        ("x.c.example", Some("two")),
        ("e.example", None),
        ("y.d.example", Some("wild")),
    ] {
        let known = joined.look_up(host.as_bytes()).map(|(host, _)| &**host.entry.name());
        assert_eq!(known, name.filter(|name| *name != "wild"), "{host}");
        assert_eq!(joined.has_virtual_host(host.as_bytes()), known.is_some());
    }
    let entry = |table: &RouteTable| table.look_up(b"b.example").map(|(host, _)| host.entry.clone()).unwrap();
    assert!(Arc::ptr_eq(&entry(&joined), one.virtual_hosts().next().unwrap()));
    let error = joined.with_virtual_hosts(none(), [&one].into_iter()).unwrap_err();
    assert!(error[0].1.contains("Duplicate entry of domain b.example in route rc"), "{error:?}");
    let error = joined.with_virtual_hosts(none(), [&table("three", &["A.example"]).unwrap()].into_iter()).unwrap_err();
    assert!(error[0].1.contains("Duplicate entry of domain a.example in route rc"), "{error:?}");
    // The longest wildcard counts, whoever has it.
    let wild = table("wild", &["*.example", "*", "b.*"]).unwrap();
    let other = joined.with_virtual_hosts([&one].into_iter(), [&wild].into_iter()).unwrap();
    for (host, name) in [("a.example", "static"), ("b.example", "wild"), ("x.c.example", "two"), ("b.org", "wild")] {
        assert_eq!(&**other.look_up(host.as_bytes()).unwrap().0.entry.name(), name, "{host}");
    }
    let gone = other.with_virtual_hosts([&wild, &two, &one].into_iter(), none()).unwrap();
    assert!(gone.joined.is_none() && gone.has_virtual_host(b"a.example") && !gone.has_virtual_host(b"b.example"));
    assert!(joined.has_virtual_host(b"b.example"), "tables do not change");
}

#[test]
fn the_cost_of_a_virtual_host_that_joins_does_not_grow_with_the_others() {
    let one = |number: usize| {
        let domain = format!("host-{number}.example.com");
        RouteTable::build(Arc::new(config(vec![host("v", &[&domain], Vec::new())]))).unwrap()
    };
    // The time of a change in a table of so many; the least of some, for other work disturbs it.
    let time = |count: usize| {
        let all: Vec<RouteTable> = (0..count).map(one).collect();
        let base = table(config(Vec::new())).with_virtual_hosts(std::iter::empty(), all.iter()).unwrap();
        let more: Vec<RouteTable> = (count..count + 64).map(one).collect();
        let measure = |new: &RouteTable| {
            let start = std::time::Instant::now();
            assert!(base.with_virtual_hosts(all.iter().take(1), std::iter::once(new)).is_ok());
            start.elapsed().as_nanos()
        };
        more.iter().map(measure).min().unwrap()
    };
    let (small, large) = (time(100), time(10_000));
    assert!(large < small * 8 + 20_000, "{large} ns among 10,000, {small} ns among 100");
}
