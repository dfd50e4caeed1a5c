//! Keepalive pings of HTTP/2 connections: `connection_keepalive.interval` and `timeout`.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use nuncio_base::timer::{self, Sleep};
use nuncio_config::hcm::Http2Options;

/// Pings the peer of one connection.
pub(super) struct Keepalive {
    pings: PingPong,
    interval: Duration,
    timeout: Duration,
    sleep: Sleep,
    waiting: bool,
}

impl Keepalive {
    /// None when the options ask for no pings.
    pub(super) fn new(options: &Http2Options, pings: Option<PingPong>) -> Option<Keepalive> {
        let interval = options.keepalive_interval.filter(|i| !i.is_zero())?;
        Some(Keepalive {
            pings: pings?,
            interval,
            timeout: options.keepalive_timeout,
            sleep: timer::sleep(interval),
            waiting: false,
        })
    }

    /// Ready when the peer did not answer in time.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.waiting
                && let Poll::Ready(answer) = self.pings.poll_pong(cx)
            {
                // An error is the connection's own end, which is seen elsewhere.
                if answer.is_err() {
                    return Poll::Pending;
                }
                self.waiting = false;
                self.sleep.reset(self.interval);
                continue;
            }
            match Pin::new(&mut self.sleep).poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) if self.waiting => return Poll::Ready(()),
                Poll::Ready(()) => {
                    if self.pings.send_ping(Ping::opaque()).is_err() {
                        return Poll::Pending;
                    }
                    self.waiting = true;
                    self.sleep.reset(self.timeout);
                }
            }
        }
    }
}
