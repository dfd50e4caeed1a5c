//! A filter chain without filters: its connections are closed, as Envoy does.

use futures_util::future::LocalBoxFuture;
use nuncio_net::connection::Connection;
use nuncio_net::listener::{FilterChainFactory, FilterChainHandler};
use std::rc::Rc;

/// Closes every connection.
pub(crate) struct EmptyChain;

impl FilterChainFactory for EmptyChain {
    fn create(&self) -> Rc<dyn FilterChainHandler> {
        Rc::new(EmptyChain)
    }
}

impl FilterChainHandler for EmptyChain {
    fn serve(self: Rc<Self>, connection: Connection) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move { drop(connection) })
    }
}
