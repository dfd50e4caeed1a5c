//! Tests of formats against output recorded from Envoy.

use std::rc::Rc;
use std::time::Duration;

use nuncio_net::connection::ConnectionInfo;
use serde_json::json;

use super::*;
use crate::codec::Protocol;
use crate::headers::{HeaderName, names};
use crate::stream_info::ResponseFlags;

/// A stream over loopback.
pub(crate) fn info() -> StreamInfo {
    let ip = |port: u16| nuncio_net::address::Address::Ip(([127, 0, 0, 1], port).into());
    StreamInfo::new(Rc::new(ConnectionInfo::new(ip(80), ip(5555))), 1, Some(Protocol::Http11))
}

/// Headers from a list.
pub(crate) fn headers(list: &[(&str, &str)]) -> Headers {
    let mut out = Headers::new();
    for (name, value) in list {
        out.append(HeaderName::parse(name).unwrap(), HeaderValue::parse(value.to_string()).unwrap());
    }
    out
}

fn show(format: &str, cx: &FormatContext<'_>) -> String {
    let mut out = Vec::new();
    Formatter::new(format, false).unwrap().write(cx, &mut out);
    String::from_utf8(out).unwrap()
}

fn error(format: &str) -> String {
    Formatter::new(format, false).map(|_| String::new()).unwrap_or_else(|error| error.0)
}

#[test]
fn the_default_format_is_envoys() {
    let request = headers(&[
        (":method", "GET"),
        (":path", "/p"),
        (":authority", "a.com"),
        ("user-agent", "curl"),
        ("x-request-id", "id"),
    ]);
    let response = headers(&[(":status", "503")]);
    let mut info = info();
    info.start_time = std::time::UNIX_EPOCH + Duration::from_millis(1_795_398_294_707);
    info.response_code = 503;
    info.flags = ResponseFlags::NO_HEALTHY_UPSTREAM;
    info.bytes_sent = 19;
    info.complete = Some(info.start + Duration::from_millis(7));
    let cx = FormatContext { request: Some(&request), response: Some(&response), ..FormatContext::new(&info) };
    assert_eq!(
        show(DEFAULT_FORMAT, &cx),
        "[2026-11-23T01:44:54.707Z] \"GET /p HTTP/1.1\" 503 UH 0 19 7 - \"-\" \"curl\" \"id\" \"a.com\" \"-\"\n"
    );
}

#[test]
fn every_operator_of_envoy_compiles() {
    let alone = include_str!("operators.txt").split_ascii_whitespace();
    let info = info();
    let mut count = 0;
    for name in alone {
        let formatter = Formatter::new(&format!("%{name}%"), false).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut out = Vec::new();
        formatter.write(&FormatContext::new(&info), &mut out);
        count += 1;
    }
    assert_eq!(count, 144);
    for name in [
        "CLUSTER_METADATA",
        "DYNAMIC_METADATA",
        "ENVIRONMENT",
        "FILTER_STATE",
        "QUERY_PARAM",
        "REQ",
        "REQUEST_HEADER",
        "RESP",
        "RESPONSE_HEADER",
        "RESPONSE_TRAILER",
        "TRAILER",
        "UPSTREAM_FILTER_STATE",
        "UPSTREAM_METADATA",
    ] {
        assert_eq!(error(&format!("%{name}(X)%")), "", "{name}");
    }
}

#[test]
fn errors_are_in_envoys_words() {
    let table = [
        ("%CEL(request.path)%", "CEL is not supported: expressions are not there yet"),
        ("%XFCC_VALUE(Foo)%", "XFCC_VALUE command does not support subcommand: foo"),
        ("%FOO%", "Not supported field in StreamInfo: FOO"),
        ("%foo%", "Incorrect configuration: %foo%. Couldn't find valid command at position 0"),
        ("a%", "Incorrect configuration: a%. Couldn't find valid command at position 1"),
        ("%REQ(X", "Incorrect configuration: %REQ(X. Couldn't find valid command at position 0"),
        ("%REQ(X):a%", "Incorrect configuration: %REQ(X):a%. Couldn't find valid command at position 0"),
        ("%PROTOCOL:3%", "PROTOCOL does not take any parameters or length"),
        ("%PROTOCOL(X)%", "PROTOCOL does not take any parameters or length"),
        ("%START_TIME:3%", "START_TIME does not allow length to be specified."),
        ("%REQ%", "REQ requires parameters"),
        ("%REQ(X?Y?Z)%", "More than 1 alternative header specified in token: X?Y?Z"),
        ("%REQ(a b)%", "Invalid header configuration. Format string contains invalid characters."),
        ("%START_TIME(%n)%", "Invalid header configuration. Format string contains newline."),
        ("%COMMON_DURATION(X)%", "Invalid common duration configuration: X."),
        ("%COMMON_DURATION(DS_RX_BEG:DS_RX_END:xs)%", "Invalid common duration precision: xs."),
        ("%PATH(XX)%", "Invalid PATH option: 'XX', only 'WQ'/'NQ' are allowed"),
        ("%QUERY_PARAMS(X)%", "Invalid QUERY_PARAMS option: 'X', only 'ORIG'/'DECODED' are allowed"),
        (
            "%REQUESTED_SERVER_NAME(X)%",
            "Invalid REQUESTED_SERVER_NAME option: 'X', only 'SNI_ONLY'/'SNI_FIRST'/'HOST_FIRST' are allowed",
        ),
        ("%GRPC_STATUS(X)%", "GrpcStatusFormatter only supports CAMEL_STRING, SNAKE_STRING or NUMBER. Got: X"),
        ("%METADATA(FOO:a:b)%", "FOO is not supported type of metadata"),
        ("%FILTER_STATE%", "Invalid filter state configuration, key cannot be empty."),
        ("%FILTER_STATE(k:FOO)%", "Invalid filter state serialize type, only support PLAIN/TYPED/FIELD."),
        ("%CLUSTER_METADATA(X):3%", "CLUSTER_METADATA does not allow length to be specified."),
    ];
    for (format, wanted) in table {
        assert_eq!(error(format), wanted, "{format}");
    }
    for format in ["%%", "", "%REQ(?)%", "%START_TIME(%)%", "%COMMON_DURATION(A:B)%", "%PATH(WQ:ORIG_OR_PATH)%"] {
        assert_eq!(error(format), "", "{format}");
    }
}

