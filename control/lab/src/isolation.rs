//! Private namespaces for a whole process: unshare first, then build anything, and nothing is left behind.
//!
//! Two ways in, both for the very start of a process that has no thread yet:
//!
//! ```text
//! isolate()      this process moves into a net and a mount namespace of its own
//! run_inside()   this process becomes a guard; a copy of it runs as pid 1 of a pid namespace of its own
//!
//!   flanneld demo ── guard: waits, hands on signals ─┐ dies (kill -9 too) → kernel kills pid 1
//!                    └─ pid 1: the copy, makes the lab, starts every other process
//!                         └─ dies (kill -9 too) → kernel kills every process of the namespace
//! ```
//!
//! A network namespace lives as long as a process, a thread or a file descriptor holds it. With all holders inside
//! the pid namespace there is no path by which a link, a route, a mount or a process outlives the run.

mod guard;

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, getgid, getuid};

/// Names the guard's process id to the copy that it starts, so that the copy can tell a guard that died early.
const GUARD_VARIABLE: &str = "FLANNEL_LAB_GUARD";

/// What the isolation could give; all of it is private to this process and its children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isolation {
    /// The process runs in a user namespace of its own, because it has no right to make the others without.
    /// `SO_RCVBUFFORCE` and everything else that asks for rights over the machine is refused there.
    pub user_namespace: bool,
    /// `/run/netns` is an empty tmpfs of the run's own, so that `ip netns` and CNI plugins may use names.
    pub named_namespaces: bool,
    /// `/proc` shows the processes of this run and no others.
    pub own_proc: bool,
}

/// Which of the two processes of [`run_inside`] the caller is.
#[derive(Debug)]
pub enum Place {
    /// The copy inside the namespaces: go on with the work.
    Inside(Isolation),
    /// The guard outside: the copy has ended, end with this code.
    Outside(ExitCode),
}

/// Why there is no private lab on this machine.
#[derive(Debug, thiserror::Error)]
pub enum IsolateError {
    /// The kernel refuses namespaces to this user.
    #[error("cannot make private namespaces ({flags}): {source}. {hint}")]
    Refused {
        /// The namespaces that were asked for.
        flags: &'static str,
        /// What the machine's settings say, and what to do.
        hint: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// The process already has threads; a user namespace can only be entered before the first one starts.
    #[error(
        "cannot make private namespaces: this process already runs threads. Call lab::isolate first in main"
    )]
    Threads,
    /// The user id map was refused.
    #[error("cannot write {file}: {source}. {hint}")]
    IdMap {
        /// The file under `/proc/self`.
        file: &'static str,
        /// What the machine's settings say, and what to do.
        hint: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A mount that privacy depends on was refused.
    #[error(
        "cannot {what}: {source}. Without it mounts of the lab could reach the machine, so nothing was started; \
         a seccomp or LSM profile probably forbids mount(2)"
    )]
    Mount {
        /// The mount that was tried.
        what: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
    /// The copy of this process could not be started or watched.
    #[error("cannot {what}: {source}")]
    Guard {
        /// The step that failed.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The guard died before the copy had tied its life to it.
    #[error("the process that started this one is gone; ending before anything was made")]
    GuardGone,
}

/// Moves this process into a net and a mount namespace of its own, and into a user namespace where that takes one.
///
/// Call it before the first thread. Everything that is made afterwards dies with the process and its children.
///
/// # Errors
///
/// [`IsolateError`] when the machine refuses; nothing has been made then.
pub fn isolate() -> Result<Isolation, IsolateError> {
    let user_namespace =
        unshare_as_allowed(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS, "net, mount")?;
    let named_namespaces = privatise_mounts()?;
    Ok(Isolation { user_namespace, named_namespaces, own_proc: false })
}

/// Runs the rest of the caller's `main` as pid 1 of a pid namespace of its own, watched by a guard.
///
/// The guard is the calling process: it unshares, starts `/proc/self/exe` again with the same arguments and with
/// `marker` as its `argv[0]`, hands SIGINT, SIGTERM and SIGHUP on, and answers [`Place::Outside`] with the exit code when the
/// copy has ended. The copy gets [`Place::Inside`]. [`crate::enter::enter`] finds the copy by its marker.
///
/// Call it before the first thread: the guard must never have one.
///
/// # Errors
///
/// [`IsolateError`] when the machine refuses; nothing has been made then.
pub fn run_inside(marker: &str) -> Result<Place, IsolateError> {
    let is_copy = std::env::args_os().next().is_some_and(|name| name.as_bytes() == marker.as_bytes());
    match std::env::var(GUARD_VARIABLE) {
        Ok(guard) if is_copy => settle_inside(&guard).map(Place::Inside),
        _ => guard::start_and_watch(marker).map(Place::Outside),
    }
}

/// The copy's first steps: die with the guard, keep mounts to itself, see only its own processes.
fn settle_inside(guard: &str) -> Result<Isolation, IsolateError> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|errno| IsolateError::Guard {
        what: "tie this process to its guard",
        source: errno.into(),
    })?;
    // The signal above is for deaths after the call. /proc is still the machine's here, so the parent's id in it is
    // the guard's, or that of whoever adopted us.
    if parent_in_proc().is_some_and(|parent| parent != guard) {
        return Err(IsolateError::GuardGone);
    }
    // Every process of the lab would inherit the guard's mask, and Ctrl-C would end none of them.
    guard::watched_signals()
        .thread_unblock()
        .map_err(|errno| IsolateError::Guard { what: "unblock signals", source: errno.into() })?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(|source| IsolateError::Refused {
        flags: "mount",
        hint: refusal_hint(source),
        source,
    })?;
    let named_namespaces = privatise_mounts()?;
    let hide = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Refused in a container whose /proc has parts masked: then the machine's /proc stays, which is only less tidy.
    let own_proc = mount(Some("proc"), "/proc", Some("proc"), hide, None::<&str>).is_ok();
    Ok(Isolation { user_namespace: in_user_namespace(), named_namespaces, own_proc })
}

