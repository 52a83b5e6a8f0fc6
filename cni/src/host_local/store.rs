//! A network's directory, which the reference plugin can share: its files and its lock.
//!
//! ```text
//! <dataDir>/<network>/10.244.1.5            <container>\r\n<device>, or only <container> from very old plugins; mode 0600
//! <dataDir>/<network>/last_reserved_ip.0    the address that range set 0 gave last
//! <dataDir>/<network>/lock                  flock
//! <dataDir>/<network>/.boot_id              ours: the boot that used the directory last
//! <dataDir>/<network>/.reservation          ours: a reservation that is just being written
//! ```
//!
//! A reservation is written aside and then linked to its name, so a process that is killed leaves it whole or not at all.
//! Nothing is synced to the disk: what a power loss can do to a file is to leave it empty or away, both mean that the
//! address is free, and the containers are gone with the power. The reference plugin writes in place: its empty files are
//! leftovers too, as under the lock nobody is still writing one.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hostnet::regular_file::{self, Links};
use nix::fcntl::OFlag;

use super::boot::{self, Boot};
use super::lock;
use crate::protocol::{Attachment, CniError};

/// What is read of files that hold an address or a boot's name.
const LONGEST_SMALL: u64 = 256;

/// Where a reservation is written. One name does, as only who holds the lock writes.
const ASIDE: &str = ".reservation";
/// What to look at where writing fails.
const ADVICE: &str = "is its file system full (df, df -i) or read-only?";
/// More than the longest identifiers by far.
const LONGEST: u64 = 4096;

/// Whose an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A container's device.
    Attachment(Attachment),
    /// A container, whichever device: very old plugins did not write it.
    Container(String),
    /// Nobody's: the leftover of a process that was killed.
    Nobody,
    /// It cannot be read. It is neither given away nor freed.
    Unknown,
}

impl Owner {
    fn parse(content: &[u8]) -> Self {
        let Ok(text) = str::from_utf8(content) else { return Self::Unknown };
        // Some file systems leave zeroes after a power loss.
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        match text.split_once('\n') {
            None if text.is_empty() => Self::Nobody,
            None => Self::Container(text.to_owned()),
            Some((container_id, ifname)) => Self::Attachment(Attachment {
                container_id: container_id.trim_end().to_owned(),
                ifname: ifname.to_owned(),
            }),
        }
    }

    /// Whether it is this attachment, or its container as a very old plugin wrote it.
    pub fn is(&self, wanted: &Attachment) -> bool {
        match self {
            Self::Attachment(attachment) => attachment == wanted,
            Self::Container(id) => *id == wanted.container_id,
            Self::Nobody | Self::Unknown => false,
        }
    }
}

/// The directory, with its lock held.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    reservations: BTreeMap<IpAddr, Reservation>,
    boot: Option<Boot>,
    _lock: File,
}

#[derive(Debug)]
struct Reservation {
    /// The file's name, which is the address in whatever form.
    name: String,
    owner: Owner,
}

