//! Load that hosts report on a stream of their own (ORCA out of band), for `client_side_weighted_round_robin`.
//!
//! ```text
//!  Cluster::update ── new host ──► job ──► [control thread] session: connect, ask, read reports, ...
//!                                              │ weight
//!                                              ▼
//!                                        `orca::Reported` of the host
//! ```
//! A session has a connection of its own, counted nowhere and in no pool, and asks the host for a report every
//! `oob_reporting_period`. A stream that ends, or says nothing for three periods, is opened again after a pause that
//! grows; a host that does not know the service is not asked again. Reports with responses go on counting beside.

use crate::cluster::Cluster;
use crate::health_check::Job;
use crate::host::{Host, now_ms};
use crate::host_set::PrioritySet;
use crate::orca::LoadReport;
use crate::pool::codecs;
use crate::pool::connect::{self, Target};
use crate::transport::{TransportOptions, find_match};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use nuncio_base::random;
use nuncio_base::stats::Registry;
use nuncio_config::cluster::OobReporting;
use nuncio_http::codec::h2::H2Client;
use nuncio_http::codec::{ClientStream, Frame};
use nuncio_http::headers::{HeaderValue, Headers, names};
use nuncio_net::address::Address;
use prost::Message as _;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

const METHOD: &str = "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics";
/// A report is a few numbers; who sends more is not believed.
const MAX_REPORT: usize = 64 * 1024;
/// So many periods without a report end a stream.
const PATIENCE: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// gRPC status.
const UNIMPLEMENTED: u32 = 12;

nuncio_base::stat_family! {
    /// `lb_orca_oob.` of a cluster.
    pub(crate) struct OobStats {
        counters { report_errors, reports_received, stream_failures, stream_terminated }
        gauges { active_sessions }
    }
}

/// `google.protobuf.Duration`
#[derive(Clone, PartialEq, prost::Message)]
struct Period {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// `xds.service.orca.v3.OrcaLoadReportRequest`
#[derive(Clone, PartialEq, prost::Message)]
struct ReportRequest {
    #[prost(message, optional, tag = "1")]
    report_interval: Option<Period>,
}

/// Ends a session from outside.
#[derive(Default)]
pub(crate) struct Stop {
    stopped: AtomicBool,
    wake: Notify,
}

impl Stop {
    fn stop(&self) {
        self.stopped.store(true, Relaxed);
        self.wake.notify_one();
    }

    async fn stopped(&self) {
        while !self.stopped.load(Relaxed) {
            self.wake.notified().await;
        }
    }
}

/// The sessions of one cluster.
pub(crate) struct OobSessions {
    config: OobReporting,
    stats: OobStats,
    /// By id of the host.
    open: Mutex<FxHashMap<u64, Arc<Stop>>>,
    /// Bounded by the number of hosts.
    jobs: UnboundedSender<Job>,
}

impl OobSessions {
    pub(crate) fn new(config: &OobReporting, registry: &Registry, prefix: &str, jobs: UnboundedSender<Job>) -> Self {
        let stats = OobStats::new(registry, &format!("{prefix}lb_orca_oob."));
        OobSessions { config: config.clone(), stats, open: Mutex::default(), jobs }
    }

    /// A thread that panicked between plain operations leaves a table that is whole.
    fn open(&self) -> MutexGuard<'_, FxHashMap<u64, Arc<Stop>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cluster's hosts have changed from `before` to `now`.
    pub(crate) fn set_hosts(self: &Arc<Self>, cluster: &Weak<Cluster>, before: &PrioritySet, now: &PrioritySet) {
        let mut open = self.open();
        for host in before.hosts().filter(|host| !now.hosts().any(|other| other.id == host.id)) {
            if let Some(stop) = open.remove(&host.id) {
                stop.stop();
            }
        }
        for host in now.hosts().filter(|host| !before.hosts().any(|other| other.id == host.id)) {
            let stop = Arc::<Stop>::default();
            open.insert(host.id, stop.clone());
            // The receiver is gone only when the process ends.
            let _ = self.jobs.send(Job::Reports(Session {
                cluster: cluster.clone(),
                sessions: self.clone(),
                host: host.clone(),
                stop,
            }));
        }
        self.stats.active_sessions().set(open.len() as u64);
    }

    /// Ends all sessions: the cluster is gone.
    pub(crate) fn stop(&self) {
        self.open().drain().for_each(|(_, stop)| stop.stop());
        self.stats.active_sessions().set(0);
    }
}

/// How a stream ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Another may do better.
    Failed,
    /// The host does not know what is asked for.
    Terminated,
}

impl End {
    fn of_status(status: Option<u32>) -> Self {
        if status == Some(UNIMPLEMENTED) { End::Terminated } else { End::Failed }
    }

    /// What an answer that is no gRPC says.
    fn of_http(status: u16) -> Self {
        if status == 404 { End::Terminated } else { End::Failed }
    }
}

/// Pauses between streams: anything up to a bound that doubles.
struct Pauses(Duration);

impl Pauses {
    fn next(&mut self, draw: impl FnOnce(u64) -> u64) -> Duration {
        let bound = self.0;
        self.0 = (bound * 2).min(LONGEST_PAUSE);
        Duration::from_millis(draw(bound.as_millis() as u64))
    }

