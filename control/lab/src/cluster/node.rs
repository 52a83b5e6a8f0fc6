//! One node: a network namespace on the underlay, its pods, and the processes that run on it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;

use anyhow::{Context, bail};
use hostnet::kernel::{Kernel, LinkSettings};
use hostnet::netns::NetNs;
use hostnet::state::Route;
use hostnet::subnet_env::SubnetEnv;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;
use serde_json::Value;

use super::netlink::{in_namespace, settle};
use super::process::Process;
use super::resident::Resident;
use crate::cni::{Container, Runtime};
use crate::traffic::Path;

use super::{GATEWAY_V4, GATEWAY_V6, LinkModel, Plan, await_links, letter, offloads, underlay_addresses};

/// The device of a node on the underlay, and of a pod.
pub const DEVICE: &str = "eth0";
/// The bridge that a node's pods hang on, as flannel's CNI plugin calls it.
pub const POD_BRIDGE: &str = "cni0";

/// The segmentation that a network card without tunnel offloads leaves to software.
const CUT_IN_SOFTWARE: [&str; 8] = [
    "tx-tcp-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
    "tx-tcp6-segmentation",
    "tx-udp-segmentation",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-gso-list",
];

/// A machine of the cluster.
#[derive(Debug)]
pub struct Node {
    letter: String,
    name: String,
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
    /// Before the namespace, so that pods go first.
    pods: Vec<Pod>,
    resident: Resident,
}

/// A pod: a network namespace behind a node.
#[derive(Debug)]
pub struct Pod {
    name: String,
    nets: Vec<IpNet>,
    resident: Resident,
}

/// What a pod's network is made from; `subnet.env` says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PodNetwork {
    /// The node's subnets, at most one of a family. Any address in them will do.
    pub subnets: Vec<IpNet>,
    /// MTU of pods and of the bridge, in bytes.
    pub mtu: u32,
}

impl From<&SubnetEnv> for PodNetwork {
    fn from(env: &SubnetEnv) -> Self {
        Self { subnets: env.subnets.clone(), mtu: env.mtu }
    }
}

impl Node {
    pub(super) fn new(index: usize, plan: &Plan) -> anyhow::Result<Self> {
        let letter = letter(index);
        let name = format!("node-{letter}");
        let namespace = NetNs::new().with_context(|| format!("make the namespace of {name}"))?;
        settle(&namespace, &[]).with_context(|| format!("set up {name}"))?;
        let (v4, v6) = underlay_addresses(index, plan.underlay);
        Ok(Self { resident: Resident::start(namespace, &name)?, letter, name, v4, v6, pods: Vec::new() })
    }

    /// Gives the device on the underlay its addresses and features.
    pub(super) fn settle_underlay(&self, plan: &Plan) -> anyhow::Result<()> {
        in_namespace(self.namespace(), async |kernel: Kernel| {
            let up = LinkSettings { up: Some(true), mtu: Some(plan.mtu), ..LinkSettings::default() };
            kernel.set_link(DEVICE, &up).await?;
            if let Some(v4) = self.v4 {
                kernel.add_address(DEVICE, Ipv4Net::new(v4, 24)?.into()).await?;
                kernel.replace_route(&default_route(GATEWAY_V4.into())).await?;
            }
            if let Some(v6) = self.v6 {
                kernel.add_address(DEVICE, Ipv6Net::new(v6, 64)?.into()).await?;
                kernel.replace_route(&default_route(GATEWAY_V6.into())).await?;
            }
            Ok(())
        })?;
        self.namespace().run("lab-ethtool", || set_features(plan))?
    }

    /// `node-a`
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn letter(&self) -> &str {
        &self.letter
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &NetNs {
        self.resident.namespace()
    }

    /// Its IPv4 address on the underlay.
    pub fn v4(&self) -> Option<Ipv4Addr> {
        self.v4
    }

    /// Its IPv6 address on the underlay.
    pub fn v6(&self) -> Option<Ipv6Addr> {
        self.v6
    }

    /// Its addresses on the underlay.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }

    /// Plugs its cable in or pulls it out: without it nobody answers for its addresses.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn plug(&self, up: bool) -> anyhow::Result<()> {
        in_namespace(self.namespace(), async |kernel: Kernel| {
            Ok(kernel.set_link(DEVICE, &LinkSettings { up: Some(up), ..LinkSettings::default() }).await?)
        })
    }

