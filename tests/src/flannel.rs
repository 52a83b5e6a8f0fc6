//! Real flannel as a node: `tests/flannel-peer` runs flannel's own backends over the same lease directory as our daemons.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, ensure};
use lab::Node;

use crate::daemon::{Daemon, subnet_file};

/// What `.ci/flannel-peer` ends with where a machine cannot have flannel.
const CANNOT: i32 = 75;

/// Why this machine cannot run real flannel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing(pub String);

/// Builds the program; in no time where nothing has changed.
///
/// # Errors
///
/// When it does not build for another reason than a lack of Go, of a C compiler or of the module proxy.
pub fn build() -> anyhow::Result<Result<(), Missing>> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../.ci/flannel-peer");
    let Output { status, stderr, .. } = Command::new(script)
        .arg(program()?.parent().context("a directory")?)
        .output()
        .with_context(|| format!("run {script}"))?;
    let said = String::from_utf8_lossy(&stderr).trim().to_owned();
    if status.code() == Some(CANNOT) {
        return Ok(Err(Missing(said)));
    }
    ensure!(status.success(), "flannel does not build ({status}): {said}");
    Ok(Ok(()))
}

/// Starts flannel on the node; its files are in `dir` as those of our daemons.
///
/// # Errors
///
/// When it cannot be started.
pub fn spawn(node: &Node, dir: &Path) -> anyhow::Result<Daemon> {
    spawn_over(node, dir, &format!("-file-subnet-mgr={}", dir.join("store").display()))
}

/// Starts flannel on the node over the store that this flag of its names; `subnet.env` is in `dir` as that of our daemons.
///
/// # Errors
///
/// When it cannot be started.
pub fn spawn_over(node: &Node, dir: &Path, store: &str) -> anyhow::Result<Daemon> {
    let subnet_file = subnet_file(node.name(), dir);
    let mut command = Command::new(program()?);
    command.arg(store).arg("-subnet-file").arg(&subnet_file);
    Ok(Daemon::of(node.spawn(command)?, subnet_file))
}

/// Beside cargo's profiles: both build the same program.
fn program() -> anyhow::Result<PathBuf> {
    // target/debug/deps/TEST-HASH
    let exe = std::env::current_exe()?;
    let target = exe.ancestors().nth(3).context("tests run from a target directory")?;
    Ok(target.join("flannel-peer/peer"))
}