impl Store {
    /// Opens the directory, and makes it if need be.
    ///
    /// # Errors
    /// It cannot be made, read or locked.
    pub fn open(directory: &Path) -> Result<Self, CniError> {
        let lock = match lock::open(&directory.join("lock")) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let made = DirBuilder::new().recursive(true).mode(0o755).create(directory);
                made.map_err(|error| {
                    CniError::io("make the directory", directory, &error).with_details(ADVICE)
                })?;
                lock::open(&directory.join("lock"))
            }
            other => other,
        };
        Self::with(lock, directory, lock::PATIENCE, Boot::current())
    }

    /// Opens the directory; `None` if it is not there, and then nothing is reserved.
    ///
    /// # Errors
    /// It cannot be read or locked.
    pub fn existing(directory: &Path) -> Result<Option<Self>, CniError> {
        match lock::open(&directory.join("lock")) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            lock => Self::with(lock, directory, lock::PATIENCE, Boot::current()).map(Some),
        }
    }

    fn with(
        lock: io::Result<File>,
        directory: &Path,
        patience: Duration,
        boot: Option<Boot>,
    ) -> Result<Self, CniError> {
        let path = directory.join("lock");
        let lock = lock.map_err(|error| CniError::io("open the lock", &path, &error).with_details(ADVICE))?;
        let lock = lock::take(lock, &path, patience)?;
        let mut store =
            Self { directory: directory.to_owned(), reservations: BTreeMap::new(), boot, _lock: lock };
        store.scan().map_err(|error| CniError::io("read the directory", directory, &error))?;
        store.settle_boot();
        Ok(store)
    }

    /// Reads each reservation once.
    fn scan(&mut self) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            if name == ASIDE {
                // Whoever wrote it is dead: we hold the lock. If it stays, writing says so.
                fs::remove_file(self.directory.join(name)).ok();
            } else if let Ok(ip) = name.parse::<IpAddr>() {
                let owner = match read(&self.directory.join(name)) {
                    Ok(content) => Owner::parse(&content),
                    // Somebody who does not take the lock removed it.
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    Err(_) => Owner::Unknown,
                };
                self.reservations.insert(ip.to_canonical(), Reservation { name: name.to_owned(), owner });
            }
        }
        Ok(())
    }

    /// At the first use in a boot: frees what an earlier one left, and notes this one. What cannot be freed or noted, on a
    /// full disk for example, stays for GC; it is no reason to refuse what is asked for.
    fn settle_boot(&mut self) {
        let Some(boot) = self.boot.clone() else { return };
        let path = self.directory.join(boot::FILE);
        let noted = read_small(&path).unwrap_or_default();
        if noted.trim() == boot.id() {
            return;
        }
        if let Some(earlier) = Boot::parse(&noted).filter(|_| boot::is_ours_alone(&self.directory)) {
            let is_void = |reservation: &Reservation| {
                let metadata = fs::symlink_metadata(self.directory.join(&reservation.name));
                metadata.is_ok_and(|metadata| earlier.marked(&metadata))
            };
            let void: Vec<IpAddr> = self
                .reservations
                .iter()
                .filter_map(|(ip, reservation)| is_void(reservation).then_some(*ip))
                .collect();
            let failed = void.into_iter().filter(|ip| self.free(*ip).is_err()).count();
            if failed > 0 {
                // Without the note the next one tries again.
                return;
            }
        }
        let aside = self.directory.join(ASIDE);
        let written = self.write_aside(boot.id().as_bytes());
        if written.and_then(|_file| fs::rename(&aside, &path)).is_err() {
            fs::remove_file(&aside).ok();
        }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The addresses that are not free, with their owners.
    pub fn taken(&self) -> impl Iterator<Item = (IpAddr, &Owner)> {
        let all = self.reservations.iter().map(|(ip, reservation)| (*ip, &reservation.owner));
        all.filter(|(_, owner)| **owner != Owner::Nobody)
    }

    /// Whose an address is.
    pub fn owner(&self, ip: IpAddr) -> &Owner {
        self.reservations.get(&ip).map_or(&Owner::Nobody, |reservation| &reservation.owner)
    }

    /// The address that a range set gave last. A file that cannot be read costs no more than a start at the beginning.
    pub fn last(&self, set: usize) -> Option<IpAddr> {
        let text = read_small(&self.last_path(set))?;
        text.trim().parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
    }

    fn last_path(&self, set: usize) -> PathBuf {
        self.directory.join(format!("last_reserved_ip.{set}"))
    }

    /// Reserves an address of a range set; `false` if it has been taken meanwhile, by somebody who does not take the lock.
    ///
    /// # Errors
    /// The reservation cannot be written; nothing is left of it.
    pub fn reserve(&mut self, ip: IpAddr, owner: &Attachment, set: usize) -> Result<bool, CniError> {
        if *self.owner(ip) != Owner::Nobody {
            return Ok(false);
        }
        // A leftover goes, and it may have its name in another form.
        self.free(ip)?;
        let name = ip.to_string();
        let path = self.directory.join(&name);
        let content = format!("{}\r\n{}", owner.container_id, owner.ifname);
        let linked = self.link(content.as_bytes(), &path);
        // If this fails, whoever takes the lock next does it.
        fs::remove_file(self.directory.join(ASIDE)).ok();
        match linked {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                self.reservations.insert(ip, Reservation { name, owner: Owner::Unknown });
                return Ok(false);
            }
            other => other
                .map_err(|error| CniError::io("write the reservation", &path, &error).with_details(ADVICE))?,
        }
        self.reservations.insert(ip, Reservation { name, owner: Owner::Attachment(owner.clone()) });
        // It only says where to go on.
        write_small(&self.last_path(set), &ip.to_string()).ok();
        Ok(true)
    }

    fn link(&self, content: &[u8], path: &Path) -> io::Result<()> {
        let file = self.write_aside(content)?;
        if let Some(boot) = &self.boot {
            boot.mark(&file)?;
        }
        // Unlike rename(2), link(2) never replaces.
        fs::hard_link(self.directory.join(ASIDE), path)
    }

    fn write_aside(&self, content: &[u8]) -> io::Result<File> {
        let path = self.directory.join(ASIDE);
        let opened = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let mut file = opened.map_err(|error| match error.kind() {
            // Not to be taken for an address that somebody has.
            ErrorKind::AlreadyExists => {
                io::Error::other(format!("{ASIDE} is in the way and cannot be removed"))
            }
            _ => error,
        })?;
        file.write_all(content)?;
        Ok(file)
    }

    /// Frees an address, whoever has it. What is free is no error.
    ///
    /// # Errors
    /// Its file cannot be removed.
    pub fn free(&mut self, ip: IpAddr) -> Result<(), CniError> {
        let Some(reservation) = self.reservations.get(&ip) else { return Ok(()) };
        let path = self.directory.join(&reservation.name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(CniError::io("remove", &path, &error)),
            _ => {
                self.reservations.remove(&ip);
                Ok(())
            }
        }
    }

    /// Frees each address whose owner is to go, and leftovers; what cannot be removed stops nothing else.
    ///
    /// # Errors
    /// The first that could not be removed.
    pub fn free_all(&mut self, goes: impl Fn(&Owner) -> bool) -> Result<(), CniError> {
        let addresses: Vec<IpAddr> = self
            .reservations
            .iter()
            .filter(|(_, reservation)| reservation.owner == Owner::Nobody || goes(&reservation.owner))
            .map(|(ip, _)| *ip)
            .collect();
        let mut result = Ok(());
        for ip in addresses {
            let freed = self.free(ip);
            result = result.and(freed);
        }
        result
    }

    /// Whether a reservation could be written.
    ///
    /// # Errors
    /// What prevents it.
    pub fn probe(&self) -> Result<(), CniError> {
        let path = self.directory.join(ASIDE);
        let written = self.write_aside(b"probe").map(drop);
        // A full disk leaves an empty file.
        let removed = fs::remove_file(&path);
        written.and(removed).map_err(|error| {
            CniError::io("write into the directory", &self.directory, &error).with_details(ADVICE)
        })
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::with_capacity(128);
    // Whatever somebody put there, opening it does not block.
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW).bits();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    file.take(LONGEST + 1).read_to_end(&mut content)?;
    match content.len() as u64 > LONGEST {
        true => Err(io::Error::other("too long")),
        false => Ok(content),
    }
}

/// A file of some bytes; `None` for whatever is no such file. No link is followed and no pipe waited for.
fn read_small(path: &Path) -> Option<String> {
    String::from_utf8(regular_file::read(path, LONGEST_SMALL, Links::Refuse).ok()?).ok()
}

/// Writes a file of some bytes in its place, under the same conditions.
fn write_small(path: &Path, text: &str) -> io::Result<()> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let mut file =
        File::options().write(true).create(true).truncate(true).mode(0o644).custom_flags(flags).open(path)?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests;
