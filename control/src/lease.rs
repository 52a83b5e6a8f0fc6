//! A lease: one node's subnets, where its packets go, and until when.
//!
//! The texts are flannel's etcd formats: the key `10.5.34.0-24`, the value `{"PublicIP":"192.0.2.1","PublicIPv6":null}`
//! with the backend's data. Every store shares them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use dataplane_core::{IpNet, Ipv4Net, Ipv6Net};

mod set;
mod value;

pub use set::{LeaseChange, LeaseSet};
pub use value::{BackendData, VxlanData, backend_data_text, parse_value, print_value};

/// How long a lease lasts unless it is renewed.
pub const LEASE_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// The subnets of one node: one of a family, or one of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subnet {
    /// IPv4 only.
    V4(Ipv4Net),
    /// IPv6 only. flannel's etcd store has no key for it; the text here is the IPv6 half of the dual form.
    V6(Ipv6Net),
    /// Both.
    Dual(Ipv4Net, Ipv6Net),
}

impl Subnet {
    /// `None` if there is neither.
    pub fn new(v4: Option<Ipv4Net>, v6: Option<Ipv6Net>) -> Option<Self> {
        match (v4, v6) {
            (Some(v4), Some(v6)) => Some(Self::Dual(v4, v6)),
            (Some(v4), None) => Some(Self::V4(v4)),
            (None, Some(v6)) => Some(Self::V6(v6)),
            (None, None) => None,
        }
    }

    /// The IPv4 subnet.
    pub fn v4(&self) -> Option<Ipv4Net> {
        match self {
            Self::V4(v4) | Self::Dual(v4, _) => Some(*v4),
            Self::V6(_) => None,
        }
    }

    /// The IPv6 subnet.
    pub fn v6(&self) -> Option<Ipv6Net> {
        match self {
            Self::V6(v6) | Self::Dual(_, v6) => Some(*v6),
            Self::V4(_) => None,
        }
    }

    /// One or two networks, IPv4 first.
    pub fn nets(&self) -> impl Iterator<Item = IpNet> + use<> {
        self.v4().map(IpNet::V4).into_iter().chain(self.v6().map(IpNet::V6))
    }

    /// The key under which stores keep the lease: `10.5.34.0-24`, or `10.12.13.0-24&fd00:12:13::-56` for both families.
    pub fn key(&self) -> Key {
        Key(*self)
    }
}

/// Some address is in both.
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(v4) => v4.fmt(f),
            Self::V6(v6) => v6.fmt(f),
            Self::Dual(v4, v6) => write!(f, "{v4} and {v6}"),
        }
    }
}

/// A subnet in the form of a store's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(pub Subnet);

/// A text that is not a lease's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the key of a lease, which looks like 10.5.34.0-24 or 10.5.34.0-24&fd00:5:34::-64")]
pub struct NotAKey;

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v4 = |net: &Ipv4Net| format!("{}-{}", net.addr(), net.prefix_len());
        let v6 = |net: &Ipv6Net| format!("{}-{}", net.addr(), net.prefix_len());
        match &self.0 {
            Subnet::V4(net) => f.write_str(&v4(net)),
            Subnet::V6(net) => f.write_str(&v6(net)),
            Subnet::Dual(a, b) => write!(f, "{}&{}", v4(a), v6(b)),
        }
    }
}

impl FromStr for Key {
    type Err = NotAKey;

    /// Takes exactly what [`Display`](fmt::Display) writes, so that one lease has one key. A host prefix (`/32`, `/128`)
    /// is refused, as flannel refuses it.
    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let key = match text.split_once('&') {
            Some((v4, v6)) => Self(Subnet::Dual(half(v4, 31)?, half(v6, 127)?)),
            None if text.contains(':') => Self(Subnet::V6(half(text, 127)?)),
            None => Self(Subnet::V4(half(text, 31)?)),
        };
        if key.to_string() == text && key.0.nets().all(|net| net == net.trunc()) {
            Ok(key)
        } else {
            Err(NotAKey)
        }
    }
}

fn half<N: FromStr + Into<IpNet> + Copy>(text: &str, longest: u8) -> Result<N, NotAKey> {
    let (address, length) = text.rsplit_once('-').ok_or(NotAKey)?;
    let net: N = format!("{address}/{length}").parse().map_err(|_| NotAKey)?;
    if net.into().prefix_len() <= longest { Ok(net) } else { Err(NotAKey) }
}

