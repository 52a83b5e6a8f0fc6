//! Network devices: list them, make veth pairs, bridges and VXLAN devices, set and delete them.
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridge, InfoData, InfoKind, InfoVeth, InfoVxlan,
    LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use super::Kernel;
use crate::host::HostError;
use crate::netns::NetNs;
use crate::state::{Link, Mac, VxlanInfo};

/// What [`Kernel::set_link`] changes; a field that is `None` (or `false`) is left as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkSettings {
    /// Up or down.
    pub up: Option<bool>,
    /// The largest packet without link header, in bytes.
    pub mtu: Option<u32>,
    /// The hardware address.
    pub mac: Option<Mac>,
    /// The bridge or bond to join; an empty name leaves the one it is in.
    pub master: Option<String>,
    /// Length of the transmit queue, in packets.
    pub tx_queue_len: Option<u32>,
    /// Keeps the kernel from giving the device an IPv6 link-local address of its own. Works only before the device is
    /// up; ignored where the kernel has no IPv6.
    pub addr_gen_none: bool,
}

/// A VXLAN device as flannel makes it: unicast only, its peers set by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// Its name: `flannel.1`, `flannel-v6.1`.
    pub name: String,
    /// The VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP destination port, and the one it listens on: flannel's is 8472, IANA's 4789.
    pub port: u16,
    /// Source address of the outer packets; its family is the family of the outer packets. `None`: IPv4, chosen by the
    /// route.
    pub local: Option<IpAddr>,
    /// The device that the outer packets leave by; `None`: chosen by the route.
    pub device: Option<String>,
    /// MTU to ask for; the kernel lowers it to what fits `device`. `None`: what fits.
    pub mtu: Option<u32>,
    /// The hardware address; `None`: a random one.
    pub mac: Option<Mac>,
    /// Learn MAC addresses from what arrives. flannel: off.
    pub learning: bool,
    /// Send UDP checksums over IPv4. The kernel's default and so flannel's: on.
    pub udp_checksum: bool,
    /// Send a zero UDP checksum over IPv6. Off, as RFC 8200 wants it.
    pub zero_checksum6_tx: bool,
    /// Accept a zero UDP checksum over IPv6. Off, as RFC 8200 wants it.
    pub zero_checksum6_rx: bool,
    /// The group policy extension, another header format. Off.
    pub gbp: bool,
}

impl Vxlan {
    /// A device with flannel's settings and nothing fixed but name, VNI and port.
    pub fn new(name: impl Into<String>, vni: u32, port: u16) -> Self {
        Self {
            name: name.into(),
            vni,
            port,
            local: None,
            device: None,
            mtu: None,
            mac: None,
            learning: false,
            udp_checksum: true,
            zero_checksum6_tx: false,
            zero_checksum6_rx: false,
            gbp: false,
        }
    }

    fn attributes(&self, device: Option<u32>) -> Vec<InfoVxlan> {
        let mut info = vec![
            InfoVxlan::Id(self.vni),
            InfoVxlan::Ttl(0),
            InfoVxlan::Tos(0),
            InfoVxlan::Learning(self.learning),
            InfoVxlan::Proxy(false),
            InfoVxlan::Rsc(false),
            InfoVxlan::L2Miss(false),
            InfoVxlan::L3Miss(false),
            InfoVxlan::Port(self.port),
            InfoVxlan::UDPCsum(self.udp_checksum),
            InfoVxlan::UDPZeroCsumTX(self.zero_checksum6_tx),
            InfoVxlan::UDPZeroCsumRX(self.zero_checksum6_rx),
        ];
        info.extend(device.map(InfoVxlan::Link));
        info.extend(self.local.map(|local| match local {
            IpAddr::V4(local) => InfoVxlan::Local(local),
            IpAddr::V6(local) => InfoVxlan::Local6(local),
        }));
        info.extend(self.gbp.then_some(InfoVxlan::Gbp));
        info
    }
}

