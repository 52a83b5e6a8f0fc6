//! Kernel settings under `/proc/sys`. Those under `net/` are of the network namespace of the thread that calls.
//!
//! Names are paths (`net/ipv4/conf/flannel.1/rp_filter`): with dots between the parts, a device name that holds a dot
//! could not be told from two parts.
use std::fs;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use crate::host::HostError;

/// The value of a setting, without the newline at its end.
pub fn read(name: &str) -> Result<String, HostError> {
    let action = || format!("read the setting {name}");
    let text =
        fs::read_to_string(path_of(name, action)?).map_err(|error| HostError::from_io(action(), &error))?;
    Ok(text.trim_end().to_owned())
}

/// Sets a setting. `EROFS`: `/proc/sys` is mounted read-only, as in most containers; `ENOENT`: this kernel does not
/// have it; `EINVAL`: not a value that it takes.
pub fn set(name: &str, value: &str) -> Result<(), HostError> {
    let action = || format!("set {name} to {value}");
    fs::write(path_of(name, action)?, value).map_err(|error| HostError::from_io(action(), &error))
}

/// Whether this process may set it: the file is there, its mode allows it and it is not mounted read-only.
pub fn is_writable(name: &str) -> bool {
    path_of(name, String::new).is_ok_and(|path| access(&path, AccessFlags::W_OK).is_ok())
}

/// The file of a setting; `EINVAL` for a name that leads out of `/proc/sys`.
fn path_of(name: &str, action: impl FnOnce() -> String) -> Result<PathBuf, HostError> {
    let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if name.is_empty() || !inside {
        return Err(HostError::new(action(), Errno::EINVAL));
    }
    Ok(Path::new("/proc/sys").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_read_without_its_newline() {
        assert_eq!(read("kernel/ostype").unwrap(), "Linux");
    }

    #[test]
    fn names_cannot_lead_out_of_the_settings() {
        for name in ["", "/etc/passwd", "../../etc/passwd", "net/../../../etc/passwd"] {
            assert_eq!(read(name).unwrap_err().errno, Errno::EINVAL, "{name}");
            assert_eq!(set(name, "x").unwrap_err().errno, Errno::EINVAL, "{name}");
        }
    }

    #[test]
    fn a_setting_that_is_not_there_is_named() {
        let error = read("net/ipv4/conf/nothing.1/rp_filter").unwrap_err();
        assert_eq!(error.errno, Errno::ENOENT);
        assert!(error.to_string().starts_with("read the setting net/ipv4/conf/nothing.1/rp_filter: ENOENT"));
    }
}
