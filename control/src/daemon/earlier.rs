//! What earlier runs left behind: devices of this project or of flannel, of another backend or another VNI.
//!
//! A device is one of these if it has a name and a kind that they give, and either bears this project's mark (its alias)
//! or an address of the cluster's networks, which nothing but an overlay of the cluster has.

use dataplane_core::IpNet;
use hostnet::kernel::{Kernel, PROBE};
use hostnet::state::{Link, LinkAddress};
use hostnet::{Errno, HostError};

use crate::backend::{ALIAS, Backend};

/// The devices of earlier runs, those that this one uses too among them.
pub(super) async fn devices(kernel: &Kernel, backend: &Backend) -> Result<Vec<Link>, HostError> {
    let mut links = kernel.links().await?;
    let addresses = kernel.addresses().await?;
    let networks: Vec<IpNet> = backend.networks().collect();
    let own: Vec<&str> = backend.tunnels().iter().map(|tunnel| tunnel.device.as_str()).collect();
    links.retain(|link| own.contains(&link.name.as_str()) || is_ours(link, &addresses, &networks));
    Ok(links)
}

/// Deletes those that this run does not use. One that a running process holds is its process's.
pub(super) async fn remove(kernel: &Kernel, backend: &Backend) -> Result<(), HostError> {
    for link in devices(kernel, backend).await? {
        let used = backend.tunnels().iter().any(|tunnel| tunnel.device == link.name);
        let held = link.kind.as_deref() == Some("tun") && link.carrier;
        if used || held {
            continue;
        }
        tracing::info!(device = link.name, kind = link.kind, "removing a device of an earlier run");
        delete(kernel, &link.name).await?;
    }
    Ok(())
}

/// Deletes a device, which may be gone meanwhile.
pub(super) async fn delete(kernel: &Kernel, device: &str) -> Result<(), HostError> {
    match kernel.delete_link(device).await {
        Err(error) if error.errno == Errno::ENODEV => Ok(()),
        deleted => deleted,
    }
}

fn is_ours(link: &Link, addresses: &[LinkAddress], networks: &[IpNet]) -> bool {
    let inside = |address: &LinkAddress| {
        address.index == link.index && networks.iter().any(|network| network.contains(&address.net.addr()))
    };
    is_our_kind(&link.name, link.kind.as_deref())
        && (link.name == PROBE || link.alias.as_deref() == Some(ALIAS) || addresses.iter().any(inside))
}

/// Names and kinds of flannel's devices and ours.
fn is_our_kind(name: &str, kind: Option<&str>) -> bool {
    let numbered = |prefix| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
    };
    match kind {
        Some("vxlan") => numbered("flannel.") || numbered("flannel-v6.") || name == PROBE,
        Some("tun") => numbered("flannel") || numbered("flannel.") || numbered("flannel-v6."),
        Some("wireguard") => name == "flannel-wg" || name == "flannel-wg-v6",
        Some("ipip") => name == "flannel.ipip",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, kind: &str, alias: Option<&str>) -> Link {
        let (kind, alias) = (Some(kind.to_owned()), alias.map(str::to_owned));
        Link { index: 7, name: name.to_owned(), kind, alias, ..Link::default() }
    }

    fn address(net: &str) -> LinkAddress {
        LinkAddress::new(7, "", net.parse().unwrap())
    }

    #[test]
    fn ours_is_what_has_our_name_and_our_mark_or_an_address_of_the_cluster() {
        let networks = ["10.5.0.0/16".parse().unwrap()];
        let ours = |link: &Link, addresses: &[LinkAddress]| is_ours(link, addresses, &networks);
        let inside = [address("10.5.1.0/32")];
        for (name, kind) in [
            ("flannel.1", "vxlan"),
            ("flannel-v6.4096", "vxlan"),
            ("flannel.1", "tun"),
            ("flannel0", "tun"),
            ("flannel-wg", "wireguard"),
            ("flannel.ipip", "ipip"),
        ] {
            assert!(ours(&link(name, kind, Some(ALIAS)), &[]), "{name}");
            assert!(ours(&link(name, kind, None), &inside), "{name}");
            assert!(!ours(&link(name, kind, None), &[address("10.6.1.0/32")]), "{name} of another network");
            assert!(!ours(&link(name, kind, Some("mine")), &[]), "{name}");
        }
        for (name, kind) in
            [("eth0", "tun"), ("flannel.x", "vxlan"), ("flannel1", "bridge"), ("flannel.", "vxlan")]
        {
            assert!(!ours(&link(name, kind, Some(ALIAS)), &inside), "{name}");
        }
    }
}
