//! A kernel VXLAN node, programmed as flannel does it, cannot tell our node from flannel.
//!
//! Node a is the kernel's, node b ours, one veth pair between them. Over a veth whose offloads are on, the kernel hands
//! superpackets and unfinished checksums across the wire as they are; with the `Nic` model it cuts and joins them in
//! software, as a network card without tunnel offloads would.

use std::process::ExitCode;

use anyhow::Context;
use dataplane::Features;
use dataplane_core::{Counters, DropReason, Family};
use lab::cluster::vxlan::KernelVxlan;
use lab::{Cluster, LinkModel, Plan, PodNetwork, Scene, Underlay};
use promises::engine::{EngineNode, Spec, end_of, vxlan};
use promises::{account, harness, reach};

fn main() -> ExitCode {
    harness::of_engines(
        "promise-interop",
        lab::cases![
            offloaded_underlay_v4,
            offloaded_underlay_v4_without_outer_checksums,
            offloaded_underlay_v6,
            checksums_in_software_v4,
            checksums_in_software_v6,
            segmentation_in_software_v4,
            segmentation_in_software_v4_without_outer_checksums,
            segmentation_in_software_v6,
            engine_without_any_feature_v4,
            engine_without_any_feature_v6,
            jumbo_underlay_v4,
            a_pod_with_a_narrower_link_takes_what_the_kernel_left_whole,
        ],
    )
}

/// One combination of what a kernel peer and the wire between can be.
#[derive(Clone, Copy)]
struct Shape {
    family: Family,
    model: LinkModel,
    mtu: u16,
    tx_checksum: bool,
    outer_checksum: bool,
    off: Features,
    /// The MTU of the pod behind the engine; the overlay's if `None`.
    our_pods_mtu: Option<u32>,
}

impl Shape {
    const OFFLOADED: Self = Self {
        family: Family::V4,
        model: LinkModel::On,
        mtu: 1500,
        tx_checksum: true,
        outer_checksum: true,
        off: Features::NONE,
        our_pods_mtu: None,
    };
}

fn offloaded_underlay_v4(_: &Scene) -> anyhow::Result<()> {
    let counters = everything_flows(Shape::OFFLOADED)?;
    // This is what the kernel does over a veth, and the reason for this test: were it not so, it would test nothing.
    assert!(counters.unfinished_checksums > 0, "{counters:?}");
    Ok(())
}

fn offloaded_underlay_v4_without_outer_checksums(_: &Scene) -> anyhow::Result<()> {
    everything_flows(Shape { outer_checksum: false, ..Shape::OFFLOADED }).map(drop)
}

fn offloaded_underlay_v6(_: &Scene) -> anyhow::Result<()> {
    everything_flows(Shape { family: Family::V6, ..Shape::OFFLOADED }).map(drop)
}

fn checksums_in_software_v4(_: &Scene) -> anyhow::Result<()> {
    everything_flows(Shape { tx_checksum: false, ..Shape::OFFLOADED }).map(drop)
}

fn checksums_in_software_v6(_: &Scene) -> anyhow::Result<()> {
    everything_flows(Shape { family: Family::V6, tx_checksum: false, ..Shape::OFFLOADED }).map(drop)
}

fn segmentation_in_software_v4(_: &Scene) -> anyhow::Result<()> {
    everything_flows(Shape { model: LinkModel::Nic, ..Shape::OFFLOADED }).map(drop)
}

fn segmentation_in_software_v4_without_outer_checksums(_: &Scene) -> anyhow::Result<()> {
    everything_flows(Shape { model: LinkModel::Nic, outer_checksum: false, ..Shape::OFFLOADED }).map(drop)
}

fn segmentation_in_software_v6(_: &Scene) -> anyhow::Result<()> {
    everything_flows(Shape { family: Family::V6, model: LinkModel::Nic, ..Shape::OFFLOADED }).map(drop)
}

fn engine_without_any_feature_v4(_: &Scene) -> anyhow::Result<()> {
    everything_flows(Shape { off: Features::ALL, ..Shape::OFFLOADED }).map(drop)
}

fn engine_without_any_feature_v6(_: &Scene) -> anyhow::Result<()> {
    everything_flows(Shape { family: Family::V6, off: Features::ALL, ..Shape::OFFLOADED }).map(drop)
}

