//! Which reservations a reboot has made void.
//!
//! A container's network namespace never survives a reboot, so what was reserved in an earlier boot belongs to nobody. The
//! difficulty is to know when a file was made, as the price of an error is an address that two running containers have. A
//! clock does not tell: a machine whose clock is set some minutes after its start has files that look older than the boot
//! they were made in. So each reservation of ours bears a mark of the boot it was made in, in the nanoseconds of its time
//! of modification, where no other implementation puts anything; and the file `.boot_id` says which boot last used the
//! directory. What bears the mark of that boot is void in any later one. All else stays until DEL or GC:
//!
//! - what the reference plugin reserved, in whichever boot;
//! - what is in a directory that has no `.boot_id` yet;
//! - what is on a file system that another machine can have mounted too: its containers are not ours to judge;
//! - what is seen from a container that has processes of its own: it can be moved, running, to a machine that was booted
//!   at another time.

use std::fs::{self, File, FileTimes, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, FsType, OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, statfs,
};

/// `linux/magic.h`; `nix` has it for glibc only.
const XFS_SUPER_MAGIC: FsType = FsType(0x5846_5342);

/// The file in a network's directory. The reference plugin takes no notice of it.
pub(super) const FILE: &str = ".boot_id";

/// One run of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    id: String,
    mark: u32,
}

impl Boot {
    /// This one; `None` where the kernel does not tell.
    pub fn current() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?)
    }

    /// From the kernel's text, a random UUID. Its first 32 bits make the mark: 1 to 999 999 999.
    pub fn parse(text: &str) -> Option<Self> {
        let id = text.trim();
        let bits = u32::from_str_radix(id.get(..8)?, 16).ok()?;
        (id.len() == 36).then(|| Self { id: id.to_owned(), mark: bits % 999_999_999 + 1 })
    }

    /// As it stands in the file.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Marks a reservation as one of this boot.
    pub(super) fn mark(&self, file: &File) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
        let time = UNIX_EPOCH + Duration::new(now.as_secs(), self.mark);
        file.set_times(FileTimes::new().set_modified(time))
    }

    /// Whether a reservation bears this boot's mark.
    pub(super) fn marked(&self, metadata: &Metadata) -> bool {
        metadata.mtime_nsec() == i64::from(self.mark)
    }
}

/// Whether boots can be told apart for what is in a directory.
pub(super) fn is_ours_alone(directory: &Path) -> bool {
    const LOCAL: [FsType; 5] =
        [BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC];
    // The kernel's number of its first namespace (PROC_PID_INIT_INO) is the same on all machines.
    const FIRST: &str = "pid:[4026531836]";
    let is_machine = fs::read_link("/proc/self/ns/pid").is_ok_and(|name| name == Path::new(FIRST));
    is_machine && statfs(directory).is_ok_and(|found| LOCAL.contains(&found.filesystem_type()))
}
