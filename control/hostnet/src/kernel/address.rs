//! Addresses on devices. IPv6 ones are usable at once: duplicate address detection is left out, because who sets an
//! address here owns it by a lease.
use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};

use super::Kernel;
use crate::host::HostError;
use crate::state::{Link, LinkAddress, RouteScope};

impl Kernel {
    /// All addresses of all devices, IPv4 and IPv6.
    pub async fn addresses(&self) -> Result<Vec<LinkAddress>, HostError> {
        self.addresses_on(&self.device_names().await?).await
    }

    /// The addresses of one device. The kernel lists no others (Linux 4.20), so that it costs the same among thousands.
    pub async fn addresses_of(&self, link: &Link) -> Result<Vec<LinkAddress>, HostError> {
        let mut request = AddressMessage::default();
        request.header.index = link.index;
        let found = self.dump(RouteNetlinkMessage::GetAddress(request), "list the addresses").await?;
        let addresses = found.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(message) => address_of(&message),
            _ => None,
        });
        Ok(addresses
            .filter(|address| address.index == link.index)
            .map(|address| LinkAddress { device: link.name.clone(), ..address })
            .collect())
    }

    pub(super) async fn addresses_on(
        &self,
        names: &BTreeMap<u32, String>,
    ) -> Result<Vec<LinkAddress>, HostError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let found = self.dump(request, "list the addresses").await?;
        let addresses = found.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(message) => address_of(&message),
            _ => None,
        });
        // A device that came after the names were listed has no name here: its addresses belong to the next reading.
        Ok(addresses
            .filter_map(|address| {
                let device = names.get(&address.index)?.clone();
                Some(LinkAddress { device, ..address })
            })
            .collect())
    }

    /// Puts an address on a device. The kernel adds the route to `net` itself (none for a /32 or /128). It is no error
    /// if the address is there.
    pub async fn add_address(&self, device: &str, net: IpNet) -> Result<(), HostError> {
        let action = || format!("add address {net} dev {device}");
        let index = self.device_index(device, action).await?;
        self.change(adding(index, net), NLM_F_CREATE | NLM_F_REPLACE, action).await
    }

    /// Takes an address off a device; `EADDRNOTAVAIL` if it is not there. With the first IPv4 address of a subnet the
    /// kernel also removes the others of that subnet, unless the sysctl `promote_secondaries` is set.
    pub async fn delete_address(&self, device: &str, net: IpNet) -> Result<(), HostError> {
        let action = || format!("delete address {net} dev {device}");
        let index = self.device_index(device, action).await?;
        self.change(deleting(index, net), 0, action).await
    }
}

/// The request that puts an address on the device with this index.
pub(super) fn adding(index: u32, net: IpNet) -> RouteNetlinkMessage {
    let mut message = message_of(index, net);
    if net.addr().is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    RouteNetlinkMessage::NewAddress(message)
}

/// The request that takes an address off the device with this index.
pub(super) fn deleting(index: u32, net: IpNet) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelAddress(message_of(index, net))
}

fn message_of(index: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = net.prefix_len();
    message.header.family = family_of(net.addr());
    message.attributes = vec![AddressAttribute::Local(net.addr()), AddressAttribute::Address(net.addr())];
    message
}

pub(super) fn family_of(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// The address of a message, without the device's name.
fn address_of(message: &AddressMessage) -> Option<LinkAddress> {
    let mut local = None;
    let mut plain = None;
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => plain = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    // On a point-to-point device the plain address is the far end's; IPv6 has no local one otherwise.
    let ip = local.or(plain)?;
    Some(LinkAddress {
        index: message.header.index,
        device: String::new(),
        net: IpNet::new(ip, message.header.prefix_len).ok()?,
        scope: RouteScope(message.header.scope.into()),
        permanent: flags.contains(AddressFlags::Permanent),
        secondary: flags.contains(AddressFlags::Secondary),
        deprecated: flags.contains(AddressFlags::Deprecated),
        tentative: flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed),
    })
}
