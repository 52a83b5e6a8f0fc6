//! A node of ours without its daemon: engines on a lab node, told their peers by the test.
//!
//! The same devices, addresses and routes as the daemon sets: the base address on the device as /32 or /128, one route
//! for each peer's subnet.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use dataplane::{Engine, EngineConfig, EngineEvent, EngineHandle, Features, Tuning};
use dataplane_core::{
    Counters, Encap, Family, LinkMtu, Local, MacAddr, OverlayMtu, Peer, PeerTable, SourceCheck, Vni,
};
use hostnet::kernel::{Kernel, LinkSettings};
use hostnet::state::Route;
use hostnet::sysctl;
use ipnet::IpNet;
use lab::cluster::vxlan::VxlanEnd;
use lab::{Cluster, Node, PodNetwork};

use crate::{NETWORKS, account, netlink};

/// flannel's UDP port of either backend.
#[must_use]
pub fn port_of(encap: &Encap) -> u16 {
    match encap {
        Encap::Raw => 8285,
        Encap::Vxlan { .. } => 8472,
    }
}

/// VXLAN with VNI 1.
///
/// # Panics
///
/// Never: 1 fits 24 bits.
#[must_use]
pub fn vxlan() -> Encap {
    Encap::Vxlan { vni: Vni::new(1).expect("1 fits 24 bits") }
}

/// What an engine is to be.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Format on the wire.
    pub encap: Encap,
    /// MTU of the underlay in bytes.
    pub link_mtu: u16,
    /// Features forced off, beside those that `FLANNELD_ENGINE_OFF` names.
    pub off: Features,
    /// What to do with sources outside the cluster.
    pub source_check: SourceCheck,
}

impl Spec {
    /// Over an underlay of MTU 1500 with everything on.
    #[must_use]
    pub fn new(encap: Encap) -> Self {
        Self { encap, link_mtu: 1500, off: Features::NONE, source_check: SourceCheck::Strict }
    }

    /// The MTU of the overlay when its outer packets are of `family`.
    ///
    /// # Errors
    ///
    /// When the underlay's is too small.
    pub fn mtu(&self, family: Family) -> anyhow::Result<OverlayMtu> {
        OverlayMtu::over(LinkMtu(self.link_mtu), &self.encap, family).context("an underlay MTU this small")
    }
}

/// A running engine of one underlay family.
pub struct EngineNode {
    handle: EngineHandle,
}

impl EngineNode {
    /// Opens the engine in the node's namespace, sets its device up, programs routes to the peers and starts it. Device
    /// names are flannel's.
    ///
    /// # Errors
    ///
    /// When the engine cannot be opened or the kernel refuses a step.
    pub fn start(node: &Node, spec: &Spec, own: &[VxlanEnd], peers: &[VxlanEnd]) -> anyhow::Result<Self> {
        let first = own.first().context("an engine needs an end of its own")?;
        let port = port_of(&spec.encap);
        let family = Family::of(&first.public);
        let device = match (&spec.encap, family) {
            (Encap::Raw, _) => "flannel0",
            (Encap::Vxlan { .. }, Family::V4) => "flannel.1",
            (Encap::Vxlan { .. }, Family::V6) => "flannel-v6.1",
        };
        let mtu = spec.mtu(family)?;
        let config = EngineConfig {
            device: device.to_owned(),
            encap: spec.encap,
            mtu,
            bind: SocketAddr::new(first.public, port),
            off: spec.off.iter().chain(off_by_environment()?.iter()).collect(),
            source_check: spec.source_check,
            tuning: Tuning::default(),
        };
        let engine = node.namespace().run("engine-open", || Engine::open(&config))??;
        netlink::inside(node.namespace(), async |kernel: Kernel| {
            let settings = LinkSettings {
                mtu: Some(mtu.get().into()),
                tx_queue_len: Some(1000),
                addr_gen_none: true,
                ..LinkSettings::default()
            };
            kernel.set_link(device, &settings).await?;
            for end in own {
                let base = IpNet::new(end.subnet.network(), end.subnet.max_prefix_len())?;
                kernel.add_address(device, base).await?;
            }
            kernel.set_link(device, &LinkSettings { up: Some(true), ..LinkSettings::default() }).await?;
            // The engine's ICMP answers come from the device's own address, and from outside.
            sysctl::set(&format!("net/ipv4/conf/{device}/accept_local"), "1")?;
            for peer in peers {
                kernel.replace_route(&Route::new(peer.subnet, device)).await?;
            }
            Ok(())
        })?;
        let handle = engine.start(table(own, peers, port)?)?;
        Ok(Self { handle })
    }

