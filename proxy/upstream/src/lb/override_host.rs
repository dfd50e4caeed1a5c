//! `envoy.load_balancing_policies.override_host`: hosts that the request itself names, if the cluster has them.
//!
//! A header or dynamic metadata holds addresses, separated by commas. Each try takes the next; when none is left, or the
//! cluster has none of them, the fallback policy picks. Health is not looked at: who names a host knows of it.

use super::LbContext;
use crate::host::Host;
use crate::host_set::PrioritySet;
use nuncio_config::cluster::{MetadataKey, MetadataStep, OverrideSource};
use nuncio_http::headers::HeaderName;
use nuncio_net::address::Address;
use rustc_hash::FxHashMap;
use serde_json::{Map, Value};
use std::net::SocketAddr;
use std::sync::Arc;

/// Where names come from.
#[derive(Debug)]
enum Source {
    Header(HeaderName),
    Metadata(MetadataKey),
}

/// Hosts of a cluster by address, and where requests name them.
#[derive(Debug)]
pub(super) struct Overrides {
    sources: Box<[Source]>,
    hosts: FxHashMap<SocketAddr, Arc<Host>>,
}

impl Overrides {
    pub(super) fn new(sources: &[OverrideSource], set: &PrioritySet) -> Self {
        let source = |source: &OverrideSource| match source {
            OverrideSource::Header(name) => HeaderName::parse(name).map(Source::Header),
            OverrideSource::Metadata(key) => Some(Source::Metadata(key.clone())),
        };
        let mut hosts = FxHashMap::default();
        for host in set.hosts() {
            if let Address::Ip(address) = host.address {
                hosts.entry(address).or_insert_with(|| host.clone());
            }
        }
        Overrides { sources: sources.iter().filter_map(source).collect(), hosts }
    }

    /// The next host that the request names; None where the fallback is to pick.
    pub(super) fn choose(&self, context: &LbContext<'_>) -> Option<Arc<Host>> {
        let info = context.info?;
        let named = self.sources.iter().filter_map(|source| match source {
            Source::Header(name) => context.headers?.str(name),
            Source::Metadata(key) => key.find(info.dynamic_metadata.as_ref()?)?.as_str(),
        });
        let mut names = named.flat_map(|list| list.split(',')).map(str::trim).filter(|name| !name.is_empty());
        let Some(used) = context.overrides_used else {
            return names.find_map(|name| self.host(name));
        };
        let tried = used.get() as usize;
        for (index, name) in names.enumerate().skip(tried) {
            used.set(u32::try_from(index + 1).unwrap_or(u32::MAX));
            if let Some(host) = self.host(name) {
                return Some(host);
            }
        }
        None
    }

    fn host(&self, name: &str) -> Option<Arc<Host>> {
        self.hosts.get(&name.parse().ok()?).cloned()
    }
}

/// Writes the address of `host` where `key` says; other values of the namespace stay.
#[cold]
pub(crate) fn note_selected(key: &MetadataKey, host: &Host, metadata: &mut Option<Box<Map<String, Value>>>) {
    let mut names = key.path.iter().filter_map(|step| match step {
        MetadataStep::Key(name) => Some(name),
        MetadataStep::Index(_) => None,
    });
    let Some(first) = names.next() else { return };
    let value = names.rev().fold(Value::from(&*host.address_text), |inner, name| {
        Value::Object(Map::from_iter([(name.to_string(), inner)]))
    });
    let namespace = metadata.get_or_insert_default().entry(&*key.key).or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(namespace) = namespace {
        namespace.insert(first.to_string(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::weighted_set;
    use nuncio_http::headers::{HeaderValue, Headers};
    use nuncio_http::stream_info::StreamInfo;
    use nuncio_net::connection::ConnectionInfo;
    use std::cell::Cell;
    use std::rc::Rc;

    fn picks(list: &'static str, tries: usize) -> Vec<Option<u16>> {
        let overrides = Overrides::new(&[OverrideSource::Header("x-to".into())], &weighted_set(&[1, 1, 1]));
        let mut headers = Headers::default();
        headers.append(HeaderName::parse("x-to").unwrap(), HeaderValue::from_static(list));
        let address = Address::Ip("127.0.0.1:9".parse().unwrap());
        let info = StreamInfo::new(Rc::new(ConnectionInfo::new(address.clone(), address)), 1, None);
        let used = Cell::new(0);
        let context = LbContext {
            headers: Some(&headers),
            info: Some(&info),
            overrides_used: Some(&used),
            ..LbContext::default()
        };
        (0..tries).map(|_| overrides.choose(&context).and_then(|host| host.address.port())).collect()
    }

    #[test]
    fn each_try_takes_the_next_host_that_exists() {
        assert_eq!(picks("127.0.0.1:2, 127.0.0.1:0", 3), [Some(2), Some(0), None]);
        assert_eq!(picks("127.0.0.1:77,127.0.0.1:1", 2), [Some(1), None]);
        assert_eq!(picks("nonsense", 1), [None]);
    }

    #[test]
    fn the_host_that_was_picked_is_told() {
        let path = ["a", "b"].map(|name| MetadataStep::Key(name.into())).into();
        let key = MetadataKey { key: "envoy.lb".into(), path };
        let host = crate::testing::host(7, 1, &Arc::default());
        let mut metadata = None;
        note_selected(&key, &host, &mut metadata);
        let expected = serde_json::json!({"envoy.lb": {"a": {"b": "127.0.0.1:7"}}});
        assert_eq!(metadata.map(|map| Value::Object(*map)), Some(expected));
        let before = serde_json::json!({"envoy.lb": {"a": 1, "c": 2}, "d": {}});
        let mut metadata = before.as_object().cloned().map(Box::new);
        note_selected(&key, &host, &mut metadata);
        let expected = serde_json::json!({"envoy.lb": {"a": {"b": "127.0.0.1:7"}, "c": 2}, "d": {}});
        assert_eq!(metadata.map(|map| Value::Object(*map)), Some(expected));
    }

    #[test]
    fn metadata_names_hosts_too() {
        let key = MetadataKey { key: "envoy.lb".into(), path: Box::default() };
        let overrides = Overrides::new(&[OverrideSource::Metadata(key)], &weighted_set(&[1, 1]));
        let address = Address::Ip("127.0.0.1:9".parse().unwrap());
        let mut info = StreamInfo::new(Rc::new(ConnectionInfo::new(address.clone(), address)), 1, None);
        let none = overrides.choose(&LbContext { info: Some(&info), ..LbContext::default() });
        assert!(none.is_none());
        let metadata = serde_json::json!({"envoy.lb": "127.0.0.1:1"});
        info.dynamic_metadata = metadata.as_object().cloned().map(Box::new);
        let host = overrides.choose(&LbContext { info: Some(&info), ..LbContext::default() });
        assert_eq!(host.and_then(|host| host.address.port()), Some(1));
    }
}
