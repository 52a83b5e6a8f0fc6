//! `net-conf.json`: the cluster's network, its pools of subnets, and the backend with its own options.
//!
//! Keys, defaults and limits are flannel's. A missing `Backend` means `udp`, as in flannel's code (its documents say
//! vxlan). Keys that nobody reads are ignored as in flannel, but each is told once with the nearest known key.

use std::path::{Path, PathBuf};

use dataplane_core::{IpNet, Ipv4Net, Ipv6Net, Vni};
use hostnet::regular_file::{self, Links};

use crate::json::{Node, Object, Remark};
use crate::settings::EngineChoice;

mod pool;

pub use pool::Pool;

/// flannel's UDP port for the `udp` backend.
pub const UDP_PORT: u16 = 8285;
/// The UDP port Linux gives VXLAN, older than the one the RFC names.
pub const VXLAN_PORT: u16 = 8472;

/// A ConfigMap holds no more than this.
const LONGEST: u64 = 1024 * 1024;

/// A network configuration whose every value has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// IPv4 pods, unless `EnableIPv4` is false.
    pub v4: Option<Pool>,
    /// IPv6 pods, if `EnableIPv6` is true. One of the two is always there.
    pub v6: Option<Pool>,
    /// Packet filter rules go to nftables, not to iptables (`EnableNFTables`).
    pub nftables: bool,
    /// How packets travel.
    pub backend: BackendConfig,
    /// `Backend.Engine`, a key of this project: whether the engine carries packets that the kernel could carry. The flag
    /// `--engine` goes before it.
    pub engine: Option<EngineChoice>,
    /// What the text asks for and does not get, each with its place and the reason.
    pub notices: Vec<Remark>,
    /// The text that all this was read from, for a copy on disk.
    pub text: Box<str>,
}

/// `Backend` with the options of its `Type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendConfig {
    /// flannel's raw format: one bare IP packet a datagram.
    Udp {
        /// Port of every node; it is not published with the lease.
        port: u16,
    },
    /// VXLAN by RFC 7348 with flannel's lease data.
    Vxlan {
        /// Network identifier; also the number in the device's name.
        vni: Vni,
        /// Port of every node.
        port: u16,
        /// MTU of the underlay, in bytes, in place of the interface's own.
        mtu: Option<u16>,
        /// Group policy extension, which only the kernel's device knows.
        gbp: bool,
        /// MAC addresses are learnt from what arrives, which only the kernel's device does.
        learning: bool,
        /// Peers on the underlay's own link are reached by plain routes.
        direct_routing: bool,
    },
    /// No tunnel: each peer is the gateway of its subnet.
    HostGw,
    /// A lease and its subnet.env, nothing more.
    Alloc,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is not what it should be. Nothing of it is used.
    #[error("{}:{remark}", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// Place and reason.
        remark: Remark,
    },
    /// The file cannot be read.
    #[error("cannot read the network configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl NetworkConfig {
    /// Reads and checks `path`.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::read_with(path, Self::parse)
    }

    /// Reads and checks `path` as [`NetworkConfig::parse_without_pool`] does.
    pub fn read_without_pool(path: &Path) -> Result<Self, ConfigError> {
        Self::read_with(path, Self::parse_without_pool)
    }

    fn read_with(path: &Path, parse: fn(&[u8]) -> Result<Self, Remark>) -> Result<Self, ConfigError> {
        let bytes = regular_file::read(path, LONGEST, Links::Follow)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        parse(&bytes).map_err(|remark| ConfigError::Text { path: path.to_owned(), remark })
    }

    /// Checks a text.
    pub fn parse(bytes: &[u8]) -> Result<Self, Remark> {
        Self::parse_with(bytes, pool)
    }

    /// Checks a text where somebody else hands out the subnets, as Kubernetes does: `SubnetLen`, `SubnetMin`, `SubnetMax`
    /// and how many subnets there are do not matter, as in flannel, and each pool is its whole network.
    pub fn parse_without_pool(bytes: &[u8]) -> Result<Self, Remark> {
        Self::parse_with(bytes, |object, keys| {
            network(object, keys).map(|(network, _node)| Pool::whole(network))
        })
    }

    fn parse_with(
        bytes: &[u8],
        pool: fn(&Object<'_>, &FamilyKeys) -> Result<Pool, Remark>,
    ) -> Result<Self, Remark> {
        let object = Node::parse(bytes)?.object("an object like {\"Network\": \"10.5.0.0/16\"}")?;
        let enabled = |key, default| object.get(key).map_or(Ok(default), |node| node.boolean());
        let v4 = match enabled("EnableIPv4", true)? {
            true => Some(pool(&object, &IPV4)?),
            false => None,
        };
        let v6 = match enabled("EnableIPv6", false)? {
            true => Some(pool(&object, &IPV6)?),
            false => None,
        };
        if v4.is_none() && v6.is_none() {
            let text = "EnableIPv4 is false and EnableIPv6 is not true: one of them must be on".to_owned();
            return Err(Remark { at: object.position(), text });
        }
        let mut notices = object.unknown_keys(TOP_LEVEL_KEYS, "the network configuration");
        let nftables = enabled("EnableNFTables", false)?;
        let (backend, engine) = match object.get("Backend") {
            Some(node) => backend(&node, &mut notices)?,
            None => (BackendConfig::Udp { port: UDP_PORT }, None),
        };
        notices.sort_by_key(|notice| notice.at);
        let text = String::from_utf8_lossy(bytes).into();
        Ok(Self { v4, v6, nftables, backend, engine, notices, text })
    }

    /// Both ask for the same network, whatever the texts look like.
    pub fn is_same_as(&self, other: &Self) -> bool {
        let other = Self { notices: self.notices.clone(), text: self.text.clone(), ..other.clone() };
        *self == other
    }

    /// The pools there are, IPv4 first.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.v4.iter().chain(&self.v6)
    }
}