    /// Its address of the subnet's family, by which the subnet is reached.
    pub(super) fn address_for(&self, subnet: &IpNet) -> anyhow::Result<IpAddr> {
        let address = match subnet {
            IpNet::V4(_) => self.v4.map(IpAddr::V4),
            IpNet::V6(_) => self.v6.map(IpAddr::V6),
        };
        address.with_context(|| format!("{} has no address of the family of {subnet}", self.name))
    }

    /// Its pods, in the order they were added.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Starts a process on the node; see [`Process`].
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn spawn(&self, command: Command) -> anyhow::Result<Process> {
        Process::start(self.namespace(), command).with_context(|| format!("start a process on {}", self.name))
    }

    /// Makes every address of `net` one of its own: an address of the loopback device speaks for its whole network.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub fn own_all_of(&self, net: Ipv4Net) -> anyhow::Result<()> {
        let first = Ipv4Addr::from(u32::from(net.network()).saturating_add(1));
        let address = Ipv4Net::new(first, net.prefix_len())?;
        in_namespace(self.namespace(), async |kernel: Kernel| {
            Ok(kernel.add_address("lo", address.into()).await?)
        })
        .with_context(|| format!("give {net} to {}", self.name))
    }

    /// Routes `net` by a gateway on the underlay.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub fn route(&self, net: Ipv4Net, gateway: Ipv4Addr) -> anyhow::Result<()> {
        let route = Route { via: Some(gateway.into()), ..Route::new(net.into(), DEVICE) };
        in_namespace(self.namespace(), async |kernel: Kernel| Ok(kernel.replace_route(&route).await?))
            .with_context(|| format!("route {net} on {}", self.name))
    }

    /// Adds a pod the way flannel's CNI plugin does: a veth pair to the bridge `cni0`, which has base + 1 of the subnet; the
    /// pod gets the next free address and a default route by the bridge. The first pod of node-a is `pod-a`, then `pod-a2`.
    ///
    /// # Errors
    ///
    /// When the subnet has no address left or the kernel refuses a step.
    pub fn add_pod(&mut self, network: &PodNetwork) -> anyhow::Result<&Pod> {
        let number = self.pods.len() + 1;
        let name = self.next_pod();
        let pod = self.make_pod(name.clone(), number, network).with_context(|| format!("make {name}"))?;
        Ok(self.pods.push_mut(pod))
    }

    /// Adds a pod by CNI plugins: `runtime` connects it. Its names are those of [`Node::add_pod`].
    ///
    /// # Errors
    ///
    /// What the plugins say, and when their result has no address.
    pub fn add_pod_by(&mut self, runtime: &Runtime) -> anyhow::Result<&Pod> {
        let name = self.next_pod();
        let namespace = NetNs::new()?;
        settle(&namespace, &[])?;
        settle(self.namespace(), &[])?;
        let container = Container { id: name.clone(), namespace: Some(namespace.clone()) };
        let result = self.namespace().run("lab-cni", || runtime.add(&container))??;
        let ips = result.get("ips").and_then(Value::as_array).into_iter().flatten();
        let nets: anyhow::Result<Vec<IpNet>> = ips
            .map(|ip| Ok(ip.get("address").and_then(Value::as_str).context("an address")?.parse()?))
            .collect();
        let nets = nets.with_context(|| format!("read {result}"))?;
        let pod = Pod { resident: Resident::start(namespace, &name)?, name, nets };
        Ok(self.pods.push_mut(pod))
    }

    fn next_pod(&self) -> String {
        match self.pods.len() {
            0 => format!("pod-{}", self.letter),
            others => format!("pod-{}{}", self.letter, others + 1),
        }
    }

    fn make_pod(&self, name: String, number: usize, network: &PodNetwork) -> anyhow::Result<Pod> {
        let gateways = addresses_at(&network.subnets, 1)?;
        let nets = addresses_at(&network.subnets, number + 1)?;
        let namespace = NetNs::new()?;
        settle(&namespace, &[])?;
        settle(self.namespace(), &[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])?;
        let up = LinkSettings { up: Some(true), mtu: Some(network.mtu), ..LinkSettings::default() };
        let port = format!("veth-{name}");
        in_namespace(self.namespace(), async |kernel: Kernel| {
            if kernel.link(POD_BRIDGE).await?.is_none() {
                kernel.add_bridge(POD_BRIDGE).await?;
                kernel.set_link(POD_BRIDGE, &up).await?;
                for gateway in &gateways {
                    kernel.add_address(POD_BRIDGE, *gateway).await?;
                }
            }
            kernel.add_veth(&port, DEVICE, &namespace).await?;
            let port_up = LinkSettings { master: Some(POD_BRIDGE.to_owned()), ..up.clone() };
            Ok(kernel.set_link(&port, &port_up).await?)
        })?;
        in_namespace(&namespace, async |kernel: Kernel| {
            kernel.set_link(DEVICE, &up).await?;
            for net in &nets {
                kernel.add_address(DEVICE, *net).await?;
            }
            for gateway in &gateways {
                kernel.replace_route(&default_route(gateway.addr())).await?;
            }
            Ok(())
        })?;
        await_links(&namespace, gateways.iter().map(IpNet::addr)).context("reach the bridge")?;
        Ok(Pod { resident: Resident::start(namespace, &name)?, name, nets })
    }
}

