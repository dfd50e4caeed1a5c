//! Upstreams that fail: processes of their own, so that they can be killed and stopped; and a name server that can fail.

use std::cell::RefCell;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UdpSocket;

/// Time that an answer takes.
const WORK: Duration = Duration::from_millis(5);
/// Body of an answer in two halves.
const HALF: usize = 32 * 1024;

/// What an upstream does with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Habit {
    /// Answers after a few milliseconds.
    Good,
    /// Answers, with a pause in the middle of the body.
    Halves,
    /// Reads, and never answers.
    Silent,
    /// Resets the connection for this share of requests, in percent.
    Resets(u32),
    /// Answers 500 to this share of requests, in percent.
    Errs(u32),
}

impl Habit {
    fn argument(self) -> String {
        match self {
            Self::Good => "good".into(),
            Self::Halves => "halves".into(),
            Self::Silent => "silent".into(),
            Self::Resets(share) => format!("resets:{share}"),
            Self::Errs(share) => format!("errs:{share}"),
        }
    }

    fn parse(text: &str) -> Result<Self> {
        let (name, share) = text.split_once(':').unwrap_or((text, "0"));
        Ok(match name {
            "good" => Self::Good,
            "halves" => Self::Halves,
            "silent" => Self::Silent,
            "resets" => Self::Resets(share.parse()?),
            "errs" => Self::Errs(share.parse()?),
            other => bail!("no habit {other}"),
        })
    }
}

/// The argument that makes a bench program an upstream: followed by the port and the habit.
pub const ARGUMENT: &str = "--be-upstream";

/// Runs as an upstream when the arguments say so; does not return then before the process is killed.
///
/// # Errors
/// Arguments without meaning, or a port that is taken.
pub fn serve_if_asked() -> Result<()> {
    let mut arguments = std::env::args().skip_while(|argument| argument != ARGUMENT).skip(1);
    let (Some(port), Some(habit)) = (arguments.next(), arguments.next()) else { return Ok(()) };
    let habit = Habit::parse(&habit)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.parse::<u16>()?))?;
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || connection(stream, habit));
    }
    Ok(())
}

fn connection(mut stream: TcpStream, habit: Habit) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    // Every second (third, ...) request rather than dice: the share is exact in the short.
    let mut number = u32::from(stream.peer_addr().ok()?.port());
    let mut buffer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        while !buffer.ends_with(b"\r\n\r\n") {
            let count = stream.read(&mut chunk).ok().filter(|count| *count > 0)?;
            buffer.extend_from_slice(&chunk[..count]);
        }
        buffer.clear();
        std::thread::sleep(WORK);
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let chosen = |share: u32| (number >> 8) % 100 < share;
        match habit {
            Habit::Good => good(&mut stream)?,
            Habit::Silent => loop {
                // Until the proxy closes.
                stream.read(&mut chunk).ok().filter(|count| *count > 0)?;
            },
            Habit::Resets(share) if chosen(share) => {
                rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).ok()?;
                return None;
            }
            Habit::Errs(share) if chosen(share) => {
                stream.write_all(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n").ok()?;
            }
            Habit::Resets(_) | Habit::Errs(_) => good(&mut stream)?,
            Habit::Halves => {
                let half = vec![b'h'; HALF];
                write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 2 * HALF).ok()?;
                stream.write_all(&half).ok()?;
                std::thread::sleep(2 * WORK);
                stream.write_all(&half).ok()?;
            }
        }
    }
}

fn good(stream: &mut TcpStream) -> Option<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").ok()
}

/// An upstream process.
#[derive(Debug)]
pub struct Upstream {
    /// Where it listens, also after a new start.
    pub port: u16,
    habit: Habit,
    child: Option<Child>,
}

impl Upstream {
    /// Starts one and waits until it listens.
    ///
    /// # Errors
    /// It does not.
    pub fn start(port: u16, habit: Habit) -> Result<Self> {
        let mut upstream = Self { port, habit, child: None };
        upstream.restart()?;
        Ok(upstream)
    }

    /// Starts it again on its port.
    ///
    /// # Errors
    /// It does not listen.
    pub fn restart(&mut self) -> Result<()> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([ARGUMENT, &self.port.to_string(), &self.habit.argument()]).stdin(Stdio::null());
        let mut child = command.spawn()?;
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Ok(probe) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)) {
                let _ = probe.shutdown(Shutdown::Both);
                break;
            }
            if let Some(status) = child.try_wait()? {
                bail!("an upstream on port {} ended with {status}", self.port);
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                bail!("an upstream does not listen on port {}", self.port);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.child = Some(child);
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGSTOP: the kernel still accepts connections and bytes, but nobody is there.
    ///
    /// # Errors
    /// The process is gone.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// The process is gone.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = self.child.as_ref().and_then(|child| i32::try_from(child.id()).ok()).context("no process")?;
        Ok(kill_process(Pid::from_raw(id).context("a process id")?, signal)?)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What the name server answers.
#[derive(Clone, Debug)]
pub enum Zone {
    /// These addresses to every question for A records.
    Addresses(Vec<Ipv4Addr>),
    /// SERVFAIL.
    Fails,
    /// Nothing.
    Silent,
}

/// A name server for every name.
///
/// # Errors
/// No port.
pub async fn name_server(zone: Rc<RefCell<Zone>>) -> Result<SocketAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = socket.local_addr()?;
    tokio::task::spawn_local(async move {
        let mut packet = [0; 1500];
        while let Ok((length, peer)) = socket.recv_from(&mut packet).await {
            let reply = answer(&zone.borrow(), &packet[..length]);
            if let Some(reply) = reply {
                let _ = socket.send_to(&reply, peer).await;
            }
        }
    });
    Ok(address)
}

fn answer(zone: &Zone, query: &[u8]) -> Option<Vec<u8>> {
    let name_end = 12 + query.get(12..)?.iter().position(|byte| *byte == 0)? + 1;
    let question = query.get(12..name_end + 4)?;
    let is_a = question.ends_with(&[0, 1, 0, 1]);
    let (code, addresses) = match zone {
        Zone::Silent => return None,
        Zone::Fails => (2, &[][..]),
        Zone::Addresses(addresses) => (0, if is_a { &addresses[..] } else { &[] }),
    };
    let mut reply = query[..2].to_vec();
    reply.extend([0x81, 0x80 | code, 0, 1, 0, u8::try_from(addresses.len()).ok()?, 0, 0, 0, 0]);
    reply.extend(question);
    for address in addresses {
        // The name by reference, A, IN, a second to live, four bytes.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        reply.extend(address.octets());
    }
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn habits_survive_the_command_line() {
        for habit in [Habit::Good, Habit::Halves, Habit::Silent, Habit::Resets(20), Habit::Errs(30)] {
            assert_eq!(Habit::parse(&habit.argument()).unwrap(), habit);
        }
        assert!(Habit::parse("lazy").is_err());
    }

    #[test]
    fn a_question_for_addresses_is_answered() {
        let query = [7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'x', 0, 0, 1, 0, 1];
        let reply = answer(&Zone::Addresses(vec![Ipv4Addr::new(127, 0, 0, 2)]), &query).unwrap();
        assert_eq!((reply[..2].to_vec(), reply[7]), (vec![7, 7], 1));
        assert!(reply.ends_with(&[127, 0, 0, 2]));
        assert_eq!(answer(&Zone::Fails, &query).unwrap()[3], 0x82);
        assert_eq!(answer(&Zone::Silent, &query), None);
    }
}
