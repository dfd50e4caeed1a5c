//! Which streams are logged; also which local replies are mapped.

use nuncio_config::access_log::{AccessLogFilter, Comparison, ComparisonOp};
use nuncio_config::matchers::RuntimeFraction;
use nuncio_config::route::MetadataMatcher;

use crate::formatter::{FormatContext, any_status, duration};
use crate::headers::Headers;
use crate::matchers::{HeaderMatch, Runtime, in_runtime_fraction, metadata_matches, metadata_value};
use crate::stream_info::ResponseFlags;

/// A compiled filter.
#[derive(Debug, Clone)]
pub struct LogFilter(Node);

#[derive(Debug, Clone)]
enum Node {
    StatusCode(Comparison),
    Duration(Comparison),
    NotHealthCheck,
    Traceable,
    Runtime {
        fraction: RuntimeFraction,
        independent: bool,
    },
    And(Box<[Node]>),
    Or(Box<[Node]>),
    Header(HeaderMatch),
    /// None: any flag.
    Flags(Option<Vec<ResponseFlags>>),
    GrpcStatus {
        codes: Box<[i64]>,
        exclude: bool,
    },
    LogType {
        types: Box<[i32]>,
        exclude: bool,
    },
    Metadata {
        matcher: MetadataMatcher,
        if_missing: bool,
    },
}

impl LogFilter {
    /// Compiles; the error says what is wrong.
    pub fn build(filter: &AccessLogFilter) -> Result<Self, String> {
        Node::build(filter).map(Self)
    }

    /// Whether the stream is to be logged.
    pub fn passes(&self, cx: &FormatContext<'_>, runtime: &dyn Runtime) -> bool {
        self.0.passes(cx, runtime)
    }
}

impl Node {
    fn build(filter: &AccessLogFilter) -> Result<Self, String> {
        let all = |list: &[AccessLogFilter]| list.iter().map(Node::build).collect::<Result<Box<[Node]>, String>>();
        Ok(match filter {
            AccessLogFilter::StatusCode(comparison) => Node::StatusCode(comparison.clone()),
            AccessLogFilter::Duration(comparison) => Node::Duration(comparison.clone()),
            AccessLogFilter::NotHealthCheck => Node::NotHealthCheck,
            AccessLogFilter::Traceable => Node::Traceable,
            AccessLogFilter::Runtime { fraction, independent } => {
                Node::Runtime { fraction: fraction.clone(), independent: *independent }
            }
            AccessLogFilter::And(list) => Node::And(all(list)?),
            AccessLogFilter::Or(list) => Node::Or(all(list)?),
            AccessLogFilter::Header(matcher) => Node::Header(HeaderMatch::build(matcher)?),
            AccessLogFilter::ResponseFlag(names) if names.is_empty() => Node::Flags(None),
            AccessLogFilter::ResponseFlag(names) => {
                let flag = |name: &str| {
                    let found = ResponseFlags::ALL.iter().find(|(_, short, _)| *short == name);
                    found.map(|(flag, ..)| *flag).ok_or_else(|| format!("unknown response flag: {name}"))
                };
                Node::Flags(Some(names.iter().map(|name| flag(name)).collect::<Result<_, String>>()?))
            }
            AccessLogFilter::GrpcStatus { codes, exclude } => {
                Node::GrpcStatus { codes: codes.iter().map(|code| i64::from(*code)).collect(), exclude: *exclude }
            }
            AccessLogFilter::LogType { types, exclude } => {
                Node::LogType { types: types.clone().into(), exclude: *exclude }
            }
            AccessLogFilter::Metadata(matcher, if_missing) => {
                Node::Metadata { matcher: matcher.clone(), if_missing: *if_missing }
            }
            AccessLogFilter::Extension(typed) => {
                return Err(format!("access log filter {} is not supported yet", typed.type_name));
            }
        })
    }

    fn passes(&self, cx: &FormatContext<'_>, runtime: &dyn Runtime) -> bool {
        let info = cx.info;
        match self {
            Node::StatusCode(comparison) => compare(comparison, u64::from(info.response_code), runtime),
            Node::Duration(comparison) => compare(comparison, duration(info).as_millis() as u64, runtime),
            Node::NotHealthCheck => !info.health_check,
            Node::Traceable => info.traced,
            Node::Runtime { fraction, independent } => {
                let by_id = info.request_id.as_ref().filter(|_| !independent).and_then(number_of);
                let random = by_id.unwrap_or_else(nuncio_base::random::u64);
                in_runtime_fraction(fraction, runtime, random)
            }
            Node::And(list) => list.iter().all(|node| node.passes(cx, runtime)),
            Node::Or(list) => list.iter().any(|node| node.passes(cx, runtime)),
            Node::Header(matcher) => matcher.matches(cx.request.unwrap_or(const { &Headers::new() })),
            Node::Flags(None) => !info.flags.is_empty(),
            Node::Flags(Some(flags)) => flags.iter().any(|flag| info.flags.contains(*flag)),
            Node::GrpcStatus { codes, exclude } => {
                // No status at all counts as Unknown.
                codes.contains(&any_status(cx).unwrap_or(2)) != *exclude
            }
            Node::LogType { types, exclude } => types.contains(&(cx.log_type as i32)) != *exclude,
            Node::Metadata { matcher, if_missing } => {
                let metadata = info.dynamic_metadata.as_deref();
                match metadata_value(metadata, &matcher.filter, &matcher.path) {
                    Some(_) => metadata_matches(matcher, metadata),
                    None => *if_missing,
                }
            }
        }
    }
}

