//! The gateways' addresses: which the result says, and the bridge that has them.

use std::net::IpAddr;
use std::time::Duration;

use hostnet::kernel::{Kernel, LinkSettings};
use hostnet::state::{Link, LinkAddress};
use hostnet::{Errno, HostError};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::config::Config;
use super::links::{MARK, set_if_there};
use crate::protocol::{AddResult, CniError, Route};

/// The bridge that flannel's configuration makes, by whichever plugin.
const FLANNELS: &str = "cni0";
/// When a bridge with a wrong address is looked at again.
const SECOND_LOOK: Duration = Duration::from_millis(200);

/// The gateways of a result, each with the length of its network's prefix.
#[derive(Debug)]
pub(super) struct Gateways(Vec<IpNet>);

impl Gateways {
    /// Completes the result: each address belongs to the container's device, has a gateway where the bridge is one, and a
    /// default route where the bridge is that.
    pub(super) fn of(config: &Config, result: &mut AddResult) -> Result<Self, CniError> {
        let mut gateways: Vec<IpNet> = Vec::new();
        for ip in &mut result.ips {
            // Behind the bridge and the host's end.
            ip.interface = Some(2);
            if ip.gateway.is_none() && config.is_gateway {
                ip.gateway = Some(first_host(ip.address)?);
            }
            let Some(gateway) = ip.gateway else { continue };
            let net = IpNet::new(gateway, ip.address.prefix_len())
                .map_err(|_| CniError::config(format!("{gateway} is no gateway of {}", ip.address)))?;
            if !gateways.contains(&net) {
                gateways.push(net);
            }
        }
        if config.is_default_gateway {
            for gateway in &gateways {
                let default = default_of(gateway.addr());
                let is_there = |route: &Route| route.dst == default && route.gateway.is_some();
                if !result.routes.iter().any(is_there) {
                    result.routes.push(Route { gateway: Some(gateway.addr()), ..Route::to(default) });
                }
            }
        }
        Ok(Self(gateways))
    }

    /// Puts the addresses on the bridge and lets the host forward. A wrong address there is replaced if the configuration
    /// says so, or if no container was on the bridge: then it is left from another subnet of this node.
    pub(super) async fn put(&self, kernel: &Kernel, config: &Config, host_end: &str) -> Result<(), CniError> {
        match self.try_put(kernel, config, host_end).await {
            // Of two containers that come to such a bridge at once the second sees the first, which puts it right.
            Err(_) => {
                tokio::time::sleep(SECOND_LOOK).await;
                self.try_put(kernel, config, host_end).await
            }
            put => put,
        }
    }

    async fn try_put(&self, kernel: &Kernel, config: &Config, host_end: &str) -> Result<(), CniError> {
        let device = config.gateway_device();
        let link = kernel.link(&device).await?;
        let link = link.ok_or_else(|| HostError::new(format!("look up {device}"), Errno::ENODEV))?;
        let there = kernel.addresses_of(&link).await?;
        let mut added = false;
        for gateway in &self.0 {
            if there.iter().any(|address| address.net == *gateway) {
                continue;
            }
            let in_the_way: Vec<_> =
                there.iter().filter(|address| self.is_in_the_way(address, gateway)).collect();
            for wrong in &in_the_way {
                // Of several, one is somebody's.
                let orphan = in_the_way.len() == 1 && is_orphan(kernel, config, host_end, wrong).await?;
                if !config.force_address && !orphan {
                    let text = format!("{device:?} already has an IP address different from {gateway}");
                    return Err(CniError::internal(text).with_details(format!(
                        "it has {}: another network's, or this node's subnet has changed and containers still have the old one. \
                         Name another bridge, delete the pods of this node, or set forceAddress",
                        wrong.net
                    )));
                }
                match kernel.delete_address(&device, wrong.net).await {
                    Err(error) if error.errno != Errno::EADDRNOTAVAIL => return Err(error.into()),
                    _ => {}
                }
            }
            kernel.add_address(&device, *gateway).await?;
            added = true;
        }
        if added && link.mac.is_some() {
            // A bridge takes the smallest address of its ports unless one was set: containers would lose their gateway
            // with every new port.
            kernel.set_link(&device, &LinkSettings { mac: link.mac, ..LinkSettings::default() }).await?;
        }
        if self.0.iter().any(|net| net.addr().is_ipv4()) {
            set_if_there("net/ipv4/ip_forward", "1")?;
        }
        if self.0.iter().any(|net| net.addr().is_ipv6()) {
            set_if_there("net/ipv6/conf/all/forwarding", "1")?;
        }
        Ok(())
    }

    /// IPv4: any other address. IPv6: one of an overlapping network, for a device has several.
    fn is_in_the_way(&self, address: &LinkAddress, gateway: &IpNet) -> bool {
        if self.0.contains(&address.net) {
            return false;
        }
        match (address.net, gateway) {
            (IpNet::V4(_), IpNet::V4(_)) => true,
            (IpNet::V6(there), IpNet::V6(wanted)) => {
                there.contains(&wanted.network()) || wanted.contains(&there.network())
            }
            _ => false,
        }
    }
}

/// Whether an address is one that a CNI plugin put there for a subnet that this node does not have any more, and that nobody
/// uses: the first one of its network, on a bridge that we made or that bears flannel's name, without containers.
async fn is_orphan(
    kernel: &Kernel,
    config: &Config,
    host_end: &str,
    address: &LinkAddress,
) -> Result<bool, CniError> {
    let bridge = kernel.link(&config.bridge).await?;
    let is_ours =
        config.bridge == FLANNELS || bridge.is_some_and(|bridge| bridge.alias.as_deref() == Some(MARK));
    let is_gateway = first_host(address.net).is_ok_and(|first| first == address.net.addr());
    Ok(is_ours && is_gateway && !is_in_use(kernel, config, host_end).await?)
}

/// Whether a container was on the bridge before the one of this ADD: devices are numbered in the order of their making.
async fn is_in_use(kernel: &Kernel, config: &Config, host_end: &str) -> Result<bool, CniError> {
    let links = kernel.links().await?;
    let bridge = links.iter().find(|link| link.name == config.bridge).map(|link| link.index);
    // The host's own way into a VLAN is a port as well.
    let own = config.vlan.and_then(|_| {
        let device = config.gateway_device();
        links.iter().find(|link| link.name == device).and_then(|link| link.peer)
    });
    let newest = links.iter().find(|link| link.name == host_end).map(|link| link.index);
    let is_older = |link: &Link| newest.is_none_or(|newest| link.index < newest);
    let is_port = |link: &Link| link.master.is_some() && link.master == bridge && Some(link.index) != own;
    Ok(links.iter().any(|link| is_port(link) && is_older(link)))
}

fn first_host(net: IpNet) -> Result<IpAddr, CniError> {
    let next = match net.network() {
        IpAddr::V4(ip) => ip.to_bits().checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(ip) => ip.to_bits().checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    };
    next.ok_or_else(|| CniError::config(format!("{net} has no room for a gateway")))
}

fn default_of(gateway: IpAddr) -> IpNet {
    match gateway {
        IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
    }
}
