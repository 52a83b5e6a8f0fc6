//! One TCP stream while somebody floods the receiving node's tunnel port with datagrams that it must refuse.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::Context;
use dataplane_core::testing::{Builder, Transport};
use dataplane_core::{Encap, Family, MacAddr, Vni};
use lab::LinkModel;
use lab::books::Books;
use lab::daemons::Backend;
use lab::traffic::garbage::{Garbage, GarbageReport, during};
use lab::traffic::tcp::{Transfer, transfer};
use serde::Serialize;

use super::cast::{Carrier, Cast, Place, resident_kib};

/// VXLAN's port in flannel.
const PORT: u16 = 8472;
/// On the underlay's network, and no node's.
const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);
/// Datagrams that a sender with `UDP_SEGMENT` hands over at once.
const JOINED: u16 = 64;

/// TCP beside one kind of garbage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GarbageRow {
    /// Who carries the stream.
    pub carrier: &'static str,
    /// What is sent, and by whom.
    pub garbage: String,
    /// Gb/s of the stream without garbage, before.
    pub quiet: f64,
    /// Gb/s of the stream beside the garbage.
    pub beside: f64,
    /// Thousand datagrams of garbage a second that the sender got rid of.
    pub kilopackets_per_second: f64,
    /// Share of the machine, 0 to 1, that other programs used during the worse of the two.
    pub foreign: f64,
    /// KiB of resident memory of the victim, before and after.
    pub resident_kib: Option<(u64, u64)>,
}

/// A kind of garbage.
struct Kind {
    name: &'static str,
    from_peer: bool,
    segments: Option<u16>,
    /// The victim's port; another one shows what the flood costs the machine before any tunnel sees it.
    port: u16,
    datagram: Vec<u8>,
}

fn kinds() -> anyhow::Result<Vec<Kind>> {
    let vni = |number: u32| Vni::new(number).context("a VNI");
    let encap = |number| anyhow::Ok(Encap::Vxlan { vni: vni(number)? });
    let (from, to) = (MacAddr([2, 0, 0, 0, 0, 9]), MacAddr([2, 0, 0, 0, 0, 1]));
    let packet = Builder::new(Family::V4, Transport::Udp).from("10.5.3.2").to("10.5.2.2").payload(&[7; 64]);
    let wrap = |number: u32| {
        let mut datagram = encap(number)?.header(from, to, Family::V4).as_slice().to_vec();
        datagram.extend(packet.packet());
        anyhow::Ok(datagram)
    };
    // Noise that no seed is needed for: any bytes that are no header will do.
    let noise = (0..64_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let kind = |name, datagram| Kind { name, from_peer: false, segments: None, port: PORT, datagram };
    Ok(vec![
        Kind { port: 9, ..kind("64 B to a closed port", vec![0; 64]) },
        kind("runts of 1 B, a stranger", vec![0]),
        kind("64 B of noise, a stranger", noise),
        kind("1400 B of noise, a stranger", vec![0x5a; 1400]),
        kind("right but for its sender, a stranger", wrap(1)?),
        Kind { from_peer: true, ..kind("wrong VNI, a peer's address", wrap(7)?) },
        Kind { from_peer: true, ..kind("wrong MAC, a peer's address", wrap(1)?) },
        Kind { segments: Some(JOINED), ..kind("wrong VNI, 64 at a time, a stranger", wrap(7)?) },
        Kind {
            segments: Some(JOINED),
            from_peer: true,
            ..kind("wrong VNI, 64 at a time, a peer's address", wrap(7)?)
        },
    ])
}

/// Measures every kind whose name contains `matching` against the engine and, for comparison, the kernel's VXLAN.
///
/// # Errors
///
/// When a cluster cannot be built or the stream breaks.
pub fn measure(
    place: &Place,
    duration: Duration,
    matching: &str,
    mut progress: impl FnMut(&str),
) -> anyhow::Result<Vec<GarbageRow>> {
    let mut rows = Vec::new();
    for carrier in [Carrier::Engine(Backend::Vxlan), Carrier::Kernel] {
        let cast = Cast::build(place, carrier, LinkModel::Nic, 3, &[])?;
        for kind in kinds()?.iter().filter(|kind| kind.name.contains(matching)) {
            progress(&format!("{}, {}", carrier.name(), kind.name));
            rows.push(row(&cast, carrier, kind, duration)?);
        }
        check_books(&cast.close()?.0)?;
    }
    Ok(rows)
}

fn row(cast: &Cast, carrier: Carrier, kind: &Kind, duration: Duration) -> anyhow::Result<GarbageRow> {
    let [_, victim, third] = cast.cluster.nodes() else { anyhow::bail!("three nodes") };
    let pid = cast.pids().get(1).copied();
    let resident = || pid.map(resident_kib).transpose();
    let own = third.v4().context("an address")?;
    let garbage = Garbage {
        from: if kind.from_peer { own } else { STRANGER },
        to: SocketAddrV4::new(victim.v4().context("an address")?, kind.port),
        datagrams: vec![kind.datagram.clone()],
        segments: kind.segments,
        rate: None,
    };
    let plan = Transfer { watch: cast.pids(), ..Transfer::timed(duration) };
    let stream = || transfer(cast.path(1)?, &plan);
    let quiet = stream()?;
    let before = resident()?;
    let (beside, sent): (_, GarbageReport) = during(third.namespace(), &garbage, stream)?;
    let after = resident()?;
    Ok(GarbageRow {
        carrier: carrier.name(),
        garbage: kind.name.to_owned(),
        quiet: quiet.gigabits_per_second,
        beside: beside.gigabits_per_second,
        kilopackets_per_second: sent.kilopackets_per_second(),
        foreign: quiet.cpu.foreign.max(beside.cpu.foreign),
        resident_kib: before.zip(after),
    })
}

/// Whatever came, every packet has one fate.
fn check_books(books: &[Books]) -> anyhow::Result<()> {
    for books in books {
        anyhow::ensure!(books.rx.balances() && books.tx.balances(), "the books do not balance: {books:?}");
    }
    Ok(())
}
