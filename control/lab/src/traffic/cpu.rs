//! CPU seconds: of this run, of single processes, of the machine; and how much of it was somebody else's.
//!
//! Sources: `/proc/stat` (whole machine, clock ticks), `/proc/PID/stat` (a process with its dead threads, clock ticks),
//! `/proc/PID/task/*/schedstat` (living threads, nanoseconds): proc(5).

use std::fs;
use std::io;
use std::time::Instant;

use nix::unistd::{SysconfVar, sysconf};
use serde::Serialize;

/// CPU time spent between the start and the stop of a [`Meter`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CpuUse {
    /// Wall-clock seconds between start and stop.
    pub seconds: f64,
    /// Busy CPU seconds of the whole machine: user, system, interrupts and softirqs of everybody.
    pub machine: f64,
    /// CPU seconds of this process, and of the watched ones, in the order given to [`Meter::start`].
    pub watched: Vec<ProcessUse>,
    /// Share of the machine's CPUs, 0 to 1, that other processes used in user mode. Above 0.03 a figure says little.
    pub foreign: f64,
}

/// CPU seconds of one process.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProcessUse {
    /// Its process id.
    pub pid: u32,
    /// User and system seconds, dead threads included.
    pub seconds: f64,
}

/// A stop-watch for CPU time.
#[derive(Debug)]
pub struct Meter {
    started: Instant,
    machine: MachineTicks,
    processes: Vec<(u32, ProcessTicks)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct MachineTicks {
    user: u64,
    busy: u64,
    cpus: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct ProcessTicks {
    user: u64,
    system: u64,
}

impl Meter {
    /// Starts counting this process and `pids`. A process that has ended counts nothing.
    ///
    /// # Errors
    ///
    /// When `/proc/stat` cannot be read.
    pub fn start(pids: &[u32]) -> io::Result<Self> {
        let own = std::process::id();
        let all = std::iter::once(own).chain(pids.iter().copied().filter(|&pid| pid != own));
        let processes = all.map(|pid| (pid, process_ticks(pid))).collect();
        Ok(Self { machine: machine_ticks()?, processes, started: Instant::now() })
    }

    /// What was spent since the start.
    ///
    /// # Errors
    ///
    /// When `/proc/stat` cannot be read.
    pub fn stop(&self) -> io::Result<CpuUse> {
        let seconds = self.started.elapsed().as_secs_f64();
        let machine = machine_ticks()?;
        let per_second = ticks_per_second();
        let mut ours_in_user_mode = 0;
        let mut watched = Vec::with_capacity(self.processes.len());
        for &(pid, before) in &self.processes {
            let after = process_ticks(pid);
            let user = after.user.saturating_sub(before.user);
            ours_in_user_mode += user;
            let ticks = user + after.system.saturating_sub(before.system);
            watched.push(ProcessUse { pid, seconds: ticks as f64 / per_second });
        }
        let user = machine.user.saturating_sub(self.machine.user);
        let foreign_seconds = user.saturating_sub(ours_in_user_mode) as f64 / per_second;
        Ok(CpuUse {
            seconds,
            machine: machine.busy.saturating_sub(self.machine.busy) as f64 / per_second,
            watched,
            foreign: foreign_seconds / (seconds * machine.cpus as f64).max(f64::MIN_POSITIVE),
        })
    }
}

/// CPU seconds that the living threads of a process have run so far, to the nanosecond.
///
/// # Errors
///
/// When the process does not exist or the kernel keeps no schedstat.
pub fn thread_seconds(pid: u32) -> io::Result<f64> {
    let mut nanoseconds = 0_u64;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread that ends between the listing and the reading has left the sum anyway.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        nanoseconds += text.split(' ').next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(nanoseconds as f64 / 1e9)
}

fn ticks_per_second() -> f64 {
    sysconf(SysconfVar::CLK_TCK).ok().flatten().map_or(100.0, |ticks| ticks as f64)
}

fn machine_ticks() -> io::Result<MachineTicks> {
    let text = fs::read_to_string("/proc/stat")?;
    parse_machine(&text).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "/proc/stat does not begin with a `cpu` line of at least 7 numbers",
        )
    })
}

fn parse_machine(text: &str) -> Option<MachineTicks> {
    let mut lines = text.lines();
    let first = lines.next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = first.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    // user nice system idle iowait irq softirq steal ..; guest time is already inside user.
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = fields[..] else { return None };
    let cpus = lines.take_while(|line| line.starts_with("cpu")).count() as u64;
    Some(MachineTicks { user: user + nice, busy: user + nice + system + irq + softirq, cpus: cpus.max(1) })
}

fn process_ticks(pid: u32) -> ProcessTicks {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    parse_process(&text).unwrap_or(ProcessTicks { user: 0, system: 0 })
}

fn parse_process(text: &str) -> Option<ProcessTicks> {
    // The name in parentheses may hold blanks and parentheses; the numbers start behind the last one.
    let numbers = text.get(text.rfind(')')? + 1..)?;
    let mut fields = numbers.split_whitespace().skip(11);
    let user = fields.next()?.parse().ok()?;
    let system = fields.next()?.parse().ok()?;
    Some(ProcessTicks { user, system })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_blanks_and_parentheses_shifts_no_field() {
        let line = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 111 222 0 0 20 0 1 0";
        assert_eq!(parse_process(line), Some(ProcessTicks { user: 111, system: 222 }));
        assert_eq!(parse_process("7 (a"), None);
    }

    #[test]
    fn idle_and_io_wait_are_not_busy() {
        let text = "cpu  10 1 20 5000 700 3 4 9 0 0\ncpu0 1 1 1\ncpu1 1 1 1\nintr 5\n";
        assert_eq!(parse_machine(text), Some(MachineTicks { user: 11, busy: 38, cpus: 2 }));
        assert_eq!(parse_machine("cpu 1 2 3"), None);
    }

    #[test]
    fn own_work_is_counted_as_own() {
        let meter = Meter::start(&[]).unwrap();
        let before = thread_seconds(std::process::id()).unwrap();
        let started = Instant::now();
        let mut sum = 0_u64;
        while started.elapsed().as_millis() < 200 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let used = meter.stop().unwrap();
        assert!(used.watched[0].seconds > 0.02, "{used:?}");
        assert!(used.machine >= used.watched[0].seconds * 0.5, "{used:?}");
        assert!(thread_seconds(std::process::id()).unwrap() > before);
    }
}
