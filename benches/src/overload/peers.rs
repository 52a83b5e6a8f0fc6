//! One node sends to ten peers at once, of which one is bad: what the nine others get.

use std::net::{IpAddr, SocketAddrV4};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use lab::LinkModel;
use lab::daemons::Backend;
use lab::traffic::Path;
use lab::traffic::garbage::{Garbage, during};
use lab::traffic::udp::{Flood, UdpReport, flood};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use super::cast::{Carrier, Cast, Place};

/// Peers of the sending node.
const PEERS: usize = 10;
/// Datagrams a second to each peer.
const RATE: f64 = 6e3;
/// As much as two CPUs can still send and receive beside the daemons. The bad peer is sent more than its share.
const BAD_RATE: f64 = 30e3;
/// Bytes of a datagram.
const PAYLOAD: usize = 1200;

/// What is wrong with the bad peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trouble {
    /// Nothing.
    None,
    /// Its daemon stands still: its socket overflows.
    Stopped,
    /// Its link is down: nobody answers for its address.
    Unreachable,
}

/// The nine others beside one kind of trouble.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PeersRow {
    /// What is wrong with the tenth.
    pub trouble: Trouble,
    /// Thousand datagrams a second that arrived at the nine others together.
    pub nine: f64,
    /// The least and the most that arrived at one of them.
    pub least_and_most: (f64, f64),
    /// Thousand datagrams a second offered to the nine.
    pub offered: f64,
}

/// Measures ten good peers, then nine and a bad one, for each kind of trouble.
///
/// # Errors
///
/// When the cluster cannot be built, or the nine get nothing.
pub fn measure(
    place: &Place,
    duration: Duration,
    mut progress: impl FnMut(&str),
) -> anyhow::Result<Vec<PeersRow>> {
    let cast = Cast::build(place, Carrier::Engine(Backend::Vxlan), LinkModel::Nic, PEERS + 1, &[])?;
    let bad = cast.cluster.nodes().last().context("a last node")?;
    let pid = Pid::from_raw(cast.pids().last().context("a daemon")?.cast_signed());
    let mut rows = Vec::new();
    for trouble in [Trouble::None, Trouble::Stopped, Trouble::Unreachable] {
        progress(&format!("{PEERS} peers, trouble with the last: {trouble:?}"));
        match trouble {
            Trouble::None => {}
            Trouble::Stopped => kill(pid, Signal::SIGSTOP)?,
            Trouble::Unreachable => bad.plug(false)?,
        }
        let row = row(&cast, trouble, duration);
        match trouble {
            Trouble::None => {}
            Trouble::Stopped => kill(pid, Signal::SIGCONT)?,
            Trouble::Unreachable => bad.plug(true)?,
        }
        rows.push(row?);
    }
    Ok(rows)
}

/// A flow to each of the nine, and beside them one to the tenth that expects nothing back.
fn row(cast: &Cast, trouble: Trouble, duration: Duration) -> anyhow::Result<PeersRow> {
    let plan = Flood { rate: Some(RATE), ..Flood::new(PAYLOAD, duration) };
    let last = cast.path(PEERS)?;
    let (IpAddr::V4(to), Some(IpAddr::V4(from))) = (last.address, cast.pod(0)?.v4()) else {
        bail!("pods without IPv4")
    };
    let blind = Garbage {
        from,
        to: SocketAddrV4::new(to, 9),
        datagrams: vec![vec![0; PAYLOAD]],
        segments: None,
        rate: Some(BAD_RATE),
    };
    let paths = (1..PEERS).map(|to| cast.path(to)).collect::<anyhow::Result<Vec<_>>>()?;
    let (nine, _) = during(last.from, &blind, || at_once(&paths, &plan))?;
    let rates = || nine.iter().map(|report| report.kilopackets_per_second);
    Ok(PeersRow {
        trouble,
        nine: rates().sum(),
        least_and_most: (rates().fold(f64::INFINITY, f64::min), rates().fold(0.0, f64::max)),
        offered: nine.iter().map(|report| report.sent as f64 / report.seconds / 1e3).sum(),
    })
}

fn at_once(paths: &[Path<'_>], plan: &Flood) -> anyhow::Result<Vec<UdpReport>> {
    thread::scope(|scope| {
        let flows: Vec<_> = paths.iter().map(|path| scope.spawn(|| flood(*path, plan))).collect();
        let join = |flow: thread::ScopedJoinHandle<'_, _>| {
            flow.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        // All are joined before the first error is looked at.
        let ended: Vec<_> = flows.into_iter().map(join).collect();
        ended.into_iter().collect()
    })
}
