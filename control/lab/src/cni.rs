//! A container runtime's half of CNI: containers that are network namespaces, and the questions about them, asked to real
//! programs as libcni asks them.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use hostnet::netns::NetNs;
use serde_json::Value;

/// A container: its name and its namespace.
#[derive(Clone, Debug)]
pub struct Container {
    /// `CNI_CONTAINERID`.
    pub id: String,
    /// Its network namespace; `None`: it is gone.
    pub namespace: Option<NetNs>,
}

/// A runtime with a configuration and places where plugins are.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// `CNI_PATH`.
    pub path: Vec<PathBuf>,
    /// The network's configuration; its `type` is the plugin that is asked.
    pub config: Value,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// Further variables.
    pub environment: Vec<(String, String)>,
}

/// What a plugin answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// It succeeded.
    pub success: bool,
    /// What it printed; `null` for nothing.
    pub json: Value,
    /// What it logged.
    pub log: String,
}

impl Container {
    /// A container with an empty namespace.
    ///
    /// # Errors
    ///
    /// When the machine refuses a namespace.
    pub fn new(id: impl Into<String>) -> anyhow::Result<Self> {
        Ok(Self { id: id.into(), namespace: Some(NetNs::new().context("make a container")?) })
    }

    /// The path by which other processes find the namespace as long as this value is there.
    pub fn path(&self) -> Option<PathBuf> {
        let namespace = self.namespace.as_ref()?;
        Some(PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd())))
    }
}

impl Runtime {
    /// A runtime that looks for plugins in these directories.
    pub fn new(path: &[&Path], config: Value) -> Self {
        Self {
            path: path.iter().map(|place| place.to_path_buf()).collect(),
            config,
            ifname: "eth0".to_owned(),
            environment: Vec::new(),
        }
    }

    /// The command that asks, without its input: a test may run it under another program. `container` is not needed for
    /// GC, STATUS and VERSION.
    ///
    /// # Errors
    ///
    /// When the configuration's plugin is in none of the directories.
    pub fn command(&self, word: &str, container: Option<&Container>) -> anyhow::Result<Command> {
        let kind = self.config.get("type").and_then(Value::as_str).context("a configuration has a type")?;
        let program = self.path.iter().map(|place| place.join(kind)).find(|program| program.is_file());
        let program = program.with_context(|| format!("there is no plugin {kind} in {:?}", self.path))?;
        let mut command = Command::new(program);
        command.env("CNI_COMMAND", word).env("CNI_PATH", std::env::join_paths(&self.path)?);
        if let Some(container) = container {
            command.env("CNI_CONTAINERID", &container.id).env("CNI_IFNAME", &self.ifname);
            if let Some(path) = container.path() {
                command.env("CNI_NETNS", path);
            }
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }

    /// Runs a command that asks, with a configuration as its input.
    ///
    /// # Errors
    ///
    /// When it cannot be run, or prints what is no JSON.
    pub fn run(mut command: Command, config: &Value) -> anyhow::Result<Answer> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", command.get_program().display()))?;
        // A program that is killed early does not read it.
        child.stdin.take().context("a pipe")?.write_all(config.to_string().as_bytes()).ok();
        let output = child.wait_with_output()?;
        let printed = String::from_utf8_lossy(&output.stdout);
        let json = match printed.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).with_context(|| format!("a plugin printed {text:?}"))?,
        };
        Ok(Answer {
            success: output.status.success(),
            json,
            log: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Asks about a container with the configuration as it is.
    ///
    /// # Errors
    ///
    /// As [`Runtime::run`]; a plugin's own refusal is an answer.
    pub fn ask(&self, word: &str, container: &Container) -> anyhow::Result<Answer> {
        Self::run(self.command(word, Some(container))?, &self.config)
    }

    /// Asks about a container and tells what ADD had answered.
    ///
    /// # Errors
    ///
    /// As [`Runtime::ask`].
    pub fn ask_again(&self, word: &str, container: &Container, previous: &Value) -> anyhow::Result<Answer> {
        let mut config = self.config.clone();
        config["prevResult"] = previous.clone();
        Self::run(self.command(word, Some(container))?, &config)
    }

    /// Connects a container; answers the result.
    ///
    /// # Errors
    ///
    /// What the plugin says.
    pub fn add(&self, container: &Container) -> anyhow::Result<Value> {
        let answer = self.ask("ADD", container)?;
        ensure!(answer.success, "ADD of {}: {} {}", container.id, answer.json, answer.log);
        Ok(answer.json)
    }

    /// Disconnects a container.
    ///
    /// # Errors
    ///
    /// What the plugin says.
    pub fn delete(&self, container: &Container) -> anyhow::Result<()> {
        let answer = self.ask("DEL", container)?;
        ensure!(answer.success, "DEL of {}: {} {}", container.id, answer.json, answer.log);
        match answer.json {
            Value::Null => Ok(()),
            said => bail!("DEL of {} printed {said}", container.id),
        }
    }

    /// Asks for what belongs to no container of the list to be freed. Needs a configuration of CNI 1.1.0.
    ///
    /// # Errors
    ///
    /// What the plugin says.
    pub fn collect(&self, valid: &[&Container]) -> anyhow::Result<()> {
        let mut config = self.config.clone();
        let list = valid.iter().map(|one| serde_json::json!({"containerID": one.id, "ifname": self.ifname}));
        config["cni.dev/valid-attachments"] = list.collect();
        let answer = Self::run(self.command("GC", None)?, &config)?;
        ensure!(answer.success, "GC: {} {}", answer.json, answer.log);
        Ok(())
    }
}
