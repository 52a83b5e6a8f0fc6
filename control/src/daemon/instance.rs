//! One daemon for one subnet file: a lock beside the file, which tells a second daemon about the first.
//!
//! The kernel holds the lock for as long as the process lives, so what a dead one left is no obstacle. Two daemons with
//! files of their own are flannel's way to two networks on one node; what they could still both want is a device, and the
//! first to open its name has that: an abstract socket of the device's name holds it, in the network namespace that the
//! device is in.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::bail;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;

use crate::flags::shown_words;

/// What is read of a lock file.
const LONGEST_NOTE: u64 = 16 * 1024;
/// How often to look whether the first daemon has written who it is, and how long to wait in between.
const LOOKS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(20);

/// The right to be the only one. Ends with the value, at the latest with the process.
#[derive(Debug)]
pub(super) struct Instance {
    _file: Option<File>,
    devices: BTreeMap<String, UnixListener>,
}

impl Instance {
    /// Takes the lock, or says who has it. Where no file can be made, nothing is locked: that the subnet file cannot be
    /// written either is said elsewhere, again and again.
    pub(super) fn claim(subnet_file: &Path) -> anyhow::Result<Self> {
        let path = lock_file(subnet_file);
        let mut file = match open(&path) {
            Ok(file) => file,
            Err(error) => {
                tracing::warn!(
                    path = %path.display(), %error,
                    "no lock file: a second flanneld for the same subnet file would not be noticed"
                );
                return Ok(Self { _file: None, devices: BTreeMap::new() });
            }
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(
                "another flanneld has {file}: {who}. Stop that one first, or give this one a --subnet-file of its own",
                file = subnet_file.display(),
                who = read_note(&mut file)
            ),
            Err(TryLockError::Error(error)) => {
                // Some network file systems have no locks.
                tracing::warn!(path = %path.display(), %error, "no lock: a second flanneld would not be noticed");
            }
        }
        if let Err(error) = write_note(&mut file) {
            tracing::warn!(path = %path.display(), %error, "a second flanneld will not learn who this one is");
        }
        Ok(Self { _file: Some(file), devices: BTreeMap::new() })
    }

    /// Takes the names of these devices and lets others go; an error says that another daemon has one.
    pub(super) fn hold<'a>(&mut self, devices: impl Iterator<Item = &'a str>) -> anyhow::Result<()> {
        let devices: Vec<&str> = devices.collect();
        self.devices.retain(|held, _| devices.contains(&held.as_str()));
        for device in devices {
            if !self.devices.contains_key(device)
                && let Some(held) = take(device)?
            {
                self.devices.insert(device.to_owned(), held);
            }
        }
        Ok(())
    }
}

fn take(device: &str) -> anyhow::Result<Option<UnixListener>> {
    let address = SocketAddr::from_abstract_name(format!("flanneld/{device}"))?;
    match UnixListener::bind_addr(&address) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => bail!(
            "another flanneld carries packets on {device}: {who}. Stop that process, or give this one a network with another \
             backend or VNI",
            who = holder(&address).unwrap_or_else(|| format!("`ss -xlp src @flanneld/{device}` shows it")),
        ),
        Err(error) => {
            tracing::warn!(device, %error, "another flanneld that wants the same device would not be noticed");
            Ok(None)
        }
    }
}

/// The process that listens there, where it is in a process namespace that we see.
fn holder(address: &SocketAddr) -> Option<String> {
    let connected = UnixStream::connect_addr(address).ok()?;
    let pid = getsockopt(&connected, PeerCredentials).ok()?.pid();
    if pid <= 0 {
        return None;
    }
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    let shown = shown_words(words.map(|word| String::from_utf8_lossy(word).into_owned()));
    Some(format!("process {pid} ({shown})"))
}

/// `subnet.env.lock` beside `subnet.env`.
fn lock_file(subnet_file: &Path) -> PathBuf {
    let mut name = subnet_file.file_name().unwrap_or_default().to_os_string();
    name.push(".lock");
    subnet_file.with_file_name(name)
}

fn open(path: &Path) -> std::io::Result<File> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    }
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}

/// Who holds the lock. Numbers of processes mean something in their own container only, so the note says more.
fn write_note(file: &mut File) -> std::io::Result<()> {
    let words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let note = format!("process {} ({})\n", std::process::id(), shown_words(words));
    file.rewind()?;
    file.set_len(0)?;
    file.write_all(note.as_bytes())
}

fn read_note(file: &mut File) -> String {
    for _ in 0..LOOKS {
        let mut note = String::new();
        let read = file.rewind().and_then(|()| file.take(LONGEST_NOTE).read_to_string(&mut note));
        if read.is_ok() && note.ends_with('\n') {
            return note.trim_end().to_owned();
        }
        // It has the lock and is about to write.
        thread::sleep(PAUSE);
    }
    "it has not written which process it is".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_learns_who_the_first_is_and_a_dead_one_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("run/subnet.env");
        let first = Instance::claim(&file).unwrap();
        let refusal = Instance::claim(&file).unwrap_err().to_string();
        assert!(refusal.contains(&format!("process {}", std::process::id())), "{refusal}");
        Instance::claim(&dir.path().join("run/other.env")).unwrap();
        drop(first);
        Instance::claim(&file).unwrap();
    }

    #[test]
    fn a_device_has_one_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Instance::claim(&dir.path().join("a.env")).unwrap();
        let mut second = Instance::claim(&dir.path().join("b.env")).unwrap();
        let device = format!("test.{}", std::process::id());
        first.hold([device.as_str()].into_iter()).unwrap();
        first.hold([device.as_str()].into_iter()).unwrap();
        let refusal = second.hold([device.as_str()].into_iter()).unwrap_err().to_string();
        assert!(refusal.contains(&device), "{refusal}");
        second.hold([format!("{device}.2").as_str()].into_iter()).unwrap();
        first.hold(std::iter::empty()).unwrap();
        second.hold([device.as_str()].into_iter()).unwrap();
    }
}
