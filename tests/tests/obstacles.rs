//! A peer behind a narrow route or a firewall rule costs no other peer anything, and each loss is counted and answered.
//!
//! Node a sends, to b behind the obstacle and to c beside it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use dataplane::{EngineEvent, Feature, Features};
use dataplane_core::{DropReason, Encap, Family};
use lab::traffic::Path;
use lab::traffic::ping::{Answer, Ping};
use lab::{Cluster, Plan, PodNetwork, Scene, Underlay};
use nix::errno::Errno;
use promises::engine::{EngineNode, Spec, end_of, port_of, vxlan};
use promises::{counts, harness, reach};

fn main() -> ExitCode {
    harness::of_engines(
        "promise-obstacles",
        lab::cases![
            a_narrow_route_over_ipv6_costs_its_peer_trains_and_nothing_else,
            a_narrow_route_over_ipv4_is_left_to_the_routers,
            a_rule_against_one_peer_is_counted_answered_and_no_harm_to_the_other,
            a_rule_against_one_peer_where_datagrams_go_one_by_one,
            an_ipv6_rule_against_one_peer,
        ],
    )
}

/// Engines on three nodes, a pod on each, everything IPv4 inside.
struct Three {
    /// In the order of the nodes; before them, so that they end first.
    engines: Vec<EngineNode>,
    outer: Family,
    port: u16,
    cluster: Cluster,
}

impl Three {
    fn start(encap: Encap, outer: Family, off: Features) -> anyhow::Result<Self> {
        let underlay = if outer == Family::V4 { Underlay::V4 } else { Underlay::V6 };
        let mut cluster = Cluster::build(&Plan { underlay, ..Plan::nodes(3) })?;
        let spec = Spec { off, ..Spec::new(encap) };
        let ends = cluster
            .nodes()
            .iter()
            .enumerate()
            .map(|(index, node)| end_of(node, index, Family::V4, outer))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let mut engines = Vec::new();
        for (node, end) in cluster.nodes_mut().iter_mut().zip(&ends) {
            let peers: Vec<_> = ends.iter().filter(|other| *other != end).copied().collect();
            engines.push(EngineNode::start(node, &spec, &[*end], &peers)?);
            let mtu = spec.mtu(outer)?.get().into();
            node.add_pod(&PodNetwork { subnets: vec![end.subnet], mtu })?;
        }
        Ok(Self { engines, outer, port: port_of(&encap), cluster })
    }

    /// From the pod of a to that of another node.
    fn path(&self, to: usize) -> anyhow::Result<Path<'_>> {
        let nodes = self.cluster.nodes();
        reach::path(&nodes[0].pods()[0], &nodes[to].pods()[0], Family::V4)
    }

    /// The address of a node on the underlay.
    fn outer(&self, node: usize) -> anyhow::Result<IpAddr> {
        let node = &self.cluster.nodes()[node];
        let address =
            if self.outer == Family::V4 { node.v4().map(IpAddr::V4) } else { node.v6().map(IpAddr::V6) };
        address.context("an address")
    }

    /// What the engine of a has said so far, its workers' repetitions left out.
    fn said(&self) -> BTreeSet<String> {
        self.engines[0].handle().events().try_iter().map(|event| event.to_string()).collect()
    }

    /// Stops the engines: they balance, and only a ever lost something to send.
    fn stop(self) -> anyhow::Result<()> {
        for engine in self.engines {
            engine.stop()?;
        }
        Ok(())
    }
}

fn a_narrow_route_over_ipv6_costs_its_peer_trains_and_nothing_else(_: &Scene) -> anyhow::Result<()> {
    let three = Three::start(vxlan(), Family::V6, Features::NONE)?;
    let node = &three.cluster.nodes()[0];
    let to = three.outer(1)?;
    node.narrow_route(to, 1400)?;
    let fragmented = || counts::snmp6(node.namespace(), "Ip6FragCreates");
    everything_flows(three.path(2)?)?;
    ensure!(three.said().is_empty() && fragmented()? == 0, "c is not behind it");
    everything_flows(three.path(1)?)?;
    ensure!(fragmented()? > 0, "the route is not narrow");
    let trains = three.engines[0].handle().capabilities().usable().contains(Feature::UdpGso);
    let refused =
        EngineEvent::TrainsRefused { to: SocketAddr::new(to, three.port), errno: Errno::EMSGSIZE as i32 };
    let expected = trains.then(|| refused.to_string());
    let said = three.said();
    ensure!(said.iter().eq(&expected), "{said:?}");
    let before = fragmented()?;
    everything_flows(three.path(2)?)?;
    ensure!(fragmented()? == before, "what goes to c still goes whole");
    everything_flows(three.path(1)?)?;
    ensure!(three.said().is_empty(), "said once");
    let tx = three.engines[0].counters().tx;
    ensure!(tx.dropped(DropReason::SendRefused) == 0, "{tx:?}");
    three.stop()
}

