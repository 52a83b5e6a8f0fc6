//! Standing still: what a daemon takes while no packet flows. Memory and wake-ups.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// How long wake-ups are counted: twice the longest interval of the daemon's own clock.
const WATCH: Duration = Duration::from_secs(10);
/// Quiet time before, in which the last packets and what they woke are forgotten.
const SETTLE: Duration = Duration::from_secs(1);
/// Name of an engine's threads, without their number.
const ENGINE: &str = "engine-";

/// A figure beside the race, measured once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Aside {
    /// What it is.
    pub quantity: Quantity,
    /// Whose it is.
    pub way: String,
    /// How many leases of others there are.
    pub leases: usize,
    /// In the quantity's unit.
    pub value: f64,
    /// How it was measured, where that needs words.
    pub how: String,
}

/// What a figure beside the race is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quantity {
    /// Memory of the process that is in RAM: its own and what it uses of files, its program above all.
    ResidentMemory,
    /// Its own part of that (`RssAnon`).
    OwnMemory,
    /// Times a second that a thread of the engine is put on a CPU.
    EngineWakeUps,
    /// The same of all threads of the daemon.
    DaemonWakeUps,
    /// CPU seconds of the daemon in a second.
    IdleCpu,
    /// One look-up of a peer by an inner address.
    LookUp,
}

impl Quantity {
    /// In words.
    pub fn title(self) -> &'static str {
        match self {
            Self::ResidentMemory => "resident memory",
            Self::OwnMemory => "of it not of files",
            Self::EngineWakeUps => "wake-ups of engine threads",
            Self::DaemonWakeUps => "wake-ups of all threads",
            Self::IdleCpu => "CPU time while idle",
            Self::LookUp => "peer look-up",
        }
    }

    /// Of its value.
    pub fn unit(self) -> &'static str {
        match self {
            Self::ResidentMemory | Self::OwnMemory => "MiB",
            Self::EngineWakeUps | Self::DaemonWakeUps => "per s",
            Self::IdleCpu => "CPU s per s",
            Self::LookUp => "ns",
        }
    }
}

/// A daemon to look at.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    pub(super) way: String,
    pub(super) leases: usize,
    pub(super) pid: u32,
    /// What happened to it before.
    pub(super) how: String,
}

/// Looks at all of them at once for some seconds in which nobody sends.
///
/// # Errors
///
/// When one of them has ended.
pub(super) fn watch(all: &[Watched]) -> anyhow::Result<Vec<Aside>> {
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let look = || -> anyhow::Result<Vec<Look>> { all.iter().map(|one| Look::at(one.pid)).collect() };
    thread::sleep(SETTLE);
    let (started, before) = (Instant::now(), look()?);
    thread::sleep(WATCH);
    let (seconds, after) = (started.elapsed().as_secs_f64(), look()?);
    let mut asides = Vec::new();
    for (watched, (before, after)) in all.iter().zip(before.iter().zip(&after)) {
        let figures = [
            (Quantity::ResidentMemory, after.resident_kib as f64 / 1024.0),
            (Quantity::OwnMemory, after.own_kib as f64 / 1024.0),
            (Quantity::EngineWakeUps, after.switches_since(before, ENGINE) as f64 / seconds),
            (Quantity::DaemonWakeUps, after.switches_since(before, "") as f64 / seconds),
            (Quantity::IdleCpu, (after.cpu_seconds - before.cpu_seconds) / seconds),
        ];
        let (way, leases, how) = (&watched.way, watched.leases, &watched.how);
        asides.extend(figures.map(|(quantity, value)| Aside {
            quantity,
            way: way.clone(),
            leases,
            value,
            how: how.clone(),
        }));
    }
    Ok(asides)
}

/// One look at a process.
#[derive(Debug)]
struct Look {
    resident_kib: u64,
    own_kib: u64,
    cpu_seconds: f64,
    /// Name and context switches of each thread, by its id.
    threads: BTreeMap<String, (String, u64)>,
}

impl Look {
    fn at(pid: u32) -> anyhow::Result<Self> {
        let path = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let Some(resident_kib) = field(&status, "VmRSS:") else { bail!("{path} has no VmRSS: it has ended") };
        let own_kib = field(&status, "RssAnon:").unwrap_or_default();
        let mut threads = BTreeMap::new();
        let tasks = format!("/proc/{pid}/task");
        for task in fs::read_dir(&tasks).with_context(|| format!("list {tasks}"))? {
            let task = task?;
            // A thread that ends between the listing and the reading woke nobody any more.
            let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
            let name = status.lines().find_map(|line| line.strip_prefix("Name:")).unwrap_or_default();
            // A wake-up ends with the thread waiting again, of its own will; being pushed off a CPU is none.
            let switches = field(&status, "voluntary_ctxt_switches:").unwrap_or_default();
            threads.insert(task.file_name().display().to_string(), (name.trim().to_owned(), switches));
        }
        let cpu_seconds = crate::traffic::cpu::thread_seconds(pid)?;
        Ok(Self { resident_kib, own_kib, cpu_seconds, threads })
    }

    /// Of threads whose name begins with `name`. A thread that was not there before counts from its beginning.
    fn switches_since(&self, before: &Self, name: &str) -> u64 {
        let of = |(id, (thread, now)): (&String, &(String, u64))| {
            let then = before.threads.get(id).map_or(0, |(_, then)| *then);
            if thread.starts_with(name) { now.saturating_sub(then) } else { 0 }
        };
        self.threads.iter().map(of).sum()
    }
}

/// The number behind a name at the beginning of a line of `/proc/PID/status`.
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_threads_are_counted_by_name() {
        let look = |engine, daemon| Look {
            resident_kib: 1,
            own_kib: 1,
            cpu_seconds: 0.0,
            threads: BTreeMap::from([
                ("1".to_owned(), ("flanneld".to_owned(), daemon)),
                ("2".to_owned(), ("engine-0".to_owned(), engine)),
            ]),
        };
        let (before, after) = (look(7, 100), look(7, 120));
        assert_eq!((after.switches_since(&before, ENGINE), after.switches_since(&before, "")), (0, 20));
        assert_eq!(look(9, 100).switches_since(&before, ENGINE), 2);
    }

    #[test]
    fn fields_are_whole_names() {
        let status = "nonvoluntary_ctxt_switches:\t9\nvoluntary_ctxt_switches:\t4\nVmRSS:\t  9640 kB\n";
        assert_eq!(field(status, "voluntary_ctxt_switches:"), Some(4));
        assert_eq!(field(status, "VmRSS:"), Some(9640));
        assert_eq!(field(status, "VmSwap:"), None);
    }

    #[test]
    fn this_process_has_memory_and_threads() {
        let look = Look::at(std::process::id()).unwrap();
        assert!(look.resident_kib > 100 && !look.threads.is_empty(), "{look:?}");
        // No process has the highest id that there can be.
        assert!(Look::at(4_194_304).is_err());
    }
}
