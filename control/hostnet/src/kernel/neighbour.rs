//! Permanent neighbours (ARP, NDP) and the forwarding entries of VXLAN devices.
use std::net::IpAddr;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};

use super::Kernel;
use super::address::family_of;
use crate::host::HostError;
use crate::state::{FdbEntry, Mac, Neighbour};

impl Kernel {
    /// The permanent neighbours on a device, IPv4 and IPv6; `ENODEV` if there is no such device.
    pub async fn neighbours(&self, device: &str) -> Result<Vec<Neighbour>, HostError> {
        let index = self.device_index(device, || format!("list the neighbours of {device}")).await?;
        self.neighbours_by_index(device, index).await
    }

    pub(super) async fn neighbours_by_index(
        &self,
        device: &str,
        index: u32,
    ) -> Result<Vec<Neighbour>, HostError> {
        let mut request = NeighbourMessage::default();
        request.attributes.push(NeighbourAttribute::IfIndex(index));
        let entries = self.permanent_entries(request, index, "list the neighbours").await?;
        Ok(entries
            .filter(|message| message.header.family != AddressFamily::Bridge)
            .filter_map(|message| {
                let (mac, ip) = parts_of(&message);
                Some(Neighbour { device: device.to_owned(), ip: ip?, mac: mac? })
            })
            .collect())
    }

    /// The permanent entries with a destination of a VXLAN device's forwarding table; `ENODEV` if there is no such
    /// device.
    pub async fn fdb(&self, device: &str) -> Result<Vec<FdbEntry>, HostError> {
        let index = self.device_index(device, || format!("list the fdb of {device}")).await?;
        self.fdb_by_index(device, index).await
    }

    pub(super) async fn fdb_by_index(&self, device: &str, index: u32) -> Result<Vec<FdbEntry>, HostError> {
        let mut request = NeighbourMessage::default();
        request.header.family = AddressFamily::Bridge;
        request.header.ifindex = index;
        let entries = self.permanent_entries(request, index, "list the forwarding entries").await?;
        Ok(entries
            .filter(|message| message.header.family == AddressFamily::Bridge)
            .filter_map(|message| {
                let (mac, dst) = parts_of(&message);
                Some(FdbEntry { device: device.to_owned(), mac: mac?, dst: dst? })
            })
            .collect())
    }

    async fn permanent_entries(
        &self,
        request: NeighbourMessage,
        index: u32,
        action: &str,
    ) -> Result<impl Iterator<Item = NeighbourMessage> + use<>, HostError> {
        let found = self.dump(RouteNetlinkMessage::GetNeighbour(request), action).await?;
        Ok(found.into_iter().filter_map(move |message| match message {
            RouteNetlinkMessage::NewNeighbour(message)
                if message.header.ifindex == index && is_permanent(message.header.state) =>
            {
                Some(message)
            }
            _ => None,
        }))
    }

    /// Sets a permanent neighbour, in the place of any other entry of that address.
    pub async fn replace_neighbour(&self, neighbour: &Neighbour) -> Result<(), HostError> {
        let action = || format!("replace neighbour {neighbour}");
        let index = self.device_index(&neighbour.device, action).await?;
        self.change(setting_neighbour(neighbour, index), NLM_F_CREATE | NLM_F_REPLACE, action).await
    }

    /// Deletes the entry of that address; `ENOENT` if there is none.
    pub async fn delete_neighbour(&self, neighbour: &Neighbour) -> Result<(), HostError> {
        let action = || format!("delete neighbour {neighbour}");
        let index = self.device_index(&neighbour.device, action).await?;
        self.change(deleting_neighbour(neighbour, index), 0, action).await
    }

    /// Sets the one place where a VXLAN device sends frames for a MAC address.
    pub async fn replace_fdb(&self, entry: &FdbEntry) -> Result<(), HostError> {
        let action = || format!("replace fdb {entry}");
        let index = self.device_index(&entry.device, action).await?;
        self.change(setting_fdb(entry, index), NLM_F_CREATE | NLM_F_REPLACE, action).await
    }

    /// Deletes a forwarding entry; `ENOENT` if there is none with that MAC address and destination.
    pub async fn delete_fdb(&self, entry: &FdbEntry) -> Result<(), HostError> {
        let action = || format!("delete fdb {entry}");
        let index = self.device_index(&entry.device, action).await?;
        self.change(deleting_fdb(entry, index), 0, action).await
    }
}

/// `bridge fdb add` sets a second bit beside it (`NUD_NOARP`), flannel and we do not.
fn is_permanent(state: NeighbourState) -> bool {
    u16::from(state) & u16::from(NeighbourState::Permanent) != 0
}

/// The request that sets a neighbour; `index` is its device's.
pub(super) fn setting_neighbour(neighbour: &Neighbour, index: u32) -> RouteNetlinkMessage {
    let mut message = neighbour_message(neighbour, index);
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(neighbour.mac.to_vec()));
    RouteNetlinkMessage::NewNeighbour(message)
}

/// The request that deletes a neighbour.
pub(super) fn deleting_neighbour(neighbour: &Neighbour, index: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelNeighbour(neighbour_message(neighbour, index))
}

fn neighbour_message(neighbour: &Neighbour, index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = index;
    message.header.family = family_of(neighbour.ip);
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::Destination(neighbour.ip.into()));
    message
}

/// The request that sets a forwarding entry; `index` is its device's.
pub(super) fn setting_fdb(entry: &FdbEntry, index: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewNeighbour(fdb_message(entry, index))
}

/// The request that deletes a forwarding entry.
pub(super) fn deleting_fdb(entry: &FdbEntry, index: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelNeighbour(fdb_message(entry, index))
}

fn fdb_message(entry: &FdbEntry, index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = index;
    message.header.family = AddressFamily::Bridge;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(entry.mac.to_vec()),
        NeighbourAttribute::Destination(entry.dst.into()),
    ];
    message
}

fn parts_of(message: &NeighbourMessage) -> (Option<Mac>, Option<IpAddr>) {
    let mut mac = None;
    let mut ip = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            NeighbourAttribute::Destination(address) => ip = ip_of(address),
            _ => {}
        }
    }
    (mac, ip)
}

/// A forwarding entry's destination comes as bare bytes: the family of its message is that of bridges.
fn ip_of(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(ip) => Some((*ip).into()),
        NeighbourAddress::Inet6(ip) => Some((*ip).into()),
        NeighbourAddress::Other(bytes) => <[u8; 4]>::try_from(bytes.as_slice())
            .map(IpAddr::from)
            .or_else(|_not_v4| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
            .ok(),
        _ => None,
    }
}