#[test]
fn headers_fall_back_and_are_cut() {
    let request = headers(&[(":path", "/p/a?a=b%20c&x=1"), (":authority", "a.com:80"), ("x-a", "12345")]);
    let info = info();
    let cx = FormatContext { request: Some(&request), ..FormatContext::new(&info) };
    let table = [
        ("%REQ(X-A)%", "12345"),
        ("%REQ(X-A):3%", "123"),
        ("%REQ(NONE?X-A):2%|%REQ(NONE?OTHER)%", "12|-"),
        ("%REQ(HOST)%", "a.com:80"),
        ("%RESP(X)% %TRAILER(X)%", "- -"),
        ("%PATH% %PATH(NQ)% %PATH(WQ:ORIG)% %PATH(WQ:PATH):5%", "/p/a?a=b%20c&x=1 /p/a - /p/a?"),
        ("%QUERY_PARAM(a)% %QUERY_PARAM(a):1% %QUERY_PARAM(zz)%", "b c b -"),
        ("%QUERY_PARAMS% %QUERY_PARAMS(DECODED)%", "a=b%20c&x=1 a=b%20c&x=1"),
        ("100%% %REQUESTED_SERVER_NAME(SNI_FIRST)%", "100% a.com:80"),
        ("%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_REMOTE_PORT%", "127.0.0.1:5555 5555"),
        (
            "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(8)%",
            "127.0.0.1 127.0.0.0/8",
        ),
        ("%RESPONSE_FLAGS% %RESPONSE_CODE% %UPSTREAM_HOST% [%CUSTOM_FLAGS%] %HOSTNAME:3", "error"),
    ];
    for (format, wanted) in &table[..table.len() - 1] {
        assert_eq!(show(format, &cx), *wanted, "{format}");
    }
    assert_eq!(show("%RESPONSE_FLAGS% %RESPONSE_CODE% %UPSTREAM_HOST% [%CUSTOM_FLAGS%]", &cx), "- 0 - []");
}

