//! Clusters: who reaches whom, what a packet meets on the way, which features the links have.

use std::time::Duration;

use anyhow::Context;
use lab::cluster::node::DEVICE;
use lab::cluster::offloads;
use lab::cluster::vxlan::{KernelVxlan, subnets};
use lab::traffic::ping::{Answer, Ping};
use lab::traffic::{Path, echo, tcp};
use lab::{Case, Cluster, LinkModel, Plan, PodNetwork, Scene, Underlay, Wiring};

pub(crate) fn cases() -> Vec<Case> {
    lab::cases![
        three_nodes_with_host_routes_reach_each_other,
        kernel_vxlan_pair_carries_every_size_and_a_whole_transfer,
        kernel_vxlan_without_checksums_carries_traffic,
        kernel_vxlan_crosses_a_jumbo_underlay,
        link_models_differ_in_their_features,
        checksums_can_be_left_to_software,
        a_packet_that_leaves_the_cluster_gets_nowhere,
        a_node_has_room_for_more_pods,
        plans_that_make_no_sense_are_refused,
    ]
}

/// A cluster whose nodes have a pod each.
pub(crate) fn with_pods(
    plan: &Plan,
    networks: impl FnOnce(&Cluster) -> anyhow::Result<Vec<PodNetwork>>,
) -> anyhow::Result<Cluster> {
    let mut cluster = Cluster::build(plan)?;
    let networks = networks(&cluster)?;
    for (node, network) in cluster.nodes_mut().iter_mut().zip(networks) {
        node.add_pod(&network)?;
    }
    Ok(cluster)
}

/// The path from the first pod to the second, in IPv4 or IPv6.
pub(crate) fn path(cluster: &Cluster, v4: bool) -> anyhow::Result<Path<'_>> {
    let mut pods = cluster.pods();
    let (from, to) = pods.next().zip(pods.next()).context("two pods")?;
    let path = if v4 { from.path_v4(to) } else { from.path_v6(to) };
    path.context("no address of the family")
}

fn assert_all_reach_each_other(cluster: &Cluster, questions: usize) -> anyhow::Result<()> {
    let matrix = cluster.matrix(Duration::from_secs(5))?;
    assert_eq!(matrix.len(), questions);
    for cell in matrix {
        assert!(cell.answer.microseconds().is_some_and(|rtt| rtt > 0.0), "{cell:?}");
    }
    Ok(())
}

fn three_nodes_with_host_routes_reach_each_other(_: &Scene) -> anyhow::Result<()> {
    let cluster = with_pods(&Plan::nodes(3), |cluster| cluster.host_routes(&subnets(3, true, true)))?;
    assert_all_reach_each_other(&cluster, 3 * 2 * 2)
}

fn kernel_vxlan(plan: &Plan, settings: KernelVxlan) -> anyhow::Result<Cluster> {
    if !module_there()? {
        return Err(lab::skip("the kernel has no VXLAN"));
    }
    with_pods(plan, |cluster| cluster.kernel_vxlan(&settings, &subnets(plan.nodes, true, true)))
}

fn module_there() -> anyhow::Result<bool> {
    let cluster = Cluster::build(&Plan { underlay: Underlay::V4, ..Plan::nodes(1) })?;
    let made = cluster.kernel_vxlan(&KernelVxlan::default(), &subnets(1, true, false));
    Ok(!made.is_err_and(|error| format!("{error:#}").contains("EOPNOTSUPP")))
}

fn kernel_vxlan_pair_carries_every_size_and_a_whole_transfer(_: &Scene) -> anyhow::Result<()> {
    let cluster = kernel_vxlan(&Plan::pair(), KernelVxlan::default())?;
    assert_all_reach_each_other(&cluster, 4)?;
    for v4 in [true, false] {
        let path = path(&cluster, v4)?;
        let sizes = (0..=1500).chain([1501, 2999, 3000, 9000, 65_000]);
        let udp = echo::udp_sizes(path, sizes.clone())?;
        assert!(udp.all_returned(), "{udp:?}");
        let tcp = echo::tcp_sizes(path, sizes)?;
        assert!(tcp.all_returned(), "{tcp:?}");
        let whole = tcp::transfer(path, &tcp::Transfer::bytes(20_000_001).streams(3).checked())?;
        assert_eq!(whole.bytes, 20_000_001);
        let integrity = whole.integrity.context("checked")?;
        assert!(integrity.intact(), "{integrity:?}");
        assert_eq!(integrity.sent.len(), 3);
    }
    // The largest packet of the overlay passes whole, one byte more does not.
    let to = path(&cluster, true)?.address;
    let from = cluster.pods().next().context("a pod")?.namespace();
    let overlay = Ping::new(to).whole_packet_of(1430).send_from(from)?;
    assert!(overlay.microseconds().is_some(), "{overlay:?}");
    let larger = Ping::new(to).whole_packet_of(1431).send_from(from)?;
    assert!(matches!(larger, Answer::Refused { errno: 90, .. }), "{larger:?}");
    Ok(())
}

