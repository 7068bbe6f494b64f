//! Processor time and memory of processes and of all that they started, as `/proc` tells (proc(5)).

use std::time::Duration;

/// Ticks of `/proc/PID/stat` in a second: `USER_HZ`, which is 100 on every Linux of today.
const TICKS: u32 = 100;

/// User and system time of a process, of what it has reaped, and of its living children.
#[must_use]
pub fn cpu(pid: u32) -> Duration {
    let own = stat(pid).map_or(0, |(_, ticks)| ticks);
    let children: u64 = pids().filter_map(stat).filter(|(parent, _)| *parent == pid).map(|(_, ticks)| ticks).sum();
    Duration::from_secs(own + children) / TICKS
}

/// Resident memory in bytes.
#[must_use]
pub fn resident(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kilobytes = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix("kB").and_then(|number| number.trim().parse::<u64>().ok()));
    kilobytes.unwrap_or(0) << 10
}

/// Proportional set size of a process and its children in bytes: memory that is shared is divided among its users.
#[must_use]
pub fn proportional(pid: u32) -> u64 {
    let children = pids().filter(|child| stat(*child).is_some_and(|(parent, _)| parent == pid));
    children.chain([pid]).map(pss).sum()
}

fn pss(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kilobytes = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = kilobytes.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    number.unwrap_or(0) << 10
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Parent, and ticks.
fn stat(pid: u32) -> Option<(u32, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, and ends at the last parenthesis.
    let words: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let ticks = words.get(11..15)?.iter().filter_map(|word| word.parse::<u64>().ok()).sum();
    Some((words.get(1)?.parse().ok()?, ticks))
}
