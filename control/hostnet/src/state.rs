//! The host's network state as plain values: what there is, what there should be, and which part of it is ours.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

/// A hardware address, in the order of the wire.
pub type Mac = [u8; 6];

/// A network device as the kernel reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Link {
    /// The interface index: unique in its namespace, never used again for another device.
    pub index: u32,
    /// The name, at most 15 bytes.
    pub name: String,
    /// The kernel's word for the kind of virtual device (`veth`, `vxlan`, `tun`, `bridge`); `None` for hardware and
    /// for the loopback.
    pub kind: Option<String>,
    /// The largest packet without link header, in bytes.
    pub mtu: u32,
    /// The hardware address; `None` on devices without one of 6 bytes (TUN, IPIP).
    pub mac: Option<Mac>,
    /// Set up by the administrator (`IFF_UP`).
    pub up: bool,
    /// Able to carry packets: up, and its carrier is there (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// A loopback device (`IFF_LOOPBACK`).
    pub loopback: bool,
    /// Index of the bridge or bond it belongs to.
    pub master: Option<u32>,
    /// Index of the device it is tied to: the other end of a veth pair, in that one's namespace.
    pub peer: Option<u32>,
    /// Takes in frames for any address (`IFF_PROMISC`), because somebody said so by name.
    pub promiscuous: bool,
    /// A number that groups devices (`ip link set DEVICE group N`), 0 unless somebody gave one.
    pub group: u32,
    /// Length of the transmit queue, in packets.
    pub tx_queue_len: u32,
    /// A free text that says whose the device is (`ip link set DEVICE alias TEXT`).
    pub alias: Option<String>,
    /// How a VXLAN device is set; `None` on any other kind.
    pub vxlan: Option<VxlanInfo>,
}

/// How an existing VXLAN device is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct VxlanInfo {
    /// The VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// Source address of the outer packets; `None`: chosen by the route.
    pub local: Option<IpAddr>,
    /// The default remote or multicast group; flannel sets none.
    pub group: Option<IpAddr>,
    /// Index of the device that the outer packets leave by; `None`: chosen by the route.
    pub device: Option<u32>,
    /// Learns MAC addresses from what arrives.
    pub learning: bool,
    /// Reports unknown MAC addresses to userspace.
    pub l2miss: bool,
    /// Group policy extension: another header format on the wire.
    pub gbp: bool,
    /// Sends UDP checksums over IPv4.
    pub udp_checksum: bool,
    /// Sends a zero UDP checksum over IPv6.
    pub zero_checksum6_tx: bool,
    /// Accepts a zero UDP checksum over IPv6.
    pub zero_checksum6_rx: bool,
}

/// An address with all that choosing one needs to know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct LinkAddress {
    /// Index of its device.
    pub index: u32,
    /// Name of its device.
    pub device: String,
    /// The address and its prefix length; the host bits are the address.
    pub net: IpNet,
    /// How far the address is valid.
    pub scope: RouteScope,
    /// Set without a lifetime (`IFA_F_PERMANENT`), so neither DHCP nor router advertisements take it away.
    pub permanent: bool,
    /// IPv6: a privacy address (`IFA_F_TEMPORARY`). IPv4: a further address of a subnet (`IFA_F_SECONDARY`, same bit).
    pub secondary: bool,
    /// Not to be used for something new (`IFA_F_DEPRECATED`).
    pub deprecated: bool,
    /// Still under duplicate address detection, or failed it: sockets cannot be bound to it.
    pub tentative: bool,
}

impl LinkAddress {
    /// A permanent address that is good for all.
    pub fn new(index: u32, device: &str, net: IpNet) -> Self {
        Self {
            index,
            device: device.to_owned(),
            net,
            scope: RouteScope::GLOBAL,
            permanent: true,
            secondary: false,
            deprecated: false,
            tentative: false,
        }
    }
}

/// What should be true of a device that somebody else makes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct LinkState {
    /// Name of the device.
    pub device: String,
    /// The largest packet without link header, in bytes.
    pub mtu: u32,
    /// Set up (`IFF_UP`).
    pub up: bool,
    /// The hardware address. Wanted as `None`: whatever it is.
    pub mac: Option<Mac>,
    /// A free text that says whose the device is (`ip link` shows it as `alias`). Wanted as `None`: whatever it is.
    pub alias: Option<String>,
}

impl LinkState {
    /// A device of this MTU, up; its hardware address and its alias do not matter.
    pub fn up(device: impl Into<String>, mtu: u32) -> Self {
        Self { device: device.into(), mtu, up: true, mac: None, alias: None }
    }

    /// This device is as `want` says.
    pub fn is_as(&self, want: &Self) -> bool {
        self.device == want.device
            && (self.mtu, self.up) == (want.mtu, want.up)
            && (want.mac.is_none() || self.mac == want.mac)
            && (want.alias.is_none() || self.alias == want.alias)
    }
}

/// An address on a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Address {
    /// Name of the device.
    pub device: String,
    /// The address and its prefix length; the host bits are the address.
    pub net: IpNet,
}

