//! From settings to a node that forwards packets, in an order that leaves nothing half done: what can fail for want of
//! a right, a port or a name fails before the lease is published.

use std::net::IpAddr;

use anyhow::bail;
use dataplane::{Engine, EngineConfig};
use dataplane_core::{Family, MacAddr};
use hostnet::kernel::{Kernel, Watch};
use hostnet::subnet_env::Previous;

use super::Node;
use super::instance::Instance;
use super::node::Carrier;
use crate::backend::{Backend, Tunnel, mac};
use crate::lease::{BackendData, Lease, LeaseSet, LeaseUpdate, Subnet};
use crate::network::{BackendConfig, NetworkConfig};
use crate::settings::Settings;
use crate::store::{LeaseRequest, LeaseStore, LeaseWatch};
use crate::underlay::{Families, HostView, Underlay};

pub(super) async fn start(
    settings: &Settings,
    instance: &mut Instance,
    store: &impl LeaseStore,
) -> anyhow::Result<Node> {
    let network = store.network().await?;
    for notice in &network.notices {
        tracing::warn!(at = %notice.at, "network configuration: {}", notice.text);
    }
    tracing::info!("Found network config - Backend type: {}", network.backend.name());
    let kernel = Kernel::connect().await?;
    let underlay = choose_underlay(settings, &network, &kernel).await?;
    tracing::info!(mtu = underlay.mtu.0, "Using interface {underlay}");
    for doubt in doubts(&network, &underlay) {
        tracing::warn!("network configuration: {doubt}");
    }

    let (backend, held) = settle_backend(settings, store, &network, &underlay).await?;
    let mut carriers = Vec::new();
    for tunnel in backend.tunnels() {
        instance.hold(&tunnel.device)?;
        let engine = open_engine(settings, &kernel, tunnel).await?;
        if carriers.is_empty() {
            for line in engine.capabilities().to_string().lines() {
                tracing::info!("engine {line}");
            }
        }
        carriers.push(Carrier::open(tunnel.clone(), engine));
    }

    let previous = previous_subnet(settings);
    let request = LeaseRequest { attrs: backend.attrs(), previous };
    let own = store.acquire(&network, &request).await?;
    let again = held.is_some_and(|held| held.subnet == own.subnet) || previous == Some(own.subnet);
    tracing::info!(subnet = %own.subnet, again, reservation = own.expires.is_none(), "Lease acquired");

    let names = backend.tunnels().iter().map(|tunnel| tunnel.device.clone());
    let watch = Watch::open(names.chain([underlay.device.clone()])).await?;
    let mut leases = LeaseSet::new(own.subnet);
    leases.apply(store.watch().await?.next().await);
    let mut node =
        Node::new((settings.clone(), network), (kernel, watch), underlay, backend, own, leases, carriers);
    node.bring_up().await?;
    Ok(node)
}

/// Opens the engine of a tunnel, and explains a device of our name that is none of ours.
pub(super) async fn open_engine(
    settings: &Settings,
    kernel: &Kernel,
    tunnel: &Tunnel,
) -> anyhow::Result<Engine> {
    if let Some(link) = kernel.link(&tunnel.device).await? {
        match link.kind.as_deref() {
            // One of our own that outlives its process, or one that a running process holds: opening it tells.
            Some("tun") => {}
            kind => bail!(
                "there is a device named {device} already, of kind {kind}, and this node needs the name for its own TUN \
                 device. flannel leaves its kernel VXLAN device behind when it stops: stop what made it, then remove it \
                 with: ip link delete {device}",
                device = tunnel.device,
                kind = kind.unwrap_or("physical"),
            ),
        }
    }
    let config = EngineConfig {
        device: tunnel.device.clone(),
        encap: tunnel.encap,
        mtu: tunnel.mtu,
        bind: tunnel.bind,
        off: settings.engine_off,
        source_check: settings.source_check,
        tuning: settings.tuning.clone(),
    };
    Ok(Engine::open(&config)?)
}

async fn choose_underlay(
    settings: &Settings,
    network: &NetworkConfig,
    kernel: &Kernel,
) -> anyhow::Result<Underlay> {
    let reach = match settings.interface.can_reach {
        Some(ip) => kernel.route_to(ip).await?,
        None => None,
    };
    let host = HostView {
        links: kernel.links().await?,
        addresses: kernel.addresses().await?,
        routes: kernel.routes().await?,
        reach,
    };
    let families = Families { v4: network.v4.is_some(), v6: network.v6.is_some() };
    Ok(Underlay::choose(&settings.interface, families, &host)?)
}

