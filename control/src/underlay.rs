//! The underlay: which interface and addresses carry the overlay. A pure function of what the host has.
//!
//! The order is flannel's: each `--iface`, each `--iface-regex`, `--iface-can-reach`; without any of them the interface
//! that has `--public-ip`, else the one of the default route. Where flannel ends for want of a default route, the interface
//! with an address by which the store knows this node is taken. An error lists everything that was tried, and what there is.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane_core::{IpNet, LinkMtu};
use hostnet::kernel::Reach;
use hostnet::state::{Link, LinkAddress, Route, RouteScope};

use crate::settings::InterfaceChoice;

mod choose;
#[cfg(test)]
pub(crate) mod testing;

/// What the host has, as far as the choice depends on it.
#[derive(Debug, Clone, Default)]
pub struct HostView {
    /// Every link, by index.
    pub links: Vec<Link>,
    /// Every address.
    pub addresses: Vec<LinkAddress>,
    /// The main table, in the kernel's order.
    pub routes: Vec<Route>,
    /// The kernel's route to `--iface-can-reach`.
    pub reach: Option<Reach>,
    /// Addresses by which the cluster knows this node: where no flag and no default route shows an interface.
    pub known_as: Vec<IpAddr>,
}

/// Which families the network has; at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Families {
    /// IPv4 pods, and an IPv4 underlay for them.
    pub v4: bool,
    /// IPv6 pods, and an IPv6 underlay for them.
    pub v6: bool,
}

impl Families {
    /// The address is of one of them.
    #[must_use]
    pub fn has(self, ip: IpAddr) -> bool {
        if ip.is_ipv4() { self.v4 } else { self.v6 }
    }
}

/// The chosen interface and addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// Name of the interface.
    pub device: String,
    /// Its index: another device of the same name has another.
    pub index: u32,
    /// Its MTU.
    pub mtu: LinkMtu,
    /// The networks on its own wire, as its addresses say, sorted: nodes in them are reached without a gateway.
    pub on_link: Vec<IpNet>,
    /// Our IPv4 end, if the network has IPv4.
    pub v4: Option<End<Ipv4Addr>>,
    /// Our IPv6 end, if the network has IPv6.
    pub v6: Option<End<Ipv6Addr>>,
}

/// One end of the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End<A> {
    /// The address on the interface: we send from it.
    pub local: A,
    /// The address that peers send to; another one behind a 1:1 NAT.
    pub public: A,
}

/// No interface could be chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct UnderlayError {
    /// What was tried, and why it was not it.
    pub tried: Vec<(String, String)>,
    /// The interfaces there are.
    pub present: String,
}

impl fmt::Display for UnderlayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no interface for the traffic between nodes: ")?;
        for (at, (what, why)) in self.tried.iter().enumerate() {
            write!(f, "{}{what}: {why}", if at > 0 { "; " } else { "" })?;
        }
        write!(f, ". Interfaces here: {}. Name one with --iface", self.present)
    }
}

impl Underlay {
    /// Chooses.
    pub fn choose(
        choice: &InterfaceChoice,
        families: Families,
        host: &HostView,
    ) -> Result<Self, UnderlayError> {
        choose::choose(choice, families, host)
    }

    /// This address is on the interface's own wire.
    pub fn is_on_link(&self, ip: IpAddr) -> bool {
        self.on_link.iter().any(|net| net.contains(&ip))
    }

    /// The same interface with the same addresses, under the name and with the MTU that it has there; `None` if the host
    /// does not have it, or not with an address that we send from.
    #[must_use]
    pub fn still_there(&self, host: &HostView) -> Option<Self> {
        let link = host.links.iter().find(|link| link.index == self.index && link.mtu > 0)?;
        let usable = usable_addresses(host, link);
        let has = |ip: IpAddr| usable.iter().any(|address| address.net.addr() == ip);
        let there = self.v4.is_none_or(|end| has(end.local.into()))
            && self.v6.is_none_or(|end| has(end.local.into()));
        there.then(|| Self {
            device: link.name.clone(),
            mtu: link_mtu(link),
            on_link: on_link(&usable),
            ..self.clone()
        })
    }
}

/// The networks of these addresses, each once.
fn on_link(usable: &[&LinkAddress]) -> Vec<IpNet> {
    let mut nets: Vec<IpNet> = usable.iter().map(|address| address.net.trunc()).collect();
    nets.sort_unstable();
    nets.dedup();
    nets
}

/// An MTU beyond what IP can say is as good as the largest it can.
fn link_mtu(link: &Link) -> LinkMtu {
    LinkMtu(u16::try_from(link.mtu).unwrap_or(u16::MAX))
}

impl fmt::Display for Underlay {
    /// `eth0 (192.0.2.1, mtu 1500)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (", self.device)?;
        let end = |f: &mut fmt::Formatter<'_>, local: IpAddr, public: IpAddr| {
            if local == public { write!(f, "{local}, ") } else { write!(f, "{local} known as {public}, ") }
        };
        if let Some(v4) = self.v4 {
            end(f, v4.local.into(), v4.public.into())?;
        }
        if let Some(v6) = self.v6 {
            end(f, v6.local.into(), v6.public.into())?;
        }
        write!(f, "mtu {})", self.mtu.0)
    }
}

/// What the overlay can be sent from: a unicast address that is not going away. The best first, as flannel sorts:
/// global before link-local, permanent before leased, main before privacy addresses. IPv6 link-local ones are left
/// out, because peers could not tell which of their links they are on.
fn usable_addresses<'a>(host: &'a HostView, link: &'a Link) -> Vec<&'a LinkAddress> {
    let mut usable: Vec<_> = host
        .addresses
        .iter()
        .filter(|address| address.index == link.index && !address.deprecated && !address.tentative)
        .filter(|address| match address.net {
            IpNet::V4(net) => {
                let ip = net.addr();
                !(ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || ip.is_broadcast())
            }
            IpNet::V6(net) => {
                let ip = net.addr();
                !(ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || ip.is_unicast_link_local())
            }
        })
        .collect();
    usable.sort_by_key(|address| {
        let link_local = match address.net {
            IpNet::V4(net) => net.addr().is_link_local(),
            IpNet::V6(_) => false,
        };
        (link_local || address.scope != RouteScope::GLOBAL, !address.permanent, address.secondary)
    });
    usable
}