fn kernel_vxlan_without_checksums_carries_traffic(_: &Scene) -> anyhow::Result<()> {
    let settings = KernelVxlan { udp_checksum: false, ..KernelVxlan::default() };
    let plan = Plan { wiring: Wiring::Switch, model: LinkModel::Nic, ..Plan::pair() };
    let cluster = kernel_vxlan(&plan, settings)?;
    for v4 in [true, false] {
        let report = tcp::transfer(path(&cluster, v4)?, &tcp::Transfer::bytes(3_000_000).checked())?;
        assert!(report.integrity.is_some_and(|integrity| integrity.intact()));
    }
    Ok(())
}

fn kernel_vxlan_crosses_a_jumbo_underlay(_: &Scene) -> anyhow::Result<()> {
    let cluster = kernel_vxlan(&Plan { mtu: 9000, ..Plan::pair() }, KernelVxlan::default())?;
    let to = path(&cluster, true)?.address;
    let from = cluster.pods().next().context("a pod")?.namespace();
    let answer = Ping::new(to).whole_packet_of(8930).send_from(from)?;
    assert!(answer.microseconds().is_some(), "{answer:?}");
    Ok(())
}

fn link_models_differ_in_their_features(_: &Scene) -> anyhow::Result<()> {
    let features = |model| {
        let cluster = Cluster::build(&Plan { model, ..Plan::pair() })?;
        cluster.nodes()[1].namespace().run("features", || offloads::active(DEVICE))?
    };
    let (on, nic) = (features(LinkModel::On)?, features(LinkModel::Nic)?);
    for segmentation in ["tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-udp-segmentation"] {
        assert!(on.contains(segmentation), "{on:?}");
        assert!(!nic.contains(segmentation), "{nic:?}");
    }
    assert!(nic.iter().all(|name| !name.starts_with("tx-udp_tnl")), "{nic:?}");
    assert!(nic.contains("rx-gro") && nic.contains("tx-checksum-ip-generic"), "{nic:?}");
    Ok(())
}

fn checksums_can_be_left_to_software(_: &Scene) -> anyhow::Result<()> {
    let plan = Plan { tx_checksum: false, ..Plan::pair() };
    let cluster = with_pods(&plan, |cluster| cluster.host_routes(&subnets(2, true, false)))?;
    let active = cluster.nodes()[0].namespace().run("features", || offloads::active(DEVICE))??;
    assert!(!active.contains("tx-checksum-ip-generic"), "{active:?}");
    let unknown =
        cluster.nodes()[0].namespace().run("features", || offloads::set(DEVICE, &[("no-such", true)]))?;
    assert!(unknown.is_err());
    let report = tcp::transfer(path(&cluster, true)?, &tcp::Transfer::bytes(1_000_000).checked())?;
    assert!(report.integrity.is_some_and(|integrity| integrity.intact()));
    Ok(())
}

fn a_packet_that_leaves_the_cluster_gets_nowhere(_: &Scene) -> anyhow::Result<()> {
    let cluster = with_pods(&Plan::nodes(2), |cluster| cluster.host_routes(&subnets(2, true, true)))?;
    let pod = cluster.pods().next().context("a pod")?;
    // 10.5.9.0/24 is nobody's: it takes the default route to a gateway that does not answer ARP.
    let timeout = Duration::from_secs(10);
    let answer = Ping { timeout, ..Ping::new("10.5.9.2".parse()?) }.send_from(pod.namespace())?;
    let node = cluster.nodes()[0].namespace();
    assert!(matches!(answer, Answer::Unreachable { code: 1, .. }), "{answer:?}");
    let expired = Ping { ttl: Some(1), ..Ping::new("10.5.2.2".parse()?) }.send_from(pod.namespace())?;
    assert!(matches!(expired, Answer::TimeExceeded { .. }), "{expired:?}");
    let expired = Ping { ttl: Some(1), ..Ping::new("fd00:5:0:2::2".parse()?) }.send_from(pod.namespace())?;
    assert!(matches!(expired, Answer::TimeExceeded { .. }), "{expired:?}");
    let too_big = Ping::new("192.0.2.2".parse()?).whole_packet_of(1501).send_from(node)?;
    assert!(matches!(too_big, Answer::Refused { errno: 90, .. }), "{too_big:?}");
    Ok(())
}

fn a_node_has_room_for_more_pods(_: &Scene) -> anyhow::Result<()> {
    let mut cluster = Cluster::build(&Plan { underlay: Underlay::V4, ..Plan::nodes(1) })?;
    let network = PodNetwork { subnets: vec!["10.5.1.1/24".parse()?], mtu: 1472 };
    for name in ["pod-a", "pod-a2", "pod-a3"] {
        assert_eq!(cluster.nodes_mut()[0].add_pod(&network)?.name(), name);
    }
    assert_all_reach_each_other(&cluster, 6)
}

fn plans_that_make_no_sense_are_refused(_: &Scene) -> anyhow::Result<()> {
    let three_on_a_wire = Plan { wiring: Wiring::Direct, ..Plan::nodes(3) };
    for plan in [Plan::nodes(0), Plan::nodes(251), three_on_a_wire] {
        assert!(Cluster::build(&plan).is_err(), "{plan:?}");
    }
    let cluster = Cluster::build(&Plan { underlay: Underlay::V4, ..Plan::nodes(2) })?;
    assert!(cluster.host_routes(&subnets(2, true, true)).is_err());
    assert!(cluster.kernel_vxlan(&KernelVxlan::default(), &subnets(1, true, false)).is_err());
    Ok(())
}
