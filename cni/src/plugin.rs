//! What a plugin is, and the program around it: environment and stdin in, JSON and an exit status out.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use hostnet::netns::NetNs;
use nix::sys::stat::fstat;
use serde::Serialize;

use crate::protocol::{AddResult, CniError, Code, Command, Request, Version, pretty};

/// More than any configuration by far: a kubelet's has some kilobytes, and GC lists a node's containers.
const LONGEST_CONFIG: u64 = 16 * 1024 * 1024;

/// A CNI plugin. What a command does not mean anything for succeeds.
pub trait Plugin {
    /// The program's name.
    const NAME: &'static str;

    /// Connects a container.
    ///
    /// # Errors
    /// Nothing that it made is left then, or DEL finds it.
    fn add(&self, request: &Request) -> Result<AddResult, CniError>;

    /// Disconnects a container. What is not there any more is no error.
    ///
    /// # Errors
    /// Something is left.
    fn del(&self, request: &Request) -> Result<(), CniError>;

    /// Says whether all that ADD made is there.
    ///
    /// # Errors
    /// What is not.
    fn check(&self, request: &Request) -> Result<(), CniError>;

    /// Frees what belongs to no container that is still there.
    ///
    /// # Errors
    /// Something is left.
    fn gc(&self, request: &Request) -> Result<(), CniError>;

    /// Says whether ADD would work.
    ///
    /// # Errors
    /// Why it would not, as [`Code::NOT_AVAILABLE`] or [`Code::LIMITED_CONNECTIVITY`].
    fn status(&self, request: &Request) -> Result<(), CniError>;
}

/// A plugin's `main`.
pub fn main(plugin: &impl Plugin) -> ExitCode {
    let variable = |name: &str| std::env::var(name).ok();
    if variable("CNI_COMMAND").is_none_or(|command| command.is_empty()) {
        return about(plugin);
    }
    let mut stdin = Vec::new();
    let read = match variable("CNI_COMMAND").as_deref() {
        Some("VERSION") => Ok(0),
        _ => io::stdin().take(LONGEST_CONFIG).read_to_end(&mut stdin),
    };
    let (text, code) = match read {
        Ok(_) => answer(plugin, variable, &stdin),
        Err(error) => {
            let error = CniError::new(Code::IO_FAILURE, format!("error reading from stdin: {error}"));
            (error.to_json(Version::NEWEST), ExitCode::FAILURE)
        }
    };
    // Whoever closed stdout does not want the answer.
    io::stdout().write_all(text.as_bytes()).ok();
    code
}

/// For people who start the program by hand.
fn about<P: Plugin>(_plugin: &P) -> ExitCode {
    let versions: Vec<&str> = Version::ALL.iter().map(|version| version.as_str()).collect();
    let text = format!(
        "CNI plugin {} of flannel-rs {}\nCNI protocol versions supported: {}\nA container runtime starts it with CNI_COMMAND \
         and a configuration on stdin.\n",
        P::NAME,
        env!("CARGO_PKG_VERSION"),
        versions.join(", ")
    );
    io::stderr().write_all(text.as_bytes()).ok();
    ExitCode::SUCCESS
}

/// What goes to stdout, and the exit status.
fn answer(
    plugin: &impl Plugin,
    variable: impl Fn(&str) -> Option<String>,
    stdin: &[u8],
) -> (String, ExitCode) {
    let own_namespace_is_meant = variable("CNI_NETNS_OVERRIDE")
        .is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true"));
    let request = match Request::read(variable, stdin) {
        Ok(request) => request,
        Err((version, error)) => return (error.to_json(version), ExitCode::FAILURE),
    };
    match serve(plugin, &request, own_namespace_is_meant) {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => (error.to_json(request.version), ExitCode::FAILURE),
    }
}

fn serve(plugin: &impl Plugin, request: &Request, own_namespace_is_meant: bool) -> Result<String, CniError> {
    let connects = matches!(request.command, Command::Add | Command::Del);
    if connects && !own_namespace_is_meant && is_own_namespace(&request.netns) {
        let text =
            format!("plugin's netns and netns from CNI_NETNS should not be the same: {}", request.netns);
        return Err(CniError::new(Code::INVALID_NETNS, text).with_details(
            "a container that shares the host's network needs no CNI; CNI_NETNS_OVERRIDE=1 allows it",
        ));
    }
    match request.command {
        Command::Add => {
            let result = plugin.add(request)?;
            Ok(pretty(&result.to_json(request.version)?))
        }
        Command::Del => plugin.del(request).map(|()| String::new()),
        Command::Check => plugin.check(request).map(|()| String::new()),
        Command::Gc => plugin.gc(request).map(|()| String::new()),
        Command::Status => plugin.status(request).map(|()| String::new()),
        Command::Version => Ok(versions()),
    }
}

fn versions() -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Versions {
        cni_version: &'static str,
        supported_versions: [&'static str; Version::ALL.len()],
    }
    pretty(&Versions {
        cni_version: Version::NEWEST.as_str(),
        supported_versions: Version::ALL.map(Version::as_str),
    })
}

/// A namespace that cannot be looked at is none of ours: a container's that is gone.
fn is_own_namespace(path: &str) -> bool {
    let inode =
        |namespace: io::Result<NetNs>| fstat(&namespace.ok()?).ok().map(|found| (found.st_dev, found.st_ino));
    !path.is_empty()
        && inode(NetNs::open(Path::new(path))).is_some_and(|given| inode(NetNs::current()) == Some(given))
}

#[cfg(test)]
mod tests;