impl BackendConfig {
    /// The `Type` that selects it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Udp { .. } => "udp",
            Self::Vxlan { .. } => "vxlan",
            Self::HostGw => "host-gw",
            Self::Alloc => "alloc",
        }
    }
}

const TOP_LEVEL_KEYS: &[&str] = &[
    "EnableIPv4",
    "EnableIPv6",
    "EnableNFTables",
    "Network",
    "IPv6Network",
    "SubnetLen",
    "SubnetMin",
    "SubnetMax",
    "IPv6SubnetLen",
    "IPv6SubnetMin",
    "IPv6SubnetMax",
    "Backend",
];

/// What differs between the families, so that one function checks both.
struct FamilyKeys {
    bits: u32,
    network: &'static str,
    length: &'static str,
    min: &'static str,
    max: &'static str,
    expected_network: &'static str,
    expected_address: &'static str,
    parse_network: fn(&Node<'_>, &str) -> Result<IpNet, Remark>,
    limits: pool::Limits,
}

const IPV4: FamilyKeys = FamilyKeys {
    bits: 32,
    network: "Network",
    length: "SubnetLen",
    min: "SubnetMin",
    max: "SubnetMax",
    expected_network: "an IPv4 network like \"10.5.0.0/16\"",
    expected_address: "an IPv4 address like \"10.5.1.0\"",
    parse_network: |node, expected| node.parsed::<Ipv4Net>(expected).map(IpNet::V4),
    limits: pool::Limits { longest_network: 28, longest_subnet: 30, usual_subnet: 24 },
};

const IPV6: FamilyKeys = FamilyKeys {
    bits: 128,
    network: "IPv6Network",
    length: "IPv6SubnetLen",
    min: "IPv6SubnetMin",
    max: "IPv6SubnetMax",
    expected_network: "an IPv6 network like \"fd00:10:5::/48\"",
    expected_address: "an IPv6 address like \"fd00:10:5:1::\"",
    parse_network: |node, expected| node.parsed::<Ipv6Net>(expected).map(IpNet::V6),
    limits: pool::Limits { longest_network: 124, longest_subnet: 126, usual_subnet: 64 },
};

/// The network of a family, and where it stands.
fn network<'a>(object: &Object<'a>, keys: &FamilyKeys) -> Result<(IpNet, Node<'a>), Remark> {
    let Some(node) = object.get(keys.network) else {
        return Err(object.missing(keys.network, keys.expected_network, TOP_LEVEL_KEYS));
    };
    Ok(((keys.parse_network)(&node, keys.expected_network)?, node))
}

