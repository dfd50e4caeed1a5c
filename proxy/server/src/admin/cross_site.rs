//! Refuses changes that a web page from elsewhere asks for through the operator's browser.
//!
//! Envoy obeys these. Tools that are no browsers send neither header and are not affected.

use super::AdminRequest;

/// Checks a request that changes state.
///
/// # Errors
/// What to tell the client, if its `Sec-Fetch-Site` or `Origin` says that another site sent it.
pub(super) fn check(request: &AdminRequest) -> Result<(), &'static str> {
    if matches!(request.header("sec-fetch-site"), Some("cross-site" | "same-site")) {
        return Err("Cross-site requests are not allowed.\n");
    }
    let Some(origin) = request.header("origin") else { return Ok(()) };
    let host = origin.split_once("://").map(|(_, host)| host);
    match (host, request.header("host").or_else(|| request.header(":authority"))) {
        (Some(origin), Some(host)) if origin.eq_ignore_ascii_case(host) => Ok(()),
        _ => Err("Cross-origin requests are not allowed.\n"),
    }
}
