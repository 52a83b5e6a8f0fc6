//! Reading a small file that somebody else may have put there: never blocks on a pipe, never swallows a device.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::unistd::Uid;

/// What to do when the last part of the path is a symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Read what it points to: a ConfigMap's files are links.
    Follow,
    /// An error.
    Refuse,
}

/// The file's bytes, at most `most` of them.
///
/// # Errors
/// The system's, `FileTooLarge` for a longer file, and an error that says so for a pipe, a device or a directory.
pub fn read(path: &Path, most: u64, links: Links) -> io::Result<Vec<u8>> {
    read_if(path, most, links, |_| Ok(()))
}

/// The bytes of a file that only this user could have written: its own, no link, and closed to others.
///
/// # Errors
/// As [`read`], and one that says whose file it is or who may write it.
pub fn read_own(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    read_if(path, most, Links::Refuse, |metadata| {
        let (owner, user) = (metadata.uid(), Uid::effective().as_raw());
        if owner != user {
            let text = format!("it belongs to the user {owner}, and this process runs as {user}");
            return Err(io::Error::other(text));
        }
        let mode = metadata.mode() & 0o7777;
        match mode & 0o022 {
            0 => Ok(()),
            _ => Err(io::Error::other(format!("others may write it: its mode is {mode:o}"))),
        }
    })
}

fn read_if(
    path: &Path,
    most: u64,
    links: Links,
    check: impl FnOnce(&Metadata) -> io::Result<()>,
) -> io::Result<Vec<u8>> {
    let mut flags = OFlag::O_NONBLOCK;
    if links == Links::Refuse {
        flags |= OFlag::O_NOFOLLOW;
    }
    let file = File::options().read(true).custom_flags(flags.bits()).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    check(&metadata)?;
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {most} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn only_short_regular_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "four").unwrap();
        symlink(at("file"), at("link")).unwrap();
        mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
        assert_eq!(read(&at("file"), 4, Links::Refuse).unwrap(), b"four");
        assert_eq!(read(&at("file"), 3, Links::Follow).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read(&at("link"), 4, Links::Follow).unwrap(), b"four");
        assert!(read(&at("link"), 4, Links::Refuse).is_err());
        for other in [at("pipe"), dir.path().to_owned(), "/dev/zero".into()] {
            let error = read(&other, 4, Links::Follow).unwrap_err().to_string();
            assert_eq!(error, "it is not a regular file", "{}", other.display());
        }
    }

    #[test]
    fn a_file_is_ones_own_if_nobody_else_may_write_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "four").unwrap();
        for (mode, is_own) in [(0o600, true), (0o644, true), (0o620, false), (0o602, false)] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read_own(&file, 4).is_ok(), is_own, "{mode:o}");
        }
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        symlink(&file, dir.path().join("link")).unwrap();
        assert!(read_own(&dir.path().join("link"), 4).is_err());
        if std::os::unix::fs::chown(&file, Some(65_534), None).is_ok()
            && !Uid::from_raw(65_534).eq(&Uid::effective())
        {
            assert!(read_own(&file, 4).unwrap_err().to_string().contains("belongs to the user 65534"));
        }
    }
}
