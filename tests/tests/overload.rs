//! A node that gets more than it can carry, or what it must not carry: the books balance, memory stays, others get
//! through. How fast is for the benchmark `overload`.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use dataplane::EngineEvent;
use dataplane_core::{Counters, DropReason, Encap, Family};
use lab::cluster::node::DEVICE;
use lab::cluster::vxlan::VxlanEnd;
use lab::traffic::Path;
use lab::traffic::garbage::{Garbage, GarbageReport, during};
use lab::traffic::udp::{Flood, flood};
use lab::{Cluster, Plan, Pod, PodNetwork, Scene, Underlay, counts};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use promises::cluster::{Inner, Ours, net_conf};
use promises::engine::{EngineNode, Spec, end_of, pair, port_of, table, vxlan};
use promises::{account, bad, harness, reach};

/// An address on the underlay that no node has.
const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);
/// KiB by which a node under a flood may grow: buffers that were never full before.
const GROWTH: u64 = 1024;
/// Peers of a node of which one is bad.
const PEERS: usize = 10;
/// Datagrams a second to the bad peer: many, and few enough that they alone do not fill the device's ring.
const BAD_RATE: f64 = 10_000.0;
/// Datagrams that make a flood: a transfer may take a few milliseconds only, and its flood no longer.
const LEAST: u64 = 64;
/// Transfers of which one has to end beside a flood.
const TRIES: usize = 3;
/// Bytes of a transfer beside a flood.
const TRANSFER: u64 = 3_000_000;

fn main() -> ExitCode {
    harness::of_daemons(
        "promise-overload",
        lab::cases![
            garbage_of_any_kind_costs_no_memory_and_stops_no_transfer,
            every_datagram_of_a_flood_is_counted,
            a_node_that_joins_during_a_flood_is_let_in,
            one_bad_peer_of_ten_does_not_stop_the_nine,
            peers_that_come_and_go_cost_those_who_stay_no_packet,
        ],
    )
}

/// KiB of a process's memory that is no file's.
fn anonymous(pid: Pid) -> anyhow::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:")).context("no such line")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// A stranger, and whoever borrows a peer's address, send as fast as they can.
fn garbage_of_any_kind_costs_no_memory_and_stops_no_transfer(scene: &Scene) -> anyhow::Result<()> {
    let plan = Plan { underlay: Underlay::V4, ..Plan::nodes(3) };
    let ours = Ours::start(&plan, scene.dir(), &net_conf("vxlan", Inner::V4))?;
    ours.all_reach_each_other()?;
    let [victim, peer, third] = ours.cluster.nodes() else { anyhow::bail!("three nodes") };
    let to = SocketAddrV4::new(victim.v4().context("an address")?, 8472);
    let pid = ours.daemons.first().context("a daemon")?.pid();
    let path = reach::path(ours.pod(1)?, ours.pod(0)?, Family::V4)?;
    reach::transfer(path, TRANSFER)?;
    let encap = vxlan();
    let (own, theirs) =
        (end_of(victim, 0, Family::V4, Family::V4)?, end_of(peer, 1, Family::V4, Family::V4)?);
    let wrap = |packet: &[u8]| {
        bad::wrap(
            &encap,
            dataplane_core::MacAddr(theirs.mac),
            dataplane_core::MacAddr(own.mac),
            Family::V4,
            packet,
        )
    };
    let right = wrap(&bad::good(Family::V4).packet());
    let mut foreign_vni = right.clone();
    foreign_vni[4..7].copy_from_slice(&[0, 0, 77]);
    let mut random = fastrand::Rng::with_seed(1);
    let noise: Vec<Vec<u8>> =
        (0..64).map(|_| (0..random.usize(1..1400)).map(|_| random.u8(..)).collect()).collect();
    let kinds = [
        ("runts", vec![vec![0]], None),
        ("noise", noise, None),
        ("right but for the MAC", vec![right], None),
        ("a foreign VNI", vec![foreign_vni.clone()], None),
        ("a foreign VNI, many at a time", vec![foreign_vni], Some(44)),
    ];
    let mut sent = 0;
    let mut memory = anonymous(pid)?;
    for (name, datagrams, segments) in kinds {
        for from in [STRANGER, third.v4().context("an address")?] {
            let garbage = Garbage { from, to, datagrams: datagrams.clone(), segments, rate: None };
            let (moved, report): (_, GarbageReport) =
                during(third.namespace(), &garbage, || transfer_beside_a_flood(path))
                    .with_context(|| format!("{name} from {from}"))?;
            ensure!(moved > 0.0 && report.sent >= LEAST, "there was no flood of {name}: {report:?}");
            sent += report.sent;
        }
        // The first flood fills buffers that no traffic had filled before.
        let grown = anonymous(pid)?;
        ensure!(grown <= memory + GROWTH, "{name}: {memory} KiB before, {grown} KiB after");
        memory = memory.max(grown.min(memory + GROWTH / 8));
    }
    let books = ours.stop()?;
    let [victim] = books.first().context("books")?.as_slice() else { anyhow::bail!("one engine") };
    // During a flood the socket refuses most, in messages of many datagrams where the sender made them so.
    let refused = victim.rx.drops.values().sum::<u64>() + victim.overflows;
    ensure!(refused > sent / 200, "of {sent} datagrams of garbage: {victim:?}");
    ensure!(victim.rx.dropped("unknown_peer") > 0, "{victim:?}");
    Ok(())
}

