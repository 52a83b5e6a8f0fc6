//! Devices on the host: the bridge, the pair's end, and what tells whose they are.

use std::time::Duration;

use hostnet::kernel::{Kernel, LinkSettings, PortSettings, Veth, Vlans};
use hostnet::netns::NetNs;
use hostnet::state::Link;
use hostnet::{Errno, HostError, sysctl};

use super::config::Config;
use super::{mac_text, names};
use crate::protocol::{Attachment, CniError, Interface, Request};
use crate::sandbox::enter;

/// The alias of a bridge that this plugin made.
pub(super) const MARK: &str = "cni bridge";
/// How many names of others are passed over.
const TRIES: u8 = 10;
/// How long both ends may take to be up.
const CARRIER: Duration = Duration::from_millis(2550);
/// How often they are looked at.
const LOOK: Duration = Duration::from_millis(5);
/// The VLAN that a port is in unless it is taken out.
const DEFAULT_VLAN: Vlans = Vlans { first: 1, last: 1, untagged: false };

/// Makes the bridge if it is not there, and what the configuration says of it. An existing one keeps its MTU: containers
/// that are on it have it too.
pub(super) async fn ensure_bridge(kernel: &Kernel, config: &Config) -> Result<(), CniError> {
    let name = &config.bridge;
    let bridge = match kernel.link(name).await? {
        Some(bridge) => bridge,
        None => make_bridge(kernel, config).await?,
    };
    if bridge.kind.as_deref() != Some("bridge") {
        let kind = bridge.kind.as_deref().unwrap_or("physical device");
        return Err(CniError::config(format!(
            "{name:?} already exists but is not a bridge (it is a {kind})"
        ))
        .with_details("name another bridge in the configuration, or remove the device"));
    }
    if config.has_vlans() {
        kernel.filter_vlans(name).await?;
    }
    if config.promiscuous && !bridge.promiscuous {
        kernel.set_promiscuous(name, true).await?;
    }
    if !bridge.up {
        // A router's advertisement must not give the host an address by a container's network.
        set_if_there(&format!("net/ipv6/conf/{name}/accept_ra"), "0")?;
        kernel.set_link(name, &LinkSettings { up: Some(true), ..LinkSettings::default() }).await?;
    }
    if let Some(vlan) = config.vlan.filter(|_| config.is_gateway) {
        ensure_vlan_gateway(kernel, config, vlan).await?;
    }
    Ok(())
}

async fn make_bridge(kernel: &Kernel, config: &Config) -> Result<Link, CniError> {
    let name = &config.bridge;
    let made = match config.has_vlans() {
        true => kernel.add_vlan_bridge(name).await,
        false => kernel.add_bridge(name).await,
    };
    match made {
        // Another ADD was first.
        Err(error) if error.errno != Errno::EEXIST => return Err(error.into()),
        _ => {}
    }
    let marked = LinkSettings { mtu: config.mtu, alias: Some(MARK.to_owned()), ..LinkSettings::default() };
    kernel.set_link(name, &marked).await?;
    kernel.link(name).await?.ok_or_else(|| HostError::new(format!("look up {name}"), Errno::ENODEV).into())
}

/// The host's own way into a VLAN of the bridge: a pair, one end a port in the VLAN, the other named `cni0.100`.
async fn ensure_vlan_gateway(kernel: &Kernel, config: &Config, vlan: u16) -> Result<(), CniError> {
    let name = config.gateway_device();
    let own = Attachment { container_id: name.clone(), ifname: String::new() };
    let port = names::host_end(&config.bridge, &own, 0);
    if kernel.link(&name).await?.is_none() {
        let here =
            NetNs::current().map_err(|error| CniError::internal(format!("open own namespace: {error}")))?;
        match kernel.add_veth(&port, &name, &here).await {
            Err(error) if error.errno != Errno::EEXIST => return Err(error.into()),
            _ => {}
        }
    }
    let settings =
        LinkSettings { mtu: config.mtu, master: Some(config.bridge.clone()), ..LinkSettings::default() };
    kernel.set_link(&port, &settings).await?;
    into_vlan(kernel, &port, vlan, config.preserve_default_vlan).await?;
    for end in [&port, &name] {
        kernel.set_link(end, &LinkSettings { up: Some(true), ..LinkSettings::default() }).await?;
    }
    Ok(())
}

async fn into_vlan(kernel: &Kernel, port: &str, vlan: u16, keep_default: bool) -> Result<(), CniError> {
    kernel.add_port_vlans(port, Vlans { first: vlan, last: vlan, untagged: true }).await?;
    if !keep_default && vlan != DEFAULT_VLAN.first {
        leave_default_vlan(kernel, port).await?;
    }
    Ok(())
}

async fn leave_default_vlan(kernel: &Kernel, port: &str) -> Result<(), CniError> {
    match kernel.delete_port_vlans(port, DEFAULT_VLAN).await {
        Err(error) if error.errno != Errno::ENOENT => Err(error.into()),
        _ => Ok(()),
    }
}

