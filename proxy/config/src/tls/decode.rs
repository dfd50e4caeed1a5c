//! TLS contexts and secrets decoded, with what rustls cannot do told as errors.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use pb::common_tls_context::ValidationContextType;

use super::{
    CertificateSource, CommonTlsContext, DownstreamTlsContext, KeyLogConfig, SanMatcher, SanType, SdsSecretConfig,
    TlsCertificate, TlsVersion, UpstreamTlsContext, ValidationContext, ValidationSource,
};
use crate::data_source::DataSource;
use crate::decode::{Context, StaticSecret, bool_value, boxed, serialized, u32_value};
use crate::diagnostics::closest;
use crate::matchers::{StringMatcher, cidr_range};

/// TLS 1.2 suites that rustls has, by their OpenSSL and IANA names.
const SUITES: [(&str, &str); 6] = [
    ("ECDHE-ECDSA-AES128-GCM-SHA256", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"),
    ("ECDHE-RSA-AES128-GCM-SHA256", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
    ("ECDHE-ECDSA-AES256-GCM-SHA384", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"),
    ("ECDHE-RSA-AES256-GCM-SHA384", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"),
    ("ECDHE-RSA-CHACHA20-POLY1305", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"),
];

/// Suites with RSA key exchange: offered beside others they are left out, which loses no security.
const RSA_KEY_EXCHANGE: [&str; 2] = ["AES128-GCM-SHA256", "AES256-GCM-SHA384"];

/// CBC suites that BoringSSL knows and rustls does not.
const CBC: [&str; 9] = [
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA256",
    "AES128-SHA",
    "AES256-SHA",
    "DES-CBC3-SHA",
    "ECDHE-PSK-AES128-CBC-SHA",
];

const CURVES: [&str; 4] = ["X25519MLKEM768", "X25519", "P-256", "P-384"];

impl StaticSecret {
    /// `Secret` of the static resources: its name is the caller's business.
    pub fn decode(cx: &mut Context, message: &pb::Secret) -> Option<Self> {
        use pb::secret::Type;
        Some(match message.r#type.as_ref() {
            Some(Type::TlsCertificate(certificate)) => {
                StaticSecret::Certificate(cx.at("tls_certificate", |cx| TlsCertificate::decode(cx, certificate))?)
            }
            Some(Type::ValidationContext(context)) => StaticSecret::Validation(Box::new(
                cx.at("validation_context", |cx| ValidationContext::decode(cx, context))?,
            )),
            Some(Type::SessionTicketKeys(keys)) => StaticSecret::TicketKeys(
                cx.at("session_ticket_keys", |cx| cx.each("keys", &keys.keys, DataSource::decode)),
            ),
            Some(Type::GenericSecret(secret)) => StaticSecret::Generic(
                cx.at("generic_secret", |cx| cx.optional("secret", &secret.secret, DataSource::decode)),
            ),
            None => {
                cx.error("Secret type not implemented");
                return None;
            }
        })
    }
}

impl DownstreamTlsContext {
    /// Decodes the message at the current path; errors are reported to `cx`.
    pub fn from_message(cx: &mut Context, message: &pb::DownstreamTlsContext) -> Option<Self> {
        use pb::downstream_tls_context::SessionTicketKeysType as Keys;
        let empty = pb::CommonTlsContext::default();
        let common_message = message.common_tls_context.as_ref().unwrap_or(&empty);
        let common = cx.at("common_tls_context", |cx| {
            let before = cx.error_count();
            let common = CommonTlsContext::decode(cx, common_message)?;
            let (fixed, fetched) =
                (common_message.tls_certificates.len(), common_message.tls_certificate_sds_secret_configs.len());
            if fixed > 0 && fetched > 0 {
                cx.error("SDS and non-SDS TLS certificates may not be mixed in server contexts");
            } else if common.certificates.is_empty() && cx.error_count() == before {
                cx.error("No TLS certificates found for server context");
            }
            Some(common)
        });
        let mut session_ticket_keys = Vec::new();
        let mut session_ticket_keys_sds = None;
        match &message.session_ticket_keys_type {
            Some(Keys::SessionTicketKeys(keys)) => {
                session_ticket_keys =
                    cx.at("session_ticket_keys", |cx| cx.each("keys", &keys.keys, DataSource::decode));
            }
            Some(Keys::SessionTicketKeysSdsSecretConfig(config)) => {
                session_ticket_keys = cx.at("session_ticket_keys_sds_secret_config", |cx| {
                    if config.sds_config.is_some() {
                        session_ticket_keys_sds = Some(SdsSecretConfig::decode(config));
                        return Vec::new();
                    }
                    match cx.ticket_keys_secret(&config.name) {
                        Some(keys) => keys,
                        None => unknown_secret(cx, &config.name).unwrap_or_default(),
                    }
                });
            }
            _ => {}
        }
        if message.ocsp_staple_policy != pb::downstream_tls_context::OcspStaplePolicy::LenientStapling as i32 {
            cx.error_at(
                "ocsp_staple_policy",
                "only LENIENT_STAPLING is supported: a staple is sent when there is one, whatever its age",
            );
        }
        Some(DownstreamTlsContext {
            require_client_certificate: bool_value(&message.require_client_certificate).unwrap_or(false),
            require_sni: bool_value(&message.require_sni).unwrap_or(false),
            full_scan_certs_on_sni_mismatch: bool_value(&message.full_scan_certs_on_sni_mismatch).unwrap_or(false),
            disable_stateless_session_resumption: matches!(
                message.session_ticket_keys_type,
                Some(Keys::DisableStatelessSessionResumption(true))
            ),
            disable_stateful_session_resumption: message.disable_stateful_session_resumption,
            session_ticket_keys,
            session_ticket_keys_sds,
            session_timeout: cx.duration("session_timeout", &message.session_timeout),
            prefer_client_ciphers: message.prefer_client_ciphers,
            common: common?,
        })
    }
}

impl UpstreamTlsContext {
    /// Decodes the message at the current path; errors are reported to `cx`.
    pub fn from_message(cx: &mut Context, message: &pb::UpstreamTlsContext) -> Option<Self> {
        let empty = pb::CommonTlsContext::default();
        let common_message = message.common_tls_context.as_ref().unwrap_or(&empty);
        let common = cx.at("common_tls_context", |cx| {
            let common = CommonTlsContext::decode(cx, common_message)?;
            if common.certificates.len() > 1 {
                cx.error("Multiple TLS certificates are not supported for client contexts");
            }
            Some(common)
        })?;
        if message.auto_sni_san_validation && common.validation.is_none() {
            cx.error("'auto_sni_san_validation' was configured without a validation context");
        }
        Some(UpstreamTlsContext {
            sni: message.sni.as_str().into(),
            auto_host_sni: message.auto_host_sni,
            auto_sni_san_validation: message.auto_sni_san_validation,
            max_session_keys: u32_value(&message.max_session_keys).unwrap_or(1),
            common,
        })
    }
}

impl CommonTlsContext {
    fn decode(cx: &mut Context, message: &pb::CommonTlsContext) -> Option<Self> {
        let params = message.tls_params.clone().unwrap_or_default();
        let (min_version, max_version, cipher_suites, curves) = cx.at("tls_params", |cx| {
            let (min, max) = versions(cx, &params);
            (min, max, ciphers(cx, &params.cipher_suites), curves(cx, &params.ecdh_curves))
        });
        for (set, field) in [
            (message.custom_handshaker.is_some(), "custom_handshaker"),
            (message.custom_tls_certificate_selector.is_some(), "custom_tls_certificate_selector"),
            (message.tls_certificate_provider_instance.is_some(), "tls_certificate_provider_instance"),
            (message.tls_certificate_certificate_provider.is_some(), "tls_certificate_certificate_provider"),
            (
                message.tls_certificate_certificate_provider_instance.is_some(),
                "tls_certificate_certificate_provider_instance",
            ),
        ] {
            if set {
                cx.error_at(field, "not implemented: certificates come from files, inline data or SDS");
            }
        }
        let mut certificates = cx.each("tls_certificates", &message.tls_certificates, |cx, certificate| {
            TlsCertificate::decode(cx, certificate).map(CertificateSource::Static)
        });
        certificates.extend(cx.each(
            "tls_certificate_sds_secret_configs",
            &message.tls_certificate_sds_secret_configs,
            |cx, config| {
                if config.sds_config.is_some() {
                    return Some(CertificateSource::Sds(SdsSecretConfig::decode(config)));
                }
                match cx.certificate_secret(&config.name) {
                    Some(certificate) => Some(CertificateSource::Static(certificate)),
                    None => unknown_secret(cx, &config.name),
                }
            },
        ));
        let before = cx.error_count();
        let key_log = cx.optional("key_log", &message.key_log, |cx, log| {
            Some(KeyLogConfig {
                path: log.path.as_str().into(),
                local: cx.each("local_address_range", &log.local_address_range, cidr_range),
                remote: cx.each("remote_address_range", &log.remote_address_range, cidr_range),
            })
        });
        let key_log = key_log.filter(|log| !log.path.is_empty());
        let validation = validation(cx, message);
        if cx.error_count() > before {
            return None;
        }
        let protocols = || message.alpn_protocols.iter().flat_map(|protocols| protocols.split(','));
        // RFC 7301 has one byte for the length.
        if protocols().any(|protocol| protocol.len() > 255) {
            cx.error_at("alpn_protocols", "Invalid ALPN protocol string");
        }
        Some(CommonTlsContext {
            min_version,
            max_version,
            cipher_suites,
            curves,
            certificates,
            validation,
            // One entry may hold several protocols, as Envoy joins and splits them at commas.
            alpn_protocols: protocols().filter(|protocol| !protocol.is_empty()).map(Into::into).collect(),
            key_log,
            path: cx.path_text(),
        })
    }
}

fn versions(cx: &mut Context, params: &pb::TlsParameters) -> (TlsVersion, TlsVersion) {
    use pb::tls_parameters::TlsProtocol;
    let mut version = |field, protocol, auto| match protocol {
        TlsProtocol::TlsAuto => auto,
        TlsProtocol::TlSv12 => TlsVersion::V1_2,
        TlsProtocol::TlSv13 => TlsVersion::V1_3,
        TlsProtocol::TlSv10 | TlsProtocol::TlSv11 => {
            let name = if protocol == TlsProtocol::TlSv10 { "TLSv1_0" } else { "TLSv1_1" };
            cx.error_at(field, format!("{name} is not supported: rustls speaks TLS 1.2 and TLS 1.3 only"));
            auto
        }
    };
    let min = version("tls_minimum_protocol_version", params.tls_minimum_protocol_version(), TlsVersion::V1_2);
    let max = version("tls_maximum_protocol_version", params.tls_maximum_protocol_version(), TlsVersion::V1_3);
    if min > max {
        cx.error("tls_minimum_protocol_version is above tls_maximum_protocol_version: no version is left");
    }
    (min, max)
}

fn ciphers(cx: &mut Context, names: &[String]) -> Vec<Box<str>> {
    let mut suites: Vec<Box<str>> = Vec::new();
    cx.at("cipher_suites", |cx| {
        let before = cx.error_count();
        for (index, entry) in names.iter().enumerate() {
            // "[A|B]" is a group of equal preference.
            let group = entry.trim_start_matches('[').trim_end_matches(']');
            for name in group.split(['|', ':']).filter(|name| !name.is_empty()) {
                if let Some((suite, _)) = SUITES.iter().find(|(openssl, iana)| name == *openssl || name == *iana) {
                    suites.push((*suite).into());
                } else if RSA_KEY_EXCHANGE.contains(&name)
                    || name.starts_with("TLS_RSA_WITH_AES_") && name.contains("GCM")
                {
                    tracing::debug!("cipher suite {name} left out: rustls has no RSA key exchange");
                } else {
                    cx.at_index(index, |cx| cx.error(refused(name)));
                }
            }
        }
        if suites.is_empty() && !names.is_empty() && cx.error_count() == before {
            cx.error("none of these cipher suites is supported: rustls has no RSA key exchange");
        }
    });
    suites
}

fn refused(name: &str) -> String {
    if CBC.contains(&name) || name.contains("_CBC_") {
        format!("cipher suite {name} is not supported: rustls has no CBC suites")
    } else {
        let known = SUITES.iter().map(|(suite, _)| *suite).collect::<Vec<_>>().join(", ");
        format!(
            "Failed to initialize cipher suites {name}. The following ciphers were rejected when tried individually: {name} (supported: {known})"
        )
    }
}

fn curves(cx: &mut Context, names: &[String]) -> Vec<Box<str>> {
    cx.each("ecdh_curves", names, |cx, name| {
        if CURVES.contains(&name.as_str()) {
            return Some(name.as_str().into());
        }
        cx.error_with_suggestion(
            format!("Failed to initialize ECDH curves {name} (supported: {})", CURVES.join(", ")),
            closest(name, CURVES),
        );
        None
    })
}

fn unknown_secret<T>(cx: &mut Context, name: &str) -> Option<T> {
    let suggestion = closest(name, cx.secret_names()).map(str::to_owned);
    cx.error_with_suggestion(format!("Unknown static secret: {name}"), suggestion);
    None
}

impl SdsSecretConfig {
    fn decode(message: &pb::SdsSecretConfig) -> Self {
        SdsSecretConfig {
            name: message.name.as_str().into(),
            source: message.sds_config.as_ref().map(serialized::<core::ConfigSource>),
        }
    }
}

impl TlsCertificate {
    /// Decodes a certificate in place or one that came by SDS.
    pub fn decode(cx: &mut Context, message: &pb::TlsCertificate) -> Option<Self> {
        let pkcs12 = message.pkcs12.is_some();
        for (set, field) in [
            (message.private_key_provider.is_some(), "private_key_provider"),
            (message.certificate_chain.is_some(), "certificate_chain"),
            (message.private_key.is_some(), "private_key"),
        ] {
            if set && pkcs12 {
                cx.error_at(field, format!("Certificate configuration can't have both pkcs12 and {field}"));
                return None;
            }
        }
        if message.private_key_provider.is_some() {
            cx.error_at("private_key_provider", "not implemented: give certificate_chain and private_key as PEM");
            return None;
        }
        let watch = &message.watched_directory;
        let archive = source(cx, "pkcs12", &message.pkcs12);
        let chain = source(cx, "certificate_chain", &message.certificate_chain).or_else(|| archive.clone());
        let key = source(cx, "private_key", &message.private_key).or(archive);
        if pkcs12 {
            // Both are in it.
        } else if message.certificate_chain.is_none() {
            cx.error("Failed to load incomplete certificate: certificate chain not set");
        } else if message.private_key.is_none() {
            cx.error("Failed to load incomplete private key: private key not set");
        }
        let password = source(cx, "password", &message.password);
        let ocsp_staple = source(cx, "ocsp_staple", &message.ocsp_staple);
        let inline = message.ocsp_staple.as_ref().and_then(|staple| staple.specifier.as_ref());
        if matches!(inline, Some(core::data_source::Specifier::InlineString(_))) {
            cx.error_at("ocsp_staple", "OCSP staple cannot be provided via inline_string");
        }
        Some(TlsCertificate {
            chain: chain?.watched_by(watch),
            key: key?.watched_by(watch),
            pkcs12,
            password,
            ocsp_staple,
        })
    }
}

fn source(cx: &mut Context, field: &'static str, message: &Option<core::DataSource>) -> Option<DataSource> {
    cx.optional(field, message, DataSource::decode)
}

fn validation(cx: &mut Context, message: &pb::CommonTlsContext) -> Option<ValidationSource> {
    match message.validation_context_type.as_ref()? {
        ValidationContextType::ValidationContext(context) => {
            let context = cx.at("validation_context", |cx| {
                let context = ValidationContext::decode(cx, context)?;
                context.check(cx);
                Some(context)
            })?;
            Some(ValidationSource::Static(context))
        }
        ValidationContextType::ValidationContextSdsSecretConfig(config) => {
            cx.at("validation_context_sds_secret_config", |cx| by_secret(cx, config, None))
        }
        ValidationContextType::CombinedValidationContext(combined) => cx.at("combined_validation_context", |cx| {
            let default = cx.optional(
                "default_validation_context",
                &combined.default_validation_context,
                ValidationContext::decode,
            );
            let Some(config) = &combined.validation_context_sds_secret_config else {
                cx.error("Field 'validation_context_sds_secret_config' is missing");
                return None;
            };
            cx.at("validation_context_sds_secret_config", |cx| by_secret(cx, config, default))
        }),
        ValidationContextType::ValidationContextCertificateProvider(_)
        | ValidationContextType::ValidationContextCertificateProviderInstance(_) => {
            cx.error("certificate provider plugins are not implemented");
            None
        }
    }
}

/// A validation context by name: a static secret merged over the default, or one that SDS will bring.
fn by_secret(
    cx: &mut Context,
    config: &pb::SdsSecretConfig,
    default: Option<ValidationContext>,
) -> Option<ValidationSource> {
    if config.sds_config.is_some() {
        return Some(ValidationSource::Sds { default: default.map(Box::new), secret: SdsSecretConfig::decode(config) });
    }
    match cx.validation_secret(&config.name) {
        Some(context) => {
            let merged = match default {
                Some(default) => context.merged_over(default),
                None => context,
            };
            merged.check(cx);
            Some(ValidationSource::Static(merged))
        }
        None => unknown_secret(cx, &config.name),
    }
}

impl ValidationContext {
    /// Decodes a context without asking whether it is whole: it may yet be merged over another.
    pub fn decode(cx: &mut Context, message: &pb::CertificateValidationContext) -> Option<Self> {
        for (set, field) in [
            (message.custom_validator_config.is_some(), "custom_validator_config"),
            (message.ca_certificate_provider_instance.is_some(), "ca_certificate_provider_instance"),
        ] {
            if set {
                cx.error_at(field, "not implemented: without it peers would be trusted that should not be");
                return None;
            }
        }
        let mut sans: Vec<SanMatcher> = Vec::new();
        for matcher in cx.each("match_subject_alt_names", &message.match_subject_alt_names, StringMatcher::decode) {
            for san_type in [SanType::Dns, SanType::Uri, SanType::Email, SanType::Ip] {
                sans.push(SanMatcher { san_type, matcher: matcher.clone() });
            }
        }
        sans.extend(cx.each(
            "match_typed_subject_alt_names",
            &message.match_typed_subject_alt_names,
            SanMatcher::decode,
        ));
        let watch = &message.watched_directory;
        Some(ValidationContext {
            trusted_ca: source(cx, "trusted_ca", &message.trusted_ca).map(|source| source.watched_by(watch)),
            system_roots: message.system_root_certs.is_some(),
            verify_certificate_spki: boxed(&message.verify_certificate_spki),
            verify_certificate_hash: message
                .verify_certificate_hash
                .iter()
                .map(|hash| hash.replace(':', "").to_ascii_lowercase().into())
                .collect(),
            match_typed_subject_alt_names: sans,
            crl: source(cx, "crl", &message.crl).map(|source| source.watched_by(watch)),
            allow_expired_certificate: message.allow_expired_certificate,
            accept_untrusted: message.trust_chain_verification()
                == pb::certificate_validation_context::TrustChainVerification::AcceptUntrusted,
            only_verify_leaf_cert_crl: message.only_verify_leaf_cert_crl,
            max_verify_depth: u32_value(&message.max_verify_depth),
            suppress_client_ca_list: message.suppress_client_ca_list,
        })
    }

    /// This context over `default`, as protobuf merges messages: set fields win, lists are joined.
    pub fn merged_over(self, mut default: ValidationContext) -> ValidationContext {
        default.trusted_ca = self.trusted_ca.or(default.trusted_ca);
        default.system_roots |= self.system_roots;
        default.verify_certificate_spki.extend(self.verify_certificate_spki);
        default.verify_certificate_hash.extend(self.verify_certificate_hash);
        default.match_typed_subject_alt_names.extend(self.match_typed_subject_alt_names);
        default.crl = self.crl.or(default.crl);
        default.allow_expired_certificate |= self.allow_expired_certificate;
        default.accept_untrusted |= self.accept_untrusted;
        default.only_verify_leaf_cert_crl |= self.only_verify_leaf_cert_crl;
        default.suppress_client_ca_list |= self.suppress_client_ca_list;
        default.max_verify_depth = self.max_verify_depth.or(default.max_verify_depth);
        default
    }

    /// What a whole context may not ask for without a trusted authority.
    fn check(&self, cx: &mut Context) {
        if self.trusted_ca.is_some() || self.system_roots {
            return;
        }
        if self.crl.is_some() {
            cx.error_at("crl", "Failed to load CRL without trusted CA");
        }
        if !self.match_typed_subject_alt_names.is_empty() {
            cx.error("SAN-based verification of peer certificates without trusted CA is insecure and not allowed");
        }
        if self.allow_expired_certificate {
            cx.error_at(
                "allow_expired_certificate",
                "Certificate validity period is always ignored without trusted CA",
            );
        }
    }
}

impl SanMatcher {
    fn decode(cx: &mut Context, message: &pb::SubjectAltNameMatcher) -> Option<Self> {
        use pb::subject_alt_name_matcher::SanType as Type;
        let san_type = match message.san_type() {
            Type::Email => SanType::Email,
            Type::Dns => SanType::Dns,
            Type::Uri => SanType::Uri,
            Type::IpAddress => SanType::Ip,
            Type::OtherName if message.oid.is_empty() => {
                cx.error_at("oid", "oid is required for OTHER_NAME");
                return None;
            }
            // Names that OpenSSL has for some are not known here.
            Type::OtherName if !is_dotted_oid(&message.oid) => {
                let oid = &message.oid;
                cx.error_at("oid", format!("Failed to create SAN matcher for OTHER_NAME with OID: {oid}"));
                return None;
            }
            Type::OtherName => SanType::OtherName(message.oid.as_str().into()),
            Type::Unspecified => {
                cx.error_at("san_type", "value must not be SAN_TYPE_UNSPECIFIED");
                return None;
            }
        };
        Some(SanMatcher { san_type, matcher: cx.required("matcher", &message.matcher, StringMatcher::decode)? })
    }
}

/// Whether it is an object identifier in numbers, such as `1.3.6.1.4.1.311.20.2.3`.
fn is_dotted_oid(text: &str) -> bool {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    text.contains('.') && text.split('.').all(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::errors;
    use crate::diagnostics::ConfigError;
    use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;

    fn inline(text: &str) -> Option<core::DataSource> {
        let specifier = Some(core::data_source::Specifier::InlineString(text.into()));
        Some(core::DataSource { specifier, ..Default::default() })
    }

    fn certificate() -> pb::TlsCertificate {
        pb::TlsCertificate { certificate_chain: inline("c"), private_key: inline("k"), ..Default::default() }
    }

    fn downstream(common: pb::CommonTlsContext) -> Result<DownstreamTlsContext, Vec<ConfigError>> {
        let message = pb::DownstreamTlsContext { common_tls_context: Some(common), ..Default::default() };
        Context::default().run(|cx| DownstreamTlsContext::from_message(cx, &message))
    }

    fn with_params(params: pb::TlsParameters) -> Result<DownstreamTlsContext, Vec<ConfigError>> {
        let tls_certificates = vec![certificate()];
        downstream(pb::CommonTlsContext { tls_params: Some(params), tls_certificates, ..Default::default() })
    }

    #[test]
    fn the_default_versions_are_1_2_and_1_3() {
        let context = with_params(pb::TlsParameters::default()).unwrap().common;
        assert_eq!((context.min_version, context.max_version), (TlsVersion::V1_2, TlsVersion::V1_3));
    }

    #[test]
    fn tls_1_0_is_refused_with_the_reason() {
        let params = pb::TlsParameters { tls_minimum_protocol_version: 1, ..Default::default() };
        assert_eq!(
            errors(with_params(params)),
            [
                "common_tls_context.tls_params.tls_minimum_protocol_version: TLSv1_0 is not supported: rustls speaks TLS 1.2 and TLS 1.3 only"
            ]
        );
    }

    #[test]
    fn staples_cannot_be_demanded() {
        let common = pb::CommonTlsContext { tls_certificates: vec![certificate()], ..Default::default() };
        let message = pb::DownstreamTlsContext {
            common_tls_context: Some(common),
            ocsp_staple_policy: pb::downstream_tls_context::OcspStaplePolicy::MustStaple.into(),
            ..Default::default()
        };
        let result = Context::default().run(|cx| DownstreamTlsContext::from_message(cx, &message));
        assert_eq!(
            errors(result),
            [
                "ocsp_staple_policy: only LENIENT_STAPLING is supported: a staple is sent when there is one, whatever its age"
            ]
        );
    }

    #[test]
    fn cbc_suites_are_refused_with_the_reason() {
        let cipher_suites = vec!["ECDHE-RSA-AES128-GCM-SHA256".into(), "ECDHE-RSA-AES128-SHA".into()];
        let params = pb::TlsParameters { cipher_suites, ..Default::default() };
        assert_eq!(
            errors(with_params(params)),
            [
                "common_tls_context.tls_params.cipher_suites[1]: cipher suite ECDHE-RSA-AES128-SHA is not supported: rustls has no CBC suites"
            ]
        );
    }

    #[test]
    fn groups_of_suites_are_flattened_and_rsa_key_exchange_is_left_out() {
        let cipher_suites =
            vec!["[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]".into(), "AES128-GCM-SHA256".into()];
        let params = pb::TlsParameters { cipher_suites, ..Default::default() };
        let suites = with_params(params).unwrap().common.cipher_suites;
        assert_eq!(suites, ["ECDHE-ECDSA-AES128-GCM-SHA256".into(), "ECDHE-ECDSA-CHACHA20-POLY1305".into()]);
        let params = pb::TlsParameters { cipher_suites: vec!["AES128-GCM-SHA256".into()], ..Default::default() };
        assert!(errors(with_params(params))[0].ends_with("rustls has no RSA key exchange"));
    }

    #[test]
    fn a_server_needs_a_certificate() {
        assert_eq!(
            errors(downstream(pb::CommonTlsContext::default())),
            ["common_tls_context: No TLS certificates found for server context"]
        );
    }

    fn sds(name: &str) -> pb::SdsSecretConfig {
        pb::SdsSecretConfig { name: name.into(), sds_config: None }
    }

    #[test]
    fn a_static_secret_is_resolved_by_name() {
        let mut cx = Context::default();
        let secret = TlsCertificate::decode(&mut cx, &certificate()).unwrap();
        cx.add_secret("server", StaticSecret::Certificate(secret));
        let message = |name: &str| pb::DownstreamTlsContext {
            common_tls_context: Some(pb::CommonTlsContext {
                tls_certificate_sds_secret_configs: vec![sds(name)],
                ..Default::default()
            }),
            ..Default::default()
        };
        let context = cx.run(|cx| DownstreamTlsContext::from_message(cx, &message("server"))).unwrap();
        assert!(matches!(context.common.certificates[0], CertificateSource::Static(_)));
        let result = cx.run(|cx| DownstreamTlsContext::from_message(cx, &message("servre")));
        assert_eq!(
            errors(result),
            [
                "common_tls_context.tls_certificate_sds_secret_configs[0]: Unknown static secret: servre; did you mean 'server'?"
            ]
        );
    }

    fn san() -> pb::SubjectAltNameMatcher {
        let exact = matcher::string_matcher::MatchPattern::Exact("a".into());
        let matcher = matcher::StringMatcher { match_pattern: Some(exact), ..Default::default() };
        pb::SubjectAltNameMatcher { san_type: 2, matcher: Some(matcher), ..Default::default() }
    }

    fn upstream(kind: ValidationContextType, cx: &mut Context) -> Result<UpstreamTlsContext, Vec<ConfigError>> {
        let message = pb::UpstreamTlsContext {
            common_tls_context: Some(pb::CommonTlsContext {
                validation_context_type: Some(kind),
                ..Default::default()
            }),
            ..Default::default()
        };
        cx.run(|cx| UpstreamTlsContext::from_message(cx, &message))
    }

    #[test]
    fn san_matchers_need_a_trusted_authority() {
        let context =
            pb::CertificateValidationContext { match_typed_subject_alt_names: vec![san()], ..Default::default() };
        let result = upstream(ValidationContextType::ValidationContext(context), &mut Context::default());
        assert_eq!(
            errors(result),
            [
                "common_tls_context.validation_context: SAN-based verification of peer certificates without trusted CA is insecure and not allowed"
            ]
        );
    }

    #[test]
    fn a_combined_context_takes_the_authority_from_the_secret() {
        let mut cx = Context::default();
        let ca = pb::CertificateValidationContext { trusted_ca: inline("ca"), ..Default::default() };
        let ca = ValidationContext::decode(&mut cx, &ca).unwrap();
        cx.add_secret("ca", StaticSecret::Validation(Box::new(ca)));
        let combined = pb::common_tls_context::CombinedCertificateValidationContext {
            default_validation_context: Some(pb::CertificateValidationContext {
                match_typed_subject_alt_names: vec![san()],
                ..Default::default()
            }),
            validation_context_sds_secret_config: Some(sds("ca")),
            ..Default::default()
        };
        let context = upstream(ValidationContextType::CombinedValidationContext(combined), &mut cx).unwrap();
        let Some(ValidationSource::Static(validation)) = context.common.validation else { panic!("not static") };
        assert!(validation.trusted_ca.is_some());
        assert_eq!(validation.match_typed_subject_alt_names.len(), 1);
    }

    #[test]
    fn an_untyped_san_matcher_tries_every_type() {
        let context = pb::CertificateValidationContext {
            trusted_ca: inline("ca"),
            match_subject_alt_names: vec![san().matcher.unwrap()],
            ..Default::default()
        };
        let context = ValidationContext::decode(&mut Context::default(), &context).unwrap();
        assert_eq!(context.match_typed_subject_alt_names.len(), 4);
    }

    #[test]
    fn a_client_has_one_certificate_at_most() {
        let message = pb::UpstreamTlsContext {
            common_tls_context: Some(pb::CommonTlsContext {
                tls_certificates: vec![certificate(), certificate()],
                ..Default::default()
            }),
            ..Default::default()
        };
        let result = Context::default().run(|cx| UpstreamTlsContext::from_message(cx, &message));
        assert_eq!(
            errors(result),
            ["common_tls_context: Multiple TLS certificates are not supported for client contexts"]
        );
    }

    #[test]
    fn protocols_in_one_alpn_entry_are_split() {
        let context = downstream(pb::CommonTlsContext {
            tls_certificates: vec![certificate()],
            alpn_protocols: vec!["h2,http/1.1".into()],
            ..Default::default()
        });
        assert_eq!(context.unwrap().common.alpn_protocols, ["h2".into(), "http/1.1".into()]);
    }

    #[test]
    fn hashes_are_stored_without_colons_in_lower_case() {
        let context =
            pb::CertificateValidationContext { verify_certificate_hash: vec!["DF:6F".into()], ..Default::default() };
        let context = ValidationContext::decode(&mut Context::default(), &context).unwrap();
        assert_eq!(context.verify_certificate_hash, ["df6f".into()]);
    }
}
