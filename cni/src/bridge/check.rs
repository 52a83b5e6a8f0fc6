//! CHECK: whether what ADD said is there still is.

use std::path::Path;

use hostnet::kernel::Kernel;
use hostnet::netns::NetNs;
use hostnet::state::Link;
use hostnet::sysctl;

use super::config::Config;
use super::inside::as_pod_route;
use super::{mac_text, names};
use crate::protocol::{AddResult, CniError, Interface, Request};
use crate::sandbox::{enter, open};

/// What is found in the container.
struct Inside {
    link: Option<Link>,
    addresses: Vec<ipnet::IpNet>,
    routes: Vec<hostnet::state::Route>,
}

/// # Errors
/// The first thing that is not as ADD made it.
pub(super) async fn check(config: &Config, request: &Request, previous: &AddResult) -> Result<(), CniError> {
    let [bridge, host_end, inside] = told(request, previous)?;
    let namespace = open(&request.netns)?;
    let found = enter(&namespace, look(&request.attachment.ifname))?;
    let kernel = Kernel::connect().await?;
    let links = kernel.links().await?;
    let by_name = |name: &str| links.iter().find(|link| link.name == name);

    let actual_bridge = by_name(&config.bridge).ok_or_else(|| missing("bridge", &config.bridge))?;
    if actual_bridge.kind.as_deref() != Some("bridge") {
        return Err(CniError::check(format!("{} is not a bridge", config.bridge)));
    }
    if bridge.name != config.bridge {
        return Err(CniError::check(format!(
            "ADD used the bridge {}, the configuration names {}",
            bridge.name, config.bridge
        )));
    }
    same_mac(bridge, actual_bridge)?;
    if config.promiscuous && !actual_bridge.promiscuous {
        return Err(CniError::check(format!("{} is not promiscuous", config.bridge)));
    }
    if !actual_bridge.up {
        return Err(CniError::check(format!("{} is down", config.bridge)));
    }

    let actual_end = by_name(&host_end.name).ok_or_else(|| missing("the host's end", &host_end.name))?;
    if actual_end.master != Some(actual_bridge.index) {
        return Err(CniError::check(format!("{} is not on the bridge {}", host_end.name, config.bridge)));
    }
    same_mac(host_end, actual_end)?;

    let actual = found.link.as_ref().ok_or_else(|| missing("the container's device", &inside.name))?;
    same_mac(inside, actual)?;
    if actual.peer != Some(actual_end.index) {
        return Err(CniError::check(format!(
            "{} and {} are not the ends of one pair",
            inside.name, host_end.name
        )));
    }
    let is_up = actual.up && actual_end.up;
    if !config.disable_container_interface && !is_up {
        return Err(CniError::check(format!("{} or {} is down", inside.name, host_end.name)));
    }
    if inside.mtu > 0 && inside.mtu != actual.mtu {
        let text = format!("{} has the MTU {}, ADD told {}", inside.name, actual.mtu, inside.mtu);
        return Err(CniError::check(text));
    }
    if config.is_gateway {
        check_gateways(&kernel, config, previous).await?;
    }
    for ip in &previous.ips {
        if !found.addresses.contains(&ip.address) {
            return Err(CniError::check(format!("{} does not have the address {}", inside.name, ip.address)));
        }
    }
    for route in &previous.routes {
        // Routes of other tables are not read.
        let wanted = as_pod_route(route, previous);
        let is_it =
            |found: &hostnet::state::Route| found.dest == wanted.dest.trunc() && found.via == wanted.via;
        if wanted.table.is_none() && !found.routes.iter().any(is_it) {
            return Err(CniError::check(format!("the container has no route to {}", route.dst)));
        }
    }
    if config.ip_masq {
        config.masquerade(request, previous).check().await?;
    }
    if config.mac_spoof_check {
        super::spoof::check(&request.network, &request.attachment).await?;
    }
    Ok(())
}

/// The bridge has the gateways' addresses, and the host forwards.
async fn check_gateways(kernel: &Kernel, config: &Config, previous: &AddResult) -> Result<(), CniError> {
    let device = config.gateway_device();
    let link = kernel.link(&device).await?.ok_or_else(|| missing("the gateway's device", &device))?;
    let there = kernel.addresses_of(&link).await?;
    for gateway in previous.ips.iter().filter_map(|ip| ip.gateway) {
        if !there.iter().any(|address| address.net.addr() == gateway) {
            return Err(CniError::check(format!("{device} does not have the gateway's address {gateway}")));
        }
        let setting = if gateway.is_ipv4() { "net/ipv4/ip_forward" } else { "net/ipv6/conf/all/forwarding" };
        // A kernel without IPv6 has no such setting.
        if sysctl::read(setting).is_ok_and(|value| value == "0") {
            return Err(CniError::check(format!("the host does not forward: {setting} is 0")));
        }
    }
    Ok(())
}

/// The three devices that ADD told.
fn told<'a>(request: &Request, previous: &'a AddResult) -> Result<[&'a Interface; 3], CniError> {
    let host_names: Vec<String> =
        (0..10).map(|salt| names::host_end(&request.network, &request.attachment, salt)).collect();
    let outside = || previous.interfaces.iter().filter(|one| one.sandbox.is_empty());
    let is_end = |one: &&Interface| host_names.contains(&one.name) || one.name.starts_with("veth");
    let end = outside().find(is_end);
    let bridge = outside().find(|one| end != Some(*one));
    let is_inside = |one: &&Interface| {
        one.name == request.attachment.ifname && same_namespace(&one.sandbox, &request.netns)
    };
    let inside = previous.interfaces.iter().find(is_inside);
    match (bridge, end, inside) {
        (Some(bridge), Some(end), Some(inside)) => Ok([bridge, end, inside]),
        _ => Err(CniError::check(format!(
            "prevResult does not tell the bridge, the host's end and {} in {}",
            request.attachment.ifname, request.netns
        ))),
    }
}

fn same_namespace(one: &str, other: &str) -> bool {
    one == other
        || (Path::new(one).canonicalize().ok() == Path::new(other).canonicalize().ok()
            && NetNs::open(Path::new(one)).is_ok())
}

async fn look(ifname: &str) -> Result<Inside, CniError> {
    let kernel = Kernel::connect().await?;
    let addresses = kernel.addresses().await?;
    Ok(Inside {
        link: kernel.link(ifname).await?,
        addresses: addresses
            .into_iter()
            .filter(|address| address.device == ifname)
            .map(|address| address.net)
            .collect(),
        routes: kernel.routes().await?.into_iter().filter(|route| route.device == ifname).collect(),
    })
}

fn same_mac(told: &Interface, actual: &Link) -> Result<(), CniError> {
    let found = actual.mac.map(mac_text).unwrap_or_default();
    match told.mac.is_empty() || told.mac.eq_ignore_ascii_case(&found) {
        true => Ok(()),
        false => Err(CniError::check(format!(
            "{} has the hardware address {found}, ADD told {}",
            told.name, told.mac
        ))),
    }
}

fn missing(what: &str, name: &str) -> CniError {
    CniError::check(format!("{what} {name} is not there"))
}
