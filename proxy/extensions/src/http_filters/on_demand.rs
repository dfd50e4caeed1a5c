//! `envoy.filters.http.on_demand`: a request that has no route waits until the routes for it have been asked for.
//!
//! What there is to ask for (a virtual host, the routes of a scope) is known to the connection manager. The filter decides
//! only that it is to be asked.

use crate::registry::HttpFilterEntry;
use envoy_types::pb::envoy::extensions::filters::http::on_demand::v3::OnDemand as Message;
use nuncio_http::filter::{HeadersAction, Hooks, HttpFilter, StreamView};

/// The filter.
pub struct OnDemand;

impl HttpFilter for OnDemand {
    type State = ();

    fn hooks(&self) -> Hooks {
        Hooks { decode_headers: true, ..Hooks::default() }
    }

    fn decode_headers(&self, _: &mut (), _: &mut StreamView<'_>, _: bool) -> HeadersAction {
        HeadersAction::OnDemand(None)
    }
}

/// The filter in the registry.
pub const ENTRY: HttpFilterEntry = HttpFilterEntry {
    name: "envoy.filters.http.on_demand",
    message: "envoy.extensions.filters.http.on_demand.v3.OnDemand",
    terminal: false,
    build: |filter, _, chain| {
        <Message as prost::Message>::decode(filter.config.value.clone()).map_err(|e| e.to_string())?;
        chain.push(filter.name.clone(), OnDemand);
        Ok(())
    },
};
