//! A cluster on one machine: nodes on an underlay, pods behind the nodes, all in private network namespaces.
//!
//! ```text
//!     pod-a                    pod-b                       every box is a network namespace; every line a veth pair
//!      eth0                     eth0
//!       │                        │
//!  ┌────┴─────┐             ┌────┴─────┐
//!  │   cni0   │             │   cni0   │   base + 1 of the node's subnet
//!  │ [overlay]│             │ [overlay]│   flanneld, kernel VXLAN or plain routes
//!  │   eth0   │             │   eth0   │   192.0.2.1, 2001:db8::1 ...
//!  └────┬─────┘             └────┬─────┘
//!     node-a  ──── switch ────  node-b     or, for two nodes, one veth pair between them
//! ```
//!
//! Each node and pod has a thread of its name (`node-a`, `pod-a`) that lives as long as the cluster, so that
//! [`crate::enter::enter`] finds it from another process. The default gateway of a node is an address that nobody has: a
//! packet that leaves the overlay gets nowhere, and a test notices.

mod netlink;
pub mod node;
mod obstacle;
pub mod offloads;
pub mod process;
mod resident;
mod routes;
pub mod vxlan;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hostnet::kernel::{Kernel, LinkSettings};
use hostnet::netns::NetNs;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use node::{Node, Pod, PodNetwork};
pub use process::Process;

use crate::traffic::ping::{Answer, Ping};
use netlink::in_namespace;
use resident::Resident;

/// More would leave the /24 of the underlay.
const MOST_NODES: usize = 250;

/// How long the kernel may take to bring all links up. It takes milliseconds.
const LINKS_UP: Duration = Duration::from_secs(20);

/// Which addresses the nodes have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Underlay {
    /// 192.0.2.0/24 (TEST-NET-1, RFC 5737).
    V4,
    /// 2001:db8::/64 (documentation, RFC 3849).
    V6,
    /// Both.
    Dual,
}

/// What joins the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Wiring {
    /// A bridge in a namespace of its own, as a switch would do it.
    Switch,
    /// One veth pair between two nodes: nothing but the tunnel is measured.
    Direct,
}

/// How the underlay treats large packets. Figures of the two are not comparable with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkModel {
    /// veth as it comes: packets of 64 KiB cross uncut, as between containers of one host.
    On,
    /// Cut at transmit and joined by GRO at receive, in software: as a network card without tunnel segmentation.
    Nic,
}

/// What to build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// How many nodes.
    pub nodes: usize,
    /// Their addresses.
    pub underlay: Underlay,
    /// What joins them.
    pub wiring: Wiring,
    /// How links treat large packets.
    pub model: LinkModel,
    /// MTU of the underlay in bytes.
    pub mtu: u32,
    /// Whether checksums are left to the (imagined) hardware of the nodes' links.
    pub tx_checksum: bool,
}

impl Plan {
    /// Nodes on a switch with IPv4 and IPv6, MTU 1500 and all offloads.
    pub fn nodes(nodes: usize) -> Self {
        Self {
            nodes,
            underlay: Underlay::Dual,
            wiring: Wiring::Switch,
            model: LinkModel::On,
            mtu: 1500,
            tx_checksum: true,
        }
    }

    /// Two nodes joined by one veth pair: what a benchmark wants.
    pub fn pair() -> Self {
        Self { wiring: Wiring::Direct, ..Self::nodes(2) }
    }

    fn check(&self) -> anyhow::Result<()> {
        if self.nodes == 0 || self.nodes > MOST_NODES {
            bail!("a lab has 1 to {MOST_NODES} nodes (asked: {})", self.nodes);
        }
        if self.wiring == Wiring::Direct && self.nodes != 2 {
            bail!("one veth pair joins two nodes, not {}: use the switch", self.nodes);
        }
        Ok(())
    }
}

/// A running cluster. Dropping it ends its processes and takes its namespaces away.
#[derive(Debug)]
pub struct Cluster {
    plan: Plan,
    /// Before the nodes' namespaces: processes end before what they stand on.
    nodes: Vec<Node>,
    _switch: Option<Resident>,
}

/// The answer to one ping of a [`Cluster::matrix`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    /// Name of the pod that asked.
    pub from: String,
    /// Name of the pod that was asked.
    pub to: String,
    /// The address that was asked.
    pub address: IpAddr,
    /// What came back.
    pub answer: Answer,
}

impl Cluster {
    /// Makes the namespaces, links and addresses, without pods and without an overlay.
    ///
    /// # Errors
    ///
    /// When the plan makes no sense or the kernel refuses a step; nothing is left then.
    pub fn build(plan: &Plan) -> anyhow::Result<Self> {
        plan.check()?;
        let nodes =
            (0..plan.nodes).map(|index| Node::new(index, plan)).collect::<anyhow::Result<Vec<_>>>()?;
        let switch = match plan.wiring {
            Wiring::Switch => Some(wire_to_switch(&nodes, plan)?),
            Wiring::Direct => {
                wire_directly(&nodes)?;
                None
            }
        };
        for node in &nodes {
            node.settle_underlay(plan).with_context(|| format!("set up eth0 of {}", node.name()))?;
        }
        if let Some((first, others)) = nodes.split_first() {
            let addresses = others.iter().flat_map(Node::addresses);
            await_links(first.namespace(), addresses)
                .with_context(|| format!("reach the nodes from {}", first.name()))?;
        }
        Ok(Self { plan: *plan, nodes, _switch: switch })
    }

