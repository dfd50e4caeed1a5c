//! `/logging`: shows and sets log levels.

use std::fmt::Write as _;

use super::AdminResponse;
use super::commands::Call;
use super::sources::LogLevel;

/// `/logging`.
pub(super) fn logging(call: &Call<'_>) -> AdminResponse {
    let mut out = String::new();
    let mut status = 200;
    if !call.query.all().is_empty()
        && let Err(reason) = change(call)
    {
        status = 400;
        let _ = writeln!(out, "error: {reason}\n");
        out.push_str(
            "usage: /logging?<name>=<level> (change single level)\n\
             usage: /logging?paths=name1:level1,name2:level2,... (change multiple levels)\n\
             usage: /logging?level=<level> (change all levels)\n\
             usage: /logging?group=<group_name>:<level> (change group of loggers)\n\
             levels: ",
        );
        for level in LogLevel::ALL {
            let _ = write!(out, "{} ", level.as_str());
        }
        out.push('\n');
    }
    out.push_str("active loggers:\n");
    for (name, level) in call.sources.log_levels() {
        let _ = writeln!(out, "  {name}: {}", level.as_str());
    }
    out.push('\n');
    AdminResponse::text(status, out)
}

fn change(call: &Call<'_>) -> Result<(), &'static str> {
    // The form of a browser sends every parameter, most of them empty.
    let given: Vec<_> = call.query.all().iter().filter(|(_, value)| !value.is_empty()).collect();
    let (key, value) = match given[..] {
        [] => return Ok(()),
        [(key, value)] => (key.as_str(), value.as_str()),
        _ => return Err("invalid number of parameters"),
    };
    let loggers = call.sources.log_levels();
    let mut changes = Vec::new();
    match key {
        "level" => {
            let level = parse(value)?;
            changes.extend(loggers.iter().map(|(name, _)| (name.clone(), level)));
        }
        // There is no logger per source file, as in an Envoy without --enable-fine-grain-logging.
        "group" => return Err("group parameter requires fine-grain logging to be enabled"),
        "paths" => {
            for pair in value.split(',').filter(|pair| !pair.trim().is_empty()) {
                match pair.split_once(':') {
                    Some((name, level)) if !name.is_empty() && !level.is_empty() => {
                        changes.push((name.to_owned(), parse(level)?));
                    }
                    _ => return Err("empty logger name or empty logger level"),
                }
            }
        }
        name => changes.push((name.to_owned(), parse(value)?)),
    }
    if changes.iter().any(|(name, _)| !loggers.iter().any(|(logger, _)| logger == name)) {
        return Err("unknown logger name");
    }
    call.sources.set_log_levels(&changes);
    Ok(())
}

fn parse(level: &str) -> Result<LogLevel, &'static str> {
    LogLevel::parse(level).ok_or("unknown logger level")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{FakeSources, post, text_of};
    use super::*;

    #[test]
    fn levels_are_shown_and_set() {
        let sources = FakeSources::default();
        let shown = |admin: &str, http: &str| format!("active loggers:\n  admin: {admin}\n  http: {http}\n\n");
        assert_eq!(post(&sources, "/logging"), AdminResponse::text(200, shown("info", "info")));
        assert_eq!(text_of(&post(&sources, "/logging?http=debug")), shown("info", "debug"));
        assert_eq!(text_of(&post(&sources, "/logging?level=warning")), shown("warning", "warning"));
        assert_eq!(text_of(&post(&sources, "/logging?paths=http:info,admin:off")), shown("off", "info"));
        assert_eq!(text_of(&post(&sources, "/logging?paths=,http:trace")), shown("off", "trace"));
        assert_eq!(text_of(&post(&sources, "/logging?level=&paths=")), shown("off", "trace"));
    }

    #[test]
    fn a_wrong_change_changes_nothing_and_shows_the_usage() {
        let sources = FakeSources::default();
        for (query, reason) in [
            ("level=bogus", "unknown logger level"),
            ("bogus=debug", "unknown logger name"),
            ("paths=http:debug,bogus:debug", "unknown logger name"),
            ("group=http:debug", "group parameter requires fine-grain logging to be enabled"),
            ("paths=x", "empty logger name or empty logger level"),
            ("level=info&http=debug", "invalid number of parameters"),
        ] {
            let response = post(&sources, &format!("/logging?{query}"));
            assert_eq!(response.status, 400);
            let text = text_of(&response);
            let start = format!("error: {reason}\n\nusage: /logging?<name>=<level> (change single level)\n");
            assert!(text.starts_with(&start), "{text}");
            assert!(text.contains("\nlevels: trace debug info warning error critical off \nactive loggers:\n"));
            assert!(text.ends_with("  admin: info\n  http: info\n\n"), "{text}");
        }
    }
}
