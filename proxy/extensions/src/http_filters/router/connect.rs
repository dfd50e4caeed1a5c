//! The way to a stream: a host is chosen, and its pool asked for a connection.

use super::attempt::Outcome;
use super::failure::{Failure, FailureKind};
use super::hedge;
use super::per_try::PerTry;
use super::retry::RetryState;
use super::{Request, RouterConfig, poll_request_timers};
use bytes::Bytes;
use nuncio_base::clock;
use nuncio_http::active_stream::ActiveStream;
use nuncio_http::headers::HeaderValue;
use nuncio_http::headers::names;
use nuncio_http::route::rewrite::update_authority;
use nuncio_net::proxy_protocol_header::proxy_protocol_header;
use nuncio_upstream::proxy_header::Client;
use nuncio_upstream::{Cluster, Host, LbContext, PoolFailure, PooledStream, StreamOptions, http_stream, raw_stream};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The host of the next try; retries pass over hosts that the policy's predicates refuse.
pub(crate) fn choose_host(stream: &ActiveStream<'_>, request: &Request) -> Option<Arc<Host>> {
    let context = LbContext {
        hash: request.hash,
        metadata_match: request.route.metadata_match().and_then(|criteria| criteria.as_object()),
        dynamic_metadata: request.metadata.as_deref(),
        headers: Some(&stream.request),
        info: Some(&stream.info),
        overrides_used: Some(&request.overrides_used),
        ..LbContext::default()
    };
    pick(&request.cluster, context, request.retry.as_ref(), &request.hosts)
}

/// A host of the cluster; retries pass over those that the policy refuses, of which `tried` is told.
pub(crate) fn pick(
    cluster: &Cluster,
    context: LbContext<'_>,
    retry: Option<&RetryState>,
    tried: &[Arc<Host>],
) -> Option<Arc<Host>> {
    let Some(retry) = retry.filter(|retry| retry.chooses_hosts() && retry.is_retry()) else {
        return cluster.choose_host(&context);
    };
    let refuses = |host: &Host| retry.refuses_host(host, tried);
    let load = retry.priority_load(cluster, tried);
    cluster.choose_host(&LbContext {
        should_select_another_host: Some(&refuses),
        host_selection_retry_count: retry.host_selection_attempts(),
        priority_load: load.as_ref(),
        ..context
    })
}

/// Writes down which host is tried, and renames the request where the route asks for it.
pub(crate) fn note_host(stream: &mut ActiveStream<'_>, request: &mut Request, host: &Arc<Host>, keep_original: bool) {
    let info = &mut stream.info.upstream;
    if !request.hosts.is_empty() {
        info.begin_again();
    }
    info.host = Some(host.address_text.clone());
    info.host_name = Some(host.hostname.clone());
    info.host_metadata = host.metadata();
    request.cluster.note_selected(host, &mut stream.info.dynamic_metadata);
    request.hosts.push(host.clone());
    if stream.connection.hcm.config.scheme_match_upstream {
        let scheme = if request.cluster.serving(host).is_secure(host) { "https" } else { "http" };
        stream.request.set(names::SCHEME, HeaderValue::from_static(scheme));
    }
    if let Some(append) = request.route.auto_host_rewrite()
        && !host.hostname.is_empty()
        && let Some(name) = HeaderValue::parse(host.hostname.to_string())
    {
        update_authority(&mut stream.request, name, append, keep_original);
    }
}

/// A stream to `host`, or what came instead.
pub(crate) async fn connect(
    config: &RouterConfig,
    per_try: &mut Option<Box<PerTry>>,
    stream: &mut ActiveStream<'_>,
    request: &mut Request,
    host: &Arc<Host>,
) -> Result<PooledStream, Outcome> {
    let named = stream.request.get(request.cluster.auto_sni_header()).filter(|value| !value.as_bytes().is_empty());
    let authority = named.or_else(|| stream.request.get(&names::AUTHORITY)).cloned();
    let connection = stream.connection.info.clone();
    let told = stream.connection.hcm.config.add_proxy_protocol_connection_state || connection.proxy_protocol.is_some();
    let options = StreamOptions {
        priority: request.priority,
        downstream_protocol: Some(stream.protocol()),
        authority: authority.as_ref().and_then(HeaderValue::to_str),
        downstream_connection: connection.id,
        client: told.then(|| Client::of(&connection)),
    };
    let cluster = request.cluster.clone();
    let tunnel = tunnel(stream, request);
    let started = clock::now();
    let mut checkout = pin!(checkout(&cluster, host, &options, tunnel));
    let checked = poll_fn(|cx| {
        if let Poll::Ready(result) = checkout.as_mut().poll(cx) {
            return Poll::Ready(Ok(result));
        }
        if let Poll::Ready(abort) = stream.poll_abort(cx) {
            return Poll::Ready(Err(Outcome::Abort(abort)));
        }
        if let Some(outcome) = poll_request_timers(stream, request, cx) {
            return Poll::Ready(Err(outcome));
        }
        if let Some(per_try) = per_try {
            poll_log(per_try, config, stream, cx);
        }
        hedge::poll_winner(config, stream, request, true, cx).map(Err)
    })
    .await?;
    checked.map_err(|failure| {
        stream.info.upstream.pool_ready = Some(clock::now().saturating_duration_since(started));
        stream.info.upstream.transport_failure_reason.clone_from(&failure.transport_failure_reason);
        if failure.host.is_none() {
            // The request never got as far as a host: it could not even wait for one.
            stream.info.upstream.host = None;
            stream.info.upstream.host_name = None;
        }
        if failure.no_pool {
            return Outcome::NoPool;
        }
        Outcome::Failed(Failure {
            kind: FailureKind::Reset,
            reason: failure.reason,
            hostless: failure.host.is_none(),
            transport: failure.transport_failure_reason,
            started: false,
            retried: false,
        })
    })
}

/// The lines in the log of a try that waits for its connection.
#[cold]
fn poll_log(per_try: &mut PerTry, config: &RouterConfig, stream: &mut ActiveStream<'_>, cx: &mut Context<'_>) {
    let meters = (stream.downstream_meter(), stream.info.upstream.meter);
    per_try.poll_log(config, &stream.view(), || meters, cx);
}

async fn checkout(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    options: &StreamOptions<'_>,
    tunnel: Option<Bytes>,
) -> Result<PooledStream, PoolFailure> {
    match tunnel {
        None => http_stream(cluster, host, options).await,
        // Boxed, as few requests need it.
        Some(preface) => Box::pin(raw_stream(cluster, host, options, preface)).await,
    }
}

/// What the upstream connection of a CONNECT that ends here begins with; None for requests that are forwarded as such.
fn tunnel(stream: &ActiveStream<'_>, request: &Request) -> Option<Bytes> {
    let upgrades = &request.route.entry().route_action()?.upgrades;
    let config = upgrades.iter().find_map(|upgrade| upgrade.connect_config)?;
    match stream.request.method() {
        b"CONNECT" => {}
        b"POST" if config.allow_post => {}
        _ => return None,
    }
    let info = &stream.connection.info;
    Some(config.proxy_protocol.map_or_else(Bytes::new, |version| {
        proxy_protocol_header(version, &info.remote_address, &info.local_address).into()
    }))
}