    fn reset(&mut self) {
        self.0 = FIRST_PAUSE;
    }
}

/// What asks one host.
pub(crate) struct Session {
    cluster: Weak<Cluster>,
    sessions: Arc<OobSessions>,
    host: Arc<Host>,
    stop: Arc<Stop>,
}

impl Session {
    /// Runs until the host or its cluster is gone, or the host has nothing to say.
    pub(crate) async fn run(self) {
        tokio::select! {
            () = self.ask() => {}
            () = self.stop.stopped() => {}
        }
    }

    async fn ask(&self) {
        let stats = &self.sessions.stats;
        let period = self.sessions.config.period;
        let mut pauses = Pauses(FIRST_PAUSE);
        // Hosts of one cluster are not all asked at once.
        tokio::time::sleep(Duration::from_millis(random::below(period.as_millis() as u64))).await;
        loop {
            match self.stream(&mut pauses).await {
                End::Failed => stats.stream_failures().inc(),
                End::Terminated => {
                    stats.stream_terminated().inc();
                    let mut open = self.sessions.open();
                    open.remove(&self.host.id);
                    stats.active_sessions().set(open.len() as u64);
                    return;
                }
            }
            tokio::time::sleep(pauses.next(random::below)).await;
        }
    }

    async fn stream(&self, pauses: &mut Pauses) -> End {
        let patience = self.sessions.config.period * PATIENCE;
        let opened = tokio::time::timeout(patience, self.open()).await;
        let Ok(Some((sender, driver))) = opened else { return End::Failed };
        // Ends with the stream.
        let _driver = driver;
        let mut stream = sender.stream();
        let stream: &mut dyn ClientStream = &mut stream;
        let Some(headers) = self.headers() else { return End::Failed };
        if stream.send_headers(&headers, false).is_err()
            || stream.send_data(request(self.sessions.config.period), true).is_err()
        {
            return End::Failed;
        }
        let head = tokio::time::timeout(patience, head(stream)).await;
        let Ok(Some((head, end))) = head else { return End::Failed };
        if !is_grpc(&head) {
            return if end && status_of(&head).is_some() {
                End::of_status(status_of(&head))
            } else {
                End::of_http(head.status())
            };
        }
        if end {
            return End::of_status(status_of(&head));
        }
        let mut reports = Reports::default();
        loop {
            let frame = tokio::time::timeout(patience, poll_fn(|cx| stream.poll_frame(cx))).await;
            let (data, end) = match frame {
                Ok(Ok(Frame::Data(data, end))) => (data, end),
                Ok(Ok(Frame::Trailers(trailers))) => return End::of_status(status_of(&trailers)),
                Ok(Err(_)) | Err(_) => return End::Failed,
            };
            reports.push(&data);
            loop {
                match reports.next() {
                    Ok(Some(report)) => {
                        pauses.reset();
                        self.take(&report);
                    }
                    Ok(None) => break,
                    Err(Malformed) => return End::Failed,
                }
            }
            // One that is about to go says nothing more of use.
            if end || !sender.is_usable() {
                return End::Failed;
            }
        }
    }

    fn take(&self, report: &LoadReport) {
        let stats = &self.sessions.stats;
        stats.reports_received().inc();
        if !self.host.reported().is_some_and(|reported| reported.take(report, now_ms())) {
            stats.report_errors().inc();
        }
    }

    async fn open(&self) -> Option<(nuncio_http::codec::h2::H2Sender, Driver)> {
        let cluster = self.cluster.upgrade()?;
        let config = &self.sessions.config;
        let addresses = self.addresses();
        let socket_match = match &config.transport_socket_match {
            None => self.host.transport_socket_match,
            Some(labels) => {
                let metadata = serde_json::json!({"envoy.transport_socket_match": labels});
                find_match(&cluster.config, Some(&metadata), None)
            }
        };
        let target = Target { addresses: &addresses, socket_match };
        let alpn: &[&[u8]] = &[b"h2"];
        let options = TransportOptions::default();
        let connected = connect::open(&cluster, &self.host, &target, &options, Some(alpn)).await.ok()?;
        let (sender, client) = H2Client::new(connected.io, codecs(&cluster).h2);
        let driver = tokio::task::spawn_local(async move {
            // How it ended is seen by the stream.
            let _ = client.await;
        });
        Some((sender, Driver(driver)))
    }

    /// Where reports come from: the host, with a port of their own if there is one.
    fn addresses(&self) -> SmallVec<[Address; 2]> {
        let mut addresses = self.host.connect_addresses();
        if let Some(port) = self.sessions.config.port {
            for address in &mut addresses {
                if let Address::Ip(address) = address {
                    *address = SocketAddr::new(address.ip(), port);
                }
            }
        }
        addresses
    }