impl Pod {
    /// `pod-a`
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &NetNs {
        self.resident.namespace()
    }

    /// Its addresses, at most one of a family.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.nets.iter().map(IpNet::addr)
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> Option<IpAddr> {
        self.addresses().find(IpAddr::is_ipv4)
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> Option<IpAddr> {
        self.addresses().find(IpAddr::is_ipv6)
    }

    /// The path to another pod over IPv4, for [`crate::traffic`]; `None` where that pod has no IPv4 address.
    pub fn path_v4<'a>(&'a self, to: &'a Self) -> Option<Path<'a>> {
        Some(Path { from: self.namespace(), to: to.namespace(), address: to.v4()? })
    }

    /// The same over IPv6.
    pub fn path_v6<'a>(&'a self, to: &'a Self) -> Option<Path<'a>> {
        Some(Path { from: self.namespace(), to: to.namespace(), address: to.v6()? })
    }

    pub(super) fn has_family_of(&self, address: IpAddr) -> bool {
        self.addresses().any(|own| own.is_ipv4() == address.is_ipv4())
    }
}

/// A default route by a gateway on `eth0`.
fn default_route(gateway: IpAddr) -> Route {
    let everywhere = match gateway {
        IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
    };
    Route { via: Some(gateway), ..Route::new(everywhere, DEVICE) }
}

/// The n-th address of each subnet, with the subnet's length.
fn addresses_at(subnets: &[IpNet], number: usize) -> anyhow::Result<Vec<IpNet>> {
    subnets.iter().map(|subnet| address_at(*subnet, number)).collect()
}

fn address_at(subnet: IpNet, number: usize) -> anyhow::Result<IpNet> {
    let offset = u32::try_from(number).context("pod number")?;
    let address = match subnet.network() {
        IpAddr::V4(base) => u32::from(base).checked_add(offset).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(base) => u128::from(base).checked_add(offset.into()).map(|bits| IpAddr::V6(bits.into())),
    };
    let Some(address) = address.filter(|address| subnet.contains(address)) else {
        bail!("{subnet} has no address number {number}");
    };
    if IpAddr::is_ipv4(&address) && address == subnet.broadcast() {
        bail!("{subnet} has no address left: {address} is its broadcast address");
    }
    Ok(IpNet::new(address, subnet.prefix_len())?)
}

fn set_features(plan: &Plan) -> anyhow::Result<()> {
    if plan.model == LinkModel::Nic {
        let known = offloads::active(DEVICE)?;
        // Kernels differ in the list; what is not on need not be switched off.
        let mut changes: Vec<(&str, bool)> =
            CUT_IN_SOFTWARE.iter().filter(|name| known.contains(**name)).map(|name| (*name, false)).collect();
        changes.push(("rx-gro", true));
        offloads::set(DEVICE, &changes)?;
    }
    if !plan.tx_checksum {
        offloads::set(DEVICE, &[("tx-checksum-ip-generic", false)])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_a_subnet_end_before_its_broadcast() {
        let subnet = "10.5.72.1/30".parse().unwrap();
        assert_eq!(address_at(subnet, 1).unwrap().to_string(), "10.5.72.1/30");
        assert_eq!(address_at(subnet, 2).unwrap().to_string(), "10.5.72.2/30");
        assert!(address_at(subnet, 3).is_err());
        assert!(address_at(subnet, 4).is_err());
        let v6 = "fd00:0:0:1::1/64".parse().unwrap();
        assert_eq!(address_at(v6, 2).unwrap().to_string(), "fd00:0:0:1::2/64");
    }
}
