//! Runtime layers: keys that override parts of the configuration (`layered_runtime`).
//!
//! Static, disk, admin and fetched layers; a later layer wins. The merged snapshot is immutable and published whole: workers read
//! it without locks; the admin interface, SIGHUP and the discovery client replace it.

use crate::stats::RuntimeStats;
use arc_swap::ArcSwap;
use bytes::Bytes;
use nuncio_base::stats::output::general;
use nuncio_config::bootstrap::{RuntimeLayer, RuntimeLayerKind};
use nuncio_config::matchers::FractionalPercent;
use nuncio_http::matchers::Runtime;
use rustc_hash::FxHashMap;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// One layer with its values as they are now.
#[derive(Debug, Clone)]
struct Layer {
    name: Box<str>,
    values: Vec<Entry>,
    admin: bool,
    disk: Option<Disk>,
    /// Resource and serialized source of a layer that is fetched.
    fetched: Option<(Box<str>, Bytes)>,
}

/// A key of a layer.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    key: String,
    value: Value,
    /// As `/runtime` shows it: what was written, or a number in six digits.
    text: String,
}

impl Entry {
    fn new(key: impl Into<String>, value: Value) -> Entry {
        let text = match &value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.as_f64().map_or_else(|| number.to_string(), |number| general(number, 6)),
            other => other.to_string(),
        };
        Entry { key: key.into(), value, text }
    }

    /// From text of a file or a request.
    fn parsed(key: impl Into<String>, text: &str) -> Entry {
        Entry { key: key.into(), value: parse_scalar(text), text: text.to_owned() }
    }
}

/// Where a layer on disk is.
#[derive(Debug, Clone)]
struct Disk {
    /// The link that is swapped for a new version.
    link: PathBuf,
    /// What is read: a folder below it.
    root: PathBuf,
}

/// A layer that is fetched.
#[derive(Debug, Clone)]
pub struct FetchedLayer {
    /// Its place among the layers.
    pub index: usize,
    /// Name of the resource.
    pub resource: Box<str>,
    /// Serialized `ConfigSource`.
    pub source: Bytes,
}

/// The layers of the process.
pub struct RuntimeLoader {
    layers: Mutex<Vec<Layer>>,
    snapshot: ArcSwap<FxHashMap<String, Value>>,
    stats: RuntimeStats,
}

impl RuntimeLoader {
    /// From the bootstrap; disk layers are read now. `cluster` is the service cluster.
    pub fn new(layers: &[RuntimeLayer], cluster: &str, stats: RuntimeStats) -> Arc<RuntimeLoader> {
        let layers = layers.iter().map(|layer| build(layer, cluster)).collect();
        let loader = RuntimeLoader { layers: Mutex::new(layers), snapshot: ArcSwap::default(), stats };
        loader.refresh();
        Arc::new(loader)
    }

    /// Merges the layers anew and publishes the result.
    pub fn refresh(&self) {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut merged = FxHashMap::default();
        for layer in layers.iter() {
            for entry in &layer.values {
                merged.insert(entry.key.clone(), entry.value.clone());
            }
        }
        let stats = &self.stats;
        stats.num_layers().set(layers.len() as u64);
        stats.num_keys().set(merged.len() as u64);
        stats
            .admin_overrides_active()
            .set(u64::from(layers.iter().any(|layer| layer.admin && !layer.values.is_empty())));
        stats.load_success().inc();
        // Envoy counts whether there is more than one layer on disk.
        match layers.iter().filter(|layer| layer.disk.is_some()).count() {
            0 | 1 => stats.override_dir_not_exists().inc(),
            _ => stats.override_dir_exists().inc(),
        }
        self.snapshot.store(Arc::new(merged));
    }

    /// Reads disk layers again.
    pub fn reload_disk(&self) {
        {
            let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
            for layer in layers.iter_mut() {
                if let Some(disk) = &layer.disk {
                    layer.values = read_disk(&disk.root);
                }
            }
        }
        self.refresh();
    }

