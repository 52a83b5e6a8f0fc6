//! Nodes of ours and nodes of real flannel over one etcd: each reads the other's leases, and each is found again after a
//! restart of either.

use std::process::ExitCode;

use anyhow::{Context, ensure};
use dataplane_core::Family;
use lab::{Plan, Scene};
use promises::cluster::{Inner, net_conf};
use promises::etcd::OverEtcd;
use promises::{flannel, harness, reach};

fn main() -> ExitCode {
    harness::of_flannel(
        "promise-flannel-etcd",
        lab::cases![two_and_two_nodes_by_vxlan, two_and_two_nodes_by_udp, two_and_two_nodes_of_both_families],
    )
}

fn two_and_two_nodes_by_vxlan(scene: &Scene) -> anyhow::Result<()> {
    two_and_two_nodes(scene, "vxlan", Inner::V4)
}

fn two_and_two_nodes_by_udp(scene: &Scene) -> anyhow::Result<()> {
    two_and_two_nodes(scene, "udp", Inner::V4)
}

fn two_and_two_nodes_of_both_families(scene: &Scene) -> anyhow::Result<()> {
    two_and_two_nodes(scene, "vxlan", Inner::Dual)
}

/// flannel on the nodes with an odd number, so that both kinds come first and last.
fn two_and_two_nodes(scene: &Scene, backend: &str, inner: Inner) -> anyhow::Result<()> {
    let mut all = OverEtcd::start(&Plan::nodes(5), scene.dir(), 1, &net_conf(backend, inner), 0)?;
    for index in 0..4 {
        let daemon = start(&all, scene, index)?;
        all.adopt(daemon).with_context(|| format!("node {index}"))?;
    }
    mesh(&all, inner.families())?;
    let before = all.leases()?;
    ensure!(before.len() == 4, "{before:?}");
    for index in 0..4 {
        // As an image is swapped: one ends, the next begins.
        all.daemons[index].process().terminate(promises::daemon::PATIENCE)?;
        let again = start(&all, scene, index)?;
        let env = again.ready()?;
        ensure!(env.subnets == all.envs[index].subnets, "node {index}: {env:?}, not {:?}", all.envs[index]);
        all.daemons[index] = again;
        mesh(&all, inner.families()).with_context(|| format!("node {index} has started again"))?;
    }
    let leases = all.leases()?;
    ensure!(leases.keys().eq(before.keys()), "{leases:?}, not {before:?}");
    Ok(())
}

fn start(all: &OverEtcd, scene: &Scene, index: usize) -> anyhow::Result<promises::daemon::Daemon> {
    match index % 2 {
        0 => all.spawn(index, scene.dir(), &[]),
        _ => flannel::spawn_over(all.node(index)?, scene.dir(), &all.endpoints()),
    }
}

/// Every pod reaches every other.
fn mesh(all: &OverEtcd, families: &[Family]) -> anyhow::Result<()> {
    for from in 0..4 {
        for to in (0..4).filter(|to| *to != from) {
            for family in families {
                reach::ping(reach::path(all.pod(from)?, all.pod(to)?, *family)?)
                    .with_context(|| format!("from node {from} to node {to}"))?;
            }
        }
    }
    Ok(())
}