/// A machine that is busy with something else may leave the daemon so little of a CPU that the flood fills its socket for
/// as long as TCP has patience, in one try. An engine that garbage stops does so in every try.
fn transfer_beside_a_flood(path: Path<'_>) -> anyhow::Result<f64> {
    let mut tried = reach::transfer(path, TRANSFER);
    for _ in 1..TRIES {
        if tried.is_ok() {
            break;
        }
        tried = reach::transfer(path, TRANSFER);
    }
    tried
}

/// A node of ours and one of its peers, each with a pod, and a third that the first does not know yet.
struct Besieged {
    engines: [EngineNode; 3],
    ends: [VxlanEnd; 3],
    cluster: Cluster,
}

impl Besieged {
    fn lay() -> anyhow::Result<Self> {
        let mut cluster = Cluster::build(&Plan { underlay: Underlay::V4, ..Plan::nodes(3) })?;
        let mut ends = Vec::new();
        for (index, node) in cluster.nodes().iter().enumerate() {
            ends.push(end_of(node, index, Family::V4, Family::V4)?);
        }
        let Ok(ends) = <[VxlanEnd; 3]>::try_from(ends) else { anyhow::bail!("three nodes") };
        let [a, b, c] = ends;
        let spec = Spec::new(vxlan());
        let [near, far, third] = cluster.nodes() else { anyhow::bail!("three nodes") };
        let engines = [
            // The routes of all, the peers of some.
            EngineNode::start(near, &spec, &[a], &[b, c])?,
            EngineNode::start(far, &spec, &[b], &[a])?,
            EngineNode::start(third, &spec, &[c], &[a])?,
        ];
        engines[0].handle().publish(table(&[a], &[b], 8472)?);
        let mtu = spec.mtu(Family::V4)?.get().into();
        for (node, end) in cluster.nodes_mut().iter_mut().zip(ends) {
            node.add_pod(&PodNetwork { subnets: vec![end.subnet], mtu })?;
        }
        Ok(Self { engines, ends, cluster })
    }

    fn pod(&self, index: usize) -> &Pod {
        &self.cluster.nodes()[index].pods()[0]
    }

