//! Keepalive pings of HTTP/2 connections: `connection_keepalive`.

use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use nuncio_base::timer::{self, Sleep};
use nuncio_config::hcm::Http2Options;

use super::machine::Connection;

/// Pings the peer of one connection.
#[derive(Debug)]
pub(super) struct Keepalive {
    /// Zero: only when a stream is opened after a silence.
    interval: Duration,
    /// Thousandths of the interval that is added at most.
    jitter: u32,
    timeout: Duration,
    sleep: Sleep,
    waiting: bool,
}

impl Keepalive {
    /// None when the options ask for no pings at intervals.
    pub(super) fn new(options: &Http2Options) -> Option<Keepalive> {
        let interval = options.keepalive_interval.filter(|i| !i.is_zero())?;
        Some(Keepalive {
            interval,
            jitter: options.keepalive_jitter,
            timeout: options.keepalive_timeout,
            sleep: timer::sleep(jittered(interval, options.keepalive_jitter)),
            waiting: false,
        })
    }

    /// Pings that are only sent when they are asked for.
    pub(super) fn on_demand(options: &Http2Options) -> Keepalive {
        let timeout = options.keepalive_timeout;
        Keepalive { interval: Duration::ZERO, jitter: 0, timeout, sleep: timer::sleep(timeout), waiting: false }
    }

    /// True when the peer did not answer in time.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, connection: &mut Connection) -> bool {
        if std::mem::take(&mut connection.ping_wanted) && !self.waiting {
            self.ping(connection);
        }
        loop {
            if self.waiting && std::mem::take(&mut connection.pong) {
                self.waiting = false;
                if !self.interval.is_zero() {
                    self.sleep.reset(jittered(self.interval, self.jitter));
                }
            } else if self.waiting && std::mem::take(&mut connection.heard) {
                // The answer may stand behind other frames: a peer that sends is alive.
                self.sleep.reset(self.timeout);
            }
            if !self.waiting && self.interval.is_zero() {
                return false;
            }
            if Pin::new(&mut self.sleep).poll(cx).is_pending() {
                return false;
            }
            if self.waiting {
                return true;
            }
            self.ping(connection);
        }
    }

    fn ping(&mut self, connection: &mut Connection) {
        connection.keepalive_ping();
        self.waiting = true;
        self.sleep.reset(self.timeout);
    }
}

/// Not all connections at once.
fn jittered(interval: Duration, per_mille: u32) -> Duration {
    let most = interval.as_millis() as u64 * u64::from(per_mille) / 1000;
    if most == 0 { interval } else { interval + Duration::from_millis(fastrand::u64(0..most)) }
}
