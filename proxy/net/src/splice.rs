//! Copies bytes both ways between two connections until both have ended: the heart of TCP proxying.
//!
//! Between two plain TCP sockets a stream's bytes never enter this process: splice(2) moves them through a pipe. Where TLS,
//! a Unix socket or memory is at one end, they go through a 64 KiB buffer from the worker's pool. So do small messages
//! between plain sockets, through a 16 KiB one: a read and a write cost less than two splices and the pipe between, until
//! reads fill the buffer. Pipes and buffers are held only while they have something in them, so that idle connections own
//! none. A reader that is slow holds its writer up: nothing
//! is queued beyond the one pipe or buffer.
//!
//! ```text
//! each direction:  open --EOF--> ending (deliver what is left) --shutdown--> done
//! ```

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use nuncio_base::buffer_pool;
use nuncio_base::timer::{Sleep, sleep};
use rustix::fd::OwnedFd;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::{AsyncReadExt as _, AsyncWrite as _, Interest};
use tokio::net::TcpStream;

use crate::connection::Io;

/// Wanted capacity of a pipe; the kernel's default of 64 KiB stays where it allows no more.
const PIPE_SIZE: usize = 256 * 1024;
/// Empty pipes that a worker keeps.
const KEEP_PIPES: usize = 32;
/// Splices in a row that a small buffer would have held, after which a direction goes back to buffers.
const SPARSE_SPLICES: u8 = 4;
/// Moves of one direction before others get their turn.
const TURN: u32 = 8;

/// One of the two connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The first argument.
    Downstream,
    /// The second argument.
    Upstream,
}

/// How to copy.
#[derive(Default)]
pub struct CopyOptions<'a> {
    /// Ends the copy when no byte has moved for this long.
    pub idle_timeout: Option<Duration>,
    /// Hears when a sender is no longer read from because the other side takes no more (true), and when it is again.
    pub paused: Option<&'a dyn Fn(Side, bool)>,
    /// Asked when bytes have moved; true ends the copy, once the downstream has what was on its way to it.
    pub over: Option<&'a dyn Fn() -> bool>,
    /// Use buffers even where splice(2) would do.
    pub no_splice: bool,
}

/// Why a copy ended.
#[derive(Debug)]
pub enum CopyEnd {
    /// Both sides have ended in order.
    Finished,
    /// A read or write on this side failed.
    Failed(Side, io::Error),
    /// No byte has moved for the idle timeout.
    IdleTimeout,
    /// [`CopyOptions::over`] said so.
    Asked,
}

/// What a copy did.
#[derive(Debug)]
pub struct CopyOutcome {
    /// Bytes from downstream that upstream took.
    pub from_downstream: u64,
    /// Bytes from upstream that downstream took.
    pub from_upstream: u64,
    /// The side that ended its sending first.
    pub closed_first: Option<Side>,
    /// Why it is over.
    pub end: CopyEnd,
}

/// Copies both ways until both sides have ended, one has failed, or nothing moves any more. An end of one side is passed
/// on to the other (half close), whose own bytes still flow.
pub async fn copy_bidirectional(downstream: &mut Io, upstream: &mut Io, options: CopyOptions<'_>) -> CopyOutcome {
    let spliced = !options.no_splice && downstream.tcp_stream().is_some() && upstream.tcp_stream().is_some();
    let mut up = Direction::new(Side::Downstream, downstream.take_prefix(), spliced);
    let mut down = Direction::new(Side::Upstream, upstream.take_prefix(), spliced);
    let mut idle = options.idle_timeout.filter(|limit| !limit.is_zero()).map(|limit| (limit, sleep(limit)));
    let mut closed_first = None;
    let mut over = false;
    let end = std::future::poll_fn(|cx| {
        if over {
            return poll_last(cx, &mut down, downstream, idle.as_mut());
        }
        let before = (up.moved, down.moved);
        let both = [up.poll(cx, downstream, upstream), down.poll(cx, upstream, downstream)];
        let after = (up.moved, down.moved);
        up.report(&options);
        down.report(&options);
        if closed_first.is_none() {
            closed_first = match (up.ended(), down.ended()) {
                (true, _) => Some(Side::Downstream),
                (_, true) => Some(Side::Upstream),
                _ => None,
            };
        }
        match both {
            [Poll::Ready(Err((side, error))), _] | [_, Poll::Ready(Err((side, error)))] => {
                Poll::Ready(CopyEnd::Failed(side, error))
            }
            [Poll::Ready(Ok(())), Poll::Ready(Ok(()))] => Poll::Ready(CopyEnd::Finished),
            _ => {
                over = before != after && options.over.is_some_and(|asked| asked());
                match over {
                    true => poll_last(cx, &mut down, downstream, idle.as_mut()),
                    false => poll_idle(cx, idle.as_mut(), before != after),
                }
            }
        }
    })
    .await;
    CopyOutcome { from_downstream: up.moved, from_upstream: down.moved, closed_first, end }
}