fn pool(object: &Object<'_>, keys: &FamilyKeys) -> Result<Pool, Remark> {
    let (network, node) = network(object, keys)?;
    let length_node = object.get(keys.length);
    let length = match &length_node {
        Some(node) => node.integer(0, keys.bits)? as u8,
        None => 0,
    };
    let address = |key| match object.get(key) {
        Some(node) => {
            let address: std::net::IpAddr = node.parsed(keys.expected_address)?;
            if address.is_ipv4() != network.addr().is_ipv4() {
                return Err(node.expected(keys.expected_address));
            }
            Ok(Some((address, node)))
        }
        None => Ok(None),
    };
    let min = address(keys.min)?;
    let max = address(keys.max)?;
    // Go's zero values mean "not given".
    let given = |bound: &Option<(std::net::IpAddr, Node<'_>)>| {
        bound.as_ref().map(|(address, _)| *address).filter(|address| !address.is_unspecified())
    };
    Pool::new(network, (length > 0).then_some(length), given(&min), given(&max), keys.limits).map_err(
        |error| {
            let (key, place) = match error {
                pool::PoolError::NetworkTooSmall { .. } => (keys.network, node),
                pool::PoolError::LengthTooLong { .. } | pool::PoolError::LengthTooShort { .. } => {
                    (keys.length, length_node.unwrap_or(node))
                }
                pool::PoolError::MinOutside | pool::PoolError::MinOffBoundary { .. } => {
                    (keys.min, min.as_ref().map_or(node, |(_, node)| *node))
                }
                pool::PoolError::MaxOutside
                | pool::PoolError::MaxOffBoundary { .. }
                | pool::PoolError::Reversed => (keys.max, max.as_ref().map_or(node, |(_, node)| *node)),
            };
            Remark { at: place.position(), text: format!("{key} {}: {error}", place.text()) }
        },
    )
}

const VXLAN_KEYS: &[&str] = &["Type", "Engine", "VNI", "Port", "MTU", "GBP", "Learning", "DirectRouting"];
const UDP_KEYS: &[&str] = &["Type", "Engine", "Port"];
const BARE_KEYS: &[&str] = &["Type", "Engine"];
const OURS: &str = "\"vxlan\", \"host-gw\", \"udp\" or \"alloc\"";
/// Backends that flannel has and this version does not.
const FLANNELS: &[&str] = &["extension", "ipip", "ipsec", "tencent-vpc"];

fn backend(
    node: &Node<'_>,
    notices: &mut Vec<Remark>,
) -> Result<(BackendConfig, Option<EngineChoice>), Remark> {
    let object = node.object("an object like {\"Type\": \"vxlan\"}")?;
    let Some(kind_node) = object.get("Type") else {
        let Remark { at, text } = object.missing("Type", OURS, VXLAN_KEYS);
        return Err(Remark { at, text: format!("Backend has no Type: {text}") });
    };
    let kind = kind_node.string().map_err(|_| kind_node.expected(OURS))?.to_ascii_lowercase();
    let port = |least, default: u16| match object.get("Port") {
        Some(node) => {
            node.integer(least, u16::MAX.into()).map(|port| if port == 0 { default } else { port as u16 })
        }
        None => Ok(default),
    };
    let (backend, keys) = match kind.as_str() {
        "udp" => (BackendConfig::Udp { port: port(1, UDP_PORT)? }, UDP_KEYS),
        // flannel gives Port 0 to nobody, and the kernel then takes its own default.
        "vxlan" => (vxlan(&object, port(0, VXLAN_PORT)?)?, VXLAN_KEYS),
        "host-gw" => (BackendConfig::HostGw, BARE_KEYS),
        "alloc" => (BackendConfig::Alloc, BARE_KEYS),
        other => {
            let known = match other {
                "wireguard" => "comes with a later version of flannel-rs",
                other if FLANNELS.contains(&other) => "is a backend that flannel-rs does not have",
                _ => "is unknown",
            };
            let shown: String = other.chars().take(40).collect();
            let text = format!("backend type \"{shown}\" {known}: expected {OURS}");
            return Err(Remark { at: kind_node.position(), text });
        }
    };
    notices.extend(object.unknown_keys(keys, &format!("backend {kind}")));
    let engine = match object.get("Engine") {
        Some(node) => {
            const EXPECTED: &str = "\"auto\", \"always\" or \"never\"";
            let word = node.string().map_err(|_| node.expected(EXPECTED))?;
            Some(word.to_ascii_lowercase().parse().map_err(|_| node.expected(EXPECTED))?)
        }
        None => None,
    };
    Ok((backend, engine))
}