/// Unshares `namespaces`; where that is not permitted, again together with a user namespace in which it is.
/// Answers whether it took one.
fn unshare_as_allowed(namespaces: CloneFlags, names: &'static str) -> Result<bool, IsolateError> {
    match unshare(namespaces) {
        Ok(()) => return Ok(in_user_namespace()),
        Err(Errno::EPERM) => {}
        Err(source) => {
            return Err(IsolateError::Refused { flags: names, hint: refusal_hint(source), source });
        }
    }
    // The ids as seen from outside: inside, until the maps are written, everybody is nobody.
    let (uid, gid) = (getuid(), getgid());
    match unshare(CloneFlags::CLONE_NEWUSER | namespaces) {
        Ok(()) => {}
        Err(Errno::EINVAL) => return Err(IsolateError::Threads),
        Err(source) => {
            return Err(IsolateError::Refused {
                flags: "user, net, mount",
                hint: refusal_hint(source),
                source,
            });
        }
    }
    write_id_maps(uid, gid)?;
    Ok(true)
}

/// Makes the user and group of this process root inside its new user namespace.
fn write_id_maps(uid: Uid, gid: Gid) -> Result<(), IsolateError> {
    let steps = [
        ("/proc/self/uid_map", format!("0 {uid} 1")),
        // The kernel wants this before an unprivileged gid_map: user_namespaces(7).
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/gid_map", format!("0 {gid} 1")),
    ];
    for (file, text) in steps {
        fs::write(file, text).map_err(|source| IsolateError::IdMap {
            file,
            hint: refusal_hint(Errno::EPERM),
            source,
        })?;
    }
    Ok(())
}

/// Cuts mount propagation and hides `/run/netns`. Answers whether names in `/run/netns` are the run's own.
fn privatise_mounts() -> Result<bool, IsolateError> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(|source| IsolateError::Mount { what: "make the mounts private", source })?;
    let options = Some("mode=0755,size=1m");
    // Where the machine has no /run/netns, making one would leave it behind, and nobody's names can be met in it.
    match mount(Some("lab"), "/run/netns", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, options) {
        Ok(()) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(source) => Err(IsolateError::Mount { what: "mount a tmpfs over /run/netns", source }),
    }
}

/// True where the ids of this process are mapped, thus where root is not the machine's root.
fn in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let whole: Vec<&str> = map.split_whitespace().collect();
    whole != ["0", "0", "4294967295"]
}

/// The parent's process id as the mounted `/proc` counts.
fn parent_in_proc() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    Some(line.trim().to_owned())
}

/// What the machine's settings say about a refusal, and what its owner can do.
fn refusal_hint(errno: Errno) -> String {
    let setting = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    if setting("/proc/sys/user/max_user_namespaces").as_deref() == Some("0") {
        return "User namespaces are switched off (user.max_user_namespaces = 0): \
                run as root, or raise that sysctl"
            .to_owned();
    }
    if setting("/proc/sys/kernel/unprivileged_userns_clone").as_deref() == Some("0") {
        return "User namespaces are kept from users (kernel.unprivileged_userns_clone = 0): \
                run as root, or set that sysctl to 1"
            .to_owned();
    }
    if setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1") {
        return "AppArmor restricts user namespaces (kernel.apparmor_restrict_unprivileged_userns = 1): \
                run as root, or set that sysctl to 0"
            .to_owned();
    }
    match errno {
        Errno::ENOSPC => "A limit on namespaces is reached: see /proc/sys/user/max_*_namespaces".to_owned(),
        Errno::ENOSYS | Errno::EINVAL => "This kernel was built without these namespaces".to_owned(),
        _ => "A container's seccomp profile probably forbids unshare(2): run as root on the machine, \
              or with `docker run --privileged`"
            .to_owned(),
    }
}