impl Kernel {
    /// All devices of the namespace, in the kernel's order.
    pub async fn links(&self) -> Result<Vec<Link>, HostError> {
        let mut request = LinkMessage::default();
        request.attributes.push(without_statistics());
        let found = self.dump(RouteNetlinkMessage::GetLink(request), "list the devices").await?;
        Ok(found
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(message) => Some(link_of(message)),
                _ => None,
            })
            .collect())
    }

    /// The device of that name, if there is one.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, HostError> {
        let mut request = LinkMessage::default();
        request.attributes = vec![LinkAttribute::IfName(name.to_owned()), without_statistics()];
        let answer =
            self.ask(RouteNetlinkMessage::GetLink(request), 0, || format!("look up the device {name}")).await;
        match answer {
            Ok(Some(RouteNetlinkMessage::NewLink(message))) => Ok(Some(link_of(message))),
            Ok(_) => Ok(None),
            Err(error) if error.errno == Errno::ENODEV => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a veth pair: `name` here, `peer` directly in `peer_ns` (so the two may have the same name). Both are down.
    pub async fn add_veth(&self, name: &str, peer: &str, peer_ns: &NetNs) -> Result<(), HostError> {
        let mut far = LinkMessage::default();
        far.attributes =
            vec![LinkAttribute::IfName(peer.to_owned()), LinkAttribute::NetNsFd(peer_ns.as_fd().as_raw_fd())];
        let data = InfoData::Veth(InfoVeth::Peer(far));
        self.add_link(name, InfoKind::Veth, data, vec![], || format!("add veth {name} with peer {peer}"))
            .await
    }

    /// Makes a bridge, down. A port forwards as soon as it is up: no spanning tree, and no delay for one.
    pub async fn add_bridge(&self, name: &str) -> Result<(), HostError> {
        let data = InfoData::Bridge(vec![InfoBridge::ForwardDelay(0)]);
        self.add_link(name, InfoKind::Bridge, data, vec![], || format!("add bridge {name}")).await
    }

    /// Makes a VXLAN device, down. `EEXIST`: the name is taken, or another device has the same VNI and port;
    /// `EOPNOTSUPP`: the kernel has no VXLAN.
    pub async fn add_vxlan(&self, vxlan: &Vxlan) -> Result<(), HostError> {
        let action = || format!("add vxlan {} id {} dstport {}", vxlan.name, vxlan.vni, vxlan.port);
        let device = match &vxlan.device {
            Some(name) => Some(self.device_index(name, || format!("{} dev {name}", action())).await?),
            None => None,
        };
        let mut attributes = vec![LinkAttribute::TxQueueLen(0)];
        attributes.extend(vxlan.mtu.map(LinkAttribute::Mtu));
        attributes.extend(vxlan.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        let data = InfoData::Vxlan(vxlan.attributes(device));
        self.add_link(&vxlan.name, InfoKind::Vxlan, data, attributes, action).await
    }

    async fn add_link(
        &self,
        name: &str,
        kind: InfoKind,
        data: InfoData,
        mut attributes: Vec<LinkAttribute>,
        action: impl FnOnce() -> String,
    ) -> Result<(), HostError> {
        attributes.push(LinkAttribute::IfName(name.to_owned()));
        attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]));
        let mut message = LinkMessage::default();
        message.attributes = attributes;
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, action).await
    }

    /// Deletes a device, and with it its addresses, routes, neighbours and the other end of a veth pair.
    pub async fn delete_link(&self, name: &str) -> Result<(), HostError> {
        let message = named(name);
        self.change(RouteNetlinkMessage::DelLink(message), 0, || format!("delete the device {name}")).await
    }

    /// Changes a device. Nothing is changed if the kernel refuses any part, except that `addr_gen_none` comes first.
    pub async fn set_link(&self, name: &str, settings: &LinkSettings) -> Result<(), HostError> {
        if settings.addr_gen_none {
            self.set_addr_gen_none(name).await?;
        }
        let mut message = named(name);
        if let Some(up) = settings.up {
            message.header.change_mask = LinkFlags::Up;
            message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        }
        let attributes = &mut message.attributes;
        attributes.extend(settings.mtu.map(LinkAttribute::Mtu));
        attributes.extend(settings.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        attributes.extend(settings.tx_queue_len.map(LinkAttribute::TxQueueLen));
        match settings.master.as_deref() {
            None => {}
            Some("") => attributes.push(LinkAttribute::Controller(0)),
            Some(master) => {
                let index = self.device_index(master, || format!("set {name} master {master}")).await?;
                message.attributes.push(LinkAttribute::Controller(index));
            }
        }
        self.change(RouteNetlinkMessage::SetLink(message), 0, || format!("set {name}{settings}")).await
    }

    async fn set_addr_gen_none(&self, name: &str) -> Result<(), HostError> {
        let mut message = named(name);
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]));
        let action = || format!("set {name} addrgenmode none");
        match self.change(RouteNetlinkMessage::SetLink(message), 0, action).await {
            Err(error) if error.errno == Errno::EAFNOSUPPORT => Ok(()),
            other => other,
        }
    }
}

