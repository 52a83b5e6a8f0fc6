//! One look at the lease directory: what is in force, what makes no sense, what a killed writer left behind.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hostnet::regular_file::{self, Links};

use super::during;
use crate::lease::{Key, Lease, Subnet, parse_value};
use crate::store::StoreError;

/// A lease file is a few hundred bytes; what is longer is none.
const LONGEST_VALUE: u64 = 16 * 1024;

/// How often a directory is read that changes meanwhile.
const LOOKS: u32 = 5;

/// What the directory holds.
#[derive(Debug, Default)]
pub struct Scan {
    /// Every readable lease, in the order of the directory, ended ones too.
    pub leases: Vec<Lease>,
    /// Every other file that is not hidden.
    pub unreadable: Vec<Unreadable>,
    /// Temporary files; whoever holds the lock may delete them.
    pub leftovers: Vec<PathBuf>,
    /// A file was listed and could not be found.
    lost_some: bool,
}

/// A file that is no lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The file.
    pub path: PathBuf,
    /// The subnet its name stands for, if it is the name of a lease.
    pub subnet: Option<Subnet>,
    /// What is wrong.
    pub why: String,
}

impl Scan {
    /// Looks at `dir`. One bad file is one entry in [`unreadable`](Self::unreadable); only the directory itself can fail.
    pub fn of(dir: &Path) -> Result<Self, StoreError> {
        let failed = during("list the leases in", dir);
        // A file that goes between the listing and the reading was deleted; or the directory was moved away, and then all of
        // them look so. Another look tells.
        for _ in 0..LOOKS {
            let mut scan = Self::default();
            for entry in fs::read_dir(dir).map_err(&failed)? {
                let name = entry.map_err(&failed)?.file_name();
                scan.take(dir, &name);
            }
            if !scan.lost_some {
                return Ok(scan);
            }
        }
        Err(failed(io::Error::other("it changes faster than it can be read")))
    }

    /// The subnets that unreadable files stand for.
    pub fn unreadable_subnets(&self) -> Vec<Subnet> {
        self.unreadable.iter().filter_map(|file| file.subnet).collect()
    }

    fn take(&mut self, dir: &Path, name: &OsStr) {
        let path = dir.join(name);
        if name.as_encoded_bytes().starts_with(b".") {
            if is_leftover(name) {
                self.leftovers.push(path);
            }
            return;
        }
        let key = name.to_str().unwrap_or_default().parse::<Key>();
        let outcome = match key {
            Err(not_a_key) => Err(format!("the name is {not_a_key}")),
            Ok(Key(subnet)) => match regular_file::read(&path, LONGEST_VALUE, Links::Refuse) {
                // It was deleted between the listing and the reading.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.lost_some = true;
                    return;
                }
                Err(error) => Err(error.to_string()),
                Ok(bytes) if bytes.is_empty() => Err("the file is empty".to_owned()),
                Ok(bytes) => parse_value(&bytes)
                    .map(|(attrs, expires)| Lease { subnet, attrs, expires })
                    .map_err(|remark| remark.to_string()),
            },
        };
        match outcome {
            Ok(lease) => self.leases.push(lease),
            Err(why) => {
                let subnet = key.ok().map(|Key(subnet)| subnet);
                self.unreadable.push(Unreadable { path, subnet, why });
            }
        }
    }
}

/// `.10.5.34.0-24.x7Yp0Q`: what atomic-write-file calls a file until it is whole. Other hidden files are somebody's own:
/// an editor's, a file system's (`.nfs...`, `.snapshot`).
fn is_leftover(name: &OsStr) -> bool {
    let parts = name.to_str().and_then(|name| name.strip_prefix('.')?.rsplit_once('.'));
    parts.is_some_and(|(key, random)| {
        key.parse::<Key>().is_ok()
            && random.len() == 6
            && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}