/// The number that a request id is sampled by: its first eight hex digits, so that all hops of a request agree.
fn number_of(id: &[u8; 36]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(&id[..8]).ok()?, 16).ok()
}

fn compare(comparison: &Comparison, value: u64, runtime: &dyn Runtime) -> bool {
    let wanted = if comparison.runtime_key.is_empty() {
        comparison.value
    } else {
        runtime.integer(&comparison.runtime_key).unwrap_or(comparison.value)
    };
    match comparison.op {
        ComparisonOp::Eq => value == wanted,
        ComparisonOp::Ge => value >= wanted,
        ComparisonOp::Le => value <= wanted,
        ComparisonOp::Ne => value != wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formatter::AccessLogType;
    use crate::formatter::tests::{headers, info};
    use crate::matchers::NoRuntime;
    use nuncio_config::matchers::FractionalPercent;
    use std::time::Duration;

    fn comparison(op: ComparisonOp, value: u64) -> Comparison {
        Comparison { op, value, runtime_key: "".into() }
    }

    #[test]
    fn every_filter_decides() {
        use AccessLogFilter as F;
        let mut info = info();
        info.response_code = 503;
        info.complete = Some(info.start + Duration::from_millis(20));
        info.flags = ResponseFlags::NO_HEALTHY_UPSTREAM;
        info.request_id = Some(*b"00000032-0000-4000-8000-000000000000");
        let request = headers(&[("x-a", "1")]);
        let trailers = headers(&[("grpc-status", "7")]);
        let cx = FormatContext {
            request: Some(&request),
            trailers: Some(&trailers),
            log_type: AccessLogType::DownstreamEnd,
            ..FormatContext::new(&info)
        };
        let header = |invert| nuncio_config::matchers::HeaderMatcher {
            name: "x-a".into(),
            kind: nuncio_config::matchers::HeaderMatchKind::Present(true),
            invert,
            missing_as_empty: false,
        };
        let share = |numerator| F::Runtime {
            fraction: RuntimeFraction {
                default: FractionalPercent { numerator, denominator: 100 },
                runtime_key: "".into(),
            },
            independent: false,
        };
        let table = [
            (F::StatusCode(comparison(ComparisonOp::Ge, 500)), true),
            (F::StatusCode(comparison(ComparisonOp::Eq, 500)), false),
            (F::StatusCode(comparison(ComparisonOp::Ne, 500)), true),
            (F::Duration(comparison(ComparisonOp::Le, 20)), true),
            (F::Duration(comparison(ComparisonOp::Ge, 21)), false),
            (F::NotHealthCheck, true),
            (F::Traceable, false),
            (share(51), true),
            (share(50), false),
            (F::Header(header(false)), true),
            (F::Header(header(true)), false),
            (F::ResponseFlag(vec![]), true),
            (F::ResponseFlag(vec!["NR".into(), "UH".into()]), true),
            (F::ResponseFlag(vec!["NR".into()]), false),
            (F::GrpcStatus { codes: vec![7], exclude: false }, true),
            (F::GrpcStatus { codes: vec![7], exclude: true }, false),
            (F::LogType { types: vec![6], exclude: false }, true),
            (F::LogType { types: vec![6], exclude: true }, false),
            (F::And(vec![F::NotHealthCheck, F::Traceable]), false),
            (F::Or(vec![F::NotHealthCheck, F::Traceable]), true),
        ];
        for (filter, wanted) in table {
            assert_eq!(LogFilter::build(&filter).unwrap().passes(&cx, &NoRuntime), wanted, "{filter:?}");
        }
        assert!(LogFilter::build(&F::ResponseFlag(vec!["XX".into()])).is_err());
    }

    #[test]
    fn the_runtime_overrides_comparisons() {
        struct Five;
        impl Runtime for Five {
            fn integer(&self, key: &str) -> Option<u64> {
                (key == "k").then_some(5)
            }
        }
        let mut wanted = comparison(ComparisonOp::Ge, 400);
        assert!(!compare(&wanted, 200, &Five));
        wanted.runtime_key = "k".into();
        assert!(compare(&wanted, 200, &Five));
    }
}
