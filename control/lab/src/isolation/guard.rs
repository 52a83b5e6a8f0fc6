//! The guard of a lab: starts the copy inside the namespaces, hands signals on, ends with the copy's exit code.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus};

use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;

use super::{GUARD_VARIABLE, IsolateError, unshare_as_allowed};

/// Unshares, starts the copy and stays until it has ended.
pub(super) fn start_and_watch(marker: &str) -> Result<ExitCode, IsolateError> {
    let failed = |what| move |source: std::io::Error| IsolateError::Guard { what, source };
    // Blocked from here on, so that none is lost between the start of the copy and the first read.
    let signals = watched_signals();
    signals.thread_block().map_err(|errno| failed("block signals")(errno.into()))?;
    let incoming = SignalFd::new(&signals).map_err(|errno| failed("open a signalfd")(errno.into()))?;

    // The guard keeps its mounts: it reads the machine's /proc, while the copy mounts one of its own.
    unshare_as_allowed(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNET, "pid, net")?;
    let mut copy = Command::new("/proc/self/exe")
        .arg0(marker)
        .args(std::env::args_os().skip(1))
        .env(GUARD_VARIABLE, std::process::id().to_string())
        .spawn()
        .map_err(failed("start this program again inside its namespaces (/proc/self/exe)"))?;
    watch(&mut copy, &incoming).map_err(failed("wait for the process inside the namespaces"))
}

/// The signals that the guard reads. Blocked in it, and so at first in the copy that it starts.
pub(super) fn watched_signals() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect()
}

fn watch(copy: &mut Child, incoming: &SignalFd) -> std::io::Result<ExitCode> {
    let pid = i32::try_from(copy.id()).map_err(std::io::Error::other)?;
    let mut killed_for = None;
    loop {
        if let Some(status) = copy.try_wait()? {
            return Ok(exit_code(status, killed_for));
        }
        let mut ready = [nix::poll::PollFd::new(incoming.as_fd(), nix::poll::PollFlags::POLLIN)];
        match nix::poll::poll(&mut ready, nix::poll::PollTimeout::NONE) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        let Some(info) = incoming.read_signal()? else { continue };
        let Ok(signal) = Signal::try_from(info.ssi_signo as i32) else { continue };
        if signal == Signal::SIGCHLD {
            continue;
        }
        // Pid 1 of a namespace ignores what it has no handler for, and the user asked for an end.
        if !catches(pid, signal) {
            killed_for = Some(signal);
            copy.kill()?;
        } else if info.ssi_code <= 0 {
            // Sent by a process to the guard alone. A terminal's Ctrl-C (code above 0) reached the copy by itself.
            // A copy that has just ended is no failure: the next try_wait sees it.
            let _gone = kill(Pid::from_raw(pid), signal);
        }
    }
}

/// Whether the process has a handler for the signal (`SigCgt` of `/proc/PID/status`, a mask in hex).
fn catches(pid: i32, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (signal as i32 - 1)) != 0
}

/// The copy's own code, or 128 + signal as shells say it: the signal that the guard was sent, where it had to kill.
fn exit_code(status: ExitStatus, killed_for: Option<Signal>) -> ExitCode {
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + killed_for.map_or(signal, |asked| asked as i32),
        (None, None) => 1,
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
