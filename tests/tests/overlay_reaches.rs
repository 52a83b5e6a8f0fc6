//! A cluster of our nodes carries everything from pod to pod, and every packet that it does not carry is accounted for.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use dataplane::{Feature, Features};
use dataplane_core::{Encap, Family};
use lab::cluster::node::{DEVICE, POD_BRIDGE};
use lab::traffic::ping::Answer;
use lab::traffic::udp::{Flood, flood};
use lab::{LinkModel, Plan, PodNetwork, Scene, Underlay};
use nix::sys::signal::{self, Signal};
use promises::cluster::{Inner, Ours, net_conf};
use promises::daemon::{Books, Daemon, pod_network};
use promises::engine::{Spec, vxlan};
use promises::{counts, harness, reach};

fn main() -> ExitCode {
    harness::of_daemons(
        "promise-overlay",
        lab::cases![
            every_feature_can_be_forced_off,
            udp_v4,
            udp_v6,
            udp_dual_over_a_jumbo_underlay,
            vxlan_v4,
            vxlan_v6,
            vxlan_dual,
            vxlan_dual_over_a_jumbo_underlay,
            vxlan_dual_with_segmentation_in_software,
            udp_dual_with_segmentation_in_software,
            a_pod_with_a_larger_mtu_hears_how_much_fits,
            a_flood_of_small_datagrams_loses_nothing_unaccounted,
            a_flood_of_single_datagrams_is_accounted_for_to_the_datagram,
        ],
    )
}

fn udp_v4(scene: &Scene) -> anyhow::Result<()> {
    everything_reaches(scene, "udp", Inner::V4, &Plan { underlay: Underlay::V4, ..Plan::nodes(3) })
}

fn udp_v6(scene: &Scene) -> anyhow::Result<()> {
    everything_reaches(scene, "udp", Inner::V6, &Plan { underlay: Underlay::V6, ..Plan::nodes(3) })
}

fn udp_dual_over_a_jumbo_underlay(scene: &Scene) -> anyhow::Result<()> {
    everything_reaches(scene, "udp", Inner::Dual, &Plan { mtu: 9000, ..Plan::nodes(3) })
}

fn vxlan_v4(scene: &Scene) -> anyhow::Result<()> {
    everything_reaches(scene, "vxlan", Inner::V4, &Plan { underlay: Underlay::V4, ..Plan::nodes(3) })
}

fn vxlan_v6(scene: &Scene) -> anyhow::Result<()> {
    everything_reaches(scene, "vxlan", Inner::V6, &Plan { underlay: Underlay::V6, ..Plan::nodes(3) })
}

fn vxlan_dual(scene: &Scene) -> anyhow::Result<()> {
    everything_reaches(scene, "vxlan", Inner::Dual, &Plan::nodes(3))
}

fn vxlan_dual_over_a_jumbo_underlay(scene: &Scene) -> anyhow::Result<()> {
    everything_reaches(scene, "vxlan", Inner::Dual, &Plan { mtu: 9000, ..Plan::nodes(3) })
}

fn vxlan_dual_with_segmentation_in_software(scene: &Scene) -> anyhow::Result<()> {
    everything_reaches(scene, "vxlan", Inner::Dual, &Plan { model: LinkModel::Nic, ..Plan::nodes(3) })
}

fn udp_dual_with_segmentation_in_software(scene: &Scene) -> anyhow::Result<()> {
    everything_reaches(scene, "udp", Inner::Dual, &Plan { model: LinkModel::Nic, ..Plan::nodes(3) })
}

fn encap_of(backend: &str) -> Encap {
    if backend == "udp" { Encap::Raw } else { vxlan() }
}

/// Every pod reaches every other; between two of them, every family, every kind of traffic, both ways.
fn everything_reaches(scene: &Scene, backend: &str, inner: Inner, plan: &Plan) -> anyhow::Result<()> {
    let ours = Ours::start(plan, scene.dir(), &net_conf(backend, inner))?;
    ours.all_reach_each_other()?;
    let spec = Spec { link_mtu: u16::try_from(plan.mtu)?, ..Spec::new(encap_of(backend)) };
    // The MTU for pods is what fits through the tunnel of either family.
    let families = inner.families();
    let mtus = families.iter().map(|family| spec.mtu(*family)).collect::<anyhow::Result<Vec<_>>>()?;
    let mtu = mtus.iter().min().context("a family")?.get();
    for env in &ours.envs {
        ensure!(env.mtu == u32::from(mtu), "subnet.env says {}, right is {mtu}", env.mtu);
    }
    for &family in families {
        for (from, to) in [(0, 1), (1, 2)] {
            carries_everything(&ours, from, to, family, mtu.into())
                .with_context(|| format!("{family:?} from node {from} to node {to}"))?;
        }
    }
    for books in ours.stop()?.concat() {
        lost_nothing(&books)?;
    }
    Ok(())
}

