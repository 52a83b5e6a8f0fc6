//! Bridges and their ports: what a container's end of a bridge needs.
use netlink_packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, InfoBridge, InfoBridgePort, InfoData, InfoKind,
    InfoPortData, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::Kernel;
use crate::host::HostError;

/// How a bridge treats one of its ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortSettings {
    /// Sends frames out by the port that they came in by, so that a container reaches itself by a service's address.
    pub hairpin: bool,
    /// Isolated ports do not reach each other (Linux 4.18).
    pub isolated: bool,
}

/// VLANs of a port, tagged with 1 to 4094.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlans {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
    /// Frames without a tag belong to it, and leave without one. For a single VLAN.
    pub untagged: bool,
}

impl Kernel {
    /// Makes a bridge as [`Kernel::add_bridge`] does, one that tells VLANs apart.
    pub async fn add_vlan_bridge(&self, name: &str) -> Result<(), HostError> {
        let data = InfoData::Bridge(vec![InfoBridge::ForwardDelay(0), InfoBridge::VlanFiltering(true)]);
        self.add_link(name, InfoKind::Bridge, data, vec![], || format!("add bridge {name} vlan_filtering 1"))
            .await
    }

    /// Makes an existing bridge tell VLANs apart.
    pub async fn filter_vlans(&self, name: &str) -> Result<(), HostError> {
        let info = vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(true)])),
        ];
        let message = self.about(name, vec![LinkAttribute::LinkInfo(info)]).await?;
        self.change(RouteNetlinkMessage::NewLink(message), 0, || {
            format!("set {name} type bridge vlan_filtering 1")
        })
        .await
    }

    /// Sets how a bridge treats its port `name`.
    pub async fn set_bridge_port(&self, name: &str, port: PortSettings) -> Result<(), HostError> {
        let mut settings = vec![InfoBridgePort::HairpinMode(port.hairpin)];
        // Kernels before 4.18 refuse what they do not know.
        if port.isolated {
            settings.push(InfoBridgePort::Isolated(true));
        }
        let info = vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(settings)),
        ];
        let message = self.about(name, vec![LinkAttribute::LinkInfo(info)]).await?;
        self.change(RouteNetlinkMessage::NewLink(message), 0, || {
            format!("set {name} type bridge_slave hairpin {} isolated {}", port.hairpin, port.isolated)
        })
        .await
    }

    /// Lets a device take in frames for any address, or not.
    pub async fn set_promiscuous(&self, name: &str, on: bool) -> Result<(), HostError> {
        let mut message = self.about(name, vec![]).await?;
        message.header.change_mask = LinkFlags::Promisc;
        message.header.flags = if on { LinkFlags::Promisc } else { LinkFlags::empty() };
        let word = if on { "on" } else { "off" };
        self.change(RouteNetlinkMessage::SetLink(message), 0, || format!("set {name} promisc {word}")).await
    }

    /// Lets frames of these VLANs in and out by a bridge's port.
    pub async fn add_port_vlans(&self, name: &str, vlans: Vlans) -> Result<(), HostError> {
        let message = self.vlan_message(name, vlans).await?;
        self.change(RouteNetlinkMessage::SetLink(message), 0, || {
            format!("add vlan {} dev {name}", vlans.first)
        })
        .await
    }

    /// Takes these VLANs from a bridge's port.
    pub async fn delete_port_vlans(&self, name: &str, vlans: Vlans) -> Result<(), HostError> {
        let message = self.vlan_message(name, vlans).await?;
        self.change(RouteNetlinkMessage::DelLink(message), 0, || {
            format!("delete vlan {} dev {name}", vlans.first)
        })
        .await
    }

    async fn vlan_message(&self, name: &str, vlans: Vlans) -> Result<LinkMessage, HostError> {
        let both = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
        let flags = if vlans.untagged { both } else { BridgeVlanInfoFlags::empty() };
        let one = |vid, more| AfSpecBridge::VlanInfo(BridgeVlanInfo { flags: flags | more, vid });
        let list = if vlans.first == vlans.last {
            vec![one(vlans.first, BridgeVlanInfoFlags::empty())]
        } else {
            vec![
                one(vlans.first, BridgeVlanInfoFlags::RangeBegin),
                one(vlans.last, BridgeVlanInfoFlags::RangeEnd),
            ]
        };
        let mut message = self.about(name, vec![LinkAttribute::AfSpecBridge(list)]).await?;
        message.header.interface_family = AddressFamily::Bridge;
        Ok(message)
    }

    /// A message about a device by its index; messages of the bridge family know no names.
    async fn about(&self, name: &str, attributes: Vec<LinkAttribute>) -> Result<LinkMessage, HostError> {
        let mut message = LinkMessage::default();
        message.header.index = self.device_index(name, || format!("look up the device {name}")).await?;
        message.attributes = attributes;
        Ok(message)
    }
}
