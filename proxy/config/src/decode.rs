//! What every decoder from protobuf to IR shares: the [`Context`] and readers of small protobuf types.
//!
//! Decoders are called with a message and a `&mut Context`. They descend with [`Context::at`] and [`Context::each`],
//! which keep the current path without allocating, and report with [`Context::error`]; nothing stops at the first
//! error. A decoder that cannot go on returns `None`, and has then reported why. The public `decode` functions of the
//! IR types turn this into a `Result` with all errors ([`Context::run`]).
//!
//! What protoc-gen-validate annotations can say (required fields, ranges, patterns) is checked before, by reflection,
//! and not again here; decoders must only not panic when such a rule was broken.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf as google;
use prost::Message;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::cluster::DnsDefaults;
use crate::data_source::DataSource;
use crate::diagnostics::{ConfigError, closest};
use crate::extensions;
use crate::paths::{FieldPath, Segment};
use crate::tls::{TlsCertificate, ValidationContext};
use crate::typed_config::TypedConfig;

pub(crate) mod json;
pub(crate) mod re2;

/// As in Envoy: what 63 bits of nanoseconds hold.
const MAX_SECONDS: u64 = i64::MAX as u64 / 1_000_000_000;

/// What decoders know beside the message: where they are, what else is configured, and the errors found so far.
#[derive(Debug, Default)]
pub struct Context {
    errors: Vec<ConfigError>,
    base: FieldPath,
    stack: Vec<Segment>,
    clusters: Option<FxHashSet<Arc<str>>>,
    cluster_check: Option<ClusterCheck>,
    secrets: FxHashMap<Box<str>, Vec<StaticSecret>>,
    regexes: FxHashMap<Box<str>, regex::bytes::Regex>,
    /// Resolvers of clusters that name none: those of the bootstrap.
    pub default_dns: DnsDefaults,
    /// Id of the node as a flag gives it; the file's counts where it is empty.
    pub node_id: Box<str>,
    /// Cluster of the node as a flag gives it; the file's counts where it is empty.
    pub node_cluster: Box<str>,
    /// The bootstrap as it was encoded when it was loaded; encoded anew where this is empty.
    pub encoded: Bytes,
}

/// Says whether a cluster exists.
#[derive(Clone)]
struct ClusterCheck(Arc<dyn Fn(&str) -> bool + Send + Sync>);

impl std::fmt::Debug for ClusterCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterCheck")
    }
}

/// A secret of `static_resources.secrets`.
#[derive(Debug, Clone)]
pub enum StaticSecret {
    /// `tls_certificate`.
    Certificate(TlsCertificate),
    /// `validation_context`.
    Validation(Box<ValidationContext>),
    /// `session_ticket_keys`.
    TicketKeys(Vec<DataSource>),
    /// `generic_secret`.
    Generic(Option<DataSource>),
}

impl StaticSecret {
    /// Envoy's name of the kind.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            StaticSecret::Certificate(_) => "TlsCertificate",
            StaticSecret::Validation(_) => "CertificateValidationContext",
            StaticSecret::TicketKeys(_) => "TlsSessionTicketKeys",
            StaticSecret::Generic(_) => "GenericSecret",
        }
    }
}

impl Context {
    /// A context for a message that stands at `base`; the root for a whole bootstrap or an xDS resource.
    pub fn new(base: FieldPath) -> Self {
        Context { base, ..Context::default() }
    }

    /// Tells which clusters exist. Without it, references to clusters are not checked.
    pub fn set_clusters(&mut self, names: impl IntoIterator<Item = Arc<str>>) {
        self.clusters = Some(names.into_iter().collect());
    }

    /// Asks `exists` which clusters exist, where they change while the process runs.
    pub fn set_cluster_check(&mut self, exists: impl Fn(&str) -> bool + Send + Sync + 'static) {
        self.cluster_check = Some(ClusterCheck(Arc::new(exists)));
    }

    /// Makes a secret known to `SdsSecretConfig`s that name it without a config source. False when one of the same
    /// kind and name is known already.
    pub fn add_secret(&mut self, name: &str, secret: StaticSecret) -> bool {
        let known = self.secrets.entry(name.into()).or_default();
        if known.iter().any(|other| other.kind() == secret.kind()) {
            return false;
        }
        known.push(secret);
        true
    }

    /// The static certificate `name`.
    pub(crate) fn certificate_secret(&self, name: &str) -> Option<TlsCertificate> {
        self.secrets.get(name)?.iter().find_map(|secret| match secret {
            StaticSecret::Certificate(certificate) => Some(certificate.clone()),
            _ => None,
        })
    }