    fn headers(&self) -> Option<Headers> {
        let cluster = self.cluster.upgrade()?;
        let addresses = self.addresses();
        let dialed = match addresses.first() {
            Some(address @ Address::Ip(_)) => address.to_string(),
            _ => cluster.name().to_string(),
        };
        let configured = [&*self.sessions.config.authority, &*self.host.hostname];
        let authority = configured.into_iter().find(|name| !name.is_empty()).unwrap_or(&dialed).to_owned();
        let mut headers = Headers::with_capacity(8);
        headers.append(names::METHOD, HeaderValue::from_static("POST"));
        let scheme = if cluster.is_secure(&self.host) { "https" } else { "http" };
        headers.append(names::SCHEME, HeaderValue::from_static(scheme));
        headers.append(names::AUTHORITY, HeaderValue::parse(authority)?);
        headers.append(names::PATH, HeaderValue::from_static(METHOD));
        headers.append(names::TE, HeaderValue::from_static("trailers"));
        headers.append(names::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        Some(headers)
    }
}

/// Aborts its task when dropped.
struct Driver(tokio::task::JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The head of the response, those before it passed over.
async fn head(stream: &mut dyn ClientStream) -> Option<(Headers, bool)> {
    loop {
        let polled = poll_fn(|cx| {
            // The response may come although the request could not be written: reading decides.
            let _ = stream.poll_flush(cx);
            stream.poll_headers(cx)
        });
        let (head, end) = polled.await.ok()?;
        if !(100..200).contains(&head.status()) {
            return Some((head, end));
        }
    }
}

/// The one message that is sent, in its frame.
fn request(period: Duration) -> Bytes {
    let interval = Period { seconds: period.as_secs() as i64, nanos: period.subsec_nanos() as i32 };
    let message = ReportRequest { report_interval: Some(interval) }.encode_to_vec();
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(&message);
    frame.freeze()
}

fn is_grpc(head: &Headers) -> bool {
    let kind = head.bytes(&names::CONTENT_TYPE).and_then(|kind| kind.strip_prefix(b"application/grpc"));
    head.status() == 200 && kind.is_some_and(|rest| rest.is_empty() || rest[0] == b'+')
}

fn status_of(headers: &Headers) -> Option<u32> {
    headers.str(&names::GRPC_STATUS)?.parse().ok()
}

/// What is no report.
#[derive(Debug, PartialEq, Eq)]
struct Malformed;

/// Cuts reports out of the bytes of a stream.
#[derive(Default)]
struct Reports {
    bytes: BytesMut,
}

impl Reports {
    fn push(&mut self, data: &[u8]) {
        self.bytes.put_slice(data);
    }

    /// The next report; empty messages are passed over.
    fn next(&mut self) -> Result<Option<LoadReport>, Malformed> {
        loop {
            let [flags, a, b, c, d, ..] = self.bytes[..] else { return Ok(None) };
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            if flags != 0 || length > MAX_REPORT {
                return Err(Malformed);
            }
            if self.bytes.len() < 5 + length {
                return Ok(None);
            }
            self.bytes.advance(5);
            let message = self.bytes.split_to(length);
            if length > 0 {
                return LoadReport::decode(message).map(Some).map_err(|_| Malformed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(report: &LoadReport) -> Vec<u8> {
        let message = report.encode_to_vec();
        [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat()
    }

    #[test]
    fn the_request_names_the_period() {
        assert_eq!(&request(Duration::from_millis(1500))[..], b"\0\0\0\0\x0a\x0a\x08\x08\x01\x10\x80\xca\xb5\xee\x01");
    }

    #[test]
    fn reports_are_cut_out_of_any_pieces() {
        let report = LoadReport::text("cpu_utilization:0.5,rps_fractional:100").expect("a report");
        let bytes = [framed(&report), vec![0; 5], framed(&report)].concat();
        let mut reports = Reports::default();
        let mut seen = 0;
        for byte in bytes.chunks(3) {
            reports.push(byte);
            while let Some(found) = reports.next().expect("well formed") {
                assert_eq!(found, report);
                seen += 1;
            }
        }
        assert_eq!((seen, reports.bytes.len()), (2, 0));
    }

    #[test]
    fn what_is_no_report_ends_the_stream() {
        for bad in [&b"\x01\0\0\0\x01\0"[..], b"\0\x7f\0\0\0", b"\0\0\0\0\x01\xff"] {
            let mut reports = Reports::default();
            reports.push(bad);
            assert_eq!(reports.next(), Err(Malformed));
        }
    }

    #[test]
    fn only_a_host_that_does_not_know_the_service_is_left_alone() {
        assert_eq!((End::of_status(Some(12)), End::of_status(Some(14))), (End::Terminated, End::Failed));
        assert_eq!((End::of_status(None), End::of_status(Some(0))), (End::Failed, End::Failed));
        assert_eq!((End::of_http(404), End::of_http(503)), (End::Terminated, End::Failed));
    }

    #[test]
    fn pauses_grow_to_their_bound_until_a_report_comes() {
        let mut pauses = Pauses(FIRST_PAUSE);
        let longest = |pauses: &mut Pauses| pauses.next(|bound| bound).as_millis();
        let grown: Vec<_> = (0..7).map(|_| longest(&mut pauses)).collect();
        assert_eq!(grown, [1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        pauses.reset();
        assert_eq!(longest(&mut pauses), 1000);
    }
}