fn vxlan(object: &Object<'_>, port: u16) -> Result<BackendConfig, Remark> {
    let vni = match object.get("VNI") {
        Some(node) => {
            let number = node.integer(0, 0xff_ffff)?;
            Vni::new(number).ok_or_else(|| node.expected("a number of 24 bits"))?
        }
        None => DEFAULT_VNI,
    };
    let mtu = match object.get("MTU") {
        Some(node) => Some(node.integer(0, u16::MAX.into())? as u16).filter(|&mtu| mtu > 0),
        None => None,
    };
    let switch = |key| object.get(key).map_or(Ok(false), |node| node.boolean());
    Ok(BackendConfig::Vxlan {
        vni,
        port,
        mtu,
        gbp: switch("GBP")?,
        learning: switch("Learning")?,
        direct_routing: switch("DirectRouting")?,
    })
}

const DEFAULT_VNI: Vni = match Vni::new(1) {
    Some(vni) => vni,
    None => panic!("1 has 24 bits"),
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::Position;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<NetworkConfig, Remark> {
        NetworkConfig::parse(text.as_bytes())
    }

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    fn v4(text: &str) -> Pool {
        parse(text).unwrap().v4.unwrap()
    }

    fn shape(pool: &Pool) -> (u8, String, String) {
        (pool.subnet_length(), pool.first().addr().to_string(), pool.last().addr().to_string())
    }

    #[test]
    fn defaults_are_flannels() {
        let config = parse(r#"{"Network": "10.3.0.0/16"}"#).unwrap();
        assert_eq!(config.backend, BackendConfig::Udp { port: 8285 });
        assert_eq!(shape(config.v4.as_ref().unwrap()), (24, "10.3.1.0".into(), "10.3.255.0".into()));
        assert!(config.v6.is_none());
        assert!(config.notices.is_empty());
    }

    #[test]
    fn ipv6_defaults_are_flannels() {
        let config =
            parse(r#"{"enableIPv4": false, "enableIPv6": true, "ipv6network": "fc00::/48"}"#).unwrap();
        assert!(config.v4.is_none());
        let expected = (64, "fc00:0:0:1::".to_owned(), "fc00:0:0:ffff::".to_owned());
        assert_eq!(shape(config.v6.as_ref().unwrap()), expected);
    }

    #[test]
    fn bounds_that_are_given_are_kept() {
        let pool = v4(
            r#"{"Network": "10.3.0.0/16", "SubnetMin": "10.3.5.0", "SubnetMax": "10.3.8.0", "SubnetLen": 28}"#,
        );
        assert_eq!(shape(&pool), (28, "10.3.5.0".into(), "10.3.8.0".into()));
        let pool = v4(r#"{"Network": "10.3.0.0/16", "SubnetMin": "0.0.0.0", "SubnetLen": 0}"#);
        assert_eq!(shape(&pool), (24, "10.3.1.0".into(), "10.3.255.0".into()), "zero is not given");
    }

    #[test]
    fn host_bits_of_the_network_are_dropped() {
        assert_eq!(v4(r#"{"Network": "10.3.7.9/16"}"#).network().to_string(), "10.3.0.0/16");
    }

    #[test]
    fn where_others_assign_subnets_any_network_will_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net-conf.json");
        std::fs::write(&path, r#"{"Network": "10.244.7.3/29", "SubnetLen": 31, "SubnetMin": "10.3.0.0"}"#)
            .unwrap();
        let config = NetworkConfig::read_without_pool(&path).unwrap();
        let pool = config.v4.unwrap();
        assert_eq!((pool.network().to_string().as_str(), pool.count()), ("10.244.7.0/29", 1));
        std::fs::write(&path, r#"{"Network": "fd00::/64"}"#).unwrap();
        let error = NetworkConfig::read_without_pool(&path).unwrap_err().to_string();
        assert!(error.contains("1:13: expected an IPv4 network"), "{error}");
    }

    #[test]
    fn the_default_length_leaves_four_subnets() {
        for (network, length) in [
            ("10.0.0.0/8", 24),
            ("10.0.0.0/22", 24),
            ("10.0.0.0/23", 25),
            ("10.0.0.0/24", 26),
            ("10.0.0.0/28", 30),
        ] {
            assert_eq!(v4(&format!("{{\"Network\": \"{network}\"}}")).subnet_length(), length, "{network}");
        }
    }

    #[test]
    fn limits_are_flannels() {
        for (text, expected) in [
            (r#"{"Network": "10.3.0.0/29"}"#, "too small"),
            (r#"{"Network": "10.3.0.0/16", "SubnetLen": 31}"#, "must be less than /31"),
            (r#"{"Network": "10.3.0.0/16", "SubnetLen": 17}"#, "at least four subnets"),
            (r#"{"Network": "10.3.0.0/16", "SubnetMin": "10.4.0.0"}"#, "outside"),
            (r#"{"Network": "10.3.0.0/16", "SubnetMax": "10.4.0.0"}"#, "outside"),
            (r#"{"Network": "10.3.0.0/16", "SubnetMin": "10.3.1.1"}"#, "boundary"),
            (r#"{"Network": "10.3.0.0/16", "SubnetMax": "10.3.1.1"}"#, "boundary"),
            (r#"{"Network": "10.3.0.0/16", "SubnetMin": "10.3.9.0", "SubnetMax": "10.3.8.0"}"#, "before"),
            (r#"{"EnableIPv6": true, "Network": "10.3.0.0/16"}"#, "IPv6Network is missing"),
            (r#"{}"#, "Network is missing"),
            (r#"{"Network": ""}"#, "expected an IPv4 network"),
            (r#"{"Network": "fc00::/48"}"#, "expected an IPv4 network"),
            (r#"{"EnableIPv4": false}"#, "one of them must be on"),
            (r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fc00::/125"}"#, "too small"),
            (
                r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fc00::/48", "IPv6SubnetLen": 127}"#,
                "must be less than /127",
            ),
        ] {
            let error = error(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn vxlan_options_match_in_any_case() {
        let config = parse(r#"{"network": "10.3.0.0/16", "backend": {"type": "VXLAN", "vni": 7, "port": 4789, "Mtu": 1400}}"#)
            .unwrap();
        assert_eq!(
            config.backend,
            BackendConfig::Vxlan {
                vni: Vni::new(7).unwrap(),
                port: 4789,
                mtu: Some(1400),
                gbp: false,
                learning: false,
                direct_routing: false,
            }
        );
        let config =
            parse(r#"{"Network": "10.3.0.0/16", "Backend": {"Type": "vxlan", "Port": 0, "MTU": 0}}"#)
                .unwrap();
        assert!(matches!(
            config.backend,
            BackendConfig::Vxlan { vni: DEFAULT_VNI, port: 8472, mtu: None, .. }
        ));
    }

    #[test]
    fn the_last_duplicate_wins() {
        assert_eq!(
            v4(r#"{"Network": "10.3.0.0/16", "NETWORK": "10.4.0.0/16"}"#).network().to_string(),
            "10.4.0.0/16"
        );
    }

    #[test]
    fn vxlans_switches_are_read() {
        let of = |text: &str| match parse(text).unwrap().backend {
            BackendConfig::Vxlan { gbp, learning, direct_routing, .. } => (gbp, learning, direct_routing),
            other => panic!("{other:?}"),
        };
        assert_eq!(of(r#"{"Network": "10.3.0.0/16", "Backend": {"Type": "vxlan"}}"#), (false, false, false));
        let on = r#"{"Network": "10.3.0.0/16", "Backend": {"Type": "vxlan", "GBP": true, "Learning": true, "directrouting": true}}"#;
        assert_eq!(of(on), (true, true, true));
    }

    #[test]
    fn the_engine_is_forced_or_forbidden_by_a_key() {
        let of = |backend: &str| {
            parse(&format!("{{\"Network\": \"10.3.0.0/16\", \"Backend\": {{{backend}}}}}"))
                .map(|config| config.engine)
        };
        assert_eq!(of(r#""Type": "vxlan""#).unwrap(), None);
        assert_eq!(of(r#""Type": "vxlan", "engine": "Always""#).unwrap(), Some(EngineChoice::Always));
        assert_eq!(of(r#""Type": "udp", "Engine": "never""#).unwrap(), Some(EngineChoice::Never));
        let error = of(r#""Type": "vxlan", "Engine": true"#).unwrap_err().to_string();
        assert!(error.contains("expected \"auto\", \"always\" or \"never\", found true"), "{error}");
    }

    #[test]
    fn backends_without_options_have_only_their_type() {
        let config =
            parse(r#"{"Network": "10.3.0.0/16", "Backend": {"Type": "Host-GW", "Port": 1}}"#).unwrap();
        assert_eq!(config.backend, BackendConfig::HostGw);
        assert!(
            config.notices[0].to_string().contains("backend host-gw has no key \"Port\""),
            "{:?}",
            config.notices
        );
        let config = parse(r#"{"Network": "10.3.0.0/16", "Backend": {"Type": "alloc"}}"#).unwrap();
        assert_eq!((config.backend, config.notices.len()), (BackendConfig::Alloc, 0));
    }

    #[test]
    fn where_somebody_else_hands_out_subnets_the_pool_does_not_matter() {
        let text = r#"{"Network": "10.3.0.0/30", "SubnetLen": 31, "SubnetMin": "10.9.0.1", "Backend": {"Type": "vxlan"}}"#;
        assert!(parse(text).is_err());
        let config = NetworkConfig::parse_without_pool(text.as_bytes()).unwrap();
        assert_eq!(config.v4.unwrap().network().to_string(), "10.3.0.0/30");
        let error = NetworkConfig::parse_without_pool(br#"{"Network": "10.3.0.0"}"#).unwrap_err().to_string();
        assert!(error.contains("expected an IPv4 network"), "{error}");
    }

    #[test]
    fn an_unknown_key_is_told_with_the_nearest() {
        let config =
            parse(r#"{"Network": "10.3.0.0/16", "SubnetLength": 24, "Backend": {"Type": "udp", "Prot": 1}}"#)
                .unwrap();
        let notices: Vec<_> = config.notices.iter().map(ToString::to_string).collect();
        assert_eq!(
            notices,
            [
                "1:28: the network configuration has no key \"SubnetLength\", it is ignored; the nearest is \"SubnetLen\"",
                "1:75: backend udp has no key \"Prot\", it is ignored; the nearest is \"Port\"",
            ]
        );
    }

    #[test]
    fn wrong_types_say_place_and_expectation() {
        assert_eq!(
            error("{\n  \"Network\": \"10.3.0.0/33\"\n}"),
            "2:14: expected an IPv4 network like \"10.5.0.0/16\", found \"10.3.0.0/33\""
        );
        assert_eq!(
            error(r#"{"Network": "10.3.0.0/16", "SubnetLen": "24"}"#),
            "1:41: expected a whole number from 0 to 32, found \"24\""
        );
        assert_eq!(
            error(r#"{"Network": "10.3.0.0/16", "Backend": {"Type": "vxlan", "VNI": 16777216}}"#),
            "1:64: expected a whole number from 0 to 16777215, found 16777216"
        );
        assert_eq!(
            error(r#"{"Network": "10.3.0.0/16", "Backend": {"Type": "udp", "Port": 0}}"#),
            "1:63: expected a whole number from 1 to 65535, found 0"
        );
        assert!(error("[]").contains("expected an object"));
    }

    #[test]
    fn a_backend_that_is_missing_here_is_named() {
        assert_eq!(
            error(r#"{"Network": "10.3.0.0/16", "Backend": {"Type": "wireguard"}}"#),
            "1:48: backend type \"wireguard\" comes with a later version of flannel-rs: expected \"vxlan\", \"host-gw\", \"udp\" or \"alloc\""
        );
        assert!(
            error(r#"{"Network": "10.3.0.0/16", "Backend": {"Type": "ipip"}}"#)
                .contains("\"ipip\" is a backend that flannel-rs does not have: expected \"vxlan\"")
        );
        assert!(error(r#"{"Network": "10.3.0.0/16", "Backend": {"Type": "vxlna"}}"#).contains("is unknown"));
        assert_eq!(
            error(r#"{"Network": "10.3.0.0/16", "Backend": {"Prot": 1}}"#),
            "1:39: Backend has no Type: Type is missing: expected \"vxlan\", \"host-gw\", \"udp\" or \"alloc\""
        );
        assert_eq!(
            error(r#"{"Network": "10.3.0.0/16", "Backend": {"Tpye": "udp"}}"#),
            "1:40: Backend has no Type: \"Tpye\" is no key, it should be Type: expected \"vxlan\", \"host-gw\", \"udp\" or \"alloc\""
        );
        assert!(error(r#"{"Network": "10.3.0.0/16", "Backend": []}"#).contains("expected an object like"));
    }

    #[test]
    fn a_key_that_is_missing_for_a_typing_error_is_found() {
        assert_eq!(
            error("{\n  \"Netwrok\": \"10.3.0.0/16\"\n}"),
            "2:3: \"Netwrok\" is no key, it should be Network: expected an IPv4 network like \"10.5.0.0/16\""
        );
        // A key that is right for something else is no typing error.
        assert_eq!(
            error(r#"{"IPv6Network": "fc00::/48"}"#),
            "1:1: Network is missing: expected an IPv4 network like \"10.5.0.0/16\""
        );
    }

    #[test]
    fn a_pipe_or_a_device_is_no_configuration() {
        let error = NetworkConfig::read(Path::new("/dev/zero")).unwrap_err().to_string();
        assert_eq!(error, "cannot read the network configuration /dev/zero: it is not a regular file");
    }

    #[test]
    fn an_error_in_a_file_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, "{\"Network\": 7}").unwrap();
        let error = NetworkConfig::read(&path).unwrap_err().to_string();
        let expected = format!("{}:1:13: expected an IPv4 network", path.display());
        assert!(error.starts_with(&expected), "{error}");
    }

    #[test]
    fn positions_count_from_one() {
        assert_eq!(parse("x").unwrap_err().at, Position { line: 1, column: 1 });
    }

    proptest! {
        #[test]
        fn no_values_panic(
            network in "\"?[0-9a-f:.]{0,12}/?[0-9]{0,3}\"?",
            length in any::<i64>(),
            min in "[0-9a-f:.]{0,12}",
            kind in "vxlan|udp|.{0,6}",
            number in any::<i64>(),
        ) {
            let text = format!(
                "{{\"Network\": {network}, \"EnableIPv6\": true, \"IPv6Network\": {network}, \"SubnetLen\": {length}, \
                 \"SubnetMin\": \"{min}\", \"SubnetMax\": \"{min}\", \"Backend\": {{\"Type\": \"{kind}\", \"VNI\": {number}, \
                 \"Port\": {number}, \"MTU\": {number}}}}}"
            );
            drop(parse(&text));
        }

        #[test]
        fn every_accepted_pool_is_consistent(
            bits in any::<u32>(), prefix in 0u8..=32, length in 0u8..=33, min in any::<u32>(), given in any::<bool>(),
        ) {
            let network = Ipv4Net::new(bits.into(), prefix).unwrap();
            let min = std::net::Ipv4Addr::from(if given { min } else { 0 });
            let text = format!("{{\"Network\": \"{network}\", \"SubnetLen\": {length}, \"SubnetMin\": \"{min}\"}}");
            if let Ok(config) = parse(&text) {
                let pool = config.v4.unwrap();
                prop_assert!(pool.network().contains(&pool.first()));
                prop_assert!(pool.network().contains(&pool.last()));
                prop_assert!(pool.count() >= 1);
                prop_assert_eq!(pool.nth(0), Some(pool.first()));
                prop_assert_eq!(pool.nth(pool.count() - 1), Some(pool.last()));
                prop_assert_eq!(pool.nth(pool.count()), None);
                prop_assert!(pool.holds(&pool.first()) && pool.holds(&pool.last()));
            }
        }
    }
}
