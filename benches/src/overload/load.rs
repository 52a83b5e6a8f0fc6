//! UDP at multiples of what a pair of nodes carries: goodput, and every datagram that was lost by the place where it was.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{bail, ensure};
use lab::cluster::node::{DEVICE, POD_BRIDGE};
use lab::daemons::Backend;
use lab::traffic::udp::{Flood, flood};
use lab::{Cluster, LinkModel, Node, Pod, counts};
use serde::Serialize;

use super::cast::{Carrier, Cast, Place};

/// Offered load as a multiple of the capacity.
const MULTIPLES: [f64; 5] = [0.5, 1.0, 1.5, 2.0, 3.0];

/// One offered load.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoadRow {
    /// Who carries the datagrams.
    pub carrier: &'static str,
    /// Bytes of a datagram.
    pub payload: usize,
    /// The multiple of the capacity that was asked for; `None` for as fast as it goes, which measures the capacity.
    pub multiple: Option<f64>,
    /// Thousand datagrams a second that the sender got rid of.
    pub offered: f64,
    /// Thousand datagrams a second that arrived.
    pub delivered: f64,
    /// Datagrams that the sender got rid of.
    pub sent: u64,
    /// Datagrams that arrived.
    pub received: u64,
    /// Datagrams lost, by place.
    pub lost: BTreeMap<String, u64>,
    /// Sent, but neither received nor counted anywhere.
    pub unexplained: i64,
    /// Share of the machine, 0 to 1, that other programs used meanwhile.
    pub foreign: f64,
}

/// Measures the capacity of the engine for small and large datagrams, then offers multiples of it.
///
/// # Errors
///
/// When a cluster cannot be built, no datagram arrives, or the books do not balance.
pub fn measure(
    place: &Place,
    duration: Duration,
    mut progress: impl FnMut(&str),
) -> anyhow::Result<Vec<LoadRow>> {
    let mut rows = Vec::new();
    for payload in [64, 1400] {
        progress(&format!("capacity for {payload} B"));
        let capacity = capacity(place, payload, duration)?;
        for multiple in MULTIPLES {
            progress(&format!("{payload} B at {multiple} times {:.0} kpps", capacity / 1e3));
            let plan = Flood { rate: Some(capacity * multiple), ..Flood::new(payload, duration) };
            rows.push(row(place, Some(multiple), &plan)?);
        }
        progress(&format!("{payload} B as fast as it goes"));
        rows.push(row(place, None, &Flood::new(payload, duration))?);
    }
    Ok(rows)
}

/// Datagrams a second that arrive when the offered load is just not lost: found by offering more and more.
fn capacity(place: &Place, payload: usize, duration: Duration) -> anyhow::Result<f64> {
    let cast = Cast::build(place, Carrier::Engine(Backend::Udp), LinkModel::Nic, 2, &[])?;
    let mut best = 0.0_f64;
    let mut behind = 0;
    let mut rate = 50e3;
    // Each step offers a fifth more. Beyond the capacity deliveries fall behind what is offered.
    loop {
        let plan = Flood { rate: Some(rate), ..Flood::new(payload, duration / 4) };
        let report = flood(cast.path(1)?, &plan)?;
        let delivered = report.kilopackets_per_second * 1e3;
        let offered = report.sent as f64 / report.seconds;
        best = best.max(delivered);
        // Once may be somebody else's doing.
        behind += u32::from(delivered < 0.97 * offered || offered < 0.9 * rate);
        if behind == 3 {
            return Ok(best);
        }
        rate *= 1.2;
    }
}

fn row(place: &Place, multiple: Option<f64>, plan: &Flood) -> anyhow::Result<LoadRow> {
    let carrier = Carrier::Engine(Backend::Udp);
    let cast = Cast::build(place, carrier, LinkModel::Nic, 2, &[])?;
    let before = kernel_counts(&cast.cluster)?;
    let report = flood(cast.path(1)?, plan)?;
    let (books, cluster) = cast.close()?;
    let after = kernel_counts(&cluster)?;
    let [sender, receiver] = books.as_slice() else { bail!("two nodes: {books:?}") };
    for books in [sender, receiver] {
        ensure!(books.rx.balances() && books.tx.balances(), "the books do not balance: {books:?}");
    }
    let mut lost: BTreeMap<String, u64> = BTreeMap::new();
    for (place, count) in after {
        *lost.entry(place.to_owned()).or_default() += count - before.get(place).copied().unwrap_or(0);
    }
    lost.insert("sender's TUN ring".to_owned(), sender.ring);
    // A kernel's own multicast is no datagram of the flood.
    let of_the_flood = |(reason, _): &(&String, &u64)| reason.as_str() != "not_unicast";
    for (reason, count) in sender.tx.drops.iter().chain(&receiver.rx.drops).filter(of_the_flood) {
        *lost.entry(format!("engine: {reason}")).or_default() += count;
    }
    // The kernel counts messages, which may hold many datagrams; what one engine sent and the other did not get is those
    // datagrams, unless the wire lost some.
    let between = sender.tx.passed.saturating_sub(receiver.rx.packets);
    let on_wire = lost.get(WIRE).copied().unwrap_or(0);
    if receiver.overflows > 0 {
        lost.insert("receiver's socket".to_owned(), between.saturating_sub(on_wire));
    }
    let explained: u64 = lost.values().sum();
    lost.retain(|_, count| *count > 0);
    let missing = report.sent.cast_signed() - report.received.cast_signed();
    Ok(LoadRow {
        carrier: carrier.name(),
        payload: plan.payload,
        multiple,
        offered: report.sent as f64 / report.seconds / 1e3,
        delivered: report.kilopackets_per_second,
        sent: report.sent,
        received: report.received,
        lost,
        unexplained: missing - explained.cast_signed(),
        foreign: report.cpu.foreign,
    })
}

/// Where a kernel between the pods may drop, beside the tunnel's own queues.
const WIRE: &str = "wire";

fn kernel_counts(cluster: &Cluster) -> anyhow::Result<BTreeMap<&'static str, u64>> {
    let [near, far] = cluster.nodes() else { bail!("two nodes") };
    let pods: Vec<_> = cluster.pods().collect();
    let [from, to] = pods.as_slice() else { bail!("two pods") };
    let drops = counts::device_drops;
    let veth = |node: &Node, pod: &Pod| drops(node.namespace(), &format!("veth-{}", pod.name()));
    let bridge = |node: &Node| drops(node.namespace(), POD_BRIDGE);
    Ok(BTreeMap::from([
        (WIRE, drops(near.namespace(), DEVICE)? + drops(far.namespace(), DEVICE)?),
        ("sender's pod link", drops(from.namespace(), DEVICE)? + veth(near, from)? + bridge(near)?),
        ("receiver's pod link", drops(to.namespace(), DEVICE)? + veth(far, to)? + bridge(far)?),
        ("receiving pod's socket", counts::snmp(to.namespace(), "Udp", "RcvbufErrors")?),
    ]))
}