    /// Reads disk layers again if they are not what was read of them: something may change before they are watched.
    pub fn reload_disk_if_changed(&self) {
        let changed = {
            let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
            let mut on_disk = layers.iter().filter_map(|layer| Some((layer, layer.disk.as_ref()?)));
            on_disk.any(|(layer, disk)| layer.values != read_disk(&disk.root))
        };
        if changed {
            self.reload_disk();
        }
    }

    /// Links of disk layers (`symlink_root`), to be watched: one that is swapped is a new version.
    pub fn disk_links(&self) -> Vec<PathBuf> {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.iter().filter_map(|layer| Some(layer.disk.as_ref()?.link.clone())).collect()
    }

    /// Layers and their values as text, lowest first.
    pub fn layers(&self) -> Vec<(String, Vec<(String, String)>)> {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let text = |entry: &Entry| (entry.key.clone(), entry.text.clone());
        layers.iter().map(|l| (l.name.to_string(), l.values.iter().map(text).collect())).collect()
    }

    /// Layers that are fetched, lowest first.
    pub fn fetched(&self) -> Vec<FetchedLayer> {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let fetched = |(index, layer): (usize, &Layer)| {
            let (resource, source) = layer.fetched.clone()?;
            Some(FetchedLayer { index, resource, source })
        };
        layers.iter().enumerate().filter_map(fetched).collect()
    }

    /// Replaces the values of a layer that is fetched.
    pub fn set_fetched(&self, index: usize, values: Vec<(Box<str>, Value)>) {
        {
            let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(layer) = layers.get_mut(index).filter(|layer| layer.fetched.is_some()) else { return };
            layer.values = values.into_iter().map(|(key, value)| Entry::new(key, value)).collect();
        }
        self.refresh();
    }

    /// Sets values in the last admin layer; an empty value removes the key.
    ///
    /// # Errors
    /// Envoy's text when there is no admin layer.
    pub fn modify(&self, values: &[(String, String)]) -> Result<(), String> {
        {
            let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
            let admin = layers.iter_mut().rev().find(|l| l.admin).ok_or("No admin layer specified")?;
            for (key, value) in values {
                admin.values.retain(|entry| entry.key != *key);
                if !value.is_empty() {
                    admin.values.push(Entry::parsed(key, value));
                }
            }
        }
        self.refresh();
        Ok(())
    }
}

fn build(layer: &RuntimeLayer, cluster: &str) -> Layer {
    let mut out = Layer { name: layer.name.clone(), values: Vec::new(), admin: false, disk: None, fetched: None };
    match &layer.kind {
        RuntimeLayerKind::Static(values) => {
            out.values = values.iter().map(|(key, value)| Entry::new(&**key, value.clone())).collect();
        }
        RuntimeLayerKind::Admin => out.admin = true,
        RuntimeLayerKind::Disk { symlink_root, subdirectory, append_service_cluster } => {
            let link = PathBuf::from(&**symlink_root);
            let mut root = link.join(&**subdirectory);
            if *append_service_cluster {
                root = root.join(cluster);
            }
            out.values = read_disk(&root);
            out.disk = Some(Disk { link, root });
        }
        RuntimeLayerKind::Rtds { resource, source } => out.fetched = Some((resource.clone(), source.clone())),
    }
    out
}

/// A file is a value, a directory a part of the key. Lines that begin with `#` are comments.
fn read_disk(root: &Path) -> Vec<Entry> {
    let mut out = Vec::new();
    let mut todo = vec![(root.to_owned(), String::new(), 0)];
    while let Some((folder, prefix, depth)) = todo.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') || depth > 16 {
                continue;
            }
            let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
            let path = entry.path();
            if path.is_dir() {
                todo.push((path, key, depth + 1));
            } else if let Ok(text) = std::fs::read_to_string(&path) {
                let lines: Vec<_> = text.lines().filter(|l| !l.starts_with('#')).collect();
                out.push(Entry::parsed(key, lines.join("\n").trim_end()));
            }
        }
    }
    out
}

/// Numbers and booleans as such; JSON objects for fractional percents; the rest as text.
fn parse_scalar(text: &str) -> Value {
    match serde_json::from_str::<Value>(text.trim()) {
        Ok(v @ (Value::Number(_) | Value::Bool(_) | Value::Object(_))) => v,
        _ => Value::String(text.to_owned()),
    }
}

