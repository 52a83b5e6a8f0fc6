//! The configuration of `portmap`: read strictly, as a value that holds no contradiction.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use hostnet::filter::IpVersion;
use ipnet::IpNet;
use serde::Deserialize;

use crate::filter::Backend;
use crate::protocol::{AddResult, CniError, Request, parse_config};

/// The mark that says "masquerade this" where none is configured. Kubernetes has 14 and 15, Calico 20 to 31.
const DEFAULT_MARK_BIT: u8 = 13;

/// What is configured, and what the runtime asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Config {
    /// The system; `None`: iptables where it works, else nftables.
    pub(super) backend: Option<Backend>,
    /// Masquerade what would not find its way back: from the host's loopback address and from the container's own network.
    pub(super) snat: bool,
    /// Masquerade whatever comes through the port.
    pub(super) masquerade_all: bool,
    /// How iptables rules say "masquerade this".
    pub(super) mark: Mark,
    /// What else a packet must be, in the words of the system: IPv4.
    conditions_v4: Vec<String>,
    /// The same for IPv6.
    conditions_v6: Vec<String>,
    /// The ports, in the order in which they were given.
    pub(super) mappings: Vec<Mapping>,
}

/// How iptables rules say "masquerade this".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// By a bit of the packet's mark, with a chain and a rule of ours.
    Bit(u8),
    /// By a chain of somebody else's (`KUBE-MARK-MASQ`).
    Chain(String),
}

/// One port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    /// The port on the host.
    pub(super) host_port: NonZeroU16,
    /// Where it leads in the container.
    pub(super) container_port: NonZeroU16,
    /// Of which protocol.
    pub(super) protocol: Protocol,
    /// At which address of the host; `None`: all of both families. An unspecified one: all of its family.
    host_ip: Option<IpAddr>,
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Protocol {
    /// SCTP.
    Sctp,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sctp => "sctp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl Mapping {
    /// The address that packets must be for.
    pub(super) fn destination(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }

    /// The mapping is one of this family.
    fn serves(&self, version: IpVersion) -> bool {
        self.host_ip.is_none_or(|ip| ip.is_ipv4() == (version == IpVersion::V4))
    }
}

/// What leads to one address of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way<'a> {
    /// The network's name.
    pub(super) network: &'a str,
    /// The container.
    pub(super) container_id: &'a str,
    /// The family.
    pub(super) version: IpVersion,
    /// The container's address, with the length of its network's prefix.
    pub(super) ip: IpNet,
    /// The ports; at least one.
    pub(super) mappings: Vec<&'a Mapping>,
    /// What else a packet must be.
    pub(super) conditions: &'a [String],
    /// The configuration they come from.
    pub(super) config: &'a Config,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    backend: Option<String>,
    snat: Option<bool>,
    #[serde(default)]
    masq_all: Option<bool>,
    mark_masq_bit: Option<i64>,
    external_set_mark_chain: Option<String>,
    conditions_v4: Option<Vec<String>>,
    conditions_v6: Option<Vec<String>>,
    runtime_config: Option<RawRuntime>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRuntime {
    port_mappings: Option<Vec<RawMapping>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMapping {
    #[serde(default)]
    host_port: i64,
    #[serde(default)]
    container_port: i64,
    protocol: Option<String>,
    #[serde(rename = "hostIP")]
    host_ip: Option<String>,
}

impl Config {
    /// Reads the configuration.
    ///
    /// # Errors
    /// What is wrong in it, and what it may be.
    pub(super) fn read(request: &Request) -> Result<Self, CniError> {
        Self::parse(&request.config)
    }

    pub(super) fn parse(config: &serde_json::Value) -> Result<Self, CniError> {
        let raw: Raw = parse_config(config)?;
        let marks = raw.mark_masq_bit.is_some() || raw.external_set_mark_chain.is_some();
        let mark = match (raw.mark_masq_bit, raw.external_set_mark_chain) {
            (Some(_), Some(_)) => {
                return Err(CniError::config("cannot specify externalSetMarkChain and markMasqBit")
                    .with_details("the chain sets the mark that its owner masquerades"));
            }
            (None, Some(chain)) => Mark::Chain(chain_name(chain)?),
            (bit, None) => Mark::Bit(mark_bit(bit)?),
        };
        let conditions_v4 = conditions("conditionsV4", raw.conditions_v4)?;
        let conditions_v6 = conditions("conditionsV6", raw.conditions_v6)?;
        let chosen = Backend::from_option("backend", raw.backend.as_deref())?;
        let backend = chosen.or_else(|| implied(marks, &[&conditions_v4, &conditions_v6]));
        if let (Some(Backend::Nftables), Mark::Chain(chain)) = (backend, &mark) {
            return Err(CniError::config(format!(
                "externalSetMarkChain {chain} is a chain of iptables, and the backend is nftables"
            ))
            .with_details("leave it out: nftables rules need no mark"));
        }
        let mappings = raw.runtime_config.unwrap_or_default().port_mappings.unwrap_or_default();
        Ok(Self {
            backend,
            snat: raw.snat.unwrap_or(true),
            masquerade_all: raw.masq_all.unwrap_or(false),
            mark,
            conditions_v4,
            conditions_v6,
            mappings: distinct(mappings)?,
        })
    }

    /// What leads to the container's addresses. `ips` has at most one of each family.
    pub(super) fn ways<'a>(&'a self, request: &'a Request, ips: &[IpNet]) -> Vec<Way<'a>> {
        let way = |ip: &IpNet| {
            let (version, conditions) = match ip.addr().is_ipv4() {
                true => (IpVersion::V4, &self.conditions_v4),
                false => (IpVersion::V6, &self.conditions_v6),
            };
            let mappings: Vec<&Mapping> =
                self.mappings.iter().filter(|mapping| mapping.serves(version)).collect();
            (!mappings.is_empty()).then_some(Way {
                network: &request.network,
                container_id: &request.attachment.container_id,
                version,
                ip: *ip,
                mappings,
                conditions,
                config: self,
            })
        };
        ips.iter().filter_map(way).collect()
    }
}

/// The first address of each family of the container's device.
pub(super) fn addresses(result: &AddResult, ifname: &str) -> Vec<IpNet> {
    let mut found: Vec<IpNet> = Vec::new();
    for ip in &result.ips {
        let device = ip.interface.and_then(|index| result.interfaces.get(index));
        let is_containers = device.is_none_or(|device| device.name == ifname && !device.sandbox.is_empty());
        let is_ipv4 = ip.address.addr().is_ipv4();
        if is_containers && found.iter().all(|known| known.addr().is_ipv4() != is_ipv4) {
            found.push(ip.address);
        }
    }
    found
}

/// Options that only one system understands choose it.
fn implied(marks: bool, conditions: &[&Vec<String>]) -> Option<Backend> {
    let first = conditions.iter().find_map(|conditions| conditions.first());
    match first {
        Some(word) if word.starts_with(['-', '!']) => Some(Backend::Iptables),
        Some(_) if !marks => Some(Backend::Nftables),
        _ => marks.then_some(Backend::Iptables),
    }
}

fn mark_bit(bit: Option<i64>) -> Result<u8, CniError> {
    match bit {
        None => Ok(DEFAULT_MARK_BIT),
        Some(bit) => u8::try_from(bit).ok().filter(|bit| *bit < 32).ok_or_else(|| {
            CniError::config(format!("markMasqBit is {bit}"))
                .with_details("a packet's mark has the bits 0 to 31")
        }),
    }
}

fn chain_name(name: String) -> Result<String, CniError> {
    let is_plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '\\');
    match (1..=28).contains(&name.len()) && name.chars().all(is_plain) && !name.starts_with(['-', '!']) {
        true => Ok(name),
        false => Err(CniError::config(format!("externalSetMarkChain {name:?} is no name of a chain"))
            .with_details("it has 1 to 28 characters and no white space")),
    }
}

