//! The thread that writes access logs, and the files that it writes.
//!
//! Every worker appends its lines to a buffer of its own; the writer swaps the buffers for empty ones at the flush interval
//! (or when one is large) and writes each file's share with one call. A worker pays a copy and an uncontended lock per line,
//! no allocation and no system call. Buffers are bounded: what does not fit while a disk or pipe is stuck is dropped and
//! counted. Paths are opened once however many loggers name them.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nuncio_base::stats::{Counter, Registry};

nuncio_base::stat_family! {
    /// Stats of log files, under Envoy's names, and what was dropped.
    pub struct FilesystemStats {
        counters {
            flushed_by_timer, reopen_failed, write_buffered, write_completed, write_failed,
        }
        gauges { write_total_buffered }
    }
}

/// How the writer behaves.
#[derive(Debug, Clone, Copy)]
pub struct WriterOptions {
    /// `--file-flush-interval-msec`; lines are never kept longer than a second.
    pub flush_interval: Duration,
    /// `--file-flush-min-size-kb` in bytes: a buffer of this size is written at once.
    pub flush_min_size: usize,
    /// Bytes that one worker may have waiting.
    pub max_buffered: usize,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self { flush_interval: Duration::from_secs(1), flush_min_size: 64 * 1024, max_buffered: 8 * 1024 * 1024 }
    }
}

/// A worker's lines that wait, and whose they are.
#[derive(Default)]
struct Shard {
    bytes: Vec<u8>,
    /// File number and length of each run of lines.
    runs: Vec<(u32, usize)>,
}

/// The writer; cheap to clone. Lines are flushed when the last clone is dropped or [`AccessLogWriter::flush`] is called.
#[derive(Clone)]
pub struct AccessLogWriter {
    shared: Arc<Shared>,
    _thread: Arc<Thread>,
}

/// Joins the writer when the last handle goes.
struct Thread {
    shared: Arc<Shared>,
    handle: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    options: WriterOptions,
    stats: FilesystemStats,
    dropped: Counter,
    /// By worker index.
    shards: Box<[Mutex<Shard>]>,
    files: Mutex<Vec<Option<Arc<FileState>>>>,
    /// A buffer is large: the writer should not wait for its interval.
    urgent: AtomicBool,
    control: Mutex<Control>,
    wake: Condvar,
    done: Condvar,
}

#[derive(Default)]
struct Control {
    /// Flushes asked for and done.
    wanted: u64,
    done: u64,
    reopen: bool,
    stop: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Stdout,
    Stderr,
    Path(PathBuf),
}

struct FileState {
    number: u32,
    target: Target,
    file: Mutex<Option<File>>,
    /// Kept between flushes.
    pending: Mutex<Vec<u8>>,
    reopen: AtomicBool,
    /// No logger had it at the last flush. It is forgotten at the next one, when all of its lines are collected.
    gone: AtomicBool,
}

/// A file that lines can be written to.
pub struct LogFile {
    state: Arc<FileState>,
    shared: Arc<Shared>,
}

impl fmt::Debug for LogFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogFile").field(&self.state.target).finish()
    }
}

impl fmt::Debug for AccessLogWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessLogWriter").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

/// A poisoned lock means that a thread panicked between two plain operations; the data is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LogFile {
    /// Hands over lines. Never blocks on the file.
    pub fn write(&self, line: &[u8]) {
        let shared = &*self.shared;
        let shards = &shared.shards;
        let at = nuncio_base::worker::index();
        let waiting = {
            let mut shard = lock(&shards[at.min(shards.len() - 1)]);
            if shard.bytes.len() + line.len() > shared.options.max_buffered {
                shared.dropped.inc();
                return;
            }
            shard.bytes.extend_from_slice(line);
            match shard.runs.last_mut() {
                Some((number, length)) if *number == self.state.number => *length += line.len(),
                _ => shard.runs.push((self.state.number, line.len())),
            }
            shard.bytes.len()
        };
        shared.stats.write_buffered().inc();
        if waiting >= shared.options.flush_min_size && !shared.urgent.swap(true, Ordering::Relaxed) {
            // The lock orders this with the writer's decision to wait.
            drop(lock(&shared.control));
            shared.wake.notify_one();
        }
    }
}