    /// The static validation context `name`.
    pub(crate) fn validation_secret(&self, name: &str) -> Option<ValidationContext> {
        self.secrets.get(name)?.iter().find_map(|secret| match secret {
            StaticSecret::Validation(context) => Some((**context).clone()),
            _ => None,
        })
    }

    /// The static session ticket keys `name`.
    pub(crate) fn ticket_keys_secret(&self, name: &str) -> Option<Vec<DataSource>> {
        self.secrets.get(name)?.iter().find_map(|secret| match secret {
            StaticSecret::TicketKeys(keys) => Some(keys.clone()),
            _ => None,
        })
    }

    /// The static generic secret `name`; for extensions.
    pub fn generic_secret(&self, name: &str) -> Option<&DataSource> {
        self.secrets.get(name)?.iter().find_map(|secret| match secret {
            StaticSecret::Generic(source) => source.as_ref(),
            _ => None,
        })
    }

    /// Names of the static secrets.
    pub(crate) fn secret_names(&self) -> impl Iterator<Item = &str> {
        self.secrets.keys().map(|name| &**name)
    }

    /// Runs `decode` and hands back what it made, or every error that it reported.
    pub fn run<T>(&mut self, decode: impl FnOnce(&mut Self) -> Option<T>) -> Result<T, Vec<ConfigError>> {
        let before = self.errors.len();
        let value = decode(self);
        match value {
            Some(value) if self.errors.len() == before => Ok(value),
            _ => {
                if self.errors.len() == before {
                    self.error("invalid configuration");
                }
                Err(self.errors.split_off(before))
            }
        }
    }

    /// Reports that the field at the current path is wrong.
    pub fn error(&mut self, message: impl Into<String>) {
        self.errors.push(ConfigError::new(self.path(), message));
    }

    /// Like [`Self::error`], with what was probably meant.
    pub fn error_with_suggestion(&mut self, message: impl Into<String>, suggestion: Option<impl Into<String>>) {
        self.errors.push(ConfigError::new(self.path(), message).with_suggestion(suggestion));
    }

    /// Reports that `field` of the message at the current path is wrong.
    pub fn error_at(&mut self, field: &'static str, message: impl Into<String>) {
        self.at(field, |cx| cx.error(message));
    }

    /// Number of errors so far; decoders compare it to learn whether a part was good.
    pub(crate) fn error_count(&self) -> usize {
        self.errors.len()
    }

    /// The current path.
    pub fn path(&self) -> FieldPath {
        self.stack.iter().cloned().fold(self.base.clone(), |path, segment| path.push(segment))
    }

    /// The current path as text, for IR types that keep it.
    pub fn path_text(&self) -> Box<str> {
        if self.base.is_root() { crate::paths::text(&self.stack).into() } else { self.path().to_string().into() }
    }

    /// Descends into `field`.
    pub fn at<R>(&mut self, field: &'static str, decode: impl FnOnce(&mut Self) -> R) -> R {
        self.within(Segment::Field(field.into()), decode)
    }

    /// Descends into element `index` of the repeated field at the current path.
    pub fn at_index<R>(&mut self, index: usize, decode: impl FnOnce(&mut Self) -> R) -> R {
        self.within(Segment::Index(u32::try_from(index).unwrap_or(u32::MAX)), decode)
    }

    /// Descends into entry `key` of the map at the current path.
    pub fn at_key<R>(&mut self, key: &str, decode: impl FnOnce(&mut Self) -> R) -> R {
        self.within(Segment::Key(key.into()), decode)
    }

    fn within<R>(&mut self, segment: Segment, decode: impl FnOnce(&mut Self) -> R) -> R {
        self.stack.push(segment);
        let result = decode(self);
        self.stack.pop();
        result
    }

    /// Decodes the elements of a repeated field; those that fail are left out (their errors are kept).
    pub fn each<'m, M, T>(
        &mut self,
        field: &'static str,
        messages: &'m [M],
        mut decode: impl FnMut(&mut Self, &'m M) -> Option<T>,
    ) -> Vec<T> {
        self.at(field, |cx| {
            let mut out = Vec::with_capacity(messages.len());
            for (index, message) in messages.iter().enumerate() {
                if let Some(value) = cx.at_index(index, |cx| decode(cx, message)) {
                    out.push(value);
                }
            }
            out
        })
    }