/// They become part of the input of a program that reads lines.
fn conditions(key: &str, words: Option<Vec<String>>) -> Result<Vec<String>, CniError> {
    let words = words.unwrap_or_default();
    let breaks_out = |word: &&String| word.contains(|c: char| c.is_control() || c == ';');
    match words.iter().find(breaks_out) {
        Some(word) => Err(CniError::config(format!("{key} has {word:?}")).with_details(
            "each word of a condition is an element of the list, without semicolons and line ends",
        )),
        None => Ok(words),
    }
}

/// Each mapping once. Two that lead the same port to different places are refused: which one works would be chance.
fn distinct(raw: Vec<RawMapping>) -> Result<Vec<Mapping>, CniError> {
    let mut known: BTreeMap<(NonZeroU16, Protocol, IpAddr), NonZeroU16> = BTreeMap::new();
    let mut mappings = Vec::new();
    for raw in raw {
        let mapping = mapping(&raw)?;
        let Mapping { host_port, container_port, protocol, host_ip } = mapping;
        // No address stands for all of both families.
        let all = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let places = host_ip.map_or_else(|| all.to_vec(), |ip| vec![ip]);
        let mut is_new = false;
        for ip in places {
            match known.insert((host_port, protocol, ip), container_port) {
                None => is_new = true,
                Some(other) if other == container_port => {}
                Some(other) => {
                    let text = format!(
                        "{protocol} port {host_port} of the host is to lead to port {other} and to port {container_port}"
                    );
                    return Err(CniError::config(text).with_details("leave one of the two port mappings out"));
                }
            }
        }
        if is_new {
            mappings.push(mapping);
        }
    }
    Ok(mappings)
}

fn mapping(raw: &RawMapping) -> Result<Mapping, CniError> {
    let port = |number: i64, what: &str| {
        u16::try_from(number).ok().and_then(NonZeroU16::new).ok_or_else(|| {
            CniError::config(format!("invalid {what} port number: {number}"))
                .with_details("a port mapping needs hostPort and containerPort, each from 1 to 65535")
        })
    };
    let protocol = match raw.protocol.as_deref().unwrap_or_default().to_ascii_lowercase().as_str() {
        "" | "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => {
            return Err(CniError::config(format!("invalid protocol of a port mapping: {other:?}"))
                .with_details("it is tcp, udp or sctp"));
        }
    };
    let host_ip = match raw.host_ip.as_deref() {
        None | Some("") => None,
        Some(text) => Some(text.parse::<IpAddr>().map(|ip| ip.to_canonical()).map_err(|_| {
            CniError::config(format!("invalid hostIP of a port mapping: {text:?}"))
                .with_details("it is an IPv4 or IPv6 address of this host, or is left out")
        })?),
    };
    Ok(Mapping {
        host_port: port(raw.host_port, "host")?,
        container_port: port(raw.container_port, "container")?,
        protocol,
        host_ip,
    })
}

#[cfg(test)]
mod tests;