    /// The engine's counters, complete once traffic has ended.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.handle.counters()
    }

    /// The engine itself.
    #[must_use]
    pub fn handle(&self) -> &EngineHandle {
        &self.handle
    }

    /// Waits until the counters are as they should become, at most ten seconds; they are published after each batch.
    ///
    /// # Errors
    ///
    /// The counters, when they do not.
    pub fn counted(&self, mut as_wanted: impl FnMut(&Counters) -> bool) -> anyhow::Result<Counters> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let counters = self.counters();
            if as_wanted(&counters) {
                return Ok(counters);
            }
            ensure!(Instant::now() < deadline, "it stays at {counters:?}");
            std::thread::yield_now();
        }
    }

    /// Stops it, and checks that it balances and that nothing out of the ordinary happened to it. A flood is the test's own.
    ///
    /// # Errors
    ///
    /// When the counters do not balance, the engine had ended, or the kernel refused a feature.
    pub fn stop(self) -> anyhow::Result<Counters> {
        let events = self.handle.events().try_iter().filter(|event| *event != EngineEvent::Flooded);
        let events: Vec<EngineEvent> = events.collect();
        let counters = self.handle.stop()?;
        account::balanced(&counters)?;
        ensure!(events.is_empty(), "the engine reported {events:?}");
        Ok(counters)
    }
}

/// What `FLANNELD_ENGINE_OFF` forces off in every engine of a test run.
fn off_by_environment() -> anyhow::Result<Features> {
    match std::env::var("FLANNELD_ENGINE_OFF") {
        Ok(names) => Ok(names.parse()?),
        Err(_) => Ok(Features::NONE),
    }
}

/// The table that the leases of a cluster make: ends with one public address are one peer.
///
/// # Errors
///
/// When the leases contradict each other.
pub fn table(own: &[VxlanEnd], peers: &[VxlanEnd], port: u16) -> anyhow::Result<PeerTable> {
    let local = Local {
        subnets: own.iter().map(|end| end.subnet).collect(),
        networks: NETWORKS.iter().map(|net| net.parse()).collect::<Result<_, _>>()?,
        mac: own.first().map_or_else(MacAddr::default, |end| MacAddr(end.mac)),
        addresses: own.iter().map(|end| end.subnet.network()).collect(),
    };
    let mut table: Vec<Peer> = Vec::new();
    for end in peers {
        let endpoint = SocketAddr::new(end.public, port);
        match table.iter_mut().find(|peer| peer.endpoint == endpoint) {
            Some(peer) => peer.subnets.push(end.subnet),
            None => table.push(Peer { endpoint, mac: MacAddr(end.mac), subnets: vec![end.subnet] }),
        }
    }
    Ok(PeerTable::build(local, &table)?)
}

/// Engines on the first two nodes of a cluster, IPv4 in IPv4, each told of the other, and a pod behind each.
///
/// # Errors
///
/// When there are not two nodes, an engine cannot be opened or the kernel refuses a step.
pub fn pair(cluster: &mut Cluster, spec: &Spec) -> anyhow::Result<([VxlanEnd; 2], [EngineNode; 2])> {
    let [a, b, ..] = cluster.nodes() else { bail!("two nodes") };
    let ends = [end_of(a, 0, Family::V4, Family::V4)?, end_of(b, 1, Family::V4, Family::V4)?];
    let engines = [
        EngineNode::start(a, spec, &ends[..1], &ends[1..])?,
        EngineNode::start(b, spec, &ends[1..], &ends[..1])?,
    ];
    let mtu = spec.mtu(Family::V4)?.get().into();
    for (node, end) in cluster.nodes_mut().iter_mut().zip(ends) {
        node.add_pod(&PodNetwork { subnets: vec![end.subnet], mtu })?;
    }
    Ok((ends, engines))
}

/// The end of node `index` (from 0) of a lab cluster: its subnet of `inner` and its underlay address of `outer`.
///
/// # Errors
///
/// When the node has no such address.
pub fn end_of(node: &Node, index: usize, inner: Family, outer: Family) -> anyhow::Result<VxlanEnd> {
    let number = u8::try_from(index + 1)?;
    let subnet = match inner {
        Family::V4 => format!("10.5.{number}.0/24").parse()?,
        Family::V6 => format!("fd00:5:0:{number}::/64").parse()?,
    };
    let public = match outer {
        Family::V4 => node.v4().map(IpAddr::V4),
        Family::V6 => node.v6().map(IpAddr::V6),
    };
    let kind = if outer == Family::V4 { 4 } else { 6 };
    let public = public.with_context(|| format!("{} has no {outer:?} address", node.name()))?;
    Ok(VxlanEnd { subnet, mac: [0x02, 0, 0, 0, kind, number], public })
}