/// How far a destination or address is: the kernel's `rtm_scope`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct RouteScope(pub u8);

impl RouteScope {
    /// Anywhere, usually behind a gateway. The only scope of IPv6 routes.
    pub const GLOBAL: Self = Self(0);
    /// On the wire of the device.
    pub const LINK: Self = Self(253);
    /// This host.
    pub const HOST: Self = Self(254);
}

/// Who put a route there: the kernel's `rtm_protocol` (`/etc/iproute2/rt_protos`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct RouteProtocol(pub u8);

impl RouteProtocol {
    /// An ICMP redirect.
    pub const REDIRECT: Self = Self(1);
    /// The kernel, for an address.
    pub const KERNEL: Self = Self(2);
    /// `ip route` without more, and flannel.
    pub const BOOT: Self = Self(3);
    /// The administrator.
    pub const STATIC: Self = Self(4);
    /// A router advertisement.
    pub const ROUTER_ADVERTISEMENT: Self = Self(9);
    /// This project. The number is free: iproute2's `rt_protos` and the routing daemons known to us (FRR, BIRD, Calico,
    /// OpenR, OVN, keepalived) use others. `ip route show proto 157` lists what is ours.
    pub const FLANNEL_RS: Self = Self(157);
}

impl Default for RouteProtocol {
    fn default() -> Self {
        Self::BOOT
    }
}

/// What a route does with a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteKind {
    /// Sends it.
    #[default]
    Unicast,
    /// Refuses it, and tells its sender by ICMP that the host cannot be reached.
    Unreachable,
    /// Drops it without a word.
    Blackhole,
}

/// A route of the main table. The kernel tells routes apart by destination and metric.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Route {
    /// What it does.
    pub kind: RouteKind,
    /// Where to; host bits are zero.
    pub dest: IpNet,
    /// The gateway; `None`: the destination is on the device's own wire.
    pub via: Option<IpAddr>,
    /// Name of the device it leaves by; empty for a route that sends nothing.
    pub device: String,
    /// The gateway is reachable on the device although no address says so.
    pub onlink: bool,
    /// Smaller wins. 0 stands for the kernel's default: 0 for IPv4, 1024 for IPv6.
    pub metric: u32,
    /// How far the destination is; always [`RouteScope::GLOBAL`] for IPv6.
    pub scope: RouteScope,
    /// Who put it there.
    pub protocol: RouteProtocol,
    /// The source address that this host uses for it, if it does not choose by itself.
    pub source: Option<IpAddr>,
}

impl Route {
    /// A route as `ip route add DEST dev DEVICE` would make it: no gateway, default metric, protocol boot, global scope.
    pub fn new(dest: IpNet, device: impl Into<String>) -> Self {
        Self {
            kind: RouteKind::Unicast,
            dest: dest.trunc(),
            via: None,
            device: device.into(),
            onlink: false,
            metric: 0,
            scope: RouteScope::GLOBAL,
            protocol: RouteProtocol::BOOT,
            source: None,
        }
    }

    /// A route that sends nothing and that every other route to the same destination goes before.
    pub fn last_resort(kind: RouteKind, dest: IpNet) -> Self {
        Self { kind, metric: u32::MAX, ..Self::new(dest, "") }
    }

    /// The same route in the one spelling that the kernel reports it with.
    pub fn normalized(mut self) -> Self {
        self.dest = self.dest.trunc();
        if self.kind != RouteKind::Unicast {
            // IPv6 reports the loopback for them.
            self.device.clear();
            self.via = None;
            self.onlink = false;
        }
        if self.dest.addr().is_ipv6() {
            self.scope = RouteScope::GLOBAL;
            if self.metric == IPV6_DEFAULT_METRIC {
                self.metric = 0;
            }
        }
        self
    }

    /// [`Self::normalized`] changes nothing.
    pub fn is_normalized(&self) -> bool {
        let sends = self.kind == RouteKind::Unicast;
        let is_v4 = self.dest.addr().is_ipv4();
        self.dest.addr() == self.dest.network()
            && (sends || (self.device.is_empty() && self.via.is_none() && !self.onlink))
            && (is_v4 || (self.scope == RouteScope::GLOBAL && self.metric != IPV6_DEFAULT_METRIC))
    }
}

/// What IPv6 makes of a route without a metric (`IP6_RT_PRIO_USER`).
pub(crate) const IPV6_DEFAULT_METRIC: u32 = 1024;

/// A permanent entry of the neighbour table (ARP for IPv4, NDP for IPv6).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Neighbour {
    /// Name of the device.
    pub device: String,
    /// The neighbour's address.
    pub ip: IpAddr,
    /// Its hardware address.
    pub mac: Mac,
}

/// A permanent entry of a VXLAN device's forwarding table: frames for `mac` go to `dst`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FdbEntry {
    /// Name of the VXLAN device.
    pub device: String,
    /// The hardware address of the far tunnel end.
    pub mac: Mac,
    /// The underlay address of the node that has it.
    pub dst: IpAddr,
}

