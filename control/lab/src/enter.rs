//! Into a running lab from another process: finds it, enters one of its nodes or pods, runs a command there.
//!
//! There is no file that names a lab. Its process is found by the marker in `argv[0]` that
//! [`crate::isolation::run_inside`] gave it, its nodes by the names of its threads.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, Signal};

/// Why a command could not be run inside a lab.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// Nothing carries the marker.
    #[error("no lab is running (no process is named {marker}). Start one and keep it: flanneld demo --keep")]
    NoLab {
        /// What was looked for.
        marker: String,
    },
    /// A lab is there, but not what was asked for.
    #[error("the lab has no {name}. It has: {}", known.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The kernel keeps this process out of a namespace.
    #[error(
        "cannot enter the {kind} namespace of {name}: {source}. Run this as the user who started the lab, or as root"
    )]
    Refused {
        /// `user`, `pid`, `mnt` or `net`.
        kind: &'static str,
        /// The node or pod.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The command does not start.
    #[error("cannot run {program:?} in {name}: {source}")]
    Command {
        /// The program.
        program: OsString,
        /// The node or pod.
        name: String,
        /// The system's answer.
        source: io::Error,
    },
    /// There is no command.
    #[error("nothing to run in {name}: give a command, such as `ip route`")]
    NoCommand {
        /// The node or pod.
        name: String,
    },
}

/// Runs `argv` inside the node or pod `name` of the lab that runs under `marker`, and answers its exit code.
///
/// Call it while the process has a single thread: a user namespace cannot be entered otherwise.
///
/// # Errors
///
/// [`EnterError`]; nothing was run then.
pub fn enter(marker: &str, name: &str, argv: &[OsString]) -> Result<ExitCode, EnterError> {
    let Some((program, arguments)) = argv.split_first() else {
        return Err(EnterError::NoCommand { name: name.to_owned() });
    };
    let labs = processes(marker);
    if labs.is_empty() {
        return Err(EnterError::NoLab { marker: marker.to_owned() });
    }
    let thread = labs.iter().flat_map(|lab| threads(lab)).find(|(thread, _)| thread == name);
    let Some((_, task)) = thread else {
        return Err(EnterError::Unknown { name: name.to_owned(), known: names(&labs) });
    };
    enter_namespaces(&task, name)?;
    // In the lab's mount namespace the directory of before may be another, or none.
    let here =
        std::env::current_dir().ok().filter(|path| path.is_dir()).unwrap_or_else(|| PathBuf::from("/"));
    let failed = |source| EnterError::Command { program: program.clone(), name: name.to_owned(), source };
    let mut command = Command::new(program).args(arguments).current_dir(here).spawn().map_err(failed)?;
    // Ctrl-C is for the command; this process waits and tells its exit code. Blocked only here: the command would
    // inherit it. Refused, it would only mean that Ctrl-C ends this process with the command.
    let interrupt: SigSet = [Signal::SIGINT, Signal::SIGQUIT].into_iter().collect();
    interrupt.thread_block().ok();
    let status = command.wait().map_err(failed)?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// The nodes and pods of the labs that run under `marker`, sorted.
pub fn residents(marker: &str) -> Vec<String> {
    names(&processes(marker))
}

/// Directories in `/proc` of the processes whose `argv[0]` is the marker.
fn processes(marker: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let is_lab = |path: &PathBuf| {
        let arguments = fs::read(path.join("cmdline")).unwrap_or_default();
        arguments.split(|&byte| byte == 0).next() == Some(marker.as_bytes())
    };
    entries.flatten().map(|entry| entry.path()).filter(is_lab).collect()
}

/// Names and `/proc` directories of a process's threads.
fn threads(process: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = fs::read_dir(process.join("task")) else { return Vec::new() };
    let named = |path: PathBuf| {
        let name = fs::read_to_string(path.join("comm")).ok()?;
        Some((name.trim_end().to_owned(), path))
    };
    entries.flatten().filter_map(|entry| named(entry.path())).collect()
}

fn names(labs: &[PathBuf]) -> Vec<String> {
    let all = labs.iter().flat_map(|lab| threads(lab)).map(|(name, _)| name);
    let stands_for_a_namespace =
        |name: &String| ["node-", "pod-"].iter().any(|prefix| name.starts_with(prefix)) || name == "switch";
    all.filter(stands_for_a_namespace).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Moves this process into the thread's namespaces; children are in its pid namespace too.
fn enter_namespaces(task: &Path, name: &str) -> Result<(), EnterError> {
    let refused = |kind| move |source: io::Error| EnterError::Refused { kind, name: name.to_owned(), source };
    let kinds = [
        ("user", CloneFlags::CLONE_NEWUSER),
        ("pid", CloneFlags::CLONE_NEWPID),
        ("net", CloneFlags::CLONE_NEWNET),
        ("mnt", CloneFlags::CLONE_NEWNS),
    ];
    // All are opened before the first is entered: afterwards the paths may lead elsewhere.
    let mut doors = Vec::new();
    for (kind, flag) in kinds {
        let own = fs::metadata(format!("/proc/self/ns/{kind}")).map_err(refused(kind))?;
        let door = File::open(task.join("ns").join(kind)).map_err(refused(kind))?;
        let theirs = door.metadata().map_err(refused(kind))?;
        // Entering one's own user namespace is an error, and a lab of root has no other.
        if (own.dev(), own.ino()) != (theirs.dev(), theirs.ino()) {
            doors.push((kind, flag, door));
        }
    }
    for (kind, flag, door) in &doors {
        setns(door, *flag).map_err(|errno: Errno| refused(kind)(errno.into()))?;
    }
    Ok(())
}