impl AccessLogWriter {
    /// Starts the thread. `registry` gives the stats and the number of workers.
    pub fn start(registry: &Registry, options: WriterOptions) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            options,
            stats: FilesystemStats::new(registry, "filesystem."),
            dropped: registry.counter("filesystem.write_dropped"),
            shards: (0..=registry.workers()).map(|_| Mutex::default()).collect(),
            files: Mutex::default(),
            urgent: AtomicBool::new(false),
            control: Mutex::default(),
            wake: Condvar::new(),
            done: Condvar::new(),
        });
        let worker = Arc::clone(&shared);
        let handle = std::thread::Builder::new().name("access-log".into()).spawn(move || worker.run())?;
        let thread = Arc::new(Thread { shared: Arc::clone(&shared), handle: Mutex::new(Some(handle)) });
        Ok(Self { shared, _thread: thread })
    }

    /// A file by its path, created when absent; the same path gives the same file.
    pub fn open(&self, path: &str) -> Result<Arc<LogFile>, String> {
        let target = match path {
            "/dev/stdout" => Target::Stdout,
            "/dev/stderr" => Target::Stderr,
            path => Target::Path(PathBuf::from(path)),
        };
        self.file(target).map_err(|error| format!("unable to open file '{path}': {}", reason(&error)))
    }

    /// Standard output.
    pub fn stdout(&self) -> Arc<LogFile> {
        self.stream(Target::Stdout)
    }

    /// Standard error.
    pub fn stderr(&self) -> Arc<LogFile> {
        self.stream(Target::Stderr)
    }

    fn stream(&self, target: Target) -> Arc<LogFile> {
        let mut files = lock(&self.shared.files);
        let state = find(&files, &target).unwrap_or_else(|| insert(&mut files, target, None));
        Arc::new(LogFile { state, shared: Arc::clone(&self.shared) })
    }

    fn file(&self, target: Target) -> io::Result<Arc<LogFile>> {
        let mut files = lock(&self.shared.files);
        let state = match find(&files, &target) {
            Some(state) => state,
            None => {
                let file = match &target {
                    Target::Path(path) => Some(open_append(path)?),
                    Target::Stdout | Target::Stderr => None,
                };
                insert(&mut files, target, file)
            }
        };
        Ok(Arc::new(LogFile { state, shared: Arc::clone(&self.shared) }))
    }

    /// Closes and opens all files after what is buffered was written (SIGUSR1, `/reopen_logs`). Returns at once.
    pub fn reopen(&self) {
        lock(&self.shared.control).reopen = true;
        self.shared.wake.notify_one();
    }

    /// Waits until everything handed over before the call is written, or `deadline` has passed; true when it is.
    pub fn flush(&self, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        let mut control = lock(&self.shared.control);
        control.wanted += 1;
        let mine = control.wanted;
        self.shared.wake.notify_one();
        while control.done < mine {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            control = self.shared.done.wait_timeout(control, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        lock(&self.shared.control).stop = true;
        self.shared.wake.notify_one();
        if let Some(handle) = lock(&self.handle).take() {
            // The thread does not panic; if it did, there is nothing left to write.
            let _ = handle.join();
        }
    }
}

fn find(files: &[Option<Arc<FileState>>], target: &Target) -> Option<Arc<FileState>> {
    files.iter().flatten().find(|state| state.target == *target).cloned()
}

fn insert(files: &mut Vec<Option<Arc<FileState>>>, target: Target, file: Option<File>) -> Arc<FileState> {
    let free = files.iter().position(Option::is_none).unwrap_or_else(|| {
        files.push(None);
        files.len() - 1
    });
    let state = Arc::new(FileState {
        number: free as u32,
        target,
        file: Mutex::new(file),
        pending: Mutex::default(),
        reopen: AtomicBool::new(false),
        gone: AtomicBool::new(false),
    });
    files[free] = Some(Arc::clone(&state));
    state
}

fn open_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// The system's text without Rust's error number.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

impl Shared {
    fn run(&self) {
        let interval = self.options.flush_interval.clamp(Duration::from_millis(1), Duration::from_secs(1));
        let mut spare = Shard::default();
        loop {
            let (wanted, reopen, stop, by_timer) = {
                let mut control = lock(&self.control);
                let end = Instant::now() + interval;
                let mut by_timer = false;
                while control.done == control.wanted
                    && !control.reopen
                    && !control.stop
                    && !self.urgent.load(Ordering::Relaxed)
                {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        by_timer = true;
                        break;
                    }
                    control = self.wake.wait_timeout(control, left).unwrap_or_else(PoisonError::into_inner).0;
                }
                (control.wanted, std::mem::take(&mut control.reopen), control.stop, by_timer)
            };
            self.urgent.store(false, Ordering::Relaxed);
            if self.collect(&mut spare) && by_timer {
                self.stats.flushed_by_timer().inc();
            }
            self.write_all(reopen);
            lock(&self.control).done = wanted;
            self.done.notify_all();
            if stop {
                return;
            }
        }
    }

    /// Moves what the workers left to the files' own buffers; false when there was nothing.
    fn collect(&self, spare: &mut Shard) -> bool {
        let files = lock(&self.files);
        let mut any = false;
        for shard in &self.shards {
            {
                let mut shard = lock(shard);
                if shard.runs.is_empty() {
                    continue;
                }
                std::mem::swap(&mut *shard, spare);
            }
            any = true;
            let mut at = 0;
            for (number, length) in spare.runs.drain(..) {
                if let Some(Some(state)) = files.get(number as usize) {
                    lock(&state.pending).extend_from_slice(&spare.bytes[at..at + length]);
                }
                at += length;
            }
            spare.bytes.clear();
            if spare.bytes.capacity() > 4 * self.options.flush_min_size {
                spare.bytes = Vec::new();
            }
        }
        any
    }

    fn write_all(&self, reopen: bool) {
        let mut files = lock(&self.files);
        let states: Vec<Arc<FileState>> = files.iter().flatten().cloned().collect();
        for slot in files.iter_mut() {
            let Some(state) = slot else { continue };
            // Nobody but the list and this call has it.
            let gone = Arc::strong_count(state) == 2;
            if gone && state.gone.swap(gone, Ordering::Relaxed) && lock(&state.pending).is_empty() {
                *slot = None;
            } else if !gone {
                state.gone.store(false, Ordering::Relaxed);
            }
        }
        // Opening files of new listeners does not wait for slow disks.
        drop(files);
        for state in states {
            self.write(&state);
            if reopen {
                state.reopen.store(true, Ordering::Relaxed);
            }
            if state.reopen.load(Ordering::Relaxed) {
                self.reopen(&state);
            }
        }
    }

    fn write(&self, state: &FileState) {
        let mut pending = lock(&state.pending);
        if pending.is_empty() {
            return;
        }
        let written = match &state.target {
            Target::Stdout => write_stream(&mut io::stdout().lock(), &pending),
            Target::Stderr => write_stream(&mut io::stderr().lock(), &pending),
            Target::Path(_) => match &mut *lock(&state.file) {
                Some(file) => file.write_all(&pending),
                None => Err(io::ErrorKind::NotFound.into()),
            },
        };
        match written {
            Ok(()) => self.stats.write_completed().inc(),
            Err(_) => self.stats.write_failed().inc(),
        }
        pending.clear();
        if pending.capacity() > 4 * self.options.flush_min_size {
            *pending = Vec::new();
        }
    }

    /// Opens a file anew. While that fails the old one is used, and it is tried again at the next flush.
    fn reopen(&self, state: &FileState) {
        let Target::Path(path) = &state.target else {
            state.reopen.store(false, Ordering::Relaxed);
            return;
        };
        match open_append(path) {
            Ok(file) => {
                *lock(&state.file) = Some(file);
                state.reopen.store(false, Ordering::Relaxed);
            }
            Err(_) => self.stats.reopen_failed().inc(),
        }
    }
}

fn write_stream(stream: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    stream.flush()
}
