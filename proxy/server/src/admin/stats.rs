//! `/stats` and `/stats/prometheus`: the parameters, and which format shows the stats.

use nuncio_base::stats::output::{self, HistogramMode, Kind, StatsParams};

use super::commands::Call;
use super::query::regex_error;
use super::{AdminResponse, HTML, JSON, home};

#[derive(Clone, Copy, PartialEq)]
enum Format {
    Text,
    Json,
    Prometheus,
    PrometheusProtobuf,
    Html,
}

/// At most so many buckets has a native histogram, unless the request says another number.
const NATIVE_BUCKETS: u32 = 20;
/// A pattern that no name has.
const NOTHING: &str = r"[^\s\S]";
/// What a request accepts that wants the protobuf format.
const PROTOBUF_TYPE: &str = "application/vnd.google.protobuf";
/// Content type of that format.
const PROTOBUF: &str = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

/// `/stats`.
pub(super) fn stats(call: &Call<'_>) -> AdminResponse {
    parse(call, Format::Text).map_or_else(|error| error, |(format, params)| render(call, format, &params))
}

/// `/stats/prometheus`.
pub(super) fn prometheus(call: &Call<'_>) -> AdminResponse {
    parse(call, Format::Prometheus).map_or_else(|error| error, |(format, params)| render(call, format, &params))
}

fn parse(call: &Call<'_>, default: Format) -> Result<(Format, StatsParams), AdminResponse> {
    let query = &call.query;
    let bad = |text: String| Err(AdminResponse::text(400, text));
    // Nothing is hidden here, so that hidden stats alone are none.
    let pattern = if query.get("hidden") == Some("only") { Some(NOTHING) } else { query.get("filter") };
    let invert_filter = query.has("invert_filter");
    if invert_filter && query.get("filter").is_none_or(str::is_empty) {
        return bad("invert_filter can only be used if filter is also provided".into());
    }
    let filter = match pattern.map(|pattern| (pattern, regex::Regex::new(pattern))) {
        None => None,
        Some((_, Ok(regex))) => Some(regex),
        Some((pattern, Err(error))) => {
            return bad(format!("Invalid re2 regex: {}", regex_error(pattern, &error)));
        }
    };
    let histograms = match query.get("histogram_buckets") {
        None | Some("" | "none") => HistogramMode::Unset,
        Some("summary") => HistogramMode::Summary,
        Some("cumulative") => HistogramMode::Cumulative,
        Some("disjoint") => HistogramMode::Disjoint,
        Some("detailed") => HistogramMode::Detailed,
        // How many buckets is read below.
        Some("prometheusnative") => HistogramMode::Native(NATIVE_BUCKETS),
        Some(_) => {
            return bad(
                "usage: /stats?histogram_buckets=(cumulative|disjoint|detailed|summary|prometheusnative)\n".into()
            );
        }
    };
    let most = match query.get("native_histogram_max_buckets").map(str::trim).filter(|most| !most.is_empty()) {
        None => Some(NATIVE_BUCKETS),
        Some(text) => text.parse::<u32>().ok().filter(|most| *most > 0),
    };
    let Some(most) = most else {
        return bad("invalid native_histogram_max_buckets value: must be a positive integer".into());
    };
    let kind = match query.get("type") {
        None | Some("" | "All") => Kind::All,
        Some("Counters") => Kind::Counters,
        Some("Gauges") => Kind::Gauges,
        Some("Histograms") => Kind::Histograms,
        Some("TextReadouts") => Kind::TextReadouts,
        Some(_) => return bad("invalid &type= param".into()),
    };
    if !matches!(query.get("hidden"), None | Some("" | "include" | "only" | "exclude")) {
        return bad("usage: /stats?hidden=(include|only|exclude)\n\n".into());
    }
    let format = match query.get("format") {
        None | Some("") => default,
        Some("text") => Format::Text,
        Some("json") => Format::Json,
        Some("prometheus") => Format::Prometheus,
        Some("html" | "active-html") => Format::Html,
        Some(_) => return bad("usage: /stats?format=(html|active-html|json|prometheus|text)\n\n".into()),
    };
    let native = matches!(histograms, HistogramMode::Native(_));
    let mut shown = if default == Format::Prometheus { default } else { format };
    if shown == Format::Prometheus {
        if matches!(histograms, HistogramMode::Disjoint | HistogramMode::Detailed) {
            return bad("unsupported prometheus histogram bucket mode".into());
        }
        let accepts = call.request.header("accept").is_some_and(|accept| accept.contains(PROTOBUF_TYPE));
        if accepts || query.has("prom_protobuf") {
            shown = Format::PrometheusProtobuf;
        }
        if native && shown != Format::PrometheusProtobuf {
            let text = "unsupported prometheusnative histogram type when not using protobuf exposition format";
            return bad(text.into());
        }
    } else if native {
        return bad("Invalid histogram_buckets type for non prometheus stats type".into());
    }
    let params = StatsParams {
        used_only: query.has("usedonly"),
        filter,
        invert_filter,
        kind,
        histograms: if native { HistogramMode::Native(most) } else { histograms },
        text_readouts: query.has("text_readouts"),
    };
    Ok((shown, params))
}