fn a_narrow_route_over_ipv4_is_left_to_the_routers(_: &Scene) -> anyhow::Result<()> {
    let three = Three::start(vxlan(), Family::V4, Features::NONE)?;
    let node = &three.cluster.nodes()[0];
    node.narrow_route(three.outer(1)?, 1400)?;
    everything_flows(three.path(1)?)?;
    // As a kernel VXLAN device: DF is clear, and whoever has the narrow link cuts.
    ensure!(counts::snmp(node.namespace(), "Ip", "FragCreates")? == 0, "cut at the source");
    let tx = three.engines[0].counters().tx;
    ensure!(tx.dropped(DropReason::SendRefused) == 0, "{tx:?}");
    three.stop()
}

fn everything_flows(path: Path<'_>) -> anyhow::Result<()> {
    reach::ping(path)?;
    reach::every_udp_size(path, [1, 1000, 1300, 1400, 1402, 1403, 3000, 20_000])?;
    reach::segmented_datagrams(path, 1350)?;
    reach::transfer(path, 4_000_000).map(drop)
}

fn a_rule_against_one_peer_is_counted_answered_and_no_harm_to_the_other(_: &Scene) -> anyhow::Result<()> {
    rule_against_one(Family::V4, Features::NONE)
}

fn a_rule_against_one_peer_where_datagrams_go_one_by_one(_: &Scene) -> anyhow::Result<()> {
    rule_against_one(Family::V4, Features::NONE.with(Feature::UdpGso).with(Feature::Mmsg))
}

fn an_ipv6_rule_against_one_peer(_: &Scene) -> anyhow::Result<()> {
    rule_against_one(Family::V6, Features::NONE)
}

/// A kernel without nf_tables says so in one of these words.
fn without_nftables(error: anyhow::Error) -> anyhow::Error {
    let word = error.root_cause().downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
    match word {
        Some(word) if [Errno::EPROTONOSUPPORT, Errno::EOPNOTSUPP].contains(&Errno::from_raw(word)) => {
            lab::skip(format!("{error:#}"))
        }
        _ => error,
    }
}

/// Many enough for batches, few enough for a pod's socket.
const DATAGRAMS: u64 = 100;
const PATIENCE: Duration = Duration::from_secs(10);

fn rule_against_one(outer: Family, off: Features) -> anyhow::Result<()> {
    let three = Three::start(vxlan(), outer, off)?;
    let (engine, node) = (&three.engines[0], &three.cluster.nodes()[0]);
    // Nothing but a ping: the last words of a TCP connection may come late, and would be counted below.
    reach::ping(three.path(1)?)?;
    let quiet = engine.counters();
    ensure!(quiet.tx.dropped(DropReason::SendRefused) == 0, "{quiet:?}");
    node.drop_output_to(three.outer(1)?).map_err(without_nftables)?;

    let path = three.path(1)?;
    let answer = Ping::new(path.address).send_from(path.from)?;
    let base = end_of(node, 0, Family::V4, outer)?.subnet.network();
    ensure!(answer == Answer::Unreachable { from: base, code: 0 }, "{answer:?}");
    let one = engine.counted(|now| now.since(&quiet).tx.dropped(DropReason::SendRefused) == 1)?;
    ensure!(one.since(&quiet).icmp_replies == 1, "{one:?}");

    // Datagrams to both in turn, as fast as they go: those for b are all counted, those for c all arrive.
    let beside = three.path(2)?;
    let receiver = beside.to.run("bind", || UdpSocket::bind((beside.address, 5201)))??;
    receiver.set_read_timeout(Some(PATIENCE))?;
    let sender = path.from.run("bind", || UdpSocket::bind("0.0.0.0:0"))??;
    for number in 0..DATAGRAMS {
        let datagram = [number as u8; 200];
        sender.send_to(&datagram, (path.address, 5201))?;
        sender.send_to(&datagram, (beside.address, 5201))?;
    }
    let mut buffer = [0; 2048];
    for number in 0..DATAGRAMS {
        let len = receiver.recv(&mut buffer).with_context(|| format!("datagram {number} for c"))?;
        ensure!(buffer[..len] == [number as u8; 200], "datagram {number}: {:?}", &buffer[..len]);
    }
    let all = engine.counted(|now| now.since(&quiet).tx.dropped(DropReason::SendRefused) > DATAGRAMS)?;
    let since = all.since(&quiet);
    ensure!(since.tx.dropped(DropReason::SendRefused) == 1 + DATAGRAMS, "{since:?}");
    ensure!(since.icmp_replies + since.icmp_limited > 1, "{since:?}");
    everything_flows(beside)?;
    let tx = engine.counters().since(&all).tx;
    ensure!(tx.dropped(DropReason::SendRefused) == 0 && three.said().is_empty(), "{tx:?}");
    three.stop()
}