impl Runtime for RuntimeLoader {
    fn integer(&self, key: &str) -> Option<u64> {
        let snapshot = self.snapshot.load();
        match snapshot.get(key)? {
            Value::Number(n) => n.as_u64().or_else(|| n.as_f64().map(|f| f as u64)),
            Value::Bool(b) => Some(u64::from(*b)),
            Value::String(s) => s.parse().ok(),
            _ => None,
        }
    }

    fn double(&self, key: &str) -> Option<f64> {
        match self.snapshot.load().get(key)? {
            Value::Number(number) => number.as_f64(),
            Value::Bool(truth) => Some(f64::from(u8::from(*truth))),
            Value::String(text) => text.trim().parse().ok().filter(|number: &f64| number.is_finite()),
            _ => None,
        }
    }

    fn fraction(&self, key: &str) -> Option<FractionalPercent> {
        let snapshot = self.snapshot.load();
        if let Some(Value::Object(o)) = snapshot.get(key) {
            let numerator = o.get("numerator").and_then(Value::as_u64).unwrap_or(0) as u32;
            let denominator = match o.get("denominator").and_then(Value::as_str) {
                Some("TEN_THOUSAND") => 10_000,
                Some("MILLION") => 1_000_000,
                _ => 100,
            };
            return Some(FractionalPercent { numerator, denominator });
        }
        let percent = self.integer(key)?;
        Some(FractionalPercent { numerator: percent.min(100) as u32, denominator: 100 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn stats() -> RuntimeStats {
        let registry = nuncio_base::stats::Registry::new(1, nuncio_base::stats::StatsConfig::default());
        RuntimeStats::new(&registry, "runtime.")
    }

    #[test]
    fn a_fetched_layer_keeps_its_place_and_is_replaced_whole() {
        let fixed = |values: &[(&str, Value)]| {
            RuntimeLayerKind::Static(values.iter().map(|(key, value)| ((*key).into(), value.clone())).collect())
        };
        let list = [
            RuntimeLayer { name: "low".into(), kind: fixed(&[("a", json!(1)), ("b", json!(1))]) },
            RuntimeLayer {
                name: "far".into(),
                kind: RuntimeLayerKind::Rtds { resource: "r".into(), source: Bytes::new() },
            },
            RuntimeLayer { name: "high".into(), kind: fixed(&[("c", json!(3))]) },
        ];
        let r = RuntimeLoader::new(&list, "", stats());
        let fetched = r.fetched();
        assert_eq!((fetched.len(), fetched[0].index, &*fetched[0].resource), (1, 1, "r"));
        let loads = r.stats.load_success().value();
        r.set_fetched(1, vec![("a".into(), json!(2)), ("c".into(), json!(2)), ("d".into(), json!(2))]);
        assert_eq!(["a", "b", "c", "d"].map(|key| r.integer(key)), [Some(2), Some(1), Some(3), Some(2)]);
        assert_eq!((r.stats.num_keys().value(), r.stats.load_success().value()), (4, loads + 1));
        r.set_fetched(1, vec![("b".into(), json!(2))]);
        assert_eq!(["a", "b", "d"].map(|key| r.integer(key)), [Some(1), Some(2), None]);
        // A layer that is not fetched stays.
        r.set_fetched(0, Vec::new());
        assert_eq!(r.integer("a"), Some(1));
    }

    fn layers() -> Arc<RuntimeLoader> {
        let fixed = RuntimeLayerKind::Static(vec![
            ("a.b".into(), json!(3)),
            ("part".into(), json!({"numerator": 5, "denominator": "TEN_THOUSAND"})),
        ]);
        let list = [
            RuntimeLayer { name: "static".into(), kind: fixed },
            RuntimeLayer { name: "admin".into(), kind: RuntimeLayerKind::Admin },
        ];
        RuntimeLoader::new(&list, "", stats())
    }

    #[test]
    fn a_later_layer_wins_and_an_empty_value_removes() {
        let r = layers();
        assert_eq!(r.integer("a.b"), Some(3));
        r.modify(&[("a.b".into(), "9".into())]).unwrap();
        assert_eq!(r.integer("a.b"), Some(9));
        r.modify(&[("a.b".into(), String::new())]).unwrap();
        assert_eq!(r.integer("a.b"), Some(3));
    }

    #[test]
    fn fractions_may_be_objects_or_percents() {
        let r = layers();
        assert_eq!(r.fraction("part"), Some(FractionalPercent { numerator: 5, denominator: 10_000 }));
        assert_eq!(r.fraction("a.b"), Some(FractionalPercent { numerator: 3, denominator: 100 }));
        assert_eq!(r.fraction("none"), None);
    }

    #[test]
    fn values_are_shown_as_envoy_shows_them() {
        let fixed = |values: Value| {
            let Value::Object(values) = values else { panic!("an object") };
            RuntimeLayerKind::Static(values.into_iter().map(|(key, value)| (key.into(), value)).collect())
        };
        let kind = fixed(json!({"a": 1, "b": 1.5, "c": "0.50", "d": true, "f": 1_000_000, "h": 1e20, "i": -3,
            "j": 1e-7, "p": 12_345_678_901_234_567_890_u64, "q": 123_456.789}));
        let list = [
            RuntimeLayer { name: "static".into(), kind },
            RuntimeLayer { name: "admin".into(), kind: RuntimeLayerKind::Admin },
        ];
        let r = RuntimeLoader::new(&list, "", stats());
        r.modify(&[("x".into(), "1e3".into()), ("y".into(), " 007 ".into())]).unwrap();
        let shown = r.layers();
        let texts: Vec<_> = shown.iter().flat_map(|layer| &layer.1).map(|(_, text)| text.as_str()).collect();
        let expected = ["1", "1.5", "0.50", "true", "1e+06", "1e+20", "-3", "1e-07", "1.23457e+19", "123457"];
        assert_eq!(texts[..10], expected);
        assert_eq!(texts[10..], ["1e3", " 007 "]);
        assert_eq!(r.integer("x"), Some(1000));
        let doubles = ["a", "b", "c", "j", "x", "none"].map(|key| r.double(key));
        assert_eq!(doubles, [Some(1.0), Some(1.5), Some(0.5), Some(1e-7), Some(1000.0), None]);
    }

    #[test]
    fn a_folder_on_disk_is_a_layer_and_a_swapped_link_another_version() {
        let dir = tempfile::tempdir().unwrap();
        for (version, value) in [("v1", "3"), ("v2", "4")] {
            let folder = dir.path().join(version).join("envoy/x");
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("y"), format!("# a comment\n {value} \n")).unwrap();
        }
        let link = dir.path().join("current");
        std::os::unix::fs::symlink("v1", &link).unwrap();
        let kind = RuntimeLayerKind::Disk {
            symlink_root: link.to_string_lossy().into(),
            subdirectory: "envoy".into(),
            append_service_cluster: false,
        };
        let r = RuntimeLoader::new(&[RuntimeLayer { name: "disk".into(), kind }], "", stats());
        assert_eq!((r.integer("x.y"), r.disk_links()), (Some(3), vec![link.clone()]));
        assert_eq!(r.layers()[0].1, [("x.y".to_owned(), " 3".to_owned())]);
        std::os::unix::fs::symlink("v2", dir.path().join("new")).unwrap();
        std::fs::rename(dir.path().join("new"), &link).unwrap();
        r.reload_disk_if_changed();
        assert_eq!(r.integer("x.y"), Some(4));
        let loads = r.stats.load_success().value();
        r.reload_disk_if_changed();
        assert_eq!(r.stats.load_success().value(), loads, "nothing has changed");
        r.reload_disk();
        assert_eq!(r.stats.load_success().value(), loads + 1);
    }

    #[test]
    fn without_an_admin_layer_nothing_can_be_modified() {
        let r = RuntimeLoader::new(&[], "", stats());
        assert_eq!(r.modify(&[("a".into(), "1".into())]).unwrap_err(), "No admin layer specified");
    }
}