    /// A flood from a stranger at the first node while `meanwhile` runs.
    fn flooded<T>(
        &self,
        meanwhile: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<(T, GarbageReport)> {
        let IpAddr::V4(victim) = self.ends[0].public else { anyhow::bail!("an IPv4 underlay") };
        let to = SocketAddrV4::new(victim, 8472);
        let datagrams = vec![vec![0x5a; 64]];
        let garbage = Garbage { from: STRANGER, to, datagrams, segments: None, rate: None };
        during(self.cluster.nodes()[2].namespace(), &garbage, meanwhile)
    }
}

/// Received and refused, refused by the socket, or too many for it: the engine's numbers and the kernel's make what was
/// sent, to the datagram.
fn every_datagram_of_a_flood_is_counted(_: &Scene) -> anyhow::Result<()> {
    let besieged = Besieged::lay()?;
    let path = reach::path(besieged.pod(1), besieged.pod(0), Family::V4)?;
    reach::ping(path)?;
    let (_, report) = besieged.flooded(|| reach::transfer(path, 10 * TRANSFER))?;
    let namespaces = besieged.cluster.nodes().iter().map(lab::Node::namespace);
    let on_wire: u64 = namespaces.map(|ns| counts::device_drops(ns, DEVICE)).sum::<anyhow::Result<u64>>()?;
    let of_flood = |counters: &Counters| {
        counters.rx.dropped(DropReason::UnknownPeer) + counters.socket_overflows + on_wire
    };
    let counters = besieged.engines[0].counted(|counters| of_flood(counters) >= report.sent)?;
    // What the transfer lost at the full socket counts there too.
    let transfer = besieged.engines[1].counters().tx.passed;
    ensure!(
        (report.sent..=report.sent + transfer).contains(&of_flood(&counters)),
        "{} counted of {report:?} and at most {transfer}: {counters:?}",
        of_flood(&counters)
    );
    besieged.engines.into_iter().try_for_each(|engine| engine.stop().map(drop))
}

/// What the socket refuses by itself follows the peers, though nothing else wakes the engine.
fn a_node_that_joins_during_a_flood_is_let_in(_: &Scene) -> anyhow::Result<()> {
    let besieged = Besieged::lay()?;
    let [a, b, c] = besieged.ends;
    let path = reach::path(besieged.pod(2), besieged.pod(0), Family::V4)?;
    besieged.flooded(|| {
        let engine = besieged.engines[0].handle();
        match engine.events().recv_timeout(Duration::from_secs(10)) {
            Ok(EngineEvent::Flooded) => {}
            other => return Err(lab::skip(format!("the stranger is too slow for a flood: {other:?}"))),
        }
        // What was queued before is gone, and nothing wakes the engine: the socket refuses all that comes.
        let mut before = engine.counters();
        besieged.engines[0].counted(|now| {
            let refuses = now.socket_overflows > before.socket_overflows + 1000;
            let sleeps = refuses && now.rx.packets == before.rx.packets;
            if refuses {
                before = now.clone();
            }
            sleeps
        })?;
        engine.publish(table(&[a], &[b, c], 8472)?);
        reach::ping(path)
    })?;
    besieged.engines.into_iter().try_for_each(|engine| engine.stop().map(drop))
}

/// What is wrong with the last peer.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// Its cable is out, so that nobody answers for its address.
    Unplugged,
    /// Its daemon stands still.
    Stopped,
    /// No engine listens there.
    Dead,
}

/// A node sends to ten peers, and does not stop when the tenth is bad: each of the nine still gets all that is sent to it.
fn one_bad_peer_of_ten_does_not_stop_the_nine(scene: &Scene) -> anyhow::Result<()> {
    let plan = Plan { underlay: Underlay::V4, ..Plan::nodes(PEERS + 1) };
    let mut ours = Ours::start(&plan, scene.dir(), &net_conf("vxlan", Inner::V4))?;
    for to in 1..=PEERS {
        reach::ping(reach::path(ours.pod(0)?, ours.pod(to)?, Family::V4)?)?;
    }
    for trouble in [Trouble::Unplugged, Trouble::Stopped, Trouble::Dead] {
        let bad = ours.cluster.nodes().last().context("a last node")?;
        let pid = ours.daemons.last().context("a daemon")?.pid();
        match trouble {
            Trouble::Unplugged => bad.plug(false)?,
            Trouble::Stopped => kill(pid, Signal::SIGSTOP)?,
            Trouble::Dead => drop(ours.daemons.pop().context("a daemon")?.kill()?),
        }
        let outcome = nine_get_everything(&ours).with_context(|| format!("the tenth: {trouble:?}"));
        match trouble {
            Trouble::Unplugged => ours.cluster.nodes().last().context("a last node")?.plug(true)?,
            Trouble::Stopped => kill(pid, Signal::SIGCONT)?,
            Trouble::Dead => {}
        }
        outcome?;
    }
    ours.stop().map(drop)
}

