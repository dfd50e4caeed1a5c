//! CPU time and memory of a process, from the kernel's accounting; and on which core things run.

use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// CPU time (user and system) that a process has used so far. The resolution is the kernel's tick, 10 ms.
///
/// # Errors
/// The process is gone.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the proxy is gone")?;
    // The name in parentheses may hold spaces; the fields after it do not.
    let after = stat.rsplit_once(')').context("/proc/PID/stat")?.1;
    let fields: Vec<u64> = after.split_whitespace().skip(11).take(2).filter_map(|f| f.parse().ok()).collect();
    let ticks: u64 = fields.iter().sum();
    let per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

/// CPU time of all threads that there are now, to the nanosecond: for short times. What ended threads used is missing.
///
/// # Errors
/// The process is gone, or the kernel keeps no such account.
pub fn cpu_exact(pid: u32) -> Result<Duration> {
    let mut nanos = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).context("the proxy is gone")? {
        // A thread may end at any time.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
        nanos += text
            .split_whitespace()
            .next()
            .and_then(|n| n.parse::<u64>().ok())
            .context("/proc/PID/task/TID/schedstat")?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// Resident memory in KiB.
///
/// # Errors
/// The process is gone.
pub fn resident_kib(pid: u32) -> Result<u64> {
    status_kib(pid, "VmRSS:")
}

/// The part of the resident memory that no file holds, in KiB.
///
/// # Errors
/// The process is gone.
pub fn private_kib(pid: u32) -> Result<u64> {
    status_kib(pid, "RssAnon:")
}

/// The highest resident memory since the start or since [`reset_peak`], in KiB.
///
/// # Errors
/// The process is gone.
pub fn peak_kib(pid: u32) -> Result<u64> {
    status_kib(pid, "VmHWM:")
}

/// Makes the highest resident memory the present one.
///
/// # Errors
/// The process is gone.
pub fn reset_peak(pid: u32) -> Result<()> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").context("the peak cannot be reset")
}

fn status_kib(pid: u32, field: &'static str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the proxy is gone")?;
    let line = status.lines().find(|l| l.starts_with(field)).context(field)?;
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).context(field)
}

/// The cores that this process may use, in order.
pub fn cores() -> Vec<usize> {
    let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect()
}

/// Binds the calling thread, and what it starts from now on, to some cores. Without the permission nothing happens.
pub fn bind_to(cores: &[usize]) {
    let mut set = CpuSet::new();
    for &core in cores {
        set.set(core);
    }
    if !cores.is_empty() {
        let _ = sched_setaffinity(None, &set);
    }
}