fn carries_everything(ours: &Ours, from: usize, to: usize, family: Family, mtu: usize) -> anyhow::Result<()> {
    let path = reach::path(ours.pod(from)?, ours.pod(to)?, family)?;
    let largest = reach::whole_ping(path, mtu)?;
    ensure!(largest.microseconds().is_some(), "{mtu} bytes without fragments: {largest:?}");
    let larger = reach::whole_ping(path, mtu + 1)?;
    // The pod's own device has the overlay's MTU, so its kernel is the first to refuse.
    ensure!(matches!(larger, Answer::Refused { errno: 90, .. }), "{} bytes: {larger:?}", mtu + 1);
    let edges = [1, 2, 100, mtu - 29, mtu - 28, mtu - 27, mtu, mtu + 1, 2 * mtu, 20_000, 65_000];
    reach::every_udp_size(path, edges.into_iter().chain((3..=mtu + 200).step_by(89)))?;
    reach::every_tcp_size(path, edges)?;
    reach::segmented_datagrams(path, 1200)?;
    reach::transfer(path, 20_000_000).map(drop)
}

/// In a quiet cluster nothing is dropped but what no overlay carries, a kernel's own multicast, and what arrives before
/// the sender's lease has.
fn lost_nothing(books: &Books) -> anyhow::Result<()> {
    for page in [&books.rx, &books.tx] {
        let is_expected =
            |reason: &str, count: u64| reason == "not_unicast" || comes_before_its_lease(reason, count);
        let lost: BTreeMap<_, _> =
            page.drops.iter().filter(|(reason, count)| !is_expected(reason, **count)).collect();
        ensure!(lost.is_empty(), "{} dropped {lost:?}", books.device);
    }
    Ok(())
}

/// The first pings while a cluster comes up, a handful: one of two nodes learns of the other first.
fn comes_before_its_lease(reason: &str, count: u64) -> bool {
    matches!(reason, "unknown_peer" | "no_route") && count <= 20
}

/// A pod that was given the MTU of the underlay, as by another CNI plugin: the node says how much fits, and its streams
/// adapt.
fn a_pod_with_a_larger_mtu_hears_how_much_fits(scene: &Scene) -> anyhow::Result<()> {
    for backend in ["udp", "vxlan"] {
        let mut ours =
            Ours::start(&Plan::pair(), &scene.dir().join(backend), &net_conf(backend, Inner::Dual))?;
        ours.all_reach_each_other()?;
        let large = PodNetwork { mtu: 1500, ..pod_network(&ours.envs[0]) };
        ours.cluster.nodes_mut()[0].add_pod(&large)?;
        let pod = &ours.cluster.nodes()[0].pods()[1];
        for family in [Family::V4, Family::V6] {
            // Each family's device has an MTU of its own, the pods the smaller of the two.
            let fits = Spec::new(encap_of(backend)).mtu(family)?.get();
            let path = reach::path(pod, ours.pod(1)?, family)?;
            reach::ping(path)?;
            let answer = reach::whole_ping(path, usize::from(fits) + 1)?;
            let said = matches!(answer, Answer::TooBig { mtu, .. } if mtu == u32::from(fits));
            ensure!(said, "{backend} {family:?}: {answer:?}, not {fits}");
            reach::transfer(path, 5_000_000).with_context(|| format!("{backend} {family:?}"))?;
        }
        ours.stop()?;
    }
    Ok(())
}

/// One feature off after the other, and all at once: packets flow, the daemon says what is off, and a restart keeps the
/// pods' subnets.
fn every_feature_can_be_forced_off(scene: &Scene) -> anyhow::Result<()> {
    let mut ours = Ours::start(&Plan::pair(), scene.dir(), &net_conf("vxlan", Inner::Dual))?;
    let one_by_one = Feature::ALL.map(|feature| Features::NONE.with(feature));
    for off in one_by_one.into_iter().chain([Features::ALL]) {
        without(&mut ours, scene, off).with_context(|| format!("without {off}"))?;
    }
    stop_and_look(&mut ours)
}

fn without(ours: &mut Ours, scene: &Scene, off: Features) -> anyhow::Result<()> {
    stop_and_look(ours)?;
    let flag = format!("--engine-off={off}");
    for (node, env) in ours.cluster.nodes().iter().zip(&ours.envs) {
        let daemon = Daemon::spawn(node, scene.dir(), &[&flag])?;
        ensure!(daemon.ready()? == *env, "the subnet changed");
        for feature in off.iter() {
            daemon.wait_for_line(&format!("{feature}: off (")).map(drop)?;
        }
        ours.daemons.push(daemon);
    }
    ours.all_reach_each_other()?;
    for family in [Family::V4, Family::V6] {
        let path = reach::path(ours.pod(0)?, ours.pod(1)?, family)?;
        reach::every_udp_size(path, [1, 1000, 1402, 1403, 3000, 60_000])?;
        reach::segmented_datagrams(path, 1200)?;
        reach::transfer(path, 5_000_000)?;
    }
    Ok(())
}

