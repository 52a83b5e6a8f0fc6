//! Reading a small file that somebody else may have put there: never blocks on a pipe, never swallows a device.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;

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
    let mut flags = OFlag::O_NONBLOCK;
    if links == Links::Refuse {
        flags |= OFlag::O_NOFOLLOW;
    }
    let file = File::options().read(true).custom_flags(flags.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {most} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

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
}
