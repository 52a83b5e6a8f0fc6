//! What a runtime asks: the environment and the configuration, checked.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{AddResult, CniError, Code, Version};

/// What a plugin is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Connect a container.
    Add,
    /// Disconnect it, whatever is left of it.
    Del,
    /// Say whether it is connected as ADD said.
    Check,
    /// Free what belongs to containers that are not in a list.
    Gc,
    /// Say whether ADD would work.
    Status,
    /// Say which versions are spoken.
    Version,
}

impl Command {
    /// As it stands in `CNI_COMMAND`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version]
            .into_iter()
            .find(|command| command.as_str() == text)
    }

    /// The variables it cannot do without, in the order in which they are named when they are missing.
    fn needs(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            Self::Gc | Self::Status => &["CNI_PATH"],
            Self::Version => &[],
        }
    }

    /// The version of the specification that brought it.
    fn since(self) -> Version {
        match self {
            Self::Add | Self::Del | Self::Version => Version::V0_1_0,
            Self::Check => Version::V0_4_0,
            Self::Gc | Self::Status => Version::V1_1_0,
        }
    }
}

/// One container's connection to one network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Attachment {
    /// The container.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The device in it.
    pub ifname: String,
}

/// A question of a runtime, checked.
#[derive(Clone, Debug)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// The container and the device in it; empty for GC and STATUS.
    pub attachment: Attachment,
    /// Path of the container's namespace; empty where a DEL has none.
    pub netns: String,
    /// `CNI_ARGS`.
    pub args: Args,
    /// Where plugins are, first match first.
    pub path: Vec<PathBuf>,
    /// The network's name.
    pub network: String,
    /// The version of the configuration, and of the answer.
    pub version: Version,
    /// The configuration.
    pub config: Value,
}

/// `CNI_ARGS`: what a runtime adds by hand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args(BTreeMap<String, String>);

impl Args {
    /// From `A=1;B=2`.
    ///
    /// # Errors
    /// A part without `=`.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let mut args = BTreeMap::new();
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                let text = format!("CNI_ARGS has {pair:?}, expected KEY=VALUE;KEY=VALUE");
                return Err(CniError::new(Code::INVALID_ENVIRONMENT, text));
            };
            args.insert(key.to_owned(), value.to_owned());
        }
        Ok(Self(args))
    }

    /// The values of the keys that a plugin knows, in their order.
    ///
    /// # Errors
    /// A key that it does not know, unless `IgnoreUnknown` is set (a kubelet sets it).
    pub fn known<const N: usize>(&self, keys: [&str; N]) -> Result<[Option<&str>; N], CniError> {
        let ignore = self
            .0
            .get("IgnoreUnknown")
            .is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true"));
        let unknown = |key: &&String| *key != "IgnoreUnknown" && !keys.contains(&key.as_str());
        if let Some(key) = self.0.keys().find(unknown).filter(|_| !ignore) {
            let text = format!("CNI_ARGS has {key:?}, which this plugin does not know");
            return Err(CniError::new(Code::INVALID_ENVIRONMENT, text)
                .with_details("set IgnoreUnknown=1 in CNI_ARGS to pass over it"));
        }
        Ok(keys.map(|key| self.0.get(key).map(String::as_str).filter(|value| !value.is_empty())))
    }
}

/// The fields of a configuration that are the protocol's own.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Head {
    cni_version: String,
    name: String,
}

