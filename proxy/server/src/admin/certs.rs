//! `/certs`.

use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::AdminResponse;
use super::commands::Call;
use super::sources::{CertificateSet, CertificateStatus, SubjectAltName};

/// `/certs`: the certificates of every TLS context.
pub(super) fn certs(call: &Call<'_>) -> AdminResponse {
    let sets = call.sources.certificates();
    let now = SystemTime::now();
    let mut out = Map::new();
    out.insert("certificates".into(), sets.iter().map(|set| set_json(set, now)).collect());
    AdminResponse::json(&Value::Object(out))
}

fn set_json(set: &CertificateSet, now: SystemTime) -> Value {
    let mut out = Map::new();
    for (name, list) in [("ca_cert", &set.ca), ("cert_chain", &set.chain)] {
        out.insert(name.into(), list.iter().map(|one| certificate_json(one, now)).collect());
    }
    Value::Object(out)
}

fn certificate_json(certificate: &CertificateStatus, now: SystemTime) -> Value {
    let mut out = Map::new();
    out.insert("path".into(), certificate.path.clone().into());
    out.insert("serial_number".into(), certificate.serial_number.clone().into());
    let names = &certificate.subject_alt_names;
    let rank = |name: &&SubjectAltName| match name {
        SubjectAltName::Dns(_) => 0,
        SubjectAltName::Uri(_) => 1,
        SubjectAltName::Ip(_) => 2,
    };
    let mut names: Vec<_> = names.iter().collect();
    names.sort_by_key(rank);
    let name_json = |name: &SubjectAltName| match name {
        SubjectAltName::Dns(name) => json!({ "dns": name }),
        SubjectAltName::Uri(name) => json!({ "uri": name }),
        SubjectAltName::Ip(name) => json!({ "ip_address": name }),
    };
    out.insert("subject_alt_names".into(), names.into_iter().map(name_json).collect());
    let left = certificate.expiration_time.duration_since(now).unwrap_or_default().as_secs() / 86_400;
    out.insert("days_until_expiration".into(), left.to_string().into());
    out.insert("valid_from".into(), timestamp(certificate.valid_from).into());
    out.insert("expiration_time".into(), timestamp(certificate.expiration_time).into());
    Value::Object(out)
}

/// RFC 3339 in UTC, with no or three digits of a second's fraction, as protobuf writes a timestamp in milliseconds.
pub(super) fn timestamp(at: SystemTime) -> String {
    let millis = match at.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX),
    };
    let Ok(at) = jiff::Timestamp::from_millisecond(millis) else { return String::new() };
    let format = if millis % 1000 == 0 { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S.%3fZ" };
    at.strftime(format).to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::{FakeSources, get, text_of};
    use super::*;

    #[test]
    fn certificates_are_shown_with_names_and_expiry() {
        let sources = FakeSources::default();
        assert_eq!(text_of(&get(&sources, "/certs")), "{\n \"certificates\": []\n}\n");
        let one = CertificateStatus {
            path: "cert.pem".into(),
            serial_number: "797c23".into(),
            subject_alt_names: vec![
                SubjectAltName::Ip("127.0.0.1".into()),
                SubjectAltName::Dns("ex.test".into()),
                SubjectAltName::Uri("spiffe://a/b".into()),
            ],
            valid_from: SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_397_856),
            expiration_time: SystemTime::UNIX_EPOCH + Duration::from_secs(1_829_957_856),
        };
        let set = CertificateSet { ca: vec![], chain: vec![one] };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_397_900);
        let expected = json!({"ca_cert": [], "cert_chain": [{
            "path": "cert.pem",
            "serial_number": "797c23",
            "subject_alt_names": [{"dns": "ex.test"}, {"uri": "spiffe://a/b"}, {"ip_address": "127.0.0.1"}],
            "days_until_expiration": "399",
            "valid_from": "2026-11-23T01:37:36Z",
            "expiration_time": "2027-12-28T01:37:36Z",
        }]});
        assert_eq!(super::super::json::pretty(&set_json(&set, now)), super::super::json::pretty(&expected));
        sources.certificates.borrow_mut().push(set);
        assert!(
            text_of(&get(&sources, "/certs"))
                .starts_with("{\n \"certificates\": [\n  {\n   \"ca_cert\": [],\n   \"cert_chain\": [\n")
        );
    }

    #[test]
    fn timestamps_have_milliseconds_if_any() {
        let at = |millis| timestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
        assert_eq!(at(1_795_397_856_784), "2026-11-23T01:37:36.784Z");
        assert_eq!(at(1_795_397_856_004), "2026-11-23T01:37:36.004Z");
        assert_eq!(at(1_795_397_856_000), "2026-11-23T01:37:36Z");
    }
}