impl std::fmt::Display for LinkSettings {
    /// As `ip link set` would take it, each word with a blank before it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {mtu}")?;
        }
        if let Some(mac) = self.mac {
            write!(f, " address {}", crate::state::mac_text(mac))?;
        }
        if let Some(length) = self.tx_queue_len {
            write!(f, " txqueuelen {length}")?;
        }
        match self.master.as_deref() {
            None => {}
            Some("") => f.write_str(" nomaster")?,
            Some(master) => write!(f, " master {master}")?,
        }
        match self.up {
            Some(true) => f.write_str(" up"),
            Some(false) => f.write_str(" down"),
            None => Ok(()),
        }
    }
}

/// A message about the device of that name; the kernel finds it by name where the index is 0.
fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

/// Counters are most of a link's message and nobody here reads them.
fn without_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

pub(super) fn link_of(message: LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
        mtu: 0,
        mac: None,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        master: None,
        tx_queue_len: 0,
        vxlan: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok(),
            LinkAttribute::Controller(index) => link.master = Some(index),
            LinkAttribute::TxQueueLen(length) => link.tx_queue_len = length,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                        LinkInfo::Data(InfoData::Vxlan(info)) => link.vxlan = Some(vxlan_of(info)),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link
}

fn vxlan_of(attributes: Vec<InfoVxlan>) -> VxlanInfo {
    let mut vxlan = VxlanInfo::default();
    for attribute in attributes {
        match attribute {
            InfoVxlan::Id(vni) => vxlan.vni = vni,
            InfoVxlan::Port(port) => vxlan.port = port,
            InfoVxlan::Local(ip) => vxlan.local = Some(ip.into()),
            InfoVxlan::Local6(ip) => vxlan.local = Some(ip.into()),
            InfoVxlan::Group(ip) => vxlan.group = Some(ip.into()),
            InfoVxlan::Group6(ip) => vxlan.group = Some(ip.into()),
            InfoVxlan::Link(index) => vxlan.device = Some(index).filter(|index| *index != 0),
            InfoVxlan::Learning(on) => vxlan.learning = on,
            InfoVxlan::L2Miss(on) => vxlan.l2miss = on,
            InfoVxlan::Gbp => vxlan.gbp = true,
            InfoVxlan::UDPCsum(on) => vxlan.udp_checksum = on,
            InfoVxlan::UDPZeroCsumTX(on) => vxlan.zero_checksum6_tx = on,
            InfoVxlan::UDPZeroCsumRX(on) => vxlan.zero_checksum6_rx = on,
            _ => {}
        }
    }
    vxlan
}
