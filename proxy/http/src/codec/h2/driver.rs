//! A connection on its byte stream: reads into the worker's buffers, feeds the machine, writes what it has to send.
//!
//! One task polls the driver; stream handles only change the machine and wake that task, once for all of them. An idle
//! connection owns no buffer.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use nuncio_net::connection::ByteMeter;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::Config;
use super::keepalive::Keepalive;
use super::machine::{Connection, End, MAX_SLICES, Role};
use crate::codec::h1::input::Input;

/// Bytes that are read before others get their turn.
const TURN: usize = 128 * 1024;
/// Frames that answer the peer and wait, from which on they are written before more is read.
const MANY_ANSWERS: usize = 128;

/// The machine, shared with its streams.
pub(super) type Shared = Rc<RefCell<Connection>>;

/// What a poll of the driver found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// The connection has ended, and what could be written is.
    Ended,
    /// Nothing to do now.
    Idle,
}

/// The driver.
pub(super) struct Driver<I> {
    io: I,
    input: Input,
    connection: Shared,
    keepalive: Option<Keepalive>,
    /// The machine has said something before: a server's first words wait for the client's.
    spoken: bool,
    /// Who is told what waits for the socket.
    meter: Option<Rc<ByteMeter>>,
}

impl<I> Driver<I> {
    /// The connection is left: its streams learn it.
    pub(super) fn close(&self) {
        self.connection.borrow_mut().finish(End::Closed);
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Driver<I> {
    pub(super) fn new(io: I, role: Role, config: Rc<Config>) -> Driver<I> {
        let keepalive = Keepalive::new(&config.options);
        let connection = Connection::new(role, config, Instant::now());
        Driver {
            io,
            input: Input::default(),
            connection: Rc::new(RefCell::new(connection)),
            keepalive,
            spoken: role == Role::Client,
            meter: None,
        }
    }

    /// The peer has sent something.
    pub(super) fn peer_has_spoken(&self) -> bool {
        self.spoken
    }

    pub(super) fn count_waiting(&mut self, meter: Rc<ByteMeter>) {
        self.meter = Some(meter);
    }

    pub(super) fn connection(&self) -> &Shared {
        &self.connection
    }

    /// Reads, works and writes until nothing more can be done. With `Idle` the task is woken for the next thing.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Progress {
        self.connection.borrow_mut().driver_begins();
        self.read(cx);
        if self.keepalive.is_some() || self.connection.borrow().ping_wanted {
            self.poll_keepalive(cx);
        }
        self.write(cx);
        let mut connection = self.connection.borrow_mut();
        if connection.is_done() {
            connection.finish(End::Graceful);
        }
        if connection.end().is_some() && (connection.out.is_empty() || connection.blocked || !self.spoken) {
            return Progress::Ended;
        }
        connection.driver_sleeps(cx.waker());
        if let Some(meter) = &self.meter {
            meter.set_waiting(connection.out.len());
        }
        Progress::Idle
    }

    fn read(&mut self, cx: &mut Context<'_>) {
        let mut taken = 0;
        while self.connection.borrow().end().is_none() {
            match self.input.poll_read(&mut self.io, cx, false) {
                Poll::Pending => return,
                Poll::Ready(Ok(0) | Err(_)) => {
                    self.connection.borrow_mut().finish(End::Closed);
                    return;
                }
                Poll::Ready(Ok(n)) => {
                    taken += n;
                    self.spoken = true;
                    let mut connection = self.connection.borrow_mut();
                    connection.now = Instant::now();
                    connection.recv(&mut self.input.buf);
                    let answers = connection.out.control_frames();
                    drop(connection);
                    if answers >= MANY_ANSWERS {
                        self.write(cx);
                    }
                    if taken >= TURN {
                        // The streams shall take what came, before more does.
                        cx.waker().wake_by_ref();
                        return;
                    }
                }
            }
        }
        self.input.discard();
    }

    fn poll_keepalive(&mut self, cx: &mut Context<'_>) {
        let mut connection = self.connection.borrow_mut();
        if connection.end().is_some() {
            return;
        }
        if self.keepalive.is_none() {
            self.keepalive = Some(Keepalive::on_demand(&connection.config.options));
        }
        if let Some(keepalive) = &mut self.keepalive
            && keepalive.poll(cx, &mut connection)
        {
            connection.config.stats.keepalive_timeout().inc();
            connection.out.clear();
            connection.finish(End::Silent);
        }
    }

    fn write(&mut self, cx: &mut Context<'_>) {
        if !self.spoken {
            return;
        }
        let mut connection = self.connection.borrow_mut();
        loop {
            let more = connection.pump();
            if connection.out.is_empty() {
                break;
            }
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let n = connection.out.slices(&mut slices);
            let io = Pin::new(&mut self.io);
            let written = if n == 1 || !io.is_write_vectored() {
                io.poll_write(cx, &slices[0])
            } else {
                io.poll_write_vectored(cx, &slices[..n])
            };
            match written {
                Poll::Ready(Ok(0)) => return Self::failed(&mut connection),
                Poll::Ready(Ok(n)) => connection.out.advance(n),
                Poll::Ready(Err(_)) => return Self::failed(&mut connection),
                Poll::Pending => {
                    connection.blocked = true;
                    return;
                }
            }
            if connection.out.is_empty() && !more {
                break;
            }
        }
        connection.blocked = false;
        // TLS sessions may hold records back; a failure shows with the next write.
        let _ = Pin::new(&mut self.io).poll_flush(cx);
    }

    fn failed(connection: &mut Connection) {
        connection.out.clear();
        connection.finish(End::Closed);
    }

    /// Reads and forgets what the peer still sends; ready when the peer has closed too.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // A peer that does not read what is left for it is not waited for longer than its caller does.
        self.write(cx);
        self.input.poll_drain(&mut self.io, cx)
    }

    /// Ends the writing side.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