/// What flannel takes without a word too, and what hardly anybody can have meant.
fn doubts(network: &NetworkConfig, underlay: &Underlay) -> Vec<String> {
    let mut doubts = Vec::new();
    let ends = [underlay.v4.map(|end| end.local.into()), underlay.v6.map(|end| end.local.into())];
    for end in ends.into_iter().flatten() {
        if let Some(pool) = network.pools().find(|pool| pool.network().contains::<&IpAddr>(&end)) {
            doubts.push(format!(
                "the pod network {} holds this node's own address {end}: a lease can take the way between nodes. \
                 Give pods a network that nothing else uses",
                pool.network()
            ));
        }
    }
    if let BackendConfig::Vxlan { mtu: Some(mtu), .. } = network.backend
        && mtu > underlay.mtu.0
    {
        doubts.push(format!(
            "Backend MTU {mtu} is more than the {} of {}: large packets travel in fragments. Leave it out, or give \
             the interface that MTU",
            underlay.mtu.0, underlay.device
        ));
    }
    doubts
}

/// The backend with its VtepMACs, and the lease of an earlier run if there is one.
async fn settle_backend(
    settings: &Settings,
    store: &impl LeaseStore,
    network: &NetworkConfig,
    underlay: &Underlay,
) -> anyhow::Result<(Backend, Option<Lease>)> {
    let anonymous = Backend::new(network, underlay, |_| MacAddr::default())?;
    let held = match anonymous.attrs().owner() {
        Some(owner) => store.held_by(owner).await?,
        None => None,
    };
    let Some(devices) = Backend::vtep_devices(&network.backend) else { return Ok((anonymous, held)) };
    let leased = |family| match held.as_ref().map(|lease| &lease.attrs.backend) {
        Some(BackendData::Vxlan { v4, v6 }) => match family {
            Family::V4 => v4.map(|data| data.mac),
            Family::V6 => v6.map(|data| data.mac),
        },
        _ => None,
    };
    let used = devices
        .into_iter()
        .filter(|(family, _)| anonymous.tunnels().iter().any(|tunnel| tunnel.family == *family));
    let mut macs = Vec::new();
    let taken = macs_of_others(store, held.as_ref()).await?;
    for (family, device) in used {
        let file = mac::path(&settings.subnet_file, &device);
        let (address, source) = mac::settle(leased(family), &file, &taken, &mut fastrand::Rng::new());
        if source != mac::MacSource::File
            && let Err(error) = mac::remember(address, &file)
        {
            tracing::warn!(file = %file.display(), %error, "cannot remember the VtepMAC; the lease does");
        }
        tracing::info!(device, mac = %address, "VtepMAC {source}");
        macs.push((family, address));
    }
    let mac = |family| macs.iter().find(|(of, _)| *of == family).map(|(_, mac)| *mac).unwrap_or_default();
    Ok((Backend::new(network, underlay, mac)?, held))
}

/// The VtepMACs in every lease but our own.
async fn macs_of_others(store: &impl LeaseStore, own: Option<&Lease>) -> anyhow::Result<Vec<MacAddr>> {
    let LeaseUpdate::Snapshot(leases) = store.watch().await?.next().await else { return Ok(Vec::new()) };
    let others = leases.iter().filter(|lease| own.is_none_or(|own| own.subnet != lease.subnet));
    Ok(others
        .filter_map(|lease| match lease.attrs.backend {
            BackendData::Vxlan { v4, v6 } => Some([v4, v6]),
            _ => None,
        })
        .flatten()
        .flatten()
        .map(|data| data.mac)
        .collect())
}

/// What subnet.env says from the last run.
fn previous_subnet(settings: &Settings) -> Option<Subnet> {
    let previous = Previous::read(&settings.subnet_file);
    for problem in &previous.problems {
        tracing::warn!(file = %settings.subnet_file.display(), "passed over in the last run's subnet.env: {problem}");
    }
    let v4 = previous.subnets.iter().find_map(|net| match net {
        dataplane_core::IpNet::V4(v4) => Some(*v4),
        dataplane_core::IpNet::V6(_) => None,
    });
    let v6 = previous.subnets.iter().find_map(|net| match net {
        dataplane_core::IpNet::V6(v6) => Some(*v6),
        dataplane_core::IpNet::V4(_) => None,
    });
    Subnet::new(v4, v6)
}

#[cfg(test)]
mod tests {
    use dataplane_core::LinkMtu;

    use super::*;
    use crate::underlay::End;

    #[test]
    fn what_hardly_anybody_means_is_doubted() {
        let local = "192.0.2.7".parse().unwrap();
        let underlay = Underlay {
            device: "eth0".to_owned(),
            index: 2,
            mtu: LinkMtu(1500),
            v4: Some(End { local, public: local }),
            v6: None,
        };
        let about = |text: &str| doubts(&NetworkConfig::parse(text.as_bytes()).unwrap(), &underlay);
        let fine = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "MTU": 1500}}"#;
        assert!(about(fine).is_empty());
        let overlap = about(r#"{"Network": "192.0.0.0/16"}"#);
        assert!(overlap[0].contains("192.0.0.0/16 holds this node's own address 192.0.2.7"), "{overlap:?}");
        let jumbo = about(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "MTU": 9000}}"#);
        assert!(jumbo[0].contains("MTU 9000 is more than the 1500 of eth0"), "{jumbo:?}");
    }
}