impl Request {
    /// Reads a question. `variable` gives the environment, `stdin` the configuration.
    ///
    /// # Errors
    /// The first thing that is wrong, with the version to print it in.
    pub fn read(
        variable: impl Fn(&str) -> Option<String>,
        stdin: &[u8],
    ) -> Result<Self, (Version, CniError)> {
        let command = Self::command(&variable).map_err(|error| (Version::NEWEST, error))?;
        let value = |name: &str| variable(name).unwrap_or_default();
        let (head, config) = match command {
            Command::Version => (Head { name: "version".to_owned(), ..Head::default() }, Value::Null),
            _ => head(stdin).map_err(|error| (Version::NEWEST, error))?,
        };
        let version = known_version(&head.cni_version).map_err(|error| (Version::NEWEST, error))?;
        let fail = |error| (version, error);
        if version < command.since() && command != Command::Version {
            let text = format!("{} needs CNI version {}", command.as_str(), command.since());
            return Err(fail(
                CniError::new(Code::INCOMPATIBLE_VERSION, text)
                    .with_details(format!("the configuration's cniVersion is {version}")),
            ));
        }
        let attachment = Attachment { container_id: value("CNI_CONTAINERID"), ifname: value("CNI_IFNAME") };
        if matches!(command, Command::Add | Command::Del | Command::Check) {
            check_container_id(&attachment.container_id).map_err(fail)?;
            check_ifname(&attachment.ifname).map_err(fail)?;
        }
        check_network(&head.name).map_err(fail)?;
        Ok(Self {
            command,
            attachment,
            netns: value("CNI_NETNS"),
            args: Args::parse(&value("CNI_ARGS")).map_err(fail)?,
            path: std::env::split_paths(&value("CNI_PATH")).collect(),
            network: head.name,
            version,
            config,
        })
    }

    fn command(variable: &impl Fn(&str) -> Option<String>) -> Result<Command, CniError> {
        let text = variable("CNI_COMMAND").unwrap_or_default();
        let environment = |text: String| CniError::new(Code::INVALID_ENVIRONMENT, text);
        if text.is_empty() {
            return Err(environment("required env variables [CNI_COMMAND] missing".to_owned()));
        }
        let command =
            Command::parse(&text).ok_or_else(|| environment(format!("unknown CNI_COMMAND: {text}")))?;
        let is_missing = |name: &&&str| variable(name).is_none_or(|value| value.is_empty());
        let missing: Vec<&str> = command.needs().iter().filter(is_missing).copied().collect();
        match missing.is_empty() {
            true => Ok(command),
            false => Err(environment(format!("required env variables [{}] missing", missing.join(",")))),
        }
    }

    /// The configuration as a plugin's own type.
    ///
    /// # Errors
    /// Which field is wrong.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T, CniError> {
        parse_config(&self.config)
    }

    /// What an earlier plugin of the chain, or an earlier ADD, made.
    ///
    /// # Errors
    /// It is no CNI result.
    pub fn previous(&self) -> Result<Option<AddResult>, CniError> {
        match self.config.get("prevResult") {
            None | Some(Value::Null) => Ok(None),
            Some(result) => AddResult::from_json(result).map(Some),
        }
    }

    /// For GC: what still exists.
    ///
    /// # Errors
    /// The list is missing: freeing everything because of that would cut off every container.
    pub fn valid_attachments(&self) -> Result<Vec<Attachment>, CniError> {
        match self.config.get("cni.dev/valid-attachments") {
            // Go writes a list of nothing like this.
            Some(Value::Null) => Ok(Vec::new()),
            None => Err(CniError::config(
                "GC without cni.dev/valid-attachments: which containers exist is not told, so nothing is freed",
            )),
            Some(list) => parse_config(list),
        }
    }
}

/// A part of a configuration as a type of ours.
///
/// # Errors
/// Which field is wrong.
pub fn parse_config<T: DeserializeOwned>(value: &Value) -> Result<T, CniError> {
    T::deserialize(as_go_reads(value)).map_err(|error| {
        CniError::new(Code::DECODING_FAILURE, format!("failed to parse network configuration: {error}"))
    })
}

/// `null` means the same as nothing, as it does to the reference library.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(object) => {
            let kept = object.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key, without_nulls(value))).collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(without_nulls).collect()),
        plain => plain,
    }
}

/// The same with the keys that plugins know in the letters that they know them in: Go reads `isgateway` for `isGateway`.
pub(super) fn as_go_reads(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let known = |key: &String| {
                let same = KEYS.iter().find(|known| known.eq_ignore_ascii_case(key));
                // The right spelling goes before any other.
                same.filter(|known| !object.contains_key(**known))
                    .map_or_else(|| key.clone(), |known| (*known).to_owned())
            };
            Value::Object(object.iter().map(|(key, value)| (known(key), as_go_reads(value))).collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(as_go_reads).collect()),
        plain => plain.clone(),
    }
}

