//! The lock of a network's directory: `flock(2)` on its file `lock`, as the reference plugin takes it.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::stat::{major, minor};

use crate::protocol::{CniError, Code};

/// How long to wait. A holder needs milliseconds; one that is stopped keeps the lock for ever, and a runtime that waits
/// with it does not say why.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Opens the file, and makes it if need be. Whatever somebody put there, this does not block and makes no file elsewhere.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW).bits())
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is not a regular file; remove it")),
    }
}

/// Waits for the lock. It is held until the file is closed, by the kernel for a process that is killed.
///
/// # Errors
/// Who holds it after `patience`.
pub(super) fn take(file: File, path: &Path, patience: Duration) -> Result<File, CniError> {
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(CniError::io("lock", path, &error)),
    }
    let holder = Holder::new(&file).map_err(|error| CniError::io("look at", path, &error))?;
    // The kernel serves those who wait in their order, which asking again and again would not; and it has no time-out, so
    // that another thread waits. After a time-out that thread ends with the process.
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let locked = file.lock().map(|()| file);
        // Nobody listens after a time-out, and the lock is given back.
        sender.send(locked).ok();
    });
    match receiver.recv_timeout(patience) {
        Ok(locked) => locked.map_err(|error| CniError::io("lock", path, &error)),
        Err(_timeout) => {
            let text = format!(
                "lock {}: {} has held it for {} s",
                path.display(),
                holder.name(),
                patience.as_secs()
            );
            Err(CniError::new(Code::TRY_AGAIN_LATER, text)
                .with_details("if that process hangs, end it; the lock is free as soon as it is gone"))
        }
    }
}

/// What finds a lock in `/proc/locks`.
struct Holder {
    device: u64,
    inode: u64,
}

impl Holder {
    fn new(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
    }

    fn name(&self) -> String {
        let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
        let Some(pid) = self.pid(&locks) else {
            return "a process that cannot be seen from here".to_owned();
        };
        match fs::read_to_string(format!("/proc/{pid}/comm")) {
            Ok(name) => format!("process {pid} ({})", name.trim()),
            // The lock is an open file's: it may have been handed down.
            Err(_) => format!("a process that process {pid} started before it ended"),
        }
    }

    /// From lines like `1: FLOCK  ADVISORY  WRITE 28607 fe:00:5701636 0 EOF`; those who wait have an arrow before `FLOCK`.
    fn pid<'a>(&self, locks: &'a str) -> Option<&'a str> {
        let exact = format!("{:02x}:{:02x}:{}", major(self.device), minor(self.device), self.inode);
        // btrfs and overlayfs show another device here than stat(2) does.
        let same_inode = format!(":{}", self.inode);
        let of = |wanted: &dyn Fn(&str) -> bool| {
            locks.lines().find_map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                match words.as_slice() {
                    [_, "FLOCK", _, _, pid, file, ..] if wanted(file) => Some(*pid),
                    _ => None,
                }
            })
        };
        of(&|file| file == exact).or_else(|| of(&|file| file.ends_with(&same_inode)))
    }
}

#[cfg(test)]
mod tests;
