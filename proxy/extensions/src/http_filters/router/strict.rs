//! `strict_check_headers`: requests are refused whose `x-envoy-*` headers cannot be understood.

use bytes::Bytes;
use nuncio_config::route::RetryOn;
use nuncio_config::router::StrictHeader;
use nuncio_http::headers::{HeaderName, Headers, names};
use nuncio_http::local_reply::LocalReply;
use nuncio_http::stream_info::ResponseFlags;

/// The answer to a request with a header that is not understood.
#[inline]
pub(super) fn refusal(checked: &[StrictHeader], request: &Headers) -> Option<LocalReply> {
    if checked.is_empty() { None } else { first_bad(checked, request) }
}

fn first_bad(checked: &[StrictHeader], request: &Headers) -> Option<LocalReply> {
    let (name, value) = checked.iter().find_map(|header| {
        let (name, understood) = rule(*header);
        let value = request.bytes(name)?;
        let text = std::str::from_utf8(value).ok();
        (!text.is_some_and(understood)).then_some((name, value))
    })?;
    let details = format!("request_headers_failed_strict_check{{{name}}}");
    let mut reply = LocalReply::new(400, "", details).flags(ResponseFlags::INVALID_ENVOY_REQUEST_HEADERS);
    let shown = String::from_utf8_lossy(value);
    reply.body = Bytes::from(format!("invalid header '{name}' with value '{shown}'"));
    Some(reply)
}

fn rule(header: StrictHeader) -> (&'static HeaderName, fn(&str) -> bool) {
    match header {
        StrictHeader::Timeout => (&names::X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS, is_number),
        StrictHeader::PerTryTimeout => (&names::X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS, is_number),
        StrictHeader::MaxRetries => (&names::X_ENVOY_MAX_RETRIES, is_number),
        StrictHeader::RetryOn => (&names::X_ENVOY_RETRY_ON, |list| all_known(list, RetryOn::parse_http)),
        StrictHeader::RetryGrpcOn => (&names::X_ENVOY_RETRY_GRPC_ON, |list| all_known(list, RetryOn::parse_grpc)),
    }
}

fn is_number(text: &str) -> bool {
    text.trim().parse::<u64>().is_ok()
}

fn all_known(list: &str, parse: fn(&str) -> RetryOn) -> bool {
    list.split(',').filter(|condition| !condition.is_empty()).all(|condition| !parse(condition).is_empty())
}
