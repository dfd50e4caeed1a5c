//! Prints the figures as a table and keeps them as JSON.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Value, json};

/// The figures of one proxy in one scenario.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Which proxy.
    pub proxy: &'static str,
    /// Highest rate, in requests per second.
    pub rate: f64,
    /// CPU time of the proxy per request at that rate, in microseconds.
    pub cpu_us: f64,
    /// Rate of the open loop.
    pub open_rate: f64,
    /// p50, p90, p99, p99.9, p99.99 of the open loop, in microseconds.
    pub latency_us: [f64; 5],
    /// Resident memory after the runs, in KiB.
    pub resident_kib: u64,
    /// Requests that failed.
    pub errors: u64,
}

/// Prints one scenario; with several proxies, the ratio to the last one called `envoy` too.
#[allow(clippy::print_stdout, reason = "the table is the product")]
pub fn table(scenario: &str, rows: &[Figures]) {
    println!("\n{scenario}");
    println!(
        "{:<9} {:>9} {:>9} | {:>9} {:>8} {:>8} {:>8} {:>8} {:>8} | {:>8} {:>6}",
        "", "max req/s", "CPU us/rq", "at req/s", "p50 us", "p90", "p99", "p99.9", "p99.99", "RSS MiB", "errors"
    );
    for row in rows {
        let [p50, p90, p99, p999, p9999] = row.latency_us;
        println!(
            "{:<9} {:>9.0} {:>9.1} | {:>9.0} {p50:>8.0} {p90:>8.0} {p99:>8.0} {p999:>8.0} {p9999:>8.0} | {:>8.1} {:>6}",
            row.proxy,
            row.rate,
            row.cpu_us,
            row.open_rate,
            row.resident_kib as f64 / 1024.0,
            row.errors
        );
    }
    let (Some(envoy), Some(own)) = (by_name(rows, "envoy"), by_name(rows, "nuncio")) else { return };
    println!(
        "nuncio / envoy: rate {:.2}, CPU {:.2}, p50 {:.2}, p99 {:.2}, RSS {:.2}",
        own.rate / envoy.rate,
        own.cpu_us / envoy.cpu_us,
        own.latency_us[0] / envoy.latency_us[0],
        own.latency_us[2] / envoy.latency_us[2],
        own.resident_kib as f64 / envoy.resident_kib as f64
    );
    for other in ["nginx", "haproxy"] {
        if let Some(other) = by_name(rows, other) {
            println!("nuncio / {}: CPU {:.2}", other.proxy, own.cpu_us / other.cpu_us);
        }
    }
}

/// What is above its limit beside the others: p99 at half of Envoy's highest rate, and CPU time per request.
pub fn above_limits(scenario: &str, rows: &[Figures]) -> Vec<String> {
    let Some(own) = by_name(rows, "nuncio") else { return Vec::new() };
    let mut above = Vec::new();
    let mut hold = |what: &str, other: &str, of: &dyn Fn(&Figures) -> f64, limit: f64| {
        let Some(other) = by_name(rows, other) else { return };
        let ratio = of(own) / of(other);
        if ratio > limit {
            above.push(format!("{scenario}: {what} {ratio:.2} of {}'s, limit {limit}", other.proxy));
        }
    };
    hold("p99", "envoy", &|r| r.latency_us[2], 1.0);
    if scenario != "tcp" {
        hold("CPU", "envoy", &|r| r.cpu_us, 0.40);
        hold("CPU", "nginx", &|r| r.cpu_us, 1.1);
    }
    above
}

fn by_name<'a>(rows: &'a [Figures], name: &str) -> Option<&'a Figures> {
    rows.iter().find(|row| row.proxy == name)
}

/// Writes the figures to `target/bench/NAME.json` and says where.
///
/// # Errors
/// The file cannot be written.
pub fn keep(name: &str, scenarios: &[(String, Vec<Figures>)]) -> Result<PathBuf> {
    let scenarios: serde_json::Map<String, Value> = scenarios
        .iter()
        .map(|(scenario, rows)| {
            let rows = rows.iter().map(|r| {
                json!({"proxy": r.proxy, "max_requests_per_second": r.rate, "cpu_us_per_request": r.cpu_us,
                    "open_loop_requests_per_second": r.open_rate, "resident_kib": r.resident_kib, "errors": r.errors,
                    "latency_us": {"p50": r.latency_us[0], "p90": r.latency_us[1], "p99": r.latency_us[2],
                        "p99.9": r.latency_us[3], "p99.99": r.latency_us[4]}})
            });
            (scenario.clone(), rows.collect())
        })
        .collect();
    let target = nuncio_tests::find::profile_dir().parent().map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let dir = target.join("bench");
    std::fs::create_dir_all(&dir)?;
    let path = dir.join(format!("{name}.json"));
    std::fs::write(&path, serde_json::to_string_pretty(&json!({"scenarios": scenarios}))?)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_above_its_limit_is_named() {
        let row =
            |proxy, cpu_us, p99| Figures { proxy, cpu_us, latency_us: [1.0, 1.0, p99, 1.0, 1.0], ..Figures::default() };
        let good = [row("envoy", 100.0, 500.0), row("nuncio", 39.0, 400.0)];
        assert!(above_limits("h1", &good).is_empty());
        let bad = [row("envoy", 100.0, 500.0), row("nginx", 30.0, 100.0), row("nuncio", 39.0, 501.0)];
        assert_eq!(
            above_limits("h1", &bad),
            ["h1: p99 1.00 of envoy's, limit 1", "h1: CPU 1.30 of nginx's, limit 1.1"]
        );
        assert_eq!(above_limits("tcp", &bad).len(), 1);
    }
}
