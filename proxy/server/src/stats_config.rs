//! `stats_config` of the bootstrap in the form that the stat registry takes.

use nuncio_base::stats::NameMatcher;
use nuncio_base::stats::StatsConfig as RegistryConfig;
use nuncio_base::stats::tags::{TagError, TagExtractor, TagSpecifier, TagValue};
use nuncio_config::bootstrap::{StatsConfig, StatsMatcher, TagKind};
use nuncio_config::matchers::StringMatcher;
use nuncio_http::matchers::string_matches;

/// The registry's configuration.
///
/// # Errors
/// A tag that cannot be extracted as written.
pub(crate) fn of(config: &StatsConfig) -> Result<RegistryConfig, TagError> {
    let specifier = |name: &str, value| TagSpecifier { name: name.to_owned(), value };
    let mut tags: Vec<_> = config
        .tags
        .iter()
        .map(|tag| {
            let value = match &tag.kind {
                TagKind::Regex(regex) => TagValue::Regex(regex.to_string()),
                TagKind::Fixed(value) => TagValue::Fixed(value.to_string()),
                TagKind::Default => TagValue::Default,
            };
            specifier(&tag.name, value)
        })
        .collect();
    tags.extend(config.fixed_tags.iter().map(|(n, v)| specifier(n, TagValue::Fixed(v.to_string()))));
    Ok(RegistryConfig {
        matcher: matcher(&config.matcher),
        tags: match config.use_all_default_tags && config.allow_default_tag_overrides {
            true => TagExtractor::overriding(&tags)?,
            false => TagExtractor::new(config.use_all_default_tags, &tags)?,
        },
        histogram_buckets: config.histogram_buckets.iter().map(|(m, b)| (one(m.clone()), b.clone())).collect(),
    })
}

fn one(matcher: StringMatcher) -> NameMatcher {
    Box::new(move |name| string_matches(&matcher, name.as_bytes()))
}

fn matcher(config: &StatsMatcher) -> Option<NameMatcher> {
    if matches!(config, StatsMatcher::All) {
        return None;
    }
    let config = config.clone();
    Some(Box::new(move |name| config.includes(name)))
}
