//! Writes `COMPATIBILITY.md` from the support table.

use std::fmt::Write as _;

use super::{Support, Table};

/// The page, in Markdown.
pub fn document() -> String {
    let table = Table::get();
    let mut page = String::from(
        "# Compatibility with Envoy 1.40\n\n\
         This page is written from the support table in `proxy/config/support/`; a test keeps it up to date.\n\n\
         - **done**: the field does what it does in Envoy.\n\
         - **ignored**: the field is accepted and has no effect, for the reason given. A configuration that sets it is told \
         so once at start and by `--mode validate`.\n\
         - **rejected**: a configuration that sets the field is refused, since ignoring it would weaken security or send \
         traffic to a wrong place.\n\n\
         Messages that are not listed belong to extensions that are not there yet: a configuration that names one is refused \
         with the name of the extension.\n",
    );
    for (title, messages) in table.areas() {
        let _ = write!(page, "\n## {title}\n");
        for message in messages {
            let done: Vec<String> =
                message.fields.iter().filter(|(_, s)| *s == Support::Done).map(|(f, _)| format!("`{f}`")).collect();
            let _ = write!(page, "\n### {}\n\n", message.name);
            if !done.is_empty() {
                let _ = writeln!(page, "Done: {}.", done.join(", "));
            } else if message.fields.is_empty() {
                let _ = writeln!(page, "Done; it has no fields.");
            }
            let rest: Vec<(&str, &str, &str)> = message
                .fields
                .iter()
                .filter_map(|(field, support)| match support {
                    Support::Done => None,
                    Support::Ignored(reason) => Some((*field, "ignored", *reason)),
                    Support::Rejected(reason) => Some((*field, "rejected", *reason)),
                })
                .collect();
            if !rest.is_empty() {
                if !done.is_empty() {
                    page.push('\n');
                }
                page.push_str("| field | | reason |\n|---|---|---|\n");
                for (field, word, reason) in rest {
                    let _ = writeln!(page, "| `{field}` | {word} | {} |", reason.replace('|', "\\|"));
                }
            }
        }
    }
    page
}