#[test]
fn flags_details_and_durations_are_shown() {
    let mut info = info();
    info.flags = ResponseFlags::UPSTREAM_CONNECTION_FAILURE;
    info.flags.insert(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
    info.response_code_details = Some("upstream reset {a b}".into());
    info.request_complete = Some(info.start + Duration::from_micros(1500));
    let cx = FormatContext::new(&info);
    assert_eq!(
        show("%RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG%", &cx),
        "UF,URX UpstreamConnectionFailure,UpstreamRetryLimitExceeded"
    );
    assert_eq!(show("%RESPONSE_CODE_DETAILS%", &cx), "upstream_reset_{a_b}");
    assert_eq!(show("%RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES)%", &cx), "upstream reset {a b}");
    assert_eq!(show("%REQUEST_DURATION% %COMMON_DURATION(DS_RX_BEG:DS_RX_END:us)%", &cx), "1 1500");
    assert_eq!(show("%COMMON_DURATION(DS_RX_BEG:US_TX_END:us)%", &cx), "-");
}

#[test]
fn grpc_status_needs_a_grpc_request() {
    let request = headers(&[(":path", "/s/m"), ("content-type", "application/grpc")]);
    let trailers = headers(&[("grpc-status", "14")]);
    let mut info = info();
    info.response_code = 200;
    let cx = FormatContext { request: Some(&request), trailers: Some(&trailers), ..FormatContext::new(&info) };
    assert_eq!(
        show("%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS_NUMBER%", &cx),
        "Unavailable UNAVAILABLE 14"
    );
    let cx = FormatContext { trailers: None, ..cx };
    assert_eq!(show("%GRPC_STATUS%", &cx), "Unknown");
    assert_eq!(show("%GRPC_STATUS%", &FormatContext::new(&info)), "-");
}

#[test]
fn metadata_and_filter_state_are_found() {
    let mut info = info();
    let map = json!({"ns": {"a": {"b": "text"}, "n": 5, "nil": null}});
    info.dynamic_metadata = Some(Box::new(map.as_object().unwrap().clone()));
    info.filter_state = Some(Box::new(vec![("k".into(), "v".into())]));
    let cx = FormatContext::new(&info);
    assert_eq!(show("%DYNAMIC_METADATA(ns:a:b)% %DYNAMIC_METADATA(ns:n)% %DYNAMIC_METADATA(ns:nil)%", &cx), "text 5 -");
    assert_eq!(show("%METADATA(DYNAMIC:ns:a)% %DYNAMIC_METADATA(ns:a):4%", &cx), "{\"b\":\"text\"} {\"b\"");
    assert_eq!(show("%FILTER_STATE(k)% %FILTER_STATE(k:PLAIN)% %FILTER_STATE(x)%", &cx), "\"v\" v -");
    assert_eq!(show("%METADATA(ROUTE:a:b)%", &cx), "-");
}

fn show_json(format: &serde_json::Value, omit: bool, cx: &FormatContext<'_>) -> String {
    let mut out = Vec::new();
    JsonFormatter::new(format, omit).unwrap().write(cx, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn json_is_what_envoy_writes() {
    let mut request = headers(&[("x-e", "q\"u\\o\te/<>")]);
    request.append(HeaderName::parse("x-u").unwrap(), HeaderValue::parse(&b"\xc3\xa9\xff"[..]).unwrap());
    let mut info = info();
    info.response_code = 200;
    let cx = FormatContext { request: Some(&request), ..FormatContext::new(&info) };
    let format = json!({
        "z": "a", "y": {"q": 1, "b": true, "n": null, "l": [1.5, "%RESPONSE_CODE%", 1e20, -3, "x%RESPONSE_CODE%y"]},
        "a": "%REQ(X-E)%", "ae": "%REQ(X-E)%%%", "multi": "%REQ(X-NO)%-%RESPONSE_CODE%",
        "k\"\u{e9}\n/": "v\"\u{e9}\n/<>", "pct": "100%%", "empty": "", "lit%%": "%%", "env": "%ENVIRONMENT(NO_SUCH_NAME)%",
        "md": "%DYNAMIC_METADATA(a:b)%", "cl": "%REQ(content-length)%", "utf": "%REQ(X-U)%", "fl": "%RESPONSE_FLAGS%",
    });
    let wanted = "{\"a\":\"q\\\"u\\\\o\\te/<>\",\"ae\":\"q\\\"u\\\\o\\te/<>%\",\"cl\":null,\"empty\":\"\",\"env\":\"-\",\
        \"fl\":\"-\",\"k\\\"\u{e9}\\n/\":\"v\\\"\u{e9}\\n/<>\",\"lit%%\":\"%\",\"md\":null,\"multi\":\"--200\",\
        \"pct\":\"100%\",\"utf\":\"\\u00c3\\u00a9\\u00ff\",\"y\":{\"b\":true,\"l\":[1.5,200,1e+20,-3,\"x200y\"],\
        \"n\":null,\"q\":1},\"z\":\"a\"}\n";
    assert_eq!(show_json(&format, false, &cx), wanted);
    let omitted = show_json(&json!({"a": "%REQ(NO)%", "b": "%RESPONSE_CODE%", "c": "%REQ(NO)%x"}), true, &cx);
    assert_eq!(omitted, "{\"b\":200,\"c\":\"x\"}\n");
    let nested = json!({"e": {}, "l": ["%REQ(no)%", null, 1], "l2": [], "o": {"x": {"y": "%REQ(no)%"}}, "s": ""});
    assert_eq!(show_json(&nested, true, &cx), "{\"l\":[1],\"l2\":[],\"s\":\"\"}\n");
    assert_eq!(show_json(&json!({"a": "%REQ(no)%"}), true, &cx), "{}\n");
    let mut odd = Headers::new();
    odd.append(HeaderName::parse("x").unwrap(), HeaderValue::parse(&b"\xe9\"\\"[..]).unwrap());
    let cx = FormatContext { request: Some(&odd), ..cx };
    assert_eq!(show_json(&json!({"p": "%REQ(X)%-"}), false, &cx), "{\"p\":\"\\u00e9\\u0022\\u005c-\"}\n");
}

#[test]
fn header_values_without_operators_are_shared() {
    let info = info();
    let cx = FormatContext::new(&info);
    let fixed = HeaderFormatter::new("50%%").unwrap();
    assert!(matches!(fixed, HeaderFormatter::Static(_)));
    assert_eq!(fixed.value(&cx).unwrap().as_bytes(), b"50%");
    let dynamic = HeaderFormatter::new("%PROTOCOL%%REQ(X)%").unwrap();
    assert_eq!(dynamic.value(&cx).unwrap().as_bytes(), b"HTTP/1.1");
    assert!(HeaderFormatter::new("a\nb").is_err());
    let _ = names::PATH;
}