/// Makes the pair. Answers the name of the end on the host.
pub(super) async fn plug(
    kernel: &Kernel,
    config: &Config,
    request: &Request,
    namespace: &NetNs,
) -> Result<String, CniError> {
    let attachment = &request.attachment;
    let group = names::group(&request.network);
    for salt in 0..TRIES {
        let name = names::host_end(&request.network, attachment, salt);
        let (peer, mtu, mac) = (&attachment.ifname, config.mtu, config.mac);
        let veth = Veth { name: &name, peer, namespace, mtu, mac, group };
        match kernel.add_pod_veth(veth).await {
            Ok(()) => {
                set_if_there(&format!("net/ipv6/conf/{name}/accept_ra"), "0")?;
                return Ok(name);
            }
            Err(error) if error.errno == Errno::EEXIST => {}
            Err(error) => return Err(error.into()),
        }
        let ifname = attachment.ifname.clone();
        let inside = enter(namespace, async move { Ok(Kernel::connect().await?.link(&ifname).await?) })?;
        if inside.is_some() {
            return Err(CniError::internal(format!("container already has an interface named {peer:?}"))
                .with_details(
                    "an earlier ADD may have made it, or another plugin: see ip link in the container",
                ));
        }
        // The name is taken, by an ADD of the same attachment for another namespace perhaps: that one may live.
    }
    Err(CniError::internal(format!("{TRIES} names for the host's end of the pair are taken: see ip link")))
}

/// Puts the host's end on the bridge, up.
pub(super) async fn attach(kernel: &Kernel, config: &Config, name: &str) -> Result<(), CniError> {
    // Frames must not pass before VLANs and isolation are set. Where neither is, one request does both: between two of
    // them the kernel's own work after the first one holds its lock for two milliseconds.
    let is_open = !config.isolated && !config.has_vlans();
    let joined = LinkSettings {
        master: Some(config.bridge.clone()),
        up: is_open.then_some(true),
        ..LinkSettings::default()
    };
    kernel.set_link(name, &joined).await?;
    let port = PortSettings { hairpin: config.hairpin, isolated: config.isolated };
    if port != PortSettings::default() {
        kernel.set_bridge_port(name, port).await?;
    }
    if let Some(vlan) = config.vlan {
        into_vlan(kernel, name, vlan, config.preserve_default_vlan).await?;
    } else if config.has_vlans() && !config.preserve_default_vlan {
        leave_default_vlan(kernel, name).await?;
    }
    for vlans in &config.trunk {
        kernel.add_port_vlans(name, *vlans).await?;
    }
    if !is_open {
        kernel.set_link(name, &LinkSettings { up: Some(true), ..LinkSettings::default() }).await?;
    }
    Ok(())
}

/// Waits until frames pass. Both ends are up already, so that the first look is the last, usually.
pub(super) async fn await_carrier(kernel: &Kernel, name: &str) -> Result<(), CniError> {
    let look = async {
        loop {
            match kernel.link(name).await {
                Ok(Some(link)) if !link.carrier => tokio::time::sleep(LOOK).await,
                Ok(Some(_)) => return Ok(()),
                Ok(None) => return Err(HostError::new(format!("look up {name}"), Errno::ENODEV).into()),
                Err(error) => return Err(error.into()),
            }
        }
    };
    tokio::time::timeout(CARRIER, look).await.unwrap_or_else(|_elapsed| {
        Err(CniError::internal(format!(
            "bridge port in error state: {name} has no carrier after {CARRIER:?}"
        )))
    })
}

/// Deletes the host's ends of this attachment, and with them the pairs, wherever their other ends are.
pub(super) async fn unplug(kernel: &Kernel, request: &Request) -> Result<(), CniError> {
    let group = names::group(&request.network);
    for salt in 0..TRIES {
        let name = names::host_end(&request.network, &request.attachment, salt);
        match kernel.link(&name).await? {
            Some(link) if link.group == group => delete(kernel, &name).await?,
            // Somebody else's: ours has the next name, or is gone.
            Some(_) => {}
            None => return Ok(()),
        }
    }
    Ok(())
}

/// Deletes the pairs of a network that belong to no attachment of the list.
pub(super) async fn sweep(network: &str, valid: &[Attachment]) -> Result<(), CniError> {
    let kernel = Kernel::connect().await?;
    let group = names::group(network);
    let is_valid = |link: &Link| {
        valid.iter().any(|one| (0..TRIES).any(|salt| names::host_end(network, one, salt) == link.name))
    };
    let mut answer = Ok(());
    for link in kernel.links().await? {
        if link.group == group && link.kind.as_deref() == Some("veth") && !is_valid(&link) {
            answer = answer.and(delete(&kernel, &link.name).await);
        }
    }
    answer
}

/// Deletes a device, if it is there.
pub(super) async fn delete(kernel: &Kernel, name: &str) -> Result<(), CniError> {
    match kernel.delete_link(name).await {
        Err(error) if error.errno != Errno::ENODEV => Err(error.into()),
        _ => Ok(()),
    }
}

/// A device as a result tells it.
pub(super) async fn described(kernel: &Kernel, name: &str, sandbox: &str) -> Result<Interface, CniError> {
    let link = kernel.link(name).await?;
    let link =
        link.ok_or_else(|| CniError::from(HostError::new(format!("look up {name}"), Errno::ENODEV)))?;
    Ok(Interface {
        name: name.to_owned(),
        mac: link.mac.map(mac_text).unwrap_or_default(),
        mtu: link.mtu,
        sandbox: sandbox.to_owned(),
        ..Interface::default()
    })
}

/// Sets what a kernel without IPv6 does not have.
pub(super) fn set_if_there(name: &str, value: &str) -> Result<(), CniError> {
    match sysctl::set(name, value) {
        Err(error) if error.errno != Errno::ENOENT => Err(error.into()),
        _ => Ok(()),
    }
}