/// Delivers what was on its way to the downstream.
fn poll_last(
    cx: &mut Context<'_>,
    down: &mut Direction,
    downstream: &mut Io,
    idle: Option<&mut (Duration, Sleep)>,
) -> Poll<CopyEnd> {
    match down.deliver(cx, downstream) {
        Poll::Ready(_) => Poll::Ready(CopyEnd::Asked),
        Poll::Pending => poll_idle(cx, idle, false),
    }
}

fn poll_idle(cx: &mut Context<'_>, idle: Option<&mut (Duration, Sleep)>, moved: bool) -> Poll<CopyEnd> {
    let Some((limit, sleep)) = idle else { return Poll::Pending };
    if moved {
        sleep.reset(*limit);
    }
    Pin::new(sleep).poll(cx).map(|()| CopyEnd::IdleTimeout)
}

type Failure = (Side, io::Error);

/// One way of a copy.
struct Direction {
    from: Side,
    to: Side,
    state: State,
    /// Bytes that were read ahead of the copy; delivered first.
    prefix: Bytes,
    carrier: Carrier,
    /// Both ends are plain sockets, whose bytes can be spliced.
    spliced: bool,
    /// They are spliced now.
    splicing: bool,
    /// Splices in a row that moved little.
    sparse: u8,
    /// Bytes delivered.
    moved: u64,
    /// The sender waits for the receiver, and whether that was told.
    paused: bool,
    told_paused: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Ending,
    Done,
}

/// What bytes are in between their two sockets.
enum Carrier {
    Buffer { held: Option<BytesMut>, flush: bool },
    Pipe { held: Option<Pipe>, filled: usize },
}

impl Direction {
    fn new(from: Side, prefix: Bytes, spliced: bool) -> Self {
        let to = if from == Side::Downstream { Side::Upstream } else { Side::Downstream };
        let carrier = Carrier::Buffer { held: None, flush: false };
        Self {
            from,
            to,
            state: State::Open,
            prefix,
            carrier,
            spliced,
            splicing: false,
            sparse: 0,
            moved: 0,
            paused: false,
            told_paused: false,
        }
    }

    fn ended(&self) -> bool {
        self.state != State::Open
    }

    fn report(&mut self, options: &CopyOptions<'_>) {
        if self.paused != self.told_paused {
            self.told_paused = self.paused;
            if let Some(paused) = options.paused {
                paused(self.from, self.paused);
            }
        }
    }

    /// Bytes between the two sockets.
    fn held(&self) -> usize {
        let carried = match &self.carrier {
            Carrier::Buffer { held, .. } => held.as_ref().map_or(0, |buffer| buffer.len()),
            Carrier::Pipe { filled, .. } => *filled,
        };
        self.prefix.len() + carried
    }

