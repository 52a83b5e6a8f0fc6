//! Runs another plugin: an IPAM plugin for `bridge`, a main plugin for `flannel`. It gets our environment and a configuration
//! of ours; it is found in `CNI_PATH`.

use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};
use std::thread;
use std::time::Duration;

use nix::unistd::{AccessFlags, access};
use serde_json::Value;

use crate::protocol::{AddResult, Attachment, CniError, Code, Command, Request};

/// A program that is just being replaced cannot be started (`ETXTBSY`): it is tried so often.
const ATTEMPTS: usize = 20;
/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// Runs ADD of the plugin `kind` and reads its result.
///
/// # Errors
/// The plugin's own error as it gave it; otherwise what prevented it from running or answering.
pub fn add(kind: &str, request: &Request, config: &Value) -> Result<AddResult, CniError> {
    let output = run(kind, Command::Add, request, config, None)?;
    let value = serde_json::from_slice(&output).map_err(|error| {
        CniError::new(
            Code::DECODING_FAILURE,
            format!("the plugin {kind} gave no result that can be read: {error}"),
        )
    })?;
    AddResult::from_json(&value)
}

/// Runs a command that answers nothing but success.
///
/// # Errors
/// As [`add`].
pub fn ask(kind: &str, command: Command, request: &Request, config: &Value) -> Result<(), CniError> {
    run(kind, command, request, config, None).map(drop)
}

/// The same about another container than the one that the request is about: one that is gone, so its namespace is none.
///
/// # Errors
/// As [`add`].
pub fn ask_for(
    attachment: &Attachment,
    kind: &str,
    command: Command,
    request: &Request,
    config: &Value,
) -> Result<(), CniError> {
    run(kind, command, request, config, Some(attachment)).map(drop)
}

/// A delegate of an older version does not know the command; that is no error of the network.
///
/// # Errors
/// Any other.
pub fn unless_unknown(answer: Result<(), CniError>) -> Result<(), CniError> {
    match answer {
        Err(error)
            if error.code == Code::INCOMPATIBLE_VERSION
                || error.message.starts_with("unknown CNI_COMMAND") =>
        {
            Ok(())
        }
        other => other,
    }
}

fn run(
    kind: &str,
    command: Command,
    request: &Request,
    config: &Value,
    about: Option<&Attachment>,
) -> Result<Vec<u8>, CniError> {
    let program = find(kind, request)?;
    let failed =
        |error: io::Error| CniError::new(Code::IO_FAILURE, format!("run {}: {error}", program.display()));
    let mut child = start(&program, command, about).map_err(failed)?;
    let mut input = child.stdin.take();
    let text = config.to_string();
    // The configuration may be longer than a pipe holds, and the plugin may say much before it has read it.
    let writer = thread::spawn(move || {
        let Some(input) = input.as_mut() else { return Ok(()) };
        match input.write_all(text.as_bytes()) {
            // It did not want to know; its status says why.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    });
    let output = child.wait_with_output().map_err(failed)?;
    writer
        .join()
        .unwrap_or_else(|_panic| Err(io::Error::other("writing its configuration failed")))
        .map_err(failed)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    // A plugin that refuses in the form of the protocol has said all there is to say.
    match serde_json::from_slice::<CniError>(&output.stdout) {
        Ok(error) => Err(error),
        Err(_) => {
            let said = String::from_utf8_lossy(&output.stdout);
            Err(CniError::internal(format!("the plugin {kind} failed: {} {}", output.status, said.trim()))
                .with_details("what it wrote to stderr is in the log of the container runtime"))
        }
    }
}

fn start(program: &Path, command: Command, about: Option<&Attachment>) -> io::Result<process::Child> {
    let mut delegate = process::Command::new(program);
    delegate.env("CNI_COMMAND", command.as_str()).stdin(Stdio::piped()).stdout(Stdio::piped());
    if let Some(attachment) = about {
        delegate.env("CNI_CONTAINERID", &attachment.container_id).env_remove("CNI_NETNS");
        // DEL wants a device's name even where nobody knows it.
        let ifname = if attachment.ifname.is_empty() { "eth0" } else { &attachment.ifname };
        delegate.env("CNI_IFNAME", ifname);
    }
    let mut attempt = 1;
    loop {
        match delegate.spawn() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy && attempt < ATTEMPTS => {
                attempt += 1;
                thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
}

fn find(kind: &str, request: &Request) -> Result<PathBuf, CniError> {
    if kind.is_empty() || kind.contains('/') {
        return Err(CniError::config(format!("invalid plugin name: {kind:?}")));
    }
    let places = request.path.iter().map(|place| place.join(kind));
    let is_program = |path: &PathBuf| path.is_file() && access(path, AccessFlags::X_OK).is_ok();
    places.into_iter().find(is_program).ok_or_else(|| {
        let path: Vec<String> = request.path.iter().map(|place| place.display().to_string()).collect();
        let text = format!("failed to find plugin {kind:?} in path [{}]", path.join(" "));
        CniError::new(Code::INVALID_CONFIG, text).with_details(advice(kind))
    })
}

fn advice(kind: &str) -> &'static str {
    match kind {
        // There is none of ours: leases need a process that renews them.
        "dhcp" => {
            "install the reference one there (Debian: the package containernetworking-plugins) and have its daemon run on \
             each node: dhcp daemon, which listens on /run/cni/dhcp.sock"
        }
        _ => "install it there (Debian: the package containernetworking-plugins has the reference ones)",
    }
}

#[cfg(test)]
mod tests;
