//! The `flannel` plugin: turns what the daemon wrote into `subnet.env` into a configuration for another plugin, `bridge`
//! unless told otherwise, and hands the container over to it.
//!
//! ```text
//!  ADD    subnet.env + configuration ─► delegate's configuration ─► scratch file ─► delegate ADD
//!  DEL    scratch file ─► delegate DEL ─► scratch file removed
//!  GC     scratch files of containers that are gone ─► delegate DEL each; then delegate GC
//!  STATUS daemon, subnet.env, delegate
//! ```
//!
//! DEL does not need the daemon. The scratch file goes only after the delegate has succeeded, so that a runtime that tries
//! again frees the address.

use std::io::{self, Write};
use std::path::PathBuf;

use hostnet::subnet_env::{SubnetEnv, SubnetEnvError};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::delegate;
use crate::plugin::Plugin;
use crate::protocol::{AddResult, CniError, Code, Command, Request};

mod config;
mod daemon;
mod scratch;

use config::delegate_config;
use daemon::Daemon;
use scratch::Scratch;

/// The plugin.
#[derive(Clone, Copy, Debug)]
pub struct Flannel;

/// The plugin's own part of the configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    /// What the daemon wrote.
    subnet_file: PathBuf,
    /// Where scratch files are.
    data_dir: PathBuf,
    /// The base of the delegate's configuration.
    delegate: Option<Map<String, Value>>,
    /// Further keys for its IPAM.
    ipam: Option<Map<String, Value>>,
    /// Handed on as it is.
    runtime_config: Option<Value>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            subnet_file: PathBuf::from("/run/flannel/subnet.env"),
            data_dir: PathBuf::from("/var/lib/cni/flannel"),
            delegate: None,
            ipam: None,
            runtime_config: None,
        }
    }
}

impl Plugin for Flannel {
    const NAME: &'static str = "flannel";

    fn add(&self, request: &Request) -> Result<AddResult, CniError> {
        let config = Config::of(request)?;
        let delegate = config.for_delegate(request)?;
        let kind = kind_of(&delegate);
        let scratch = Scratch::new(&config.data_dir);
        log_config(kind, &delegate);
        // First, so that whatever happens from here on DEL knows what to undo.
        scratch.write(&request.network, &request.attachment, &delegate)?;
        // A delegate that fails has cleaned up what it made. Its DEL would take away a device of this name whoever made it,
        // and is the runtime's to ask for; the scratch file waits for that.
        delegate::add(kind, request, &delegate)
    }

    fn del(&self, request: &Request) -> Result<(), CniError> {
        let config = Config::of(request)?;
        let scratch = Scratch::new(&config.data_dir);
        // A scratch file that is gone or torn: what ADD would be done with today is the best that is left.
        let Some(delegate) = scratch.read(&request.attachment)?.or_else(|| config.for_delegate(request).ok())
        else {
            return Ok(());
        };
        delegate::ask(kind_of(&delegate), Command::Del, request, &delegate)?;
        scratch.remove(&request.network, &request.attachment)
    }

    fn check(&self, request: &Request) -> Result<(), CniError> {
        let config = Config::of(request)?;
        let Some(mut delegate) = Scratch::new(&config.data_dir).read(&request.attachment)? else {
            let text = format!(
                "nothing is known of container {} device {}: {} has no file of it that can be read",
                request.attachment.container_id,
                request.attachment.ifname,
                config.data_dir.display()
            );
            return Err(CniError::new(Code::UNKNOWN_CONTAINER, text)
                .with_details("ADD was not done by this plugin, or DEL was done since"));
        };
        if let Some(result) = request.config.get("prevResult") {
            put(&mut delegate, "prevResult", result.clone());
        }
        delegate::ask(kind_of(&delegate), Command::Check, request, &delegate)
    }

    fn gc(&self, request: &Request) -> Result<(), CniError> {
        let config = Config::of(request)?;
        let valid = request.valid_attachments()?;
        let scratch = Scratch::new(&config.data_dir);
        let mut first_error = Ok(());
        // One by one, because it is what delegates of older versions know too.
        for (attachment, delegate) in scratch.of_network(&request.network)? {
            if scratch::is_listed(&attachment, &valid) {
                continue;
            }
            let freed = delegate::ask_for(&attachment, kind_of(&delegate), Command::Del, request, &delegate)
                .and_then(|()| scratch.remove(&request.network, &attachment));
            first_error = first_error.and(freed);
        }
        first_error?;
        scratch.clear_unfinished(&request.network)?;
        let list = request.config.get("cni.dev/valid-attachments").cloned().unwrap_or_default();
        // Without subnet.env there is no address range to clean.
        let Ok(mut delegate) = config.for_delegate(request) else { return Ok(()) };
        put(&mut delegate, "cni.dev/valid-attachments", list);
        delegate::ask_if_known(kind_of(&delegate), Command::Gc, request, &delegate)
    }

    fn status(&self, request: &Request) -> Result<(), CniError> {
        let config = Config::of(request)?;
        Daemon::beside(&config.subnet_file).judge()?;
        let delegate = config.for_delegate(request).map_err(|error| match error.code {
            Code::TRY_AGAIN_LATER => CniError { code: Code::NOT_AVAILABLE, ..error },
            _ => error,
        })?;
        delegate::ask_if_known(kind_of(&delegate), Command::Status, request, &delegate)
    }
}

impl Config {
    fn of(request: &Request) -> Result<Self, CniError> {
        request.config()
    }

    fn for_delegate(&self, request: &Request) -> Result<Value, CniError> {
        delegate_config(self, &self.read_subnet_env()?, request)
    }

    /// # Errors
    /// With the words that flannel's users search for, and with what the daemon says about it.
    fn read_subnet_env(&self) -> Result<SubnetEnv, CniError> {
        SubnetEnv::read(&self.subnet_file).map_err(|error| {
            let cause = match error {
                SubnetEnvError::Read { path, source } if source.kind() == io::ErrorKind::NotFound => {
                    format!("open {}: no such file or directory", path.display())
                }
                other => other.to_string(),
            };
            let text = format!(
                "failed to load flannel 'subnet.env' file: {cause}. Check the flannel pod log for this node."
            );
            CniError::new(Code::TRY_AGAIN_LATER, text)
                .with_details(Daemon::beside(&self.subnet_file).reason())
        })
    }
}

/// The delegate's configuration for a request and a `subnet.env`.
///
/// # Errors
/// The request's configuration says what is not its to say.
pub fn delegate_of(request: &Request, subnet: &SubnetEnv) -> Result<Value, CniError> {
    delegate_config(&Config::of(request)?, subnet, request)
}

/// The configuration that a scratch file holds; `None` for one that is torn.
pub fn scratch_of(bytes: &[u8]) -> Option<Value> {
    scratch::parse(bytes)
}

/// The delegate's program: what [`delegate_config`] put there.
fn kind_of(delegate: &Value) -> &str {
    delegate.get("type").and_then(Value::as_str).unwrap_or("bridge")
}

fn put(object: &mut Value, key: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(key.to_owned(), value);
    }
}

/// Into the log of the container runtime, as flannel's plugin does.
fn log_config(kind: &str, delegate: &Value) {
    // A log that nobody reads is no reason to leave a container without a network.
    writeln!(io::stderr(), "flannel hands over to {kind}: {delegate}").ok();
}

#[cfg(test)]
mod tests;
