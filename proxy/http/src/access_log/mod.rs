//! Access logs: a filter, a format and a sink each.
//!
//! Built with the listener or connection manager that owns them; [`AccessLogger::log`] runs on workers at the end of a stream
//! (or connection). Lines are formatted into a buffer of the thread and handed to the one [`writer`] thread. Sinks other than
//! files and the standard streams come from the extension registry through [`Extensions`].

pub mod filter;
pub mod writer;

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use nuncio_config::access_log::{AccessLogConfig, AccessLogSink, GrpcAccessLogConfig, LogFormat};
use nuncio_config::typed_config::TypedConfig;

pub use filter::LogFilter;
pub use writer::{AccessLogWriter, LogFile, WriterOptions};

use crate::formatter::{FormatContext, LogFormatter};
use crate::matchers::Runtime;

/// Something that records streams.
pub trait AccessLogger: Send + Sync {
    /// Records one, if its filter lets it pass.
    fn log(&self, cx: &FormatContext<'_>);

    /// Whether a format asks for the body of local replies.
    fn uses_local_reply_body(&self) -> bool {
        false
    }
}

/// Sinks and filters that this crate does not know.
pub trait Extensions {
    /// A sink by its message, or what is wrong with it.
    fn sink(&self, config: &TypedConfig) -> Result<Arc<dyn AccessLogger>, String>;

    /// A sink that streams entries to a server, or what is wrong with it.
    fn http_grpc(&self, config: &Arc<GrpcAccessLogConfig>) -> Result<Arc<dyn AccessLogger>, String>;
}

/// A list of loggers that are told everything together.
#[derive(Clone, Default)]
pub struct AccessLogs(Arc<[Arc<dyn AccessLogger>]>);

impl fmt::Debug for AccessLogs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessLogs").field("len", &self.0.len()).finish()
    }
}

impl AccessLogs {
    /// Compiles all; errors as path and message.
    pub fn build(
        configs: &[AccessLogConfig],
        writer: &AccessLogWriter,
        runtime: &Arc<dyn Runtime>,
        extensions: Option<&dyn Extensions>,
    ) -> Result<Self, Vec<(String, String)>> {
        let (mut loggers, mut errors) = (Vec::new(), Vec::new());
        for config in configs {
            match build(config, writer, runtime, extensions) {
                Ok(logger) => loggers.push(logger),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() { Ok(Self(loggers.into())) } else { Err(errors) }
    }

    /// Tells all.
    #[inline]
    pub fn log(&self, cx: &FormatContext<'_>) {
        for logger in self.0.iter() {
            logger.log(cx);
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a format asks for the body of local replies.
    pub fn uses_local_reply_body(&self) -> bool {
        self.0.iter().any(|logger| logger.uses_local_reply_body())
    }
}

/// Compiles one logger; the error is a path and a message.
pub fn build(
    config: &AccessLogConfig,
    writer: &AccessLogWriter,
    runtime: &Arc<dyn Runtime>,
    extensions: Option<&dyn Extensions>,
) -> Result<Arc<dyn AccessLogger>, (String, String)> {
    let name = || format!("access_log[{}]", config.name);
    let filter = config
        .filter
        .as_ref()
        .map(LogFilter::build)
        .transpose()
        .map_err(|text| (format!("{}.filter", name()), text))?;
    let line = |format: &LogFormat| LogFormatter::new(format).map_err(|error| (format.path.to_string(), error.0));
    let (formatter, file) = match &config.sink {
        AccessLogSink::File { path, format } => {
            let formatter = line(format)?;
            (formatter, writer.open(path).map_err(|text| (format!("{}.path", name()), text))?)
        }
        AccessLogSink::Stdout(format) => (line(format)?, writer.stdout()),
        AccessLogSink::Stderr(format) => (line(format)?, writer.stderr()),
        AccessLogSink::HttpGrpc(config) => {
            let none = || "access logs over gRPC are not supported here".to_owned();
            let sink = extensions.ok_or_else(none).and_then(|extensions| extensions.http_grpc(config));
            let sink = sink.map_err(|text| (config.path.to_string(), text))?;
            return Ok(filtered(filter, runtime, sink));
        }
        AccessLogSink::Extension(typed) => {
            let none = || format!("access logger {} is not supported yet", typed.type_name);
            let sink = extensions.ok_or_else(none).and_then(|extensions| extensions.sink(typed));
            let sink = sink.map_err(|text| (typed.path.to_string(), text))?;
            return Ok(filtered(filter, runtime, sink));
        }
    };
    Ok(Arc::new(LineLogger { filter, runtime: Arc::clone(runtime), formatter, file }))
}

fn filtered(
    filter: Option<LogFilter>,
    runtime: &Arc<dyn Runtime>,
    sink: Arc<dyn AccessLogger>,
) -> Arc<dyn AccessLogger> {
    match filter {
        Some(filter) => Arc::new(Filtered { filter, runtime: Arc::clone(runtime), sink }),
        None => sink,
    }
}

/// A sink behind a filter.
struct Filtered {
    filter: LogFilter,
    runtime: Arc<dyn Runtime>,
    sink: Arc<dyn AccessLogger>,
}

impl AccessLogger for Filtered {
    fn log(&self, cx: &FormatContext<'_>) {
        if self.filter.passes(cx, &*self.runtime) {
            self.sink.log(cx);
        }
    }

    fn uses_local_reply_body(&self) -> bool {
        self.sink.uses_local_reply_body()
    }
}

/// Lines to a file or a standard stream.
struct LineLogger {
    filter: Option<LogFilter>,
    runtime: Arc<dyn Runtime>,
    formatter: LogFormatter,
    file: Arc<LogFile>,
}

thread_local! {
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A longer buffer is given up after its line.
const KEEP_LINE: usize = 64 * 1024;

impl AccessLogger for LineLogger {
    fn log(&self, cx: &FormatContext<'_>) {
        if self.filter.as_ref().is_some_and(|filter| !filter.passes(cx, &*self.runtime)) {
            return;
        }
        LINE.with_borrow_mut(|line| {
            line.clear();
            self.formatter.write(cx, line);
            self.file.write(line);
            if line.capacity() > KEEP_LINE {
                *line = Vec::new();
            }
        });
    }

    fn uses_local_reply_body(&self) -> bool {
        self.formatter.uses_local_reply_body()
    }
}

#[cfg(test)]
mod tests;