    /// What was built.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// All nodes; the n-th is `node-a`, `node-b`, ...
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The same, to add pods to.
    pub fn nodes_mut(&mut self) -> &mut [Node] {
        &mut self.nodes
    }

    /// All pods of all nodes, in order.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.nodes.iter().flat_map(Node::pods)
    }

    fn check_subnets(&self, subnets: &[Vec<IpNet>]) -> anyhow::Result<()> {
        if subnets.len() != self.nodes.len() {
            bail!("{} nodes, but subnets for {}", self.nodes.len(), subnets.len());
        }
        Ok(())
    }

    /// Pings every address of every pod from every other pod that has an address of the family. Pods ask at the same
    /// time, each one question after the other.
    ///
    /// # Errors
    ///
    /// When no raw socket can be opened in a pod.
    pub fn matrix(&self, timeout: Duration) -> anyhow::Result<Vec<Cell>> {
        let pods: Vec<&Pod> = self.pods().collect();
        let rows = thread::scope(|scope| {
            let asking: Vec<_> = pods
                .iter()
                .map(|from| scope.spawn(|| from.ping_all(pods.iter().copied(), timeout)))
                .collect();
            let row = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            asking.into_iter().map(row).collect::<anyhow::Result<Vec<Vec<Cell>>>>()
        })?;
        Ok(rows.into_iter().flatten().collect())
    }
}

impl Pod {
    fn ping_all<'a>(
        &self,
        others: impl Iterator<Item = &'a Self>,
        timeout: Duration,
    ) -> anyhow::Result<Vec<Cell>> {
        let mut cells = Vec::new();
        for other in others.filter(|other| other.name() != self.name()) {
            for address in other.addresses().filter(|address| self.has_family_of(*address)) {
                let answer = Ping { timeout, ..Ping::new(address) }.send_from(self.namespace())?;
                let (from, to) = (self.name().to_owned(), other.name().to_owned());
                cells.push(Cell { from, to, address, answer });
            }
        }
        Ok(cells)
    }
}

/// Waits until every address answers a ping from the namespace. A device that is up may take no packets yet: the kernel
/// attaches its queue, and lets a bridge forward to it, in the background once both ends of the pair are up.
fn await_links(from: &NetNs, addresses: impl IntoIterator<Item = IpAddr>) -> anyhow::Result<()> {
    let deadline = Instant::now() + LINKS_UP;
    for address in addresses {
        let ping = Ping { timeout: Duration::from_millis(100), ..Ping::new(address) };
        loop {
            let answer = ping.send_from(from)?;
            if answer.microseconds().is_some() {
                break;
            }
            if Instant::now() > deadline {
                bail!("{address} does not answer within {LINKS_UP:?} (last: {answer:?})");
            }
            // Answers of another kind come at once, and asking again as fast would keep the kernel from its work.
            thread::sleep(Duration::from_millis(2));
        }
    }
    Ok(())
}

/// A node's addresses on the underlay; the last byte is its number, from 1.
fn underlay_addresses(index: usize, underlay: Underlay) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    // MOST_NODES fits a byte.
    let number = u8::try_from(index + 1).unwrap_or(u8::MAX);
    let v4 = Ipv4Addr::new(192, 0, 2, number);
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number));
    match underlay {
        Underlay::V4 => (Some(v4), None),
        Underlay::V6 => (None, Some(v6)),
        Underlay::Dual => (Some(v4), Some(v6)),
    }
}

/// The gateways that every node has and that do not exist.
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xfe);

/// `a` to `z`, then numbers: the part of a name that tells nodes apart.
fn letter(index: usize) -> String {
    match u8::try_from(index) {
        Ok(index) if index < 26 => char::from(b'a' + index).to_string(),
        _ => (index + 1).to_string(),
    }
}

fn wire_directly(nodes: &[Node]) -> anyhow::Result<()> {
    let [one, other] = nodes else { bail!("one veth pair joins two nodes") };
    in_namespace(one.namespace(), async |kernel: Kernel| {
        Ok(kernel.add_veth("eth0", "eth0", other.namespace()).await?)
    })
    .context("join two nodes by a veth pair")
}

fn wire_to_switch(nodes: &[Node], plan: &Plan) -> anyhow::Result<Resident> {
    let namespace = NetNs::new().context("make the namespace of the switch")?;
    netlink::settle(
        &namespace,
        &[("net/ipv6/conf/all/disable_ipv6", "1"), ("net/ipv6/conf/default/disable_ipv6", "1")],
    )
    .context("set up the switch")?;
    in_namespace(&namespace, async |kernel: Kernel| {
        kernel.add_bridge("switch").await?;
        let up = LinkSettings { up: Some(true), mtu: Some(plan.mtu), ..LinkSettings::default() };
        kernel.set_link("switch", &up).await?;
        for node in nodes {
            let port = format!("port-{}", node.letter());
            kernel.add_veth(&port, "eth0", node.namespace()).await?;
            kernel.set_link(&port, &LinkSettings { master: Some("switch".to_owned()), ..up.clone() }).await?;
        }
        Ok(())
    })
    .context("make the switch")?;
    Resident::start(namespace, "switch")
}