    /// Ready when the direction has ended and its receiver knows.
    fn poll(&mut self, cx: &mut Context<'_>, source: &mut Io, sink: &mut Io) -> Poll<Result<(), Failure>> {
        let (from, to) = (self.from, self.to);
        for _ in 0..TURN {
            if self.state == State::Done {
                return Poll::Ready(Ok(()));
            }
            let delivered = self.deliver(cx, sink);
            let waiting = self.held();
            sink.meter().set_waiting(waiting);
            self.paused = waiting > 0;
            ready!(delivered).map_err(|error| (to, error))?;
            if self.state == State::Ending {
                let shut = ready!(Pin::new(&mut *sink).poll_shutdown(cx));
                self.state = State::Done;
                return Poll::Ready(shut.map_err(|error| (to, error)));
            }
            self.change_carrier();
            match ready!(self.fetch(cx, source)).map_err(|error| (from, error))? {
                0 => self.state = State::Ending,
                count => self.note_fetched(count),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Small messages go through a buffer, streams through a pipe: decides by what one fetch brought.
    fn note_fetched(&mut self, count: usize) {
        if !self.spliced {
            return;
        }
        if count >= buffer_pool::SMALL {
            (self.splicing, self.sparse) = (true, 0);
        } else if self.splicing {
            self.sparse += 1;
            if self.sparse == SPARSE_SPLICES {
                (self.splicing, self.sparse) = (false, 0);
            }
        }
    }

    /// Changes the carrier, which is empty, if it should be another one now.
    fn change_carrier(&mut self) {
        match &mut self.carrier {
            Carrier::Buffer { .. } if self.splicing => self.carrier = Carrier::Pipe { held: None, filled: 0 },
            Carrier::Pipe { held, .. } if !self.splicing => {
                if let Some(pipe) = held.take() {
                    pipe.give();
                }
                self.carrier = Carrier::Buffer { held: None, flush: false };
            }
            _ => {}
        }
    }

    /// Writes out what is held, and gives the empty carrier back.
    fn deliver(&mut self, cx: &mut Context<'_>, sink: &mut Io) -> Poll<io::Result<()>> {
        while !self.prefix.is_empty() {
            let count = ready!(Pin::new(&mut *sink).poll_write(cx, &self.prefix))?;
            self.prefix.advance(count);
            self.moved += count as u64;
        }
        match &mut self.carrier {
            Carrier::Buffer { held, flush } => {
                if let Some(buffer) = held {
                    while !buffer.is_empty() {
                        let count = ready!(Pin::new(&mut *sink).poll_write(cx, buffer))?;
                        if count == 0 {
                            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                        }
                        buffer.advance(count);
                        self.moved += count as u64;
                        *flush = true;
                    }
                }
                if let Some(buffer) = held.take() {
                    buffer_pool::give(buffer);
                }
                if *flush {
                    ready!(Pin::new(sink).poll_flush(cx))?;
                    *flush = false;
                }
            }
            Carrier::Pipe { held, filled } => {
                while let Some(pipe) = held.as_ref().filter(|_| *filled > 0) {
                    let socket = tcp(sink)?;
                    ready!(socket.poll_write_ready(cx))?;
                    let wanted = *filled;
                    match socket.try_io(Interest::WRITABLE, || pipe.empty_into(socket, wanted)) {
                        Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                        Ok(count) => {
                            *filled -= count;
                            self.moved += count as u64;
                            sink.meter().add_sent(count);
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Poll::Ready(Err(error)),
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads into the carrier, which is empty; 0 at the end.
    fn fetch(&mut self, cx: &mut Context<'_>, source: &mut Io) -> Poll<io::Result<usize>> {
        match &mut self.carrier {
            Carrier::Buffer { held, .. } => {
                let size = if self.spliced { buffer_pool::SMALL } else { buffer_pool::LARGE };
                let mut buffer = buffer_pool::take(size);
                match pin!(source.read_buf(&mut buffer)).poll(cx) {
                    Poll::Ready(Ok(count)) if count > 0 => {
                        *held = Some(buffer);
                        Poll::Ready(Ok(count))
                    }
                    other => {
                        buffer_pool::give(buffer);
                        other
                    }
                }
            }
            Carrier::Pipe { held, filled } => loop {
                let socket = tcp(source)?;
                if socket.poll_read_ready(cx)?.is_pending() {
                    if let Some(pipe) = held.take() {
                        pipe.give();
                    }
                    return Poll::Pending;
                }
                let pipe = match held {
                    Some(pipe) => pipe,
                    None => held.insert(Pipe::take()?),
                };
                // The pipe is empty, so that "would block" is about the socket.
                match socket.try_io(Interest::READABLE, || pipe.fill_from(socket)) {
                    Ok(0) => {
                        if let Some(pipe) = held.take() {
                            pipe.give();
                        }
                        return Poll::Ready(Ok(0));
                    }
                    Ok(count) => {
                        *filled = count;
                        source.meter().add_received(count);
                        return Poll::Ready(Ok(count));
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Poll::Ready(Err(error)),
                }
            },
        }
    }
}

fn tcp(io: &Io) -> io::Result<&TcpStream> {
    io.tcp_stream().ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// A pipe; empty whenever it is in the pool.
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

thread_local! {
    static PIPES: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

impl Pipe {
    /// From the worker's pool, or a new one.
    fn take() -> io::Result<Self> {
        if let Some(pipe) = PIPES.with_borrow_mut(Vec::pop) {
            return Ok(pipe);
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Refused beyond the user's limit for pipes; a smaller pipe works as well.
        let _ = fcntl_setpipe_size(&write, PIPE_SIZE);
        #[cfg(test)]
        tests::MADE.set(tests::MADE.get() + 1);
        Ok(Self { read, write })
    }

    fn give(self) {
        PIPES.with_borrow_mut(|pipes| {
            if pipes.len() < KEEP_PIPES {
                pipes.push(self);
            }
        });
    }

    fn fill_from(&self, socket: &TcpStream) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        Ok(splice(socket, None, &self.write, None, PIPE_SIZE, flags)?)
    }

    fn empty_into(&self, socket: &TcpStream, count: usize) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        Ok(splice(&self.read, None, socket, None, count, flags)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::Plain;
    use std::cell::Cell;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    const LONG: Duration = Duration::from_secs(20);

    thread_local! {
        /// Pipes made on this thread.
        pub(super) static MADE: Cell<usize> = const { Cell::new(0) };
    }

    /// A connection: this side for the proxy, the other for the test.
    async fn pair() -> (Io, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let far = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connects");
        (Io::tcp(listener.accept().await.expect("accepts").0), far)
    }

    #[tokio::test]
    async fn a_copy_ends_with_its_next_bytes_when_it_is_asked_to() {
        let (mut down, mut client) = pair().await;
        let (mut up, mut server) = pair().await;
        let enough = Cell::new(false);
        let over = || enough.get();
        let options = CopyOptions { over: Some(&over), idle_timeout: Some(LONG), ..CopyOptions::default() };
        let copy = copy_bidirectional(&mut down, &mut up, options);
        let talk = async {
            let mut got = [0; 4];
            client.write_all(b"ping").await.expect("sent");
            server.read_exact(&mut got).await.expect("read");
            enough.set(true);
            server.write_all(b"pong").await.expect("sent");
            client.read_exact(&mut got).await.expect("read");
            got
        };
        let (outcome, got) = tokio::time::timeout(LONG, async { tokio::join!(copy, talk) }).await.expect("in time");
        assert_eq!(&got, b"pong");
        assert!(matches!(outcome.end, CopyEnd::Asked), "{outcome:?}");
    }

    async fn transfers(no_splice: bool, size: usize) {
        let (mut down, mut client) = pair().await;
        let (mut up, mut server) = pair().await;
        let options = CopyOptions { no_splice, idle_timeout: Some(LONG), ..CopyOptions::default() };
        let data: Vec<u8> = (0..size).map(|at| (at * 7 % 251) as u8).collect();
        let request = data.clone();
        let answered = data.clone();
        let client = async move {
            client.write_all(&request).await.expect("sent");
            client.shutdown().await.expect("half closed");
            let mut back = Vec::new();
            client.read_to_end(&mut back).await.expect("read");
            back
        };
        let server = async move {
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.expect("read");
            // Only after the client's end: the other way must still be open.
            server.write_all(&answered[..answered.len() / 2]).await.expect("sent");
            got
        };
        let copy = copy_bidirectional(&mut down, &mut up, options);
        let all = async { tokio::join!(copy, client, server) };
        let (outcome, back, got) = tokio::time::timeout(LONG, all).await.expect("in time");
        assert!(got == data && back == data[..size / 2]);
        assert!(matches!(outcome.end, CopyEnd::Finished), "{outcome:?}");
        assert_eq!((outcome.from_downstream, outcome.from_upstream), (size as u64, size as u64 / 2));
        assert_eq!(outcome.closed_first, Some(Side::Downstream));
        assert_eq!((down.meter().received.get(), down.meter().sent.get()), (size as u64, size as u64 / 2));
        assert_eq!((up.meter().received.get(), up.meter().sent.get()), (size as u64 / 2, size as u64));
    }

    #[tokio::test]
    async fn spliced_bytes_arrive_whole_and_half_closes_pass() {
        for size in [10, 300_000, 8 << 20] {
            transfers(false, size).await;
        }
    }

    #[tokio::test]
    async fn buffered_bytes_arrive_whole_and_half_closes_pass() {
        for size in [10, 300_000, 8 << 20] {
            transfers(true, size).await;
        }
    }

    #[tokio::test]
    async fn a_sender_waits_for_a_slow_receiver_and_both_are_told() {
        for no_splice in [false, true] {
            let (mut down, client) = pair().await;
            let (mut up, mut server) = pair().await;
            let told = RefCell::new(Vec::new());
            let paused = |side: Side, paused: bool| told.borrow_mut().push((side, paused));
            let options =
                CopyOptions { no_splice, paused: Some(&paused), idle_timeout: Some(LONG), ..CopyOptions::default() };
            // More than both sockets hold.
            const SIZE: usize = 24 << 20;
            let (mut unread, mut client) = client.into_split();
            let send = async {
                client.write_all(&vec![1; SIZE]).await.expect("sent");
                client.shutdown().await.expect("ended");
            };
            let receive = async {
                while told.borrow().is_empty() {
                    tokio::task::yield_now().await;
                }
                let mut got = Vec::new();
                server.read_to_end(&mut got).await.expect("read");
                drop(server);
                got.len()
            };
            let back = async { unread.read_to_end(&mut Vec::new()).await.expect("read") };
            let meter = up.meter().clone();
            let copy = copy_bidirectional(&mut down, &mut up, options);
            let all = async { tokio::join!(copy, send, receive, back) };
            let (_, (), got, _) = tokio::time::timeout(LONG, all).await.expect("in time");
            assert_eq!(got, SIZE);
            let told = told.take();
            assert_eq!(told.first(), Some(&(Side::Downstream, true)));
            assert_eq!(told.last(), Some(&(Side::Downstream, false)));
            assert_eq!(meter.sent.get(), SIZE as u64);
        }
    }

    #[tokio::test]
    async fn bytes_read_ahead_go_first() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connects");
        let mut plain = Plain::tcp(listener.accept().await.expect("accepts").0);
        plain.unread(Bytes::from_static(b"head "));
        let mut down = Io::plain(plain);
        let (mut up, mut server) = pair().await;
        client.write_all(b"tail").await.expect("sent");
        client.shutdown().await.expect("half closed");
        let reader = async {
            let mut got = String::new();
            server.read_to_string(&mut got).await.expect("read");
            drop(server);
            got
        };
        let (outcome, got) = tokio::join!(copy_bidirectional(&mut down, &mut up, CopyOptions::default()), reader);
        assert_eq!(got, "head tail");
        assert_eq!(outcome.from_downstream, 9);
    }

    #[tokio::test]
    async fn a_reset_names_its_side() {
        let (mut down, client) = pair().await;
        let (mut up, server) = pair().await;
        Io::tcp(server).abort();
        let outcome = copy_bidirectional(&mut down, &mut up, CopyOptions::default()).await;
        assert!(matches!(outcome.end, CopyEnd::Failed(Side::Upstream, _)), "{outcome:?}");
        drop(client);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_the_copy() {
        let (near, mut client) = tokio::io::duplex(64);
        let (far, _server) = tokio::io::duplex(64);
        let (mut down, mut up) = (Io::memory(near), Io::memory(far));
        let options = CopyOptions { idle_timeout: Some(Duration::from_secs(10)), ..CopyOptions::default() };
        let start = tokio::time::Instant::now();
        let sender = async {
            tokio::time::sleep(Duration::from_secs(8)).await;
            client.write_all(b"x").await.expect("sent");
        };
        let (outcome, ()) = tokio::join!(copy_bidirectional(&mut down, &mut up, options), sender);
        assert!(matches!(outcome.end, CopyEnd::IdleTimeout), "{outcome:?}");
        let waited = start.elapsed();
        assert!(waited >= Duration::from_secs(18) && waited < Duration::from_secs(19), "{waited:?}");
    }

    /// Sends so many bytes there and back, in turn; how many pipes this made.
    async fn pipes_made(sizes: &[usize]) -> usize {
        let (mut down, mut client) = pair().await;
        let (mut up, mut server) = pair().await;
        let before = MADE.get();
        let copy = async { copy_bidirectional(&mut down, &mut up, CopyOptions::default()).await };
        let check = async {
            for size in sizes {
                let (sent, mut got, mut back) = (vec![7; *size], vec![0; *size], vec![0; *size]);
                let (one, two) = tokio::join!(client.write_all(&sent), server.read_exact(&mut got));
                one.and(two).expect("there");
                let (one, two) = tokio::join!(server.write_all(&got), client.read_exact(&mut back));
                one.and(two).expect("and back");
                assert!(back == sent);
            }
            let given_back = async {
                while PIPES.with_borrow(Vec::len) != MADE.get() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(LONG, given_back).await.expect("every pipe is back in the pool");
            MADE.get() - before
        };
        tokio::select! {
            outcome = copy => panic!("ended: {outcome:?}"),
            made = check => made
        }
    }

    #[tokio::test]
    async fn idle_connections_hold_no_pipe() {
        assert!(pipes_made(&[1 << 20, 10, 1 << 20]).await > 0);
    }

    #[tokio::test]
    async fn small_messages_go_without_a_pipe_and_a_stream_can_turn_into_them() {
        assert_eq!(pipes_made(&[4; 20]).await, 0);
        let mut sizes = vec![1 << 20];
        sizes.extend([4; 20]);
        sizes.push(1 << 20);
        pipes_made(&sizes).await;
    }
}
