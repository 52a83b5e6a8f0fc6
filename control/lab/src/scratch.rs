//! A directory for a run's files that goes with its namespaces: a tmpfs that only this mount namespace has.
//!
//! Lease stores, `subnet.env` and the like of a demo must not stay on the machine after `kill -9`. A mount inside the
//! private mount namespace cannot: the kernel drops it with the last process of the run.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::mount::{MsFlags, mount};

/// Directories that nearly every machine has and that a run can do without, best first.
const PLACES: [&str; 6] = ["/mnt", "/media", "/srv", "/opt", "/run", "/tmp"];

/// Mounts an empty tmpfs over a directory of the machine that this run does not need, and answers its path.
///
/// Only after [`crate::isolate`] or inside [`crate::run_inside`]: the mount would be the machine's otherwise.
///
/// # Errors
///
/// When no such directory exists, or the kernel refuses the mount.
pub fn scratch() -> anyhow::Result<PathBuf> {
    scratch_of(64)
}

/// The same with room for so many MiB; memory is taken only for what is written.
///
/// # Errors
///
/// As [`scratch`].
pub fn scratch_of(mebibytes: usize) -> anyhow::Result<PathBuf> {
    let here = std::env::current_dir().unwrap_or_default();
    let program = std::env::current_exe().unwrap_or_default();
    let in_the_way = |place: &Path| here.starts_with(place) || program.starts_with(place);
    let place = PLACES.iter().map(Path::new).find(|place| place.is_dir() && !in_the_way(place));
    let Some(place) = place else {
        bail!(
            "there is no directory to mount a tmpfs over: none of {} exists without holding this program or the \
             current directory. Run it from another directory",
            PLACES.join(", ")
        );
    };
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = format!("mode=0755,size={mebibytes}m");
    mount(Some("lab"), place, Some("tmpfs"), flags, Some(options.as_str())).with_context(|| {
        format!("mount a tmpfs over {} in this run's own mount namespace", place.display())
    })?;
    Ok(place.to_owned())
}