fn render(call: &Call<'_>, format: Format, params: &StatsParams) -> AdminResponse {
    call.sources.prepare_stats();
    let registry = call.sources.stats();
    let (mut snapshot, config) = (registry.snapshot(), registry.config());
    snapshot.hosts = call.sources.host_metrics();
    match format {
        Format::Text => AdminResponse::text(200, output::text(&snapshot, config, params)),
        Format::Json => AdminResponse::new(200, JSON, output::json(&snapshot, config, params)),
        Format::Prometheus => AdminResponse::text(200, output::prometheus(&snapshot, config, params)),
        Format::PrometheusProtobuf => {
            let body = output::prometheus_proto(&snapshot, config, params);
            AdminResponse { status: 200, content_type: PROTOBUF, body: body.into() }
        }
        Format::Html => AdminResponse::new(200, HTML, home::preformatted(&output::text(&snapshot, config, params))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{FakeSources, get, post, text_of};
    use super::super::{AdminRequest, handle};
    use super::*;

    #[test]
    fn wrong_parameters_are_answered_as_envoy_answers_them() {
        let sources = FakeSources::default();
        for (path, expected) in [
            ("/stats?format=x", "usage: /stats?format=(html|active-html|json|prometheus|text)\n\n"),
            ("/stats?type=Foo", "invalid &type= param"),
            ("/stats?filter=(", "Invalid re2 regex: missing ): ("),
            (
                "/stats?histogram_buckets=bogus",
                "usage: /stats?histogram_buckets=(cumulative|disjoint|detailed|summary|prometheusnative)\n",
            ),
            (
                "/stats?histogram_buckets=prometheusnative",
                "Invalid histogram_buckets type for non prometheus stats type",
            ),
            ("/stats/prometheus?histogram_buckets=disjoint", "unsupported prometheus histogram bucket mode"),
            (
                "/stats/prometheus?histogram_buckets=prometheusnative",
                "unsupported prometheusnative histogram type when not using protobuf exposition format",
            ),
            (
                "/stats?native_histogram_max_buckets=0",
                "invalid native_histogram_max_buckets value: must be a positive integer",
            ),
            (
                "/stats/prometheus?native_histogram_max_buckets=1x",
                "invalid native_histogram_max_buckets value: must be a positive integer",
            ),
            ("/stats?invert_filter", "invert_filter can only be used if filter is also provided"),
            ("/stats?invert_filter&filter=&type=x", "invert_filter can only be used if filter is also provided"),
            ("/stats?hidden=x", "usage: /stats?hidden=(include|only|exclude)\n\n"),
        ] {
            assert_eq!(get(&sources, path), AdminResponse::text(400, expected), "{path}");
        }
    }

    #[test]
    fn stats_are_shown_in_the_format_asked_for() {
        let sources = FakeSources::default();
        let counter = sources.registry.counter("cluster.a.upstream_rq_total");
        let gauge = sources.registry.gauge("server.live");
        counter.add(3);
        gauge.set(1);
        assert_eq!(text_of(&get(&sources, "/stats")), "cluster.a.upstream_rq_total: 3\nserver.live: 1\n");
        assert_eq!(text_of(&get(&sources, "/stats?type=Gauges&format=&filter=")), "server.live: 1\n");
        assert_eq!(text_of(&get(&sources, "/stats?hidden=only&filter=live")), "");
        assert_eq!(text_of(&get(&sources, "/stats?filter=server%5C.li")), "server.live: 1\n");
        assert_eq!(text_of(&get(&sources, "/stats?filter=cluster&invert_filter")), "server.live: 1\n");
        let json = get(&sources, "/stats?format=json&filter=live");
        assert_eq!((json.content_type, text_of(&json)), (JSON, r#"{"stats":[{"name":"server.live","value":1}]}"#));
        let expected = "# TYPE envoy_cluster_upstream_rq_total counter\n\
                        envoy_cluster_upstream_rq_total{envoy_cluster_name=\"a\"} 3\n\
                        # TYPE envoy_server_live gauge\nenvoy_server_live{} 1\n";
        assert_eq!(text_of(&get(&sources, "/stats/prometheus")), expected);
        assert_eq!(text_of(&get(&sources, "/stats?format=prometheus&type=Gauges")), expected);
        assert_eq!(get(&sources, "/stats?format=html").content_type, HTML);
        assert_eq!(get(&sources, "/stats?format=prometheus&prom_protobuf").content_type, PROTOBUF);
        let accept = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
        let accepting = AdminRequest {
            method: "GET".into(),
            path_and_query: "/stats/prometheus".into(),
            headers: vec![("accept".into(), accept.into())],
            ..AdminRequest::default()
        };
        assert_eq!(handle(&accepting, &sources).content_type, PROTOBUF);
        let native =
            "/stats/prometheus?prom_protobuf&histogram_buckets=prometheusnative&native_histogram_max_buckets=%203";
        assert_eq!(get(&sources, native).content_type, PROTOBUF);
        assert_eq!(sources.prepared.get(), 12);
        assert_eq!(post(&sources, "/reset_counters"), AdminResponse::ok());
        assert_eq!(text_of(&get(&sources, "/stats?type=Counters")), "cluster.a.upstream_rq_total: 0\n");
    }
}