/// The keys of all plugins of ours.
const KEYS: [&str; 72] = [
    "address",
    "addresses",
    "advmss",
    "args",
    "backend",
    "bridge",
    "cni",
    "cniVersion",
    "conditionsV4",
    "conditionsV6",
    "containerID",
    "containerPort",
    "dataDir",
    "delegate",
    "disableContainerInterface",
    "dns",
    "domain",
    "dst",
    "enabledad",
    "externalSetMarkChain",
    "forceAddress",
    "gateway",
    "gw",
    "hairpinMode",
    "hostIP",
    "hostPort",
    "id",
    "ifname",
    "interface",
    "interfaces",
    "ip",
    "ip4",
    "ip6",
    "ipMasq",
    "ipMasqBackend",
    "ipRanges",
    "ipam",
    "ips",
    "isDefaultGateway",
    "isGateway",
    "mac",
    "macspoofchk",
    "markMasqBit",
    "masqAll",
    "maxID",
    "minID",
    "mtu",
    "name",
    "nameservers",
    "options",
    "pciID",
    "portIsolation",
    "portMappings",
    "preserveDefaultVlan",
    "priority",
    "promiscMode",
    "protocol",
    "rangeEnd",
    "rangeStart",
    "ranges",
    "resolvConf",
    "routes",
    "runtimeConfig",
    "sandbox",
    "scope",
    "search",
    "snat",
    "socketPath",
    "subnet",
    "subnetFile",
    "table",
    "type",
];

fn head(stdin: &[u8]) -> Result<(Head, Value), CniError> {
    let decoding = |error: serde_json::Error| {
        CniError::new(Code::DECODING_FAILURE, format!("failed to parse network configuration: {error}"))
            .with_details("stdin should hold the network's configuration as JSON")
    };
    let config: Map<String, Value> = serde_json::from_slice(stdin).map_err(decoding)?;
    let config = without_nulls(Value::Object(config));
    let head = Head::deserialize(as_go_reads(&config)).map_err(decoding)?;
    Ok((head, config))
}

fn known_version(text: &str) -> Result<Version, CniError> {
    text.parse().map_err(|()| {
        let known: Vec<&str> = Version::ALL.iter().map(|version| version.as_str()).collect();
        CniError::new(Code::INCOMPATIBLE_VERSION, "incompatible CNI versions")
            .with_details(format!("config is {text:?}, plugin supports {known:?}"))
    })
}

fn check_network(name: &str) -> Result<(), CniError> {
    match name {
        "" => Err(CniError::config("missing network name")),
        name if is_identifier(name) => Ok(()),
        name => Err(CniError::config("invalid characters found in network name").with_details(name)),
    }
}

fn check_container_id(id: &str) -> Result<(), CniError> {
    match id {
        id if is_identifier(id) => Ok(()),
        id => {
            Err(CniError::new(Code::INVALID_ENVIRONMENT, "invalid characters in containerID")
                .with_details(id))
        }
    }
}

/// `[a-zA-Z0-9][a-zA-Z0-9_.\-]*`: such a name is also a safe file name.
fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn check_ifname(name: &str) -> Result<(), CniError> {
    match no_device_name(name) {
        None => Ok(()),
        Some(wrong) => Err(CniError::new(Code::INVALID_ENVIRONMENT, wrong)
            .with_details("CNI_IFNAME should have 1 to 15 characters, without / : and white space")),
    }
}

/// Why the kernel gives no device this name (`dev_valid_name`), in the words of the reference plugins.
pub fn no_device_name(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("interface name is empty")
    } else if name.len() > 15 {
        Some("interface name is too long")
    } else if matches!(name, "." | "..") {
        Some("interface name is . or ..")
    } else if name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
        Some("interface name contains / or : or whitespace characters")
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
