//! What one look-up of a peer costs: the core alone, over a table of many leases.

use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use anyhow::{Context, ensure};
use dataplane_core::{Local, MacAddr, Peer, PeerTable};
use lab::cluster::vxlan::VxlanEnd;
use lab::leases;
use lab::race::{Aside, LARGEST_CROWD, Quantity};

/// Look-ups of one measurement: a tenth of a second or so.
const LOOK_UPS: u32 = 20_000_000;
/// Measurements; the middle one counts.
const REPEATS: usize = 5;

/// The table of a node that knows so many others, and `more` beside them.
///
/// # Errors
///
/// When the crowd has not so many nodes.
pub fn table(local: Local, port: u16, count: usize, more: &[VxlanEnd]) -> anyhow::Result<PeerTable> {
    let crowd = (0..count).map(leases::of_crowd).collect::<anyhow::Result<Vec<_>>>()?;
    let peer = |end: &VxlanEnd| Peer {
        endpoint: SocketAddr::new(end.public, port),
        mac: MacAddr(end.mac),
        subnets: vec![end.subnet],
    };
    let peers: Vec<Peer> = more.iter().chain(&crowd).map(peer).collect();
    Ok(PeerTable::build(local, &peers)?)
}

/// Looks up addresses of all nodes in random order.
///
/// # Errors
///
/// When an address is not found: the figure would be of something else.
pub fn measure() -> anyhow::Result<Aside> {
    measure_by(LOOK_UPS)
}

fn measure_by(look_ups: u32) -> anyhow::Result<Aside> {
    let (network, _) = leases::CROWD_NETWORK;
    let local = Local { networks: vec![network.into()], ..Local::default() };
    let table = table(local, 8472, LARGEST_CROWD, &[])?;
    let pod = |number| match leases::of_crowd(number)?.subnet.network() {
        IpAddr::V4(base) => Ok(u32::from(base) + 2),
        IpAddr::V6(base) => anyhow::bail!("{base} is no IPv4 address"),
    };
    let pods: Vec<u32> = (0..LARGEST_CROWD).map(pod).collect::<anyhow::Result<_>>()?;
    let found = pods.iter().filter(|&&pod| is_peer(&table, pod)).count();
    ensure!(found == pods.len(), "only {found} of {} addresses are found", pods.len());
    let (first, step) = (pods[0], pods[1] - pods[0]);
    let mut nanoseconds: Vec<f64> = (0..REPEATS).map(|_| time(&table, look_ups, first, step)).collect();
    nanoseconds.sort_by(f64::total_cmp);
    Ok(Aside {
        quantity: Quantity::LookUp,
        way: "packet core".to_owned(),
        leases: LARGEST_CROWD,
        value: *nanoseconds.get(REPEATS / 2).context("no measurement")?,
        how: format!(
            "median of {REPEATS} times {look_ups} look-ups of random pods, nothing else in the loop"
        ),
    })
}

fn is_peer(table: &PeerTable, address: u32) -> bool {
    matches!(table.owner(IpAddr::V4(address.into())), dataplane_core::Owner::Peer(..))
}

/// Nanoseconds of one look-up.
fn time(table: &PeerTable, look_ups: u32, first: u32, step: u32) -> f64 {
    let mut random = 1_u32;
    let started = Instant::now();
    for _ in 0..look_ups {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // The upper half of the product: a division would cost as much as the look-up.
        let number = ((u64::from(random) * LARGEST_CROWD as u64) >> 32) as u32;
        black_box(is_peer(table, black_box(first + number * step)));
    }
    started.elapsed().as_secs_f64() * 1e9 / f64::from(look_ups)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_of_the_largest_crowd_is_found() {
        let aside = measure_by(1000).unwrap();
        assert!(aside.value > 0.0, "{aside:?}");
        assert_eq!(aside.leases, LARGEST_CROWD);
    }
}