/// What a node publishes about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseAttrs {
    /// Where IPv4 datagrams for it go. `None` is written `0.0.0.0`.
    pub public_ip: Option<Ipv4Addr>,
    /// Where IPv6 datagrams for it go.
    pub public_ipv6: Option<Ipv6Addr>,
    /// The backend and its data.
    pub backend: BackendData,
}

impl LeaseAttrs {
    /// Who holds the lease: flannel knows a node by its public address.
    pub fn owner(&self) -> Option<IpAddr> {
        self.public_ip.map(IpAddr::V4).or_else(|| self.public_ipv6.map(IpAddr::V6))
    }
}

/// A subnet, who has it, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The subnets.
    pub subnet: Subnet,
    /// What the node says about itself.
    pub attrs: LeaseAttrs,
    /// The end; `None` for a reservation, which lasts until somebody deletes it.
    pub expires: Option<SystemTime>,
}

impl Lease {
    /// The lease has ended.
    pub fn is_over(&self, now: SystemTime) -> bool {
        self.expires.is_some_and(|end| end <= now)
    }
}

/// What a store tells about leases.
#[expect(clippy::large_enum_variant, reason = "one lives at a time")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseUpdate {
    /// All there are; what is not in it is gone.
    Snapshot(Vec<Lease>),
    /// All there are in a store that went back to an older state: emptied, or restored from a copy. What is not in it did
    /// not leave.
    Rewound(Vec<Lease>),
    /// A new lease, or new values for one.
    Upsert(Lease),
    /// A lease that ended or was deleted.
    Remove(Subnet),
}

impl LeaseUpdate {
    /// Every lease, if the update tells of every one.
    pub fn all(&self) -> Option<&[Lease]> {
        match self {
            Self::Snapshot(all) | Self::Rewound(all) => Some(all),
            Self::Upsert(_) | Self::Remove(_) => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn flannels_keys_survive_parse_and_print() {
        for text in ["10.12.13.0-24", "10.12.13.0-24&fd00:12:13::-56", "10.5.0.0-31", "fd00:12:13::-56"] {
            assert_eq!(text.parse::<Key>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_flannel_refuses_is_refused() {
        for text in [
            "",
            "10",
            "10.12.13.0",
            "10.12.13-24",
            "10.12.13.300-24",
            "10.12.13.0-24hi",
            "&2001::-56",
            "10.12.13.0-24&:12:13:-56",
            "10.12.13.0-24&20011::-56",
            "10.12.13.0-24&2001-56",
            "10.12.13.0-24&2001::",
            "10.12.13.0-24&2001::-56hi",
            "10.12.13.1-32",
            "10.12.13.0-24&2001::1-128",
        ] {
            assert_eq!(text.parse::<Key>(), Err(NotAKey), "{text}");
        }
    }

    #[test]
    fn one_subnet_has_one_key() {
        for text in [
            "10.12.13.5-24",
            "10.12.13.0-024",
            "fd00:0::-56",
            "FD00::-56",
            "10.12.13.0/24",
            "fd00::-56&10.1.0.0-24",
        ] {
            assert_eq!(text.parse::<Key>(), Err(NotAKey), "{text}");
        }
    }

    pub(crate) fn any_subnet() -> impl Strategy<Value = Subnet> {
        let v4 = (any::<u32>(), 0u8..=31)
            .prop_map(|(bits, length)| Ipv4Net::new(bits.into(), length).expect("a length of IPv4").trunc());
        let v6 = (any::<u128>(), 0u8..=127)
            .prop_map(|(bits, length)| Ipv6Net::new(bits.into(), length).expect("a length of IPv6").trunc());
        prop_oneof![
            v4.clone().prop_map(Subnet::V4),
            v6.clone().prop_map(Subnet::V6),
            (v4, v6).prop_map(|(v4, v6)| Subnet::Dual(v4, v6)),
        ]
    }

    proptest! {
        #[test]
        fn keys_round_trip(subnet in any_subnet()) {
            let text = subnet.key().to_string();
            prop_assert_eq!(text.parse::<Key>(), Ok(Key(subnet)), "{}", text);
        }

        #[test]
        fn no_key_panics(text in "[0-9a-f.:&/-]{0,40}|.{0,20}") {
            if let Ok(key) = text.parse::<Key>() {
                prop_assert_eq!(key.to_string(), text);
            }
        }
    }
}
