//! `flanneld install-conf SRC DEST`: puts a CNI configuration in place so that a kubelet which reads the directory
//! meanwhile finds the old file or the new one, whole. Same words and exit status as flannel's program of that name.

use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use atomic_write_file::AtomicWriteFile;
use hostnet::regular_file::{self, Links};

/// More than any sane configuration by far, and little enough to hold whatever is found at the path.
const MAX_BYTES: u64 = 1 << 20;

/// Why DEST is as it was.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// SRC cannot be read.
    #[error("read {path}: {source}")]
    Read {
        /// SRC.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// DEST cannot be written; what was there is still there and whole.
    #[error("write {path}: {source}")]
    Write {
        /// DEST.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Copies `from` to `to` with its mode: a hidden file beside `to`, written, synced and renamed. A link at `from` is
/// followed (a ConfigMap's files are links), one at `to` is replaced.
///
/// # Errors
/// What could not be read or written; no half file is left at `to`.
pub fn install(from: &Path, to: &Path) -> Result<(), InstallError> {
    let unreadable = |source| InstallError::Read { path: from.to_owned(), source };
    let bytes = regular_file::read(from, MAX_BYTES, Links::Follow).map_err(unreadable)?;
    let mode = std::fs::metadata(from).map_err(unreadable)?.permissions().mode() & 0o7777;
    write(to, &bytes, mode).map_err(|source| InstallError::Write { path: to.to_owned(), source })
}

fn write(to: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = AtomicWriteFile::open(to)?;
    file.write_all(bytes)?;
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.commit()
}

/// The subcommand, with the words behind `install-conf`. 0 when DEST is written, else 1 and a line on stderr.
pub fn main(words: &[String]) -> ExitCode {
    let said = match words {
        [from, to] => match install(Path::new(from), Path::new(to)) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => format!("install-conf: {error}"),
        },
        _ => "usage: flanneld install-conf SRC DEST".to_owned(),
    };
    // Nobody is left to tell if stderr is closed.
    writeln!(io::stderr(), "{said}").ok();
    ExitCode::FAILURE
}
