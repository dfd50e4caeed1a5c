//! `%GRPC_STATUS%`: the status of a gRPC request, from trailers, headers, or the HTTP status.

use super::{FormatContext, FormatError};
use crate::headers::{Headers, names};
use crate::matchers::is_grpc_request;

/// How the status is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GrpcForm {
    Camel,
    Snake,
    Number,
}

const NAMES: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

impl GrpcForm {
    pub(super) fn parse(text: &str) -> Result<Self, FormatError> {
        match text {
            "" | "CAMEL_STRING" => Ok(GrpcForm::Camel),
            "SNAKE_STRING" => Ok(GrpcForm::Snake),
            "NUMBER" => Ok(GrpcForm::Number),
            other => Err(FormatError(format!(
                "GrpcStatusFormatter only supports CAMEL_STRING, SNAKE_STRING or NUMBER. Got: {other}"
            ))),
        }
    }

    pub(super) fn is_number(self) -> bool {
        self == GrpcForm::Number
    }

    pub(super) fn write(self, cx: &FormatContext<'_>, out: &mut Vec<u8>) -> bool {
        let Some(status) = grpc_status(cx) else { return false };
        let names = usize::try_from(status).ok().and_then(|at| NAMES.get(at));
        match (self, names) {
            (GrpcForm::Camel, Some((camel, _))) => out.extend_from_slice(camel.as_bytes()),
            (GrpcForm::Snake, Some((_, snake))) => out.extend_from_slice(snake.as_bytes()),
            _ => out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes()),
        }
        true
    }
}

/// The gRPC status of a gRPC request; None for others. An unreadable status counts as -1.
pub(crate) fn grpc_status(cx: &FormatContext<'_>) -> Option<i64> {
    if cx.request.is_some_and(is_grpc_request) { any_status(cx) } else { None }
}

/// As [`grpc_status`], whatever the request is.
pub(crate) fn any_status(cx: &FormatContext<'_>) -> Option<i64> {
    let of = |headers: Option<&Headers>| {
        let value = headers?.bytes(&names::GRPC_STATUS)?;
        Some(std::str::from_utf8(value).ok().and_then(|text| text.parse::<u32>().ok()).map_or(-1, i64::from))
    };
    of(cx.trailers).or_else(|| of(cx.response)).or(match cx.info.response_code {
        0 => None,
        code => Some(i64::from(from_http(code))),
    })
}

/// The gRPC status for an HTTP status without one.
fn from_http(code: u16) -> u8 {
    match code {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}