fn stop_and_look(ours: &mut Ours) -> anyhow::Result<()> {
    for daemon in std::mem::take(&mut ours.daemons) {
        for books in daemon.stop()? {
            lost_nothing(&books)?;
        }
    }
    Ok(())
}

/// Small datagrams as fast as they go: many are lost, at queues that overflow, and each is counted where it was.
fn a_flood_of_small_datagrams_loses_nothing_unaccounted(scene: &Scene) -> anyhow::Result<()> {
    flood_is_accounted_for(scene, &[], MOST_DATAGRAMS_A_MESSAGE)
}

/// The same without batches of any kind: the kernel then counts losses by the datagram, and the books agree to the one.
fn a_flood_of_single_datagrams_is_accounted_for_to_the_datagram(scene: &Scene) -> anyhow::Result<()> {
    flood_is_accounted_for(scene, &["--engine-off=udp-gso,udp-gro"], 1)
}

/// `UDP_MAX_SEGMENTS` of Linux 6.9. A socket queue that is full refuses a message whole and counts it once
/// (`__udp_enqueue_schedule_skb`), however many datagrams it holds.
const MOST_DATAGRAMS_A_MESSAGE: u64 = 128;

fn flood_is_accounted_for(scene: &Scene, flags: &[&str], datagrams_a_message: u64) -> anyhow::Result<()> {
    let plan = Plan { underlay: Underlay::V4, ..Plan::pair() };
    let ours = Ours::start_with(&plan, scene.dir(), &net_conf("udp", Inner::V4), flags)?;
    ours.all_reach_each_other()?;
    let path = reach::path(ours.pod(0)?, ours.pod(1)?, Family::V4)?;
    let [near, far] = ours.cluster.nodes() else { anyhow::bail!("two nodes") };
    // The kernel's own counts.
    let udp = |name| counts::snmp(far.namespace(), "Udp", name);
    let before = udp("InDatagrams")?;
    // In the middle of it the receiving daemon stands still until its socket has overflowed, on the fastest machine and on
    // the slowest.
    let receiver = ours.daemons.last().context("a receiver")?.pid();
    let report = thread::scope(|scope| {
        let flooding = scope.spawn(|| flood(path, &Flood::new(64, Duration::from_secs(3))));
        let until = |name, more_than| -> anyhow::Result<()> {
            while !flooding.is_finished() && udp(name)? <= more_than {
                thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        };
        until("InDatagrams", before + 100)?;
        signal::kill(receiver, Signal::SIGSTOP)?;
        let overflowed = until("RcvbufErrors", 0);
        signal::kill(receiver, Signal::SIGCONT)?;
        overflowed?;
        flooding.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    ensure!(report.received > 10_000 && report.wrong_size == 0, "{report:?}");
    let at_socket = udp("RcvbufErrors")?;
    ensure!(at_socket > 0, "nothing overflowed: {report:?}");
    let on_wire =
        counts::device_drops(near.namespace(), DEVICE)? + counts::device_drops(far.namespace(), DEVICE)?;
    let pod = ours.pod(0)?;
    let at_pod = counts::device_drops(pod.namespace(), DEVICE)?
        + counts::device_drops(near.namespace(), POD_BRIDGE)?
        + counts::device_drops(near.namespace(), &format!("veth-{}", pod.name()))?;
    let books = ours.stop()?.concat();
    let [sender, receiver] = books.as_slice() else { anyhow::bail!("two nodes: {books:?}") };
    for books in [sender, receiver] {
        let odd: Vec<_> = books
            .tx
            .drops
            .iter()
            .chain(&books.rx.drops)
            .filter(|(reason, count)| {
                !EXPECTED.contains(&reason.as_str()) && !comes_before_its_lease(reason, **count)
            })
            .collect();
        ensure!(odd.is_empty(), "{odd:?} in {books:?}");
    }
    // What a pod sent came to the engine, or the ring or the pod's own link lost and counted it. The pings of before, and
    // what a kernel says of its own accord, come to the engine too.
    let came = sender.tx.packets + sender.ring;
    ensure!(
        (report.sent..=report.sent + 100).contains(&(came + at_pod)),
        "{came} came of {}, {at_pod} were lost before: {sender:?}",
        report.sent
    );
    // What left one engine came to the other, or was lost where it was counted.
    let missing = sender.tx.passed.saturating_sub(receiver.rx.packets);
    ensure!(
        (at_socket..=at_socket * datagrams_a_message + on_wire).contains(&missing)
            && receiver.overflows <= at_socket,
        "{missing} missing, {at_socket} lost at the socket, {on_wire} by the devices: {books:?}"
    );
    ensure!(receiver.rx.passed >= report.received, "{receiver:?}, {report:?}");
    Ok(())
}

/// Reasons of a flood: a full socket queue, and a kernel's own multicast.
const EXPECTED: [&str; 2] = ["send_queue_full", "not_unicast"];
