//! Network namespaces held by a file descriptor, and code that runs inside them.
//!
//! A namespace made here has no name: it lives as long as a descriptor, a thread or a process is in it, and nobody
//! outside can find it. The kernel keeps the network namespace for each *thread*, so code enters one on a thread of its
//! own ([`NetNs::run`], [`NetNs::spawn`]); sockets opened there and children of a [`std::process::Command`] started
//! there belong to that namespace, whoever uses them afterwards.
//!
//! Two facts that surprise: `/proc/sys/net` follows the thread that opens it, `/sys/class/net` follows the namespace in
//! which `/sys` was mounted. And a child that asks for a signal at its parent's death (`PR_SET_PDEATHSIG`) gets it when
//! the *thread* that started it ends, so start such children from a thread that stays.
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

/// One network namespace, kept alive by this handle and its clones.
#[derive(Clone, Debug)]
pub struct NetNs {
    fd: Arc<OwnedFd>,
}

impl NetNs {
    /// Makes an empty namespace: nothing but a loopback that is down. Needs `CAP_SYS_ADMIN` (in a user namespace of
    /// its own a process has it); refused with `EPERM` otherwise.
    pub fn new() -> io::Result<Self> {
        on_thread("netns", || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Self::current()
        })?
    }

    /// The namespace of the calling thread.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// A namespace by a file that stands for it: `/proc/PID/ns/net`, `/run/netns/NAME`, a bind mount of either.
    ///
    /// # Errors
    /// The system's, and `InvalidInput` for a file that stands for no namespace: what `/run/netns/NAME` is once nothing is
    /// mounted on it. Never waits, for a pipe either.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
        if fstatfs(&file)?.filesystem_type() != NSFS_MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no namespace"));
        }
        Ok(Self { fd: Arc::new(file.into()) })
    }

    /// Runs `f` inside the namespace on a thread of its own and waits for it. The thread's name (at most 15 bytes are
    /// kept) shows in `/proc/PID/task/TID/comm`. A panic of `f` goes on in the caller.
    ///
    /// # Errors
    /// The thread could not be started, or the namespace could not be entered (`EPERM`: no `CAP_SYS_ADMIN` in it).
    pub fn run<T: Send>(&self, thread_name: &str, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_thread(thread_name, || {
            self.enter()?;
            Ok(f())
        })?
    }

    /// Starts a thread of its own inside the namespace and returns once it is there, so that an error of entering is
    /// reported here. Errors as for [`NetNs::run`].
    pub fn spawn<T: Send + 'static>(
        &self,
        thread_name: &str,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        let namespace = self.clone();
        let (entered_tx, entered_rx) = mpsc::sync_channel(1);
        let handle = named(thread_name)?.spawn(move || {
            let entered = namespace.enter();
            drop(namespace);
            let inside = entered.is_ok();
            if entered_tx.send(entered).is_ok() && inside {
                return f();
            }
            // The caller gets the error, not this handle; unwinding this way ends the thread without a panic message.
            resume_unwind(Box::new("not in its namespace"))
        })?;
        entered_rx
            .recv()
            .map_err(|_gone| io::Error::other("the thread ended before it entered its namespace"))??;
        Ok(handle)
    }

    /// Moves the calling thread into the namespace for good. For a thread that this program made for the purpose: a
    /// thread of a pool that is left in another namespace surprises whoever gets it next.
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(self, CloneFlags::CLONE_NEWNET)?)
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Runs `f` on a scoped thread of that name and waits for it; a panic goes on in the caller.
fn on_thread<T: Send>(name: &str, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    let builder = named(name)?;
    thread::scope(|scope| {
        Ok(builder.spawn_scoped(scope, f)?.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

fn named(name: &str) -> io::Result<thread::Builder> {
    if name.contains('\0') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a thread name cannot hold a zero byte"));
    }
    Ok(thread::Builder::new().name(name.to_owned()))
}