/// Everything on a host that is ours, or should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HostState {
    /// Settings of devices; who owns a device makes and deletes it, nothing here does.
    pub links: BTreeSet<LinkState>,
    /// Addresses on our devices.
    pub addresses: BTreeSet<Address>,
    /// Routes of the main table.
    pub routes: BTreeSet<Route>,
    /// Permanent neighbours on our devices.
    pub neighbours: BTreeSet<Neighbour>,
    /// Permanent forwarding entries of our VXLAN devices.
    pub fdb: BTreeSet<FdbEntry>,
    /// Kernel settings by name (see [`crate::sysctl`]). One that this host does not have, or that cannot be set here, is
    /// not read and so never a difference.
    pub sysctls: BTreeMap<String, String>,
}

/// Which part of a host's state is ours to change. What it does not cover is never read as ours and so never deleted.
/// Whatever is wanted must lie inside it, or it looks missing for ever.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// The devices that are ours: their neighbours and forwarding entries are all ours, and so are their routes into the
    /// networks.
    pub devices: BTreeSet<String>,
    /// The overlay's networks. Of a device's addresses and routes only those inside one of them are ours; others were
    /// put there by somebody for a purpose. Empty: all are ours.
    pub networks: Vec<IpNet>,
    /// Routes into `networks` by devices that are not ours are ours too where they look like flannel's host-gw routes:
    /// protocol boot, by a gateway outside the networks, to a subnet smaller than the network. (A pod's own route, as
    /// the CNI plugin `ptp` makes, has no gateway.)
    pub gateway_routes: bool,
    /// Names of the kernel settings that are ours.
    pub sysctls: BTreeSet<String>,
}

impl Scope {
    /// A scope of one device and the networks of the overlay that it carries.
    pub fn device(name: impl Into<String>, networks: impl IntoIterator<Item = IpNet>) -> Self {
        Self {
            devices: BTreeSet::from([name.into()]),
            networks: networks.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Whether this address is ours. Link-local ones never are: the kernel makes them.
    pub fn covers_address(&self, address: &Address) -> bool {
        let ip = address.net.addr();
        self.devices.contains(&address.device)
            && !is_link_local(ip)
            && (self.networks.is_empty() || self.networks.iter().any(|network| network.contains(&ip)))
    }

    /// Whether this route is ours: it bears our protocol, or it is flannel's, which is protocol boot on a device of ours
    /// into the networks. Another protocol is somebody's who means to keep it.
    pub fn covers_route(&self, route: &Route) -> bool {
        match route.protocol {
            RouteProtocol::FLANNEL_RS => true,
            RouteProtocol::BOOT if route.kind == RouteKind::Unicast => {
                let inside = self.networks.is_empty()
                    || self.networks.iter().any(|network| network.contains(&route.dest));
                (self.devices.contains(&route.device) && inside)
                    || (self.gateway_routes && self.covers_gateway_route(route))
            }
            _ => false,
        }
    }

    fn covers_gateway_route(&self, route: &Route) -> bool {
        let inside =
            self.networks.iter().any(|network| *network != route.dest && network.contains(&route.dest));
        inside && route.via.is_some_and(|via| !self.networks.iter().any(|network| network.contains(&via)))
    }

    /// Whether this neighbour is ours.
    pub fn covers_neighbour(&self, neighbour: &Neighbour) -> bool {
        self.devices.contains(&neighbour.device)
    }

    /// Whether this forwarding entry is ours: a unicast one. The all-zero address stands for the device's default
    /// remotes and is left alone.
    pub fn covers_fdb(&self, entry: &FdbEntry) -> bool {
        self.devices.contains(&entry.device) && entry.mac != Mac::default() && entry.mac[0] & 1 == 0
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} mtu {} {}", self.device, self.mtu, if self.up { "up" } else { "down" })?;
        if let Some(mac) = self.mac {
            write!(f, " address {}", mac_text(mac))?;
        }
        match &self.alias {
            Some(alias) => write!(f, " alias {alias}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.net, self.device)
    }
}

impl fmt::Display for Route {
    /// As `ip route` prints it, with the defaults left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            RouteKind::Unicast => "",
            RouteKind::Unreachable => "unreachable ",
            RouteKind::Blackhole => "blackhole ",
        };
        write!(f, "{kind}{}", self.dest)?;
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        if !self.device.is_empty() {
            write!(f, " dev {}", self.device)?;
        }
        if self.protocol != RouteProtocol::BOOT {
            write!(f, " proto {}", self.protocol.0)?;
        }
        if self.scope != RouteScope::GLOBAL {
            write!(f, " scope {}", self.scope.0)?;
        }
        if let Some(source) = self.source {
            write!(f, " src {source}")?;
        }
        if self.metric != 0 {
            write!(f, " metric {}", self.metric)?;
        }
        f.write_str(if self.onlink { " onlink" } else { "" })
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lladdr {} dev {}", self.ip, mac_text(self.mac), self.device)
    }
}

impl fmt::Display for FdbEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dst {} dev {}", mac_text(self.mac), self.dst, self.device)
    }
}

/// `aa:bb:cc:dd:ee:ff`.
pub(crate) fn mac_text([a, b, c, d, e, f]: Mac) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}