    /// Decodes the message of an optional field where it is set.
    pub fn optional<M, T>(
        &mut self,
        field: &'static str,
        message: &Option<M>,
        decode: impl FnOnce(&mut Self, &M) -> Option<T>,
    ) -> Option<T> {
        message.as_ref().and_then(|message| self.at(field, |cx| decode(cx, message)))
    }

    /// Decodes the message of a field that has to be set.
    pub fn required<M, T>(
        &mut self,
        field: &'static str,
        message: &Option<M>,
        decode: impl FnOnce(&mut Self, &M) -> Option<T>,
    ) -> Option<T> {
        match message {
            Some(message) => self.at(field, |cx| decode(cx, message)),
            None => {
                self.error(format!("Field '{field}' is missing"));
                None
            }
        }
    }

    /// A duration where it is set; negative ones are errors, as in Envoy.
    pub fn duration(&mut self, field: &'static str, value: &Option<google::Duration>) -> Option<Duration> {
        let value = value.as_ref()?;
        match (u64::try_from(value.seconds), u32::try_from(value.nanos)) {
            (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 && seconds < MAX_SECONDS => {
                Some(Duration::new(seconds, nanos))
            }
            _ if value.seconds < 0 || value.nanos < 0 => {
                self.error_at(field, "Invalid duration: Expected positive duration");
                None
            }
            _ => {
                self.error_at(field, "Invalid duration: Duration out-of-range");
                None
            }
        }
    }

    /// A duration with a default; zero means "off" and becomes `None`.
    pub fn timeout(
        &mut self,
        field: &'static str,
        value: &Option<google::Duration>,
        default: Option<Duration>,
    ) -> Option<Duration> {
        match value {
            None => default,
            Some(_) => self.duration(field, value).filter(|duration| !duration.is_zero()),
        }
    }

    /// The shared copy of a cluster's name.
    pub fn cluster_name(&self, name: &str) -> Arc<str> {
        self.clusters.as_ref().and_then(|known| known.get(name)).cloned().unwrap_or_else(|| name.into())
    }

    /// Whether clusters are known and `name` is none of them.
    pub fn is_unknown_cluster(&self, name: &str) -> bool {
        match (&self.clusters, &self.cluster_check) {
            (Some(known), _) => !known.contains(name),
            (None, Some(check)) => !(check.0)(name),
            (None, None) => false,
        }
    }

    /// Reports a reference to a cluster that does not exist, with the closest name that does.
    pub fn unknown_cluster(&mut self, message: String, name: &str) {
        let suggestion = self
            .clusters
            .as_ref()
            .and_then(|known| closest(name, known.iter().map(|known| &**known)))
            .map(str::to_owned);
        self.error_with_suggestion(message, suggestion);
    }

    /// Reports an extension that is not known, in Envoy's words.
    pub fn unregistered(&mut self, name: &str, any: Option<&google::Any>) {
        let url = any.map_or("", |any| type_name(&any.type_url));
        self.error(extensions::unregistered(name, url));
    }

    /// The extension configuration in an `Any`, kept for whoever implements it.
    pub fn typed_config(&self, name: &str, any: Option<&google::Any>) -> TypedConfig {
        self.typed_config_at(name, any, &[Segment::Field("typed_config".into())])
    }

    /// Like [`Self::typed_config`] where the `Any` stands under other steps than `typed_config`.
    pub(crate) fn typed_config_at(&self, name: &str, any: Option<&google::Any>, steps: &[Segment]) -> TypedConfig {
        let path = steps.iter().cloned().fold(self.path(), |path, segment| path.push(segment));
        TypedConfig {
            name: name.into(),
            type_name: any.map_or("", |any| type_name(&any.type_url)).into(),
            value: any.map_or_else(Bytes::new, |any| Bytes::copy_from_slice(&any.value)),
            path: path.to_string().into(),
        }
    }

    /// The configuration of a `TypedExtensionConfig`.
    pub fn extension(&self, message: &core::TypedExtensionConfig) -> TypedConfig {
        self.typed_config(&message.name, message.typed_config.as_ref())
    }

    /// Decodes the message inside an `Any` that is known to hold an `M`.
    pub fn unpack<M: Message + Default>(&mut self, any: &google::Any) -> Option<M> {
        match M::decode(any.value.as_slice()) {
            Ok(message) => Some(message),
            Err(error) => {
                self.error(format!("Unable to unpack as {}: {error}", type_name(&any.type_url)));
                None
            }
        }
    }

    /// A compiled expression; each text is compiled once per context.
    pub(crate) fn compile(&mut self, text: &str, anchored: bool) -> Option<regex::bytes::Regex> {
        let pattern = match re2::translate(text, anchored) {
            Ok(pattern) => pattern,
            Err(reason) => {
                self.error(format!("invalid regex '{text}': {reason}"));
                return None;
            }
        };
        if let Some(regex) = self.regexes.get(pattern.as_str()) {
            return Some(regex.clone());
        }
        match re2::compile(&pattern) {
            Ok(regex) => {
                self.regexes.insert(pattern.into(), regex.clone());
                Some(regex)
            }
            Err(reason) => {
                self.error(format!("invalid regex '{text}': {reason}"));
                None
            }
        }
    }
}

/// The message name in a type URL: what follows the last slash.
pub(crate) fn type_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or(type_url)
}

