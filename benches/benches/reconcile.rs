//! How long the host takes to be what the leases say, kernel VXLAN, in a network namespace of its own: all leases from
//! nothing, and one more lease beside them.
//!
//! `cargo bench -p benches --bench reconcile [-- LEASES]`; 5 000 leases if no number is given.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use control::backend::Backend;
use control::choose::Method;
use control::lease::{BackendData, Lease, LeaseAttrs, LeaseSet, LeaseUpdate, Subnet, VxlanData};
use control::network::NetworkConfig;
use control::plan::Plan;
use control::underlay::{End, Underlay};
use dataplane_core::{Family, Ipv4Net, LinkMtu, MacAddr};
use hostnet::kernel::{Kernel, LinkSettings};
use hostnet::netns::NetNs;
use hostnet::reconcile::{converge, step};

const LEASES: u32 = 5_000;
const RUNS: usize = 5;
const CHANGES: u32 = 50;

#[expect(clippy::print_stdout, reason = "it is what a benchmark is for")]
fn main() -> anyhow::Result<()> {
    // `cargo test --benches` only wants to know that it builds.
    if !std::env::args().any(|word| word == "--bench") {
        return Ok(());
    }
    let leases = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(LEASES);
    lab::isolation::isolate().context("make private namespaces")?;
    let (mut all, mut looks, mut ones) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let times = NetNs::new()?.run("reconcile", || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(measure(leases))
        })??;
        all.push(times.all);
        looks.push(times.look);
        ones.extend(times.ones);
    }
    println!("{leases} leases from nothing     {:>8.1} ms (median of {RUNS})", median(&mut all));
    println!("a look that finds all in order {:>8.1} ms (median of {RUNS})", median(&mut looks));
    let middle = median(&mut ones);
    let worst = ones.last().copied().unwrap_or_default().as_secs_f64() * 1e3;
    println!(
        "one lease beside {leases}      {middle:>8.1} ms (median of {}), {worst:.1} ms at worst",
        ones.len()
    );
    Ok(())
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default().as_secs_f64() * 1e3
}

struct Times {
    all: Duration,
    look: Duration,
    ones: Vec<Duration>,
}

async fn measure(leases: u32) -> anyhow::Result<Times> {
    let kernel = Kernel::connect().await?;
    kernel.add_bridge("eth0").await?;
    kernel.set_link("eth0", &LinkSettings { up: Some(true), ..LinkSettings::default() }).await?;
    kernel.add_address("eth0", "172.16.0.1/12".parse()?).await?;
    let backend = backend()?;
    let own = lease(0)?;
    let mut set = LeaseSet::new(own.subnet);
    let others = (1..=leases).map(lease).collect::<anyhow::Result<Vec<_>>>()?;

    // From the store's list to routes that are there: what a node does at its start.
    let begin = Instant::now();
    set.apply(LeaseUpdate::Snapshot(others));
    let plan = backend.plan(&own, &set);
    for device in &plan.devices {
        kernel.ensure_vxlan(device).await?;
    }
    let scope = Plan::scope(&backend);
    let outcome = converge(&kernel, &scope, &plan.host).await;
    let all = begin.elapsed();
    ensure!(outcome.is_settled() && outcome.applied.len() as u32 > 3 * leases, "{outcome}");

    let begin = Instant::now();
    let outcome = converge(&kernel, &scope, &plan.host).await;
    let look = begin.elapsed();
    ensure!(outcome.is_settled() && outcome.applied.is_empty(), "{outcome}");

    let mut known = plan.host;
    let mut ones = Vec::new();
    for n in leases + 1..=leases + CHANGES {
        let update = LeaseUpdate::Upsert(lease(n)?);
        let begin = Instant::now();
        set.apply(update);
        let plan = backend.plan(&own, &set);
        let outcome = step(&kernel, &known, &plan.host).await;
        ones.push(begin.elapsed());
        ensure!(outcome.is_settled() && outcome.applied.len() == 3, "{outcome}");
        known = plan.host;
    }
    Ok(Times { all, look, ones })
}

fn backend() -> anyhow::Result<Backend> {
    let network = NetworkConfig::parse(br#"{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}"#)
        .map_err(|remark| anyhow::anyhow!("{remark}"))?;
    let local = Ipv4Addr::new(172, 16, 0, 1);
    let underlay = Underlay {
        device: "eth0".to_owned(),
        index: 2,
        mtu: LinkMtu(1500),
        on_link: vec!["172.16.0.0/12".parse()?],
        v4: Some(End { local, public: local }),
        v6: None,
    };
    let mac = |family| MacAddr([2, 0, 0, 0, 0, u8::from(family == Family::V6)]);
    Ok(Backend::new(&network, Method::KernelVxlan, &underlay, mac)?)
}

/// The lease of node `n`: 10.0.0.0/24 and on, at 172.16.0.1 and on.
fn lease(n: u32) -> anyhow::Result<Lease> {
    let subnet = Subnet::new(Some(Ipv4Net::new(Ipv4Addr::from(0x0a01_0000 + (n << 8)), 24)?), None);
    let [_, a, b, c] = n.to_be_bytes();
    let data = VxlanData { vni: Some(1), mac: MacAddr([2, 0, 1, a, b, c]) };
    Ok(Lease {
        subnet: subnet.context("a subnet")?,
        attrs: LeaseAttrs {
            public_ip: Some(Ipv4Addr::from(0xac10_0001 + n)),
            public_ipv6: None,
            backend: BackendData::Vxlan { v4: Some(data), v6: None },
        },
        expires: None,
    })
}
