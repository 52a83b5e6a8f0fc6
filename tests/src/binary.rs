//! The programs under test: `flanneld` and the CNI plugins, built from the sources that the tests are built from.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};

/// Where `flanneld` is: what `FLANNELD` names, else beside the tests in cargo's target directory.
///
/// # Errors
///
/// When it is not there.
pub fn flanneld() -> anyhow::Result<PathBuf> {
    let path = match std::env::var_os("FLANNELD") {
        Some(path) => PathBuf::from(path),
        None => beside_the_tests()?.join("flanneld"),
    };
    ensure!(path.exists(), "{} is not there: cargo build --bin flanneld, or set FLANNELD", path.display());
    Ok(path)
}

/// The directory of the CNI plugins: cargo's target directory.
///
/// # Errors
///
/// When they are not there.
pub fn plugins() -> anyhow::Result<PathBuf> {
    let dir = beside_the_tests()?;
    for plugin in ["flannel", "bridge", "host-local", "portmap"] {
        ensure!(dir.join(plugin).exists(), "{} has no {plugin}: cargo build -p cni", dir.display());
    }
    Ok(dir)
}

fn beside_the_tests() -> anyhow::Result<PathBuf> {
    // target/debug/deps/TEST-HASH
    let program = std::env::current_exe()?;
    Ok(program.ancestors().nth(2).context("tests run from a target directory")?.to_owned())
}

/// Builds `flanneld` and the plugins: a test of this package alone does not build the programs of another, and a stale one
/// would be worse than none. Builds nothing when the test is not run by cargo, or where `FLANNELD` names a program.
///
/// # Errors
///
/// When it does not build.
pub fn build() -> anyhow::Result<()> {
    let (Some(cargo), None) = (std::env::var_os("CARGO"), std::env::var_os("FLANNELD")) else {
        return Ok(());
    };
    let mut command = Command::new(cargo);
    // As a part of the workspace's tests and for a test of each package: any other way chooses other features of tokio and
    // serde, and half of the dependencies are built twice.
    command.args(["test", "--quiet", "--no-run", "--workspace"]);
    command.args(["--test", "command_line", "--test", "bridge"]);
    command.args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml")]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    // What cargo tells a test about its package would look like another environment to build scripts that ask for it
    // (ring's does), and everything above them would be built again, by this cargo and by the next.
    for (name, _value) in std::env::vars_os() {
        let of_the_test = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
        if name.to_str().is_some_and(|name| of_the_test.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
    }
    let status = command.status().context("run cargo to build flanneld and the plugins")?;
    ensure!(status.success(), "flanneld or a plugin does not build");
    Ok(())
}