/// The value of a `UInt32Value`.
pub(crate) fn u32_value(value: &Option<google::UInt32Value>) -> Option<u32> {
    value.as_ref().map(|value| value.value)
}

/// The value of a `UInt64Value`.
pub(crate) fn u64_value(value: &Option<google::UInt64Value>) -> Option<u64> {
    value.as_ref().map(|value| value.value)
}

/// The value of a `BoolValue`.
pub(crate) fn bool_value(value: &Option<google::BoolValue>) -> Option<bool> {
    value.as_ref().map(|value| value.value)
}

/// Boxed copies of strings.
pub(crate) fn boxed(values: &[String]) -> Vec<Box<str>> {
    values.iter().map(|value| value.as_str().into()).collect()
}

/// Lower-cased copy of a header name.
pub(crate) fn lower(name: &str) -> Box<str> {
    name.to_ascii_lowercase().into()
}

/// The serialized form of a part that a later stage decodes.
pub(crate) fn serialized<M: Message>(message: &M) -> Bytes {
    Bytes::from(message.encode_to_vec())
}

/// Entries of a protobuf map in the order of their keys, so that errors and results do not vary.
pub(crate) fn sorted<V>(map: &std::collections::HashMap<String, V>) -> Vec<(&String, &V)> {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_by_key(|(key, _)| *key);
    entries
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Errors of a decoder as `path: message` lines, for the tests of every area.
    pub(crate) fn errors<T: std::fmt::Debug>(result: Result<T, Vec<ConfigError>>) -> Vec<String> {
        result.expect_err("the configuration has errors").iter().map(ToString::to_string).collect()
    }

    #[test]
    fn errors_carry_the_path_and_none_is_lost() {
        let mut cx = Context::new(FieldPath::root().field("static_resources"));
        let result = cx.run(|cx| {
            cx.each("clusters", &[1, 2, 3], |cx, n| {
                (*n == 2).then_some(()).or_else(|| {
                    cx.error_at("name", format!("bad {n}"));
                    None
                })
            });
            Some(())
        });
        assert_eq!(
            errors(result),
            ["static_resources.clusters[0].name: bad 1", "static_resources.clusters[2].name: bad 3",]
        );
    }

    #[test]
    fn a_context_is_usable_again_after_errors() {
        let mut cx = Context::default();
        assert!(
            cx.run(|cx| {
                cx.error("x");
                Some(())
            })
            .is_err()
        );
        assert!(cx.run(|_| Some(())).is_ok());
    }

    #[test]
    fn durations_below_zero_or_beyond_290_years_are_errors() {
        let mut cx = Context::default();
        let result = cx.run(|cx| cx.duration("timeout", &Some(google::Duration { seconds: -1, nanos: 0 })));
        assert_eq!(errors(result), ["timeout: Invalid duration: Expected positive duration"]);
        let mut seconds =
            |seconds| cx.run(|cx| cx.duration("timeout", &Some(google::Duration { seconds, nanos: 999_999_999 })));
        assert!(seconds(9_223_372_035).is_ok());
        assert_eq!(errors(seconds(9_223_372_036)), ["timeout: Invalid duration: Duration out-of-range"]);
    }

    #[test]
    fn an_expression_is_compiled_once() {
        let mut cx = Context::default();
        cx.compile("a+", true).unwrap();
        cx.compile("a+", true).unwrap();
        assert_eq!(cx.regexes.len(), 1);
    }

    #[test]
    fn an_unknown_cluster_gets_a_suggestion() {
        let mut cx = Context::default();
        cx.set_clusters(["backend".into()]);
        let result = cx.run(|cx| {
            cx.unknown_cluster("route: unknown cluster 'backned'".into(), "backned");
            Some(())
        });
        assert_eq!(errors(result), ["route: unknown cluster 'backned'; did you mean 'backend'?"]);
    }
}
