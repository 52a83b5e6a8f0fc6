//! Kernel VXLAN on a node, programmed the way flannel programs it: the peer that the engine must not be told from.
//!
//! One device a family: `flannel.<VNI>` carries IPv4 over IPv4, `flannel-v6.<VNI>` IPv6 over IPv6. For each peer a
//! permanent neighbour (base address → MAC), a forwarding entry (MAC → node address) and a route by the base address,
//! marked onlink because no address of the device covers it. The device has its own base address as /32 or /128.

use std::net::IpAddr;

use anyhow::{Context, bail};
use hostnet::kernel::{Kernel, LinkSettings, Vxlan};
use hostnet::state::{FdbEntry, Neighbour, Route};
use hostnet::sysctl;
use ipnet::IpNet;

use super::netlink::in_namespace;
use super::node::DEVICE;
use super::{Cluster, Node, PodNetwork};

/// Settings that all nodes of an overlay share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelVxlan {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// Whether datagrams over IPv4 carry a UDP checksum, which is the kernel's default. Over IPv6 they always do: receivers
    /// drop a zero one (RFC 6935 needs it allowed explicitly, and flannel does not).
    pub udp_checksum: bool,
}

impl Default for KernelVxlan {
    /// flannel's: VNI 1, port 8472, with checksums.
    fn default() -> Self {
        Self { vni: 1, port: 8472, udp_checksum: true }
    }
}

/// One node's end of one family, as its lease publishes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanEnd {
    /// The node's pod subnet. Its base address names the node inside the overlay.
    pub subnet: IpNet,
    /// MAC address of the VXLAN device (`VtepMAC`).
    pub mac: [u8; 6],
    /// The node's address on the underlay (`PublicIP`).
    pub public: IpAddr,
}

impl KernelVxlan {
    fn device(&self, end: &VxlanEnd) -> String {
        let infix = if end.subnet.addr().is_ipv4() { "" } else { "-v6" };
        format!("flannel{infix}.{}", self.vni)
    }
}

impl Node {
    /// Makes the VXLAN device of `own`'s family and programs `peers` of the same family.
    ///
    /// # Errors
    ///
    /// When families are mixed, or the kernel refuses a step (`EOPNOTSUPP`: it has no VXLAN).
    pub fn kernel_vxlan(
        &self,
        settings: &KernelVxlan,
        own: &VxlanEnd,
        peers: &[VxlanEnd],
    ) -> anyhow::Result<()> {
        let family = own.subnet.addr().is_ipv4();
        if own.public.is_ipv4() != family || peers.iter().any(|peer| peer.subnet.addr().is_ipv4() != family) {
            bail!("flannel carries IPv4 pods over IPv4 and IPv6 pods over IPv6: {own:?}, {peers:?}");
        }
        let device = settings.device(own);
        in_namespace(self.namespace(), async |kernel: Kernel| {
            let underlay = kernel.link(DEVICE).await?.context("the node has no eth0")?;
            kernel
                .add_vxlan(&Vxlan {
                    local: Some(own.public),
                    device: Some(DEVICE.to_owned()),
                    // Over IPv6 too, where the kernel makes it 70.
                    mtu: Some(underlay.mtu - 50),
                    mac: Some(own.mac),
                    udp_checksum: settings.udp_checksum,
                    ..Vxlan::new(device.as_str(), settings.vni, settings.port)
                })
                .await?;
            // Refused on a kernel without IPv6, where no router advertisement comes either.
            sysctl::set(&format!("net/ipv6/conf/{device}/accept_ra"), "0").ok();
            let (base, host) = (own.subnet.network(), own.subnet.max_prefix_len());
            kernel.add_address(&device, IpNet::new(base, host)?).await?;
            kernel.set_link(&device, &LinkSettings { up: Some(true), ..LinkSettings::default() }).await?;
            for peer in peers {
                let (ip, device) = (peer.subnet.network(), device.clone());
                let neighbour = Neighbour { device: device.clone(), ip, mac: peer.mac };
                kernel.replace_neighbour(&neighbour).await?;
                let entry = FdbEntry { device: device.clone(), mac: peer.mac, dst: peer.public };
                kernel.replace_fdb(&entry).await?;
                let route = Route { via: Some(ip), onlink: true, ..Route::new(peer.subnet, device) };
                kernel.replace_route(&route).await?;
            }
            Ok(())
        })
        .with_context(|| format!("make {device} on {}", self.name()))
    }
}

impl Cluster {
    /// Joins all nodes by kernel VXLAN. `subnets` are those of the first node, of the second, ... Answers what each
    /// node's pods are to be made from.
    ///
    /// # Errors
    ///
    /// As [`Node::kernel_vxlan`].
    pub fn kernel_vxlan(
        &self,
        settings: &KernelVxlan,
        subnets: &[Vec<IpNet>],
    ) -> anyhow::Result<Vec<PodNetwork>> {
        self.check_subnets(subnets)?;
        let mut ends = Vec::new();
        for (index, (node, subnets)) in self.nodes().iter().zip(subnets).enumerate() {
            for subnet in subnets {
                let public = node.address_for(subnet)?;
                let kind = if public.is_ipv4() { 4 } else { 6 };
                // MOST_NODES fits a byte. The first byte marks the address as locally administered.
                ends.push((
                    index,
                    VxlanEnd { subnet: *subnet, mac: [0x02, 0, 0, 0, kind, index as u8], public },
                ));
            }
        }
        for (index, own) in &ends {
            let is_peer = |end: &&(usize, VxlanEnd)| {
                end.0 != *index && end.1.subnet.addr().is_ipv4() == own.subnet.addr().is_ipv4()
            };
            let peers: Vec<VxlanEnd> = ends.iter().filter(is_peer).map(|end| end.1).collect();
            self.nodes()[*index].kernel_vxlan(settings, own, &peers)?;
        }
        let carries_v6 = ends.iter().any(|(_, end)| end.public.is_ipv6());
        let mtu = self.plan().mtu - if carries_v6 { 70 } else { 50 };
        Ok(subnets.iter().map(|subnets| PodNetwork { subnets: subnets.clone(), mtu }).collect())
    }
}

/// Pod subnets for `nodes` nodes as flannel would hand them out: 10.5.1.0/24, 10.5.2.0/24, ... and, if asked,
/// fd00:5:0:1::/64, fd00:5:0:2::/64, ...
pub fn subnets(nodes: usize, v4: bool, v6: bool) -> Vec<Vec<IpNet>> {
    let one = |index: usize| {
        // At most MOST_NODES nodes, so the number fits a byte.
        let number = u8::try_from(index + 1).unwrap_or(u8::MAX);
        let four = v4.then(|| IpNet::new_assert(IpAddr::from([10, 5, number, 0]), 24));
        let six =
            v6.then(|| IpNet::new_assert(IpAddr::from([0xfd00, 5, 0, u16::from(number), 0, 0, 0, 0]), 64));
        four.into_iter().chain(six).collect()
    };
    (0..nodes).map(one).collect()
}
