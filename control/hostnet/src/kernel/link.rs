//! Network devices: list them, make veth pairs and bridges, set and delete them.
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridge, InfoData, InfoKind, InfoVeth, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use super::Kernel;
use super::vxlan::info_of;
use crate::host::HostError;
use crate::netns::NetNs;
use crate::state::{Link, Mac};

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
    /// A free text that says whose the device is.
    pub alias: Option<String>,
    /// Keeps the kernel from giving the device an IPv6 link-local address of its own. Works only before the device is
    /// up; ignored where the kernel has no IPv6.
    pub addr_gen_none: bool,
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

    pub(super) async fn add_link(
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
        let mut message = setting(name, settings);
        match settings.master.as_deref() {
            None => {}
            Some("") => message.attributes.push(LinkAttribute::Controller(0)),
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
        if let Some(alias) = &self.alias {
            write!(f, " alias {alias}")?;
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

/// The request for what needs no further look-up.
pub(super) fn setting(name: &str, settings: &LinkSettings) -> LinkMessage {
    let mut message = named(name);
    if let Some(up) = settings.up {
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    }
    let attributes = &mut message.attributes;
    attributes.extend(settings.mtu.map(LinkAttribute::Mtu));
    attributes.extend(settings.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
    attributes.extend(settings.tx_queue_len.map(LinkAttribute::TxQueueLen));
    attributes.extend(settings.alias.clone().map(LinkAttribute::IfAlias));
    message
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
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        promiscuous: flags.contains(LinkFlags::Promisc),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok(),
            LinkAttribute::Controller(index) => link.master = Some(index),
            LinkAttribute::Link(index) => link.peer = Some(index),
            LinkAttribute::Group(group) => link.group = group,
            LinkAttribute::TxQueueLen(length) => link.tx_queue_len = length,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                        LinkInfo::Data(InfoData::Vxlan(info)) => link.vxlan = Some(info_of(info)),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link
}
