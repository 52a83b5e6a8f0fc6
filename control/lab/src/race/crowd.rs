//! One node that knows many others. All of them are addresses of the second node, where the tunnel's datagrams are counted
//! as they come: nobody there takes them apart.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use hostnet::netns::NetNs;
use ipnet::IpNet;

use super::join::{Running, flanneld};
use super::way::{Carrier, Way};
use crate::cluster::vxlan::{KernelVxlan, VxlanEnd};
use crate::cluster::{Cluster, PodNetwork};
use crate::daemons::Backend;
use crate::leases;

/// How long a daemon may take until it knows everybody: 100 000 leases take it about seven seconds alone.
const PATIENCE: Duration = Duration::from_secs(120);
/// The subnet of the node where no daemon chooses one: below those of the crowd.
const OWN_SUBNET: IpNet = IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(10, 5, 1, 0)), 26);

/// Where a crowd's datagrams go and arrive.
#[derive(Debug)]
pub(super) struct Crowd<'a> {
    /// A pod of each node of the crowd.
    pub(super) destinations: &'a [IpAddr],
    /// Where all their nodes are.
    pub(super) wire: &'a NetNs,
    /// The tunnel's UDP port.
    pub(super) port: u16,
    /// What the tunnel and the inner headers add to a UDP payload, as far as it is payload of the outer UDP.
    pub(super) overhead: usize,
}

/// The tunnel's UDP port, and what a datagram on the wire has beside the inner payload: inner IPv4 and UDP headers, and for
/// VXLAN its own header and the inner Ethernet header (RFC 7348).
pub(super) fn on_the_wire(backend: Backend) -> (u16, usize) {
    match backend {
        Backend::Udp => (8285, 20 + 8),
        Backend::Vxlan => (8472, 8 + 14 + 20 + 8),
    }
}

/// A pod's address on each node of the crowd.
pub(super) fn destinations(count: usize) -> anyhow::Result<Vec<IpAddr>> {
    let pod = |end: VxlanEnd| match end.subnet {
        IpNet::V4(subnet) => Ok(IpAddr::V4(Ipv4Addr::from(u32::from(subnet.network()) + 2))),
        IpNet::V6(subnet) => bail!("{subnet} is no IPv4 subnet"),
    };
    (0..count).map(|number| pod(leases::of_crowd(number)?)).collect()
}

/// Gives the second node all addresses of the crowd and starts the way on the first. Answers its pod's network.
pub(super) fn join(
    way: &Way,
    cluster: &Cluster,
    program: &Path,
    dir: &Path,
    count: usize,
) -> anyhow::Result<(PodNetwork, Running)> {
    let [node, others] = cluster.nodes() else { bail!("a pair has two nodes") };
    let gateway = others.v4().context("the second node has no IPv4 address")?;
    others.own_all_of(leases::CROWD_UNDERLAY)?;
    node.route(leases::CROWD_UNDERLAY, gateway)?;
    let ends: Vec<VxlanEnd> = (0..count).map(leases::of_crowd).collect::<anyhow::Result<_>>()?;
    match (&way.carrier, flanneld(way, program, dir)) {
        (Carrier::Engine { backend, .. }, Some(mut flanneld)) => {
            flanneld.network = leases::CROWD_NETWORK;
            for end in &ends {
                leases::write(&flanneld.store(), *backend, end)?;
            }
            let mut daemons = flanneld.start_on([node])?;
            let network = daemons.networks(PATIENCE, |_| {})?.into_iter().next();
            Ok((network.context("one daemon, one network")?, daemons.into()))
        }
        (Carrier::KernelVxlan { checksums }, _) => {
            let settings = KernelVxlan { udp_checksum: *checksums, ..KernelVxlan::default() };
            let public = node.v4().context("the first node has no IPv4 address")?.into();
            let own = VxlanEnd { subnet: OWN_SUBNET, mac: [0x02, 0, 0, 0, 4, 1], public };
            node.kernel_vxlan(&settings, &own, &ends)?;
            Ok((PodNetwork { subnets: vec![OWN_SUBNET], mtu: cluster.plan().mtu - 50 }, Running::default()))
        }
        _ => bail!("{way} knows no leases"),
    }
}
