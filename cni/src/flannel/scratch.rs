//! Scratch files: with which configuration the delegate connected a container, so that DEL uses the same one.
//!
//! ```text
//!  /var/lib/cni/flannel/CONTAINER            flannel's own name, for one device of the container
//!  /var/lib/cni/flannel/CONTAINER@DEVICE     ours: a container may have several devices on flannel's networks
//! ```
//!
//! Both are written, so that flannel's plugin can be put in this one's place, and ours finds what flannel's wrote. A
//! container's name has no `@`.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hostnet::regular_file::{self, Links};
use serde_json::Value;

use crate::protocol::{Attachment, CniError};

/// More than any configuration.
const LONGEST: u64 = 1 << 20;
/// Begins the name of a file that is being written; no container's name begins so.
const UNFINISHED: &str = ".writing-";

/// The directory.
pub(super) struct Scratch<'a> {
    directory: &'a Path,
}

impl<'a> Scratch<'a> {
    pub(super) fn new(directory: &'a Path) -> Self {
        Self { directory }
    }

    /// Notes with which configuration a container is connected. Whoever reads meanwhile sees the old file, the new one or
    /// none. Not flushed to the disk: a power loss takes the containers too, and DEL can do without.
    pub(super) fn write(
        &self,
        network: &str,
        attachment: &Attachment,
        delegate: &Value,
    ) -> Result<(), CniError> {
        let text = delegate.to_string();
        let write = || -> io::Result<()> {
            DirBuilder::new().recursive(true).mode(0o700).create(self.directory)?;
            let aside = self.unfinished(network, attachment);
            let mut file =
                File::options().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
            file.write_all(text.as_bytes())?;
            let flannels = self.flannels(attachment);
            // The name of another device of this container is left to it.
            if flannels.exists() && self.others(attachment)? > 0 {
                return fs::rename(&aside, self.ours(attachment));
            }
            fs::rename(&aside, &flannels)?;
            match fs::hard_link(&flannels, self.ours(attachment)) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    fs::remove_file(self.ours(attachment))?;
                    fs::hard_link(&flannels, self.ours(attachment))
                }
                other => other,
            }
        };
        write().map_err(|error| CniError::io("write a file in", self.directory, &error))
    }

    /// What is noted; `None` where nothing is, or nothing that makes sense.
    pub(super) fn read(&self, attachment: &Attachment) -> Result<Option<Value>, CniError> {
        match self.read_file(&self.ours(attachment))? {
            Some(found) => Ok(Some(found)),
            None => self.read_file(&self.flannels(attachment)),
        }
    }

    fn read_file(&self, path: &Path) -> Result<Option<Value>, CniError> {
        match regular_file::read(path, LONGEST, Links::Refuse) {
            Ok(bytes) => Ok(parse(&bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(CniError::io("read", path, &error)),
        }
    }

    /// Forgets a container's device.
    pub(super) fn remove(&self, network: &str, attachment: &Attachment) -> Result<(), CniError> {
        remove(&self.unfinished(network, attachment))?;
        remove(&self.ours(attachment))?;
        // Flannel's name stands for the other devices as long as there are some.
        match self.others(attachment) {
            Ok(0) => remove(&self.flannels(attachment)),
            Ok(_) => Ok(()),
            Err(error) => Err(CniError::io("list", self.directory, &error)),
        }
    }

    /// All that is noted for a network. A file of flannel's alone says no device: it is told with an empty one. What cannot
    /// be read as a note of this network is somebody else's.
    pub(super) fn of_network(&self, network: &str) -> Result<Vec<(Attachment, Value)>, CniError> {
        let mut found = Vec::new();
        for name in self.names().map_err(|error| CniError::io("list", self.directory, &error))? {
            let (container_id, ifname) = name.split_once('@').unwrap_or((&name, ""));
            let attachment = Attachment { container_id: container_id.to_owned(), ifname: ifname.to_owned() };
            if ifname.is_empty() && self.others(&attachment).unwrap_or_default() > 0 {
                continue;
            }
            let noted = self.read_file(&self.directory.join(&name)).ok().flatten();
            let is_meant = |config: &Value| config.get("name").and_then(Value::as_str) == Some(network);
            found.extend(noted.filter(is_meant).map(|config| (attachment, config)));
        }
        Ok(found)
    }

    /// Removes what a killed ADD of this network left unfinished. A runtime sends no GC during an ADD.
    pub(super) fn clear_unfinished(&self, network: &str) -> Result<(), CniError> {
        let begin = format!("{UNFINISHED}{network}@");
        let names = self.names().map_err(|error| CniError::io("list", self.directory, &error))?;
        names
            .iter()
            .filter(|name| name.starts_with(&begin))
            .try_for_each(|name| remove(&self.directory.join(name)))
    }

    fn flannels(&self, attachment: &Attachment) -> PathBuf {
        self.directory.join(&attachment.container_id)
    }

    fn ours(&self, attachment: &Attachment) -> PathBuf {
        self.directory.join(format!("{}@{}", attachment.container_id, attachment.ifname))
    }

    /// Where an ADD writes. A runtime sends no two of them at once for one device.
    fn unfinished(&self, network: &str, attachment: &Attachment) -> PathBuf {
        self.directory
            .join(format!("{UNFINISHED}{network}@{}@{}", attachment.container_id, attachment.ifname))
    }

    /// How many other devices of the container are noted.
    fn others(&self, attachment: &Attachment) -> io::Result<usize> {
        let is_other = |name: &String| {
            name.split_once('@')
                .is_some_and(|(id, ifname)| id == attachment.container_id && ifname != attachment.ifname)
        };
        Ok(self.names()?.iter().filter(|name| is_other(name)).count())
    }

    /// All file names in order; none where there is no directory.
    fn names(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }
}

/// What a scratch file says; `None` for one that is torn.
pub(super) fn parse(bytes: &[u8]) -> Option<Value> {
    serde_json::from_slice(bytes).ok().filter(Value::is_object)
}

/// Whether a container's device is still there. A file of flannel's stands for any device of its container.
pub(super) fn is_listed(attachment: &Attachment, valid: &[Attachment]) -> bool {
    valid.iter().any(|one| {
        one.container_id == attachment.container_id
            && (attachment.ifname.is_empty() || one.ifname == attachment.ifname)
    })
}

fn remove(path: &Path) -> Result<(), CniError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(CniError::io("remove", path, &error)),
        _ => Ok(()),
    }
}
