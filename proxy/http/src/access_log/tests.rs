//! Tests of loggers and the writer.

use std::path::PathBuf;
use std::time::Duration;

use nuncio_base::stats::{Registry, StatsConfig};
use nuncio_config::access_log::{AccessLogFilter, Comparison, ComparisonOp, LogFormatKind};

use super::*;
use crate::formatter::tests::info;
use crate::matchers::NoRuntime;

const SOON: Duration = Duration::from_secs(30);

fn place(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("nuncio-access-log-{}-{name}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}

fn config(path: &std::path::Path, format: &str, filter: Option<AccessLogFilter>) -> AccessLogConfig {
    let format = LogFormat {
        kind: LogFormatKind::Text(format.into()),
        omit_empty_values: false,
        sort_properties: false,
        path: "listeners[0].access_log[0].log_format".into(),
    };
    AccessLogConfig {
        name: "f".into(),
        filter,
        sink: AccessLogSink::File { path: path.to_str().unwrap().into(), format },
    }
}

fn start(options: WriterOptions) -> (Registry, AccessLogWriter, Arc<dyn Runtime>) {
    let registry = Registry::new(2, StatsConfig::default());
    let writer = AccessLogWriter::start(&registry, options).unwrap();
    (registry, writer, Arc::new(NoRuntime))
}

#[test]
fn lines_that_pass_the_filter_reach_the_file_which_two_loggers_share() {
    let path = place("shared");
    let (registry, writer, runtime) = start(WriterOptions::default());
    let filter = AccessLogFilter::StatusCode(Comparison { op: ComparisonOp::Ge, value: 500, runtime_key: "".into() });
    let configs = [config(&path, "all %RESPONSE_CODE%\n", None), config(&path, "bad %RESPONSE_CODE%\n", Some(filter))];
    let logs = AccessLogs::build(&configs, &writer, &runtime, None).unwrap();
    let mut info = info();
    for code in [200, 503] {
        info.response_code = code;
        logs.log(&FormatContext::new(&info));
    }
    assert!(writer.flush(SOON));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "all 200\nall 503\nbad 503\n");
    assert_eq!(registry.counter_value("filesystem.write_buffered"), Some(3));
    assert_eq!(registry.counter_value("filesystem.write_completed"), Some(1));
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_renamed_file_is_opened_anew_when_asked() {
    let (path, old) = (place("reopen"), place("reopen-old"));
    let (_registry, writer, _) = start(WriterOptions::default());
    let file = writer.open(path.to_str().unwrap()).unwrap();
    file.write(b"one\n");
    assert!(writer.flush(SOON));
    std::fs::rename(&path, &old).unwrap();
    file.write(b"two\n");
    writer.reopen();
    assert!(writer.flush(SOON));
    file.write(b"three\n");
    assert!(writer.flush(SOON));
    assert_eq!(std::fs::read_to_string(&old).unwrap(), "one\ntwo\n");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
    std::fs::remove_file(&path).unwrap();
    std::fs::remove_file(&old).unwrap();
}

#[test]
fn what_does_not_fit_is_dropped_and_counted() {
    let path = place("full");
    let slow = WriterOptions { max_buffered: 10, flush_min_size: 1 << 20, ..WriterOptions::default() };
    let (registry, writer, _) = start(slow);
    let file = writer.open(path.to_str().unwrap()).unwrap();
    file.write(b"123456789012345\n");
    file.write(b"short\n");
    assert!(writer.flush(SOON));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "short\n");
    assert_eq!(registry.counter_value("filesystem.write_dropped"), Some(1));
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn dropping_the_writer_flushes() {
    let path = place("exit");
    let (_registry, writer, _) = start(WriterOptions { flush_interval: SOON, ..WriterOptions::default() });
    let file = writer.open(path.to_str().unwrap()).unwrap();
    file.write(b"last words\n");
    drop(writer);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "last words\n");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn lines_of_a_logger_that_is_gone_are_still_written() {
    let path = place("gone");
    let (_registry, writer, _) = start(WriterOptions::default());
    let file = writer.open(path.to_str().unwrap()).unwrap();
    file.write(b"line\n");
    drop(file);
    assert!(writer.flush(SOON));
    assert!(writer.flush(SOON));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "line\n");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn several_threads_do_not_mix_their_lines() {
    let path = place("threads");
    let (_registry, writer, _) = start(WriterOptions { flush_min_size: 512, ..WriterOptions::default() });
    let file = writer.open(path.to_str().unwrap()).unwrap();
    std::thread::scope(|scope| {
        for worker in 1..=2 {
            let file = &file;
            scope.spawn(move || {
                nuncio_base::worker::set_index(worker);
                for _ in 0..1000 {
                    file.write(format!("{worker}{worker}{worker}{worker}\n").as_bytes());
                }
            });
        }
    });
    assert!(writer.flush(SOON));
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 2000);
    assert!(text.lines().all(|line| line == "1111" || line == "2222"));
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn bad_paths_and_formats_are_errors() {
    let (_registry, writer, runtime) = start(WriterOptions::default());
    let missing = std::path::Path::new("/nonexistent/folder/log");
    let error = AccessLogs::build(&[config(missing, "x", None)], &writer, &runtime, None).unwrap_err();
    assert_eq!(error[0].1, "unable to open file '/nonexistent/folder/log': No such file or directory");
    let path = place("format");
    let error = AccessLogs::build(&[config(&path, "%X%", None)], &writer, &runtime, None).unwrap_err();
    let wanted = ("listeners[0].access_log[0].log_format", "Not supported field in StreamInfo: X");
    assert_eq!(error, [(wanted.0.to_owned(), wanted.1.to_owned())]);
    assert!(!path.exists());
}
