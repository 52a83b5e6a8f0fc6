//! A container runtime, as far as an IPAM plugin sees one.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

pub(super) const OURS: &str = env!("CARGO_BIN_EXE_host-local");
/// Of Debian's package `containernetworking-plugins`.
pub(super) const THEIRS: &str = "/usr/lib/cni/host-local";

/// A network with a data directory of its own.
pub(super) struct Network {
    pub(super) directory: TempDir,
    pub(super) config: Value,
}

impl Network {
    pub(super) fn new(ranges: Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ipam = json!({"type": "host-local", "dataDir": directory.path(), "ranges": ranges});
        // GC needs 1.1.0, which Debian's plugin does not speak.
        let config = json!({"cniVersion": "1.0.0", "name": "net", "type": "bridge", "ipam": ipam});
        Self { directory, config }
    }

    /// For GC: the configuration with one more key.
    pub(super) fn with(&self, key: &str, value: Value) -> Value {
        let mut config = self.config.clone();
        config["cniVersion"] = json!("1.1.0");
        config[key] = value;
        config
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("net")
    }
}

/// A start of a plugin.
pub(super) struct Call {
    program: String,
    under: Vec<String>,
    command: String,
    id: String,
    config: String,
}

impl Call {
    pub(super) fn new(program: &str, command: &str, id: &str, config: &Value) -> Self {
        Self {
            program: program.to_owned(),
            under: Vec::new(),
            command: command.to_owned(),
            id: id.to_owned(),
            config: config.to_string(),
        }
    }

    /// Started by another program.
    pub(super) fn under(mut self, under: &[&str]) -> Self {
        self.under = under.iter().map(|&word| word.to_owned()).collect();
        self
    }

    pub(super) fn run(self) -> Answer {
        let words: Vec<&String> = self.under.iter().chain([&self.program]).collect();
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .env("CNI_COMMAND", self.command)
            .env("CNI_CONTAINERID", self.id)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", "/run/netns/none")
            .env("CNI_PATH", "/usr/lib/cni")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A process that is killed does not read it.
        child.stdin.take().unwrap().write_all(self.config.as_bytes()).ok();
        let output = child.wait_with_output().unwrap();
        Answer { is_success: output.status.success(), text: String::from_utf8(output.stdout).unwrap() }
    }
}

/// What a plugin answered.
pub(super) struct Answer {
    pub(super) is_success: bool,
    pub(super) text: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {:?}", self.text))
    }

    /// The first address, with its prefix.
    pub(super) fn address(&self) -> String {
        let address = self.json()["ips"][0]["address"].as_str().map(str::to_owned);
        address.unwrap_or_else(|| panic!("no address: {}", self.text))
    }

    /// All addresses, without prefixes.
    pub(super) fn addresses(&self) -> Vec<String> {
        let json = self.json();
        let ips = json["ips"].as_array().unwrap().iter();
        ips.map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned()).collect()
    }
}

/// Addresses with the contents of their files.
pub(super) fn reserved(directory: &Path) -> BTreeMap<String, String> {
    let names = files(directory).into_iter().filter(|name| name.parse::<std::net::IpAddr>().is_ok());
    names.map(|name| (name.clone(), fs::read_to_string(directory.join(name)).unwrap())).collect()
}

/// What is in a network's directory beside the files that stay there.
pub(super) fn files(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with("last_reserved_ip.") && name != "lock" && name != ".boot_id")
        .collect()
}
