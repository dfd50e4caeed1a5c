//! The binary: parses the command line, reports errors, runs the server.

use nuncio::log::Log;
use nuncio::options::{Command, Mode, Options, Output};
use nuncio::server::{self, StartError};
use nuncio::{demo, loading};
use nuncio_config::diagnostics::Report;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: nuncio_net::Allocator = nuncio_net::Allocator;

fn main() -> ExitCode {
    // The allocator asks for huge pages, and one byte would then take 2 MiB. A failure costs memory only.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let args: Vec<String> = std::env::args().collect();
    let program = args.first().cloned().unwrap_or_else(|| "nuncio".to_owned());
    let options = match Options::parse_args(args) {
        Ok(options) => options,
        Err((text, help)) => {
            print_to(help, &text);
            return if help { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
    };
    match run(&program, options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            print_to(false, &text);
            ExitCode::FAILURE
        }
    }
}

fn run(program: &str, options: Options) -> Result<(), String> {
    if options.version {
        print_to(true, &Options::version_text(program));
        return Ok(());
    }
    if options.hot_restart_version {
        print_to(true, "disabled\n");
        return Ok(());
    }
    match options.command.clone() {
        Some(Command::Man) => return man(),
        Some(Command::Completions { shell }) => {
            let mut command = <Options as clap::CommandFactory>::command();
            // Into memory first: it panics where it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, "nuncio", &mut script);
            print_to(true, &String::from_utf8_lossy(&script));
            return Ok(());
        }
        Some(Command::Demo { port }) => {
            let options = demo::options(&options, port);
            return serve(options, Some(demo::help(port)));
        }
        Some(Command::XdsCheck { bootstrap, timeout, output }) => {
            let options = Options { config_path: Some(bootstrap), output, command: None, ..options };
            return check(options, Duration::from_secs(timeout));
        }
        None => {}
    }
    match options.mode {
        Mode::Serve => serve(options, None),
        Mode::Validate | Mode::InitOnly => validate(options),
    }
}

fn install_log(options: &Options) -> Result<Log, String> {
    Log::install(
        &options.log_level,
        &options.component_log_level,
        &options.log_format,
        options.log_format_escaped,
        options.log_path.as_deref(),
    )
    .map_err(|e| e + "\n")
}

fn serve(options: Options, greeting: Option<String>) -> Result<(), String> {
    let log = install_log(&options)?;
    nuncio_net::tls::warm_up();
    let output = options.output;
    let bootstrap = loading::load(&options).map_err(|report| render(&report, output))?;
    let bound = server::build(bootstrap, options, log, true).map_err(|e| start_error(e, output))?;
    if let Some(text) = greeting {
        print_to(true, &text);
    }
    bound.run().map_err(|e| format!("error: {e}\n"))
}

fn validate(options: Options) -> Result<(), String> {
    let log = install_log(&options)?;
    let output = options.output;
    let name = options.config_path.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
    let bootstrap = loading::load(&options).map_err(|report| render(&report, output))?;
    let notices = bootstrap.notices.clone();
    server::build(bootstrap, options, log, false).map_err(|e| start_error(e, output))?;
    match output {
        Output::Text => {
            for line in notices {
                print_to(false, &format!("notice: {line}\n"));
            }
            print_to(true, &format!("configuration '{name}' OK\n"));
        }
        Output::Json => {
            let value = serde_json::json!({ "ok": true, "file": name, "notices": notices });
            print_to(true, &format!("{value}\n"));
        }
    }
    Ok(())
}

fn check(mut options: Options, timeout: Duration) -> Result<(), String> {
    // What is refused is in the table; the log would say it twice.
    if options.log_level == "info" {
        options.log_level = "off".to_owned();
    }
    let log = install_log(&options)?;
    nuncio_net::tls::warm_up();
    let output = options.output;
    let mut bootstrap = loading::load(&options).map_err(|report| render(&report, output))?;
    // A balancer would take what does not serve for one of its proxies.
    bootstrap.config.load_stats = None;
    let bound = server::build(bootstrap, options, log, false).map_err(|e| start_error(e, output))?;
    let outcome = bound.check(timeout);
    match output {
        Output::Text => print_to(true, &outcome.to_text()),
        Output::Json => print_to(true, &format!("{}\n", outcome.to_json())),
    }
    if outcome.is_good() {
        return Ok(());
    }
    Err(match output {
        Output::Text => format!("error: {}\n", outcome.summary()),
        Output::Json => String::new(),
    })
}

fn start_error(error: StartError, output: Output) -> String {
    match error {
        StartError::Config(report) => render(&report, output),
        StartError::Other(text) => render(&Report::general(text), output),
    }
}

fn render(report: &Report, output: Output) -> String {
    match output {
        Output::Text => report.to_text(std::io::stderr().is_terminal()) + "\n",
        Output::Json => format!("{}\n", report.to_json()),
    }
}

fn man() -> Result<(), String> {
    let command = <Options as clap::CommandFactory>::command();
    clap_mangen::Man::new(command).render(&mut std::io::stdout()).map_err(|e| format!("cannot print: {e}\n"))
}

/// Writes to stdout or stderr. A closed pipe is no reason to fail.
fn print_to(stdout: bool, text: &str) {
    let _ = if stdout {
        std::io::stdout().write_all(text.as_bytes())
    } else {
        std::io::stderr().write_all(text.as_bytes())
    };
}