fn jumbo_underlay_v4(_: &Scene) -> anyhow::Result<()> {
    everything_flows(Shape { mtu: 9000, ..Shape::OFFLOADED }).map(drop)
}

/// The kernel hands over superpackets of segments as short as the pod asked for, and does not say how short.
fn a_pod_with_a_narrower_link_takes_what_the_kernel_left_whole(_: &Scene) -> anyhow::Result<()> {
    let (cluster, engine) = join(Shape { our_pods_mtu: Some(1300), ..Shape::OFFLOADED })?;
    let mut pods = cluster.pods();
    let (theirs, ours) = pods.next().zip(pods.next()).context("two pods")?;
    let path = reach::path(theirs, ours, Family::V4)?;
    reach::ping(path)?;
    reach::transfer(path, 50_000_000)?;
    account::only_dropped(&engine.stop()?, &[DropReason::NotUnicast])
}

/// Ping, every size of datagram and write, superpackets of datagrams and a whole transfer, in both directions. Answers
/// the counters of our node.
fn everything_flows(shape: Shape) -> anyhow::Result<Counters> {
    let (cluster, engine) = join(shape)?;
    let mut pods = cluster.pods();
    let (theirs, ours) = pods.next().zip(pods.next()).context("two pods")?;
    let spec = Spec { link_mtu: shape.mtu, ..Spec::new(vxlan()) };
    let mtu = usize::from(spec.mtu(shape.family)?.get());
    for (name, from, to) in [("kernel to engine", theirs, ours), ("engine to kernel", ours, theirs)] {
        let path = reach::path(from, to, shape.family)?;
        let all = || {
            reach::ping(path)?;
            for length in [mtu - 1, mtu] {
                let answer = reach::whole_ping(path, length)?;
                anyhow::ensure!(answer.microseconds().is_some(), "a ping of {length} bytes: {answer:?}");
            }
            // On a jumbo underlay every size would take long and show nothing new: the edges do.
            let step = if mtu > 2000 { 97 } else { 1 };
            let edges = [mtu - 28, mtu - 27, mtu, mtu + 1, 2 * mtu, 65_000];
            reach::every_udp_size(path, (1..=mtu + 200).step_by(step).chain(edges))?;
            reach::every_tcp_size(path, (1..=mtu + 200).step_by(7 * step).chain(edges))?;
            for payload in [1, 1200, mtu - 48] {
                reach::segmented_datagrams(path, payload)?;
            }
            reach::transfer(path, 100_000_000).map(drop)
        };
        all().with_context(|| format!("{name}; our node says {:?}", engine.counters()))?;
    }
    let counters = engine.stop()?;
    account::only_dropped(&counters, &[DropReason::NotUnicast])?;
    Ok(counters)
}

/// Node a with a kernel VXLAN device, node b with an engine, a pod on each.
fn join(shape: Shape) -> anyhow::Result<(Cluster, EngineNode)> {
    let mut cluster = Cluster::build(&Plan {
        underlay: if shape.family == Family::V4 { Underlay::V4 } else { Underlay::V6 },
        model: shape.model,
        mtu: shape.mtu.into(),
        tx_checksum: shape.tx_checksum,
        ..Plan::pair()
    })?;
    let [theirs, ours] = cluster.nodes() else { anyhow::bail!("two nodes") };
    let their_end = end_of(theirs, 0, shape.family, shape.family)?;
    let our_end = end_of(ours, 1, shape.family, shape.family)?;
    let settings = KernelVxlan { udp_checksum: shape.outer_checksum, ..KernelVxlan::default() };
    theirs.kernel_vxlan(&settings, &their_end, &[our_end]).map_err(|error| {
        match format!("{error:#}").contains("EOPNOTSUPP") {
            true => lab::skip("the kernel has no VXLAN"),
            false => error,
        }
    })?;
    let spec = Spec { link_mtu: shape.mtu, off: shape.off, ..Spec::new(vxlan()) };
    let engine = EngineNode::start(ours, &spec, &[our_end], &[their_end])?;
    let mtu = u32::from(spec.mtu(shape.family)?.get());
    let our_pods_mtu = shape.our_pods_mtu.unwrap_or(mtu);
    for (node, (end, mtu)) in cluster.nodes_mut().iter_mut().zip([(their_end, mtu), (our_end, our_pods_mtu)])
    {
        node.add_pod(&PodNetwork { subnets: vec![end.subnet], mtu })?;
    }
    Ok((cluster, engine))
}
