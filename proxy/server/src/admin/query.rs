//! Query strings of admin requests.

use percent_encoding::percent_decode_str;

/// The parameters of a query, decoded, in their order.
#[derive(Debug, Default)]
pub(super) struct Query {
    params: Vec<(String, String)>,
}

impl Query {
    /// Parses what follows the question mark, or a form. A plus sign stays one, as in Envoy.
    pub(super) fn parse(query: &str) -> Self {
        let params = query.split('&').filter(|part| !part.is_empty()).map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name), decode(value))
        });
        Self { params: params.collect() }
    }

    /// The first value of a parameter; empty if it has none.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(param, _)| param == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub(super) fn all(&self) -> &[(String, String)] {
        &self.params
    }
}

fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// Why a regex does not compile, in RE2's words for the common mistakes.
pub(super) fn regex_error(pattern: &str, error: &regex::Error) -> String {
    let text = error.to_string();
    let has = |words: &str| text.contains(words);
    if has("unclosed group") {
        format!("missing ): {pattern}")
    } else if has("unopened group") {
        format!("unexpected ): {pattern}")
    } else if has("unclosed character class") {
        format!("missing ]: {}", &pattern[pattern.find('[').unwrap_or(0)..])
    } else if has("repetition operator missing expression") {
        let operator = pattern.chars().find(|c| "*+?".contains(*c)).map(String::from).unwrap_or_default();
        format!("no argument for repetition operator: {operator}")
    } else if has("look-around") {
        let operator = ["(?=", "(?!", "(?<=", "(?<!"].into_iter().find(|operator| pattern.contains(operator));
        format!("invalid perl operator: {}", operator.unwrap_or("(?"))
    } else if has("incomplete escape sequence") {
        "trailing \\".to_owned()
    } else {
        let reason = text.lines().last().unwrap_or_default();
        format!("{}: {pattern}", reason.trim_start_matches("error: "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let query = Query::parse("usedonly&filter=a%2Eb+c&x=&filter=z&&");
        assert!(query.has("usedonly") && !query.has("nothing"));
        assert_eq!(query.get("filter"), Some("a.b+c"));
        assert_eq!(query.get("x"), Some(""));
        assert_eq!(query.all().len(), 4);
    }

    #[test]
    fn regex_errors_read_like_re2s() {
        for (pattern, expected) in [
            ("(", "missing ): ("),
            ("a)", "unexpected ): a)"),
            ("[ab", "missing ]: [ab"),
            ("*a", "no argument for repetition operator: *"),
            ("(?=a)", "invalid perl operator: (?="),
            ("a\\", "trailing \\"),
        ] {
            let error = regex::Regex::new(pattern).expect_err(pattern);
            assert_eq!(regex_error(pattern, &error), expected);
        }
    }
}
