//! The page at `/`: a table of the commands.

use std::fmt::Write as _;

use super::commands::{COMMANDS, Call};
use super::{AdminResponse, HTML};

/// Links for what is shown, buttons for what changes something.
pub(super) fn page(_: &Call<'_>) -> AdminResponse {
    let mut rows = String::new();
    for command in COMMANDS {
        let target = command.path.trim_start_matches('/');
        let target = if target.is_empty() { "." } else { target };
        let cell = if command.mutates {
            format!("<form action=\"{target}\" method=\"post\"><button>{}</button></form>", command.path)
        } else {
            format!("<a href=\"{target}\">{}</a>", command.path)
        };
        let _ = writeln!(rows, "<tr><td>{cell}</td><td>{}</td></tr>", escape(command.help));
    }
    let page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>Nuncio admin</title>\n\
         <style>\nbody {{ font-family: sans-serif; }}\ntd {{ padding: 4px; text-align: left; }}\n\
         form {{ margin: 0; }}\n</style>\n</head>\n<body>\n<table>\n<tr><th>Command</th><th>Description</th></tr>\n\
         {rows}</table>\n</body>\n</html>\n"
    );
    AdminResponse::new(200, HTML, page)
}

/// `text` inside a page that is otherwise preformatted.
pub(super) fn preformatted(text: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>Nuncio admin</title>\n</head>\n\
         <body>\n<pre>\n{}</pre>\n</body>\n</html>\n",
        escape(text)
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{FakeSources, get, text_of};
    use super::*;

    #[test]
    fn the_page_links_what_is_shown_and_posts_what_changes() {
        let response = get(&FakeSources::default(), "/");
        assert_eq!((response.status, response.content_type), (200, HTML));
        let page = text_of(&response);
        assert!(page.contains("<a href=\"stats/prometheus\">/stats/prometheus</a>"));
        assert!(page.contains("<form action=\"quitquitquit\" method=\"post\">"));
        assert!(preformatted("a<b>&").contains("a&lt;b&gt;&amp;"));
    }
}
