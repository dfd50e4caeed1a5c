//! Parts of a connection manager that few configurations have, compiled: kept apart, so that the others pay nothing for them.
//!
//! Built with the connection manager; the active stream asks for each part where Envoy does.

use nuncio_config::hcm::{ClientCertForwarding, HcmConfig};

use crate::header_mutation::MutationList;
use crate::header_rules::LocalInfo;
use crate::proxy_status::ProxyStatus;
use crate::route::matching::{self, RequestTree};

/// See the module's documentation.
pub struct HcmRules {
    /// Which requests forward client certificates in another way.
    pub(crate) client_cert: Option<RequestTree<ClientCertForwarding>>,
    /// Mutations of requests before all else.
    pub(crate) early: Box<[MutationList]>,
    /// The header `proxy-status`.
    pub(crate) proxy_status: Option<ProxyStatus>,
}

impl HcmRules {
    /// None where the configuration has none of them.
    ///
    /// # Errors
    /// What cannot be compiled, each with its path.
    pub fn build(config: &HcmConfig, local: &LocalInfo) -> Result<Option<Box<HcmRules>>, Vec<(String, String)>> {
        let mut errors = Vec::new();
        let client_cert = config.forward_client_cert_matcher.as_deref().and_then(|tree| {
            let report = |text| errors.push((format!("{}.forward_client_cert_matcher", config.path), text));
            matching::compile(tree).map_err(report).ok()
        });
        let proxy_status =
            config.proxy_status.as_deref().map(|status| ProxyStatus::build(status, &config.server_name, local));
        let mut early = Vec::new();
        for (at, mutations) in config.early_header_mutations.iter().enumerate() {
            let path = format!("{}.early_header_mutation_extensions[{at}].typed_config.mutations", config.path);
            match MutationList::build(mutations) {
                Ok(list) => early.push(list),
                Err(found) => errors.extend(found.into_iter().map(|(at, text)| (format!("{path}[{at}]"), text))),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let any = client_cert.is_some() || proxy_status.is_some() || !early.is_empty();
        Ok(any.then(|| Box::new(HcmRules { client_cert, early: early.into(), proxy_status })))
    }
}
