//! Policies of a cluster that go before those of routes, compiled.

use nuncio_config::cluster::{HttpPolicies, ResponsePredicate};
use nuncio_config::route::RetryPolicy;
use nuncio_http::headers::Headers;
use nuncio_http::matchers::{HeaderMatch, build_header_matches};
use nuncio_http::route::{HashPolicies, Mirror, RetryConditions};
use std::sync::Arc;

/// What a cluster says of the requests to it.
#[derive(Debug)]
pub struct ClusterPolicies {
    /// Mirrors in place of the route's; empty for those.
    pub mirrors: Box<[Mirror]>,
    /// Hash policies in place of the route's; empty for those.
    pub hash: HashPolicies,
    /// Retries in place of the route's; None for those.
    pub retry: Option<Arc<RetryPolicy>>,
    /// Header conditions of `retry`.
    pub retry_conditions: Option<Arc<RetryConditions>>,
    errors: Option<Predicate>,
}

impl ClusterPolicies {
    /// Compiles; the error is a path and a message.
    pub(crate) fn new(config: &HttpPolicies) -> Result<Self, (String, String)> {
        let mut errors = Vec::new();
        let path = &*config.path;
        let mirrors = Mirror::build_all(&config.mirrors, &mut errors);
        let hash = HashPolicies::build(&config.hash, path, &mut errors);
        let retry_conditions =
            config.retry.as_ref().and_then(|policy| RetryConditions::build(policy, path, &mut errors));
        let matcher = config.error_matcher.as_ref().map(Predicate::build).transpose();
        let matcher = matcher.map_err(|text| (format!("{path}.outlier_detection.error_matcher"), text))?;
        match errors.into_iter().next() {
            Some(error) => Err(error),
            None => {
                Ok(ClusterPolicies { mirrors, hash, retry: config.retry.clone(), retry_conditions, errors: matcher })
            }
        }
    }

    /// The code that outlier detection counts for a response with this head, where the cluster says which are errors.
    pub fn outlier_code(&self, head: &Headers) -> Option<u16> {
        let status = head.status();
        Some(match (self.errors.as_ref()?.matches(head), status) {
            (true, 500..=599) => status,
            (true, _) => 500,
            (false, _) => 200,
        })
    }
}

#[derive(Debug)]
enum Predicate {
    Any(Box<[Predicate]>),
    All(Box<[Predicate]>),
    Not(Box<Predicate>),
    Constant(bool),
    Headers(Box<[HeaderMatch]>),
}

impl Predicate {
    fn build(config: &ResponsePredicate) -> Result<Self, String> {
        let list = |list: &[ResponsePredicate]| list.iter().map(Predicate::build).collect::<Result<_, _>>();
        Ok(match config {
            ResponsePredicate::Any(rules) => Predicate::Any(list(rules)?),
            ResponsePredicate::All(rules) => Predicate::All(list(rules)?),
            ResponsePredicate::Not(rule) => Predicate::Not(Box::new(Predicate::build(rule)?)),
            ResponsePredicate::Constant(value) => Predicate::Constant(*value),
            ResponsePredicate::Headers(matchers) => Predicate::Headers(build_header_matches(matchers)?),
        })
    }

    fn matches(&self, head: &Headers) -> bool {
        match self {
            Predicate::Any(rules) => rules.iter().any(|rule| rule.matches(head)),
            Predicate::All(rules) => rules.iter().all(|rule| rule.matches(head)),
            Predicate::Not(rule) => !rule.matches(head),
            Predicate::Constant(value) => *value,
            Predicate::Headers(matchers) => matchers.iter().all(|matcher| matcher.matches(head)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policies(predicate: ResponsePredicate) -> ClusterPolicies {
        ClusterPolicies::new(&HttpPolicies { error_matcher: Some(predicate), ..HttpPolicies::default() }).unwrap()
    }

    fn code(policies: &ClusterPolicies, status: u16) -> Option<u16> {
        let mut head = Headers::new();
        head.set_status(status);
        policies.outlier_code(&head)
    }

    #[test]
    fn what_is_an_error_is_for_the_matcher_to_say() {
        use ResponsePredicate as P;
        let every = policies(P::Constant(true));
        assert_eq!((code(&every, 200), code(&every, 502)), (Some(500), Some(502)));
        let none = policies(P::All(vec![P::Constant(true), P::Not(Box::new(P::Constant(true)))]));
        assert_eq!((code(&none, 200), code(&none, 503)), (Some(200), Some(200)));
        let some = policies(P::Any(vec![P::Constant(false), P::Headers(Vec::new())]));
        assert_eq!(code(&some, 404), Some(500));
        assert_eq!(code(&ClusterPolicies::new(&HttpPolicies::default()).unwrap(), 500), None);
    }
}
