//! The support table: for each field of each decoded message, whether it is done, ignored or rejected, and why.
//!
//! The table is text, one file per API area in `support/` of this crate: a line with a message's full name, then one
//! indented line `field done`, `field ignored REASON` or `field rejected REASON` for each of its fields. The inspection of
//! the ingest looks fields up here; `COMPATIBILITY.md` is written from it; tests hold it against the descriptors.

mod document;
#[cfg(test)]
mod effects;
#[cfg(test)]
mod everything;
#[cfg(test)]
mod protocols;
#[cfg(test)]
mod samples;

use std::sync::LazyLock;

use rustc_hash::FxHashMap;

pub use document::document;

/// The files: title and text.
const FILES: [(&str, &str); 11] = [
    ("Bootstrap, admin, runtime, statistics", include_str!("../../support/bootstrap.txt")),
    ("Discovery (xDS)", include_str!("../../support/discovery.txt")),
    ("Core types", include_str!("../../support/core.txt")),
    ("Listeners and listener filters", include_str!("../../support/listeners.txt")),
    ("TLS", include_str!("../../support/tls.txt")),
    ("HTTP connection manager and HTTP filters", include_str!("../../support/http.txt")),
    ("Routes", include_str!("../../support/routes.txt")),
    ("Clusters and endpoints", include_str!("../../support/clusters.txt")),
    ("TCP proxy", include_str!("../../support/tcp_proxy.txt")),
    ("Access logs", include_str!("../../support/access_logs.txt")),
    ("Matchers and other shared types", include_str!("../../support/types.txt")),
];

static TABLE: LazyLock<Table> = LazyLock::new(|| Table::parse(&FILES).0);

/// What happens with a field that is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// It has the effect that it has in Envoy.
    Done,
    /// It has no effect, for this reason; a configuration that sets it is told.
    Ignored(&'static str),
    /// A configuration that sets it is refused, for this reason.
    Rejected(&'static str),
}

/// The fields of one message.
#[derive(Debug)]
pub struct MessageSupport {
    /// Its full name.
    pub name: &'static str,
    /// Its fields in the order of the table.
    pub fields: Vec<(&'static str, Support)>,
}

impl MessageSupport {
    /// The support of `field`; what is not listed (a test sees to it that all is) counts as done.
    pub fn field(&self, field: &str) -> Support {
        self.fields.iter().find(|(name, _)| *name == field).map_or(Support::Done, |(_, support)| *support)
    }
}

/// All messages, by area.
#[derive(Debug, Default)]
pub struct Table {
    areas: Vec<(&'static str, Vec<&'static str>)>,
    messages: FxHashMap<&'static str, MessageSupport>,
}

impl Table {
    /// The table of this build.
    pub fn get() -> &'static Table {
        &TABLE
    }

    /// The support of a message's fields; `None` for a message that nothing decodes.
    pub fn message(&self, full_name: &str) -> Option<&MessageSupport> {
        self.messages.get(full_name)
    }

    /// Title and messages of each area, in order.
    pub fn areas(&self) -> impl Iterator<Item = (&'static str, impl Iterator<Item = &MessageSupport>)> {
        self.areas.iter().map(|(title, names)| (*title, names.iter().filter_map(|name| self.message(name))))
    }

    /// Reads the files; the second value is what is malformed, which a test keeps empty.
    fn parse(files: &[(&'static str, &'static str)]) -> (Table, Vec<String>) {
        let mut table = Table::default();
        let mut malformed = Vec::new();
        for (title, text) in files {
            let mut names = Vec::new();
            let mut message: Option<MessageSupport> = None;
            for line in text.lines() {
                let content = line.trim();
                if content.is_empty() || content.starts_with('#') {
                    continue;
                }
                if !line.starts_with(' ') {
                    table.insert(message.take(), &mut malformed);
                    names.push(content);
                    message = Some(MessageSupport { name: content, fields: Vec::new() });
                    continue;
                }
                match (&mut message, field_line(content)) {
                    (Some(message), Some(field)) => message.fields.push(field),
                    _ => malformed.push(format!("{title}: {line}")),
                }
            }
            table.insert(message, &mut malformed);
            table.areas.push((title, names));
        }
        (table, malformed)
    }

    fn insert(&mut self, message: Option<MessageSupport>, malformed: &mut Vec<String>) {
        let Some(message) = message else { return };
        let name = message.name;
        if self.messages.insert(name, message).is_some() {
            malformed.push(format!("{name} is listed twice"));
        }
    }
}

fn field_line(line: &'static str) -> Option<(&'static str, Support)> {
    let (field, rest) = line.split_once(' ')?;
    let rest = rest.trim_start();
    let (word, reason) = rest.split_once(' ').unwrap_or((rest, ""));
    let reason = reason.trim();
    match word {
        "done" if reason.is_empty() => Some((field, Support::Done)),
        "ignored" if !reason.is_empty() => Some((field, Support::Ignored(reason))),
        "rejected" if !reason.is_empty() => Some((field, Support::Rejected(reason))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptors;
    use prost_reflect::Kind;

    #[test]
    fn every_line_of_the_table_is_well_formed() {
        assert_eq!(Table::parse(&FILES).1, Vec::<String>::new());
        let (_, malformed) = Table::parse(&[("t", "a.B\n  x maybe\n  y ignored\n  z done\na.B\n")]);
        assert_eq!(malformed, ["t:   x maybe", "t:   y ignored", "a.B is listed twice"]);
    }

    #[test]
    fn the_table_lists_the_fields_of_its_messages_no_more_and_no_less() {
        let mut wrong = Vec::new();
        for message in Table::get().messages.values() {
            let Some(descriptor) = descriptors::message(message.name) else {
                wrong.push(format!("{} does not exist", message.name));
                continue;
            };
            for (field, _) in &message.fields {
                if descriptor.get_field_by_name(field).is_none() {
                    wrong.push(format!("{}.{field} does not exist", message.name));
                }
            }
            for field in descriptor.fields() {
                match message.fields.iter().filter(|(name, _)| *name == field.name()).count() {
                    1 => {}
                    count => wrong.push(format!("{}.{} is listed {count} times", message.name, field.name())),
                }
            }
        }
        wrong.sort();
        assert_eq!(wrong, Vec::<String>::new());
    }

    #[test]
    fn every_message_that_a_done_field_holds_is_listed() {
        let mut missing = Vec::new();
        for message in Table::get().messages.values() {
            let Some(descriptor) = descriptors::message(message.name) else { continue };
            for field in descriptor.fields().filter(|field| message.field(field.name()) == Support::Done) {
                let kind = match field.kind() {
                    Kind::Message(entry) if entry.is_map_entry() => entry.map_entry_value_field().kind(),
                    kind => kind,
                };
                let Kind::Message(held) = kind else { continue };
                if held.package_name() != "google.protobuf" && Table::get().message(held.full_name()).is_none() {
                    missing.push(format!("{} (in {}.{})", held.full_name(), message.name, field.name()));
                }
            }
        }
        missing.sort();
        assert_eq!(missing, Vec::<String>::new());
    }

    #[test]
    fn the_compatibility_page_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../COMPATIBILITY.md");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(path, document()).unwrap();
        }
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert!(page == document(), "COMPATIBILITY.md is stale: run the tests of this crate with BLESS=1");
    }
}