fn nine_get_everything(ours: &Ours) -> anyhow::Result<()> {
    let last = reach::path(ours.pod(0)?, ours.pod(PEERS)?, Family::V4)?;
    let (IpAddr::V4(to), Some(IpAddr::V4(from))) = (last.address, ours.pod(0)?.v4()) else {
        anyhow::bail!("pods without IPv4")
    };
    let datagrams = vec![vec![0; 1200]];
    let to = SocketAddrV4::new(to, 9);
    let blind = Garbage { from, to, datagrams, segments: None, rate: Some(BAD_RATE) };
    let paths = (1..PEERS)
        .map(|to| reach::path(ours.pod(0)?, ours.pod(to)?, Family::V4))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let (_, report) = during(last.from, &blind, || {
        thread::scope(|scope| {
            let moving: Vec<_> =
                paths.iter().map(|path| scope.spawn(|| reach::transfer(*path, TRANSFER))).collect();
            let join = |moving: thread::ScopedJoinHandle<'_, _>| {
                moving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            // All are joined before the first error is looked at.
            let ended: Vec<_> = moving.into_iter().map(join).collect();
            ended.into_iter().collect::<anyhow::Result<Vec<f64>>>()
        })
    })?;
    ensure!(report.sent >= LEAST, "nothing was sent to the tenth: {report:?}");
    Ok(())
}

/// New tables as fast as they can be built, of a thousand peers more or none: no packet of those who stay is lost.
fn peers_that_come_and_go_cost_those_who_stay_no_packet(_: &Scene) -> anyhow::Result<()> {
    for encap in [Encap::Raw, vxlan()] {
        let mut cluster = Cluster::build(&Plan { underlay: Underlay::V4, ..Plan::pair() })?;
        let (ends, engines) = pair(&mut cluster, &Spec::new(encap))?;
        let nodes = cluster.nodes();
        let path = reach::path(&nodes[0].pods()[0], &nodes[1].pods()[0], Family::V4)?;
        reach::ping(path)?;
        let ended = AtomicBool::new(false);
        let (published, traffic) = thread::scope(|scope| {
            let churn = scope.spawn(|| -> anyhow::Result<u64> {
                let mut published = 0_u64;
                while !ended.load(Ordering::Acquire) {
                    for (index, engine) in engines.iter().enumerate() {
                        let mut peers = vec![ends[1 - index]];
                        if published.is_multiple_of(2) {
                            peers.extend((0..1000_u32).map(|n| crowd(ends[1], n)));
                        }
                        engine.handle().publish(table(&ends[index..=index], &peers, port_of(&encap))?);
                    }
                    published += 1;
                }
                Ok(published)
            });
            let traffic = (|| {
                reach::transfer(path, 20_000_000)?;
                flood(path, &Flood { rate: Some(5000.0), ..Flood::new(1200, Duration::from_millis(500)) })
            })();
            ended.store(true, Ordering::Release);
            (churn.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), traffic)
        });
        let (published, report) = (published?, traffic?);
        ensure!(published > 100, "only {published} tables");
        ensure!(report.received == report.sent && report.wrong_size == 0, "{report:?}");
        for engine in engines {
            account::only_dropped(&engine.stop()?, &[DropReason::NotUnicast])?;
        }
    }
    Ok(())
}

/// A peer with a /32 of its own in the cluster's network.
fn crowd(like: VxlanEnd, number: u32) -> VxlanEnd {
    let address = Ipv4Addr::from(0x0a05_8000 + number);
    let public = IpAddr::from(Ipv4Addr::from(0xac10_0000 + number));
    VxlanEnd { subnet: IpAddr::from(address).into(), public, ..like }
}
