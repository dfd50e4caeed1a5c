//! Worker threads: each has its own runtime and its own sockets, and runs every listener.

use nuncio_base::{timer, worker};
use nuncio_net::listener::{Listener, WorkerListeners, run_listener};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::mpsc;

/// What the control thread tells a worker.
pub enum WorkerCommand {
    /// Run this listener until it is stopped.
    Run(Arc<Listener>),
    /// End the thread; connections that are left are closed.
    Stop,
}

/// A worker as the control thread sees it.
pub struct Worker {
    /// Commands, in order.
    pub commands: mpsc::UnboundedSender<WorkerCommand>,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts worker `index` (0-based).
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(index: usize) -> std::io::Result<Worker> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let thread =
            std::thread::Builder::new().name(format!("wrk:worker_{index}")).spawn(move || run(index, inbox))?;
        Ok(Worker { commands, thread })
    }

    /// Waits for the thread to end.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("a worker thread panicked");
        }
    }
}

fn run(index: usize, mut inbox: mpsc::UnboundedReceiver<WorkerCommand>) {
    worker::set_index(index + 1);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            tracing::error!("worker {index} has no runtime: {e}");
            return;
        }
    };
    let tasks = tokio::task::LocalSet::new();
    let listeners = Rc::new(WorkerListeners::default());
    tasks.block_on(&runtime, async move {
        timer::start();
        while let Some(command) = inbox.recv().await {
            match command {
                WorkerCommand::Run(listener) => {
                    let listeners = listeners.clone();
                    tokio::task::spawn_local(async move {
                        let name = listener.name().clone();
                        if let Err(e) = run_listener(listener, index, listeners).await {
                            tracing::error!("listener '{name}' does not run on worker {index}: {e}");
                        }
                    });
                }
                WorkerCommand::Stop => break,
            }
        }
    });
}
