//! Nodes whose leases are in a real etcd: what is in it, and that etcd may freeze, die, forget and come back while pods'
//! packets go on.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use dataplane_core::Family;
use lab::{Plan, Scene, Underlay};
use promises::cluster::{Inner, net_conf};
use promises::etcd::OverEtcd;
use promises::host::until;
use promises::{harness, pinger, reach};

fn main() -> ExitCode {
    harness::of_daemons(
        "promise-etcd",
        lab::cases![
            nodes_find_each_other_and_leave_flannels_keys,
            a_frozen_etcd_costs_no_packet,
            a_killed_etcd_costs_no_packet,
            an_etcd_that_lost_its_data_costs_no_packet_and_gets_the_same_leases,
            a_killed_leader_of_three_costs_no_packet,
            a_reservation_stays_one_over_restarts,
            a_lease_that_another_node_took_ends_the_daemon,
        ],
    )
}

/// So many nodes, and one for etcd.
fn plan(nodes: usize) -> Plan {
    Plan { underlay: Underlay::V4, ..Plan::nodes(nodes + 1) }
}

/// Leases by key, without their etcd leases.
fn values(all: &OverEtcd) -> anyhow::Result<BTreeMap<String, String>> {
    Ok(all.leases()?.into_iter().map(|(key, (value, _))| (key, value)).collect())
}

/// Every daemon has said so.
fn all_say(all: &OverEtcd, part: &str) -> anyhow::Result<()> {
    all.daemons.iter().try_for_each(|daemon| daemon.wait_for_line(part).map(drop))
}

/// Disturbs etcd under traffic between the first two pods: no packet is lost, no lease changes, and a node that joins
/// afterwards is found.
fn costs_no_packet(
    scene: &Scene,
    members: usize,
    disturb: impl FnOnce(&mut OverEtcd) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    // Three: of two, each knows one other, and one that leaves is no loss to be held back.
    let mut all = OverEtcd::start(&plan(4), scene.dir(), members, &net_conf("vxlan", Inner::V4), 3)?;
    let (namespaces, address) = {
        let path = reach::path(all.pod(0)?, all.pod(1)?, Family::V4)?;
        reach::ping(path)?;
        ((path.from.clone(), path.to.clone()), path.address)
    };
    let path = lab::traffic::Path { from: &namespaces.0, to: &namespaces.1, address };
    let before = values(&all)?;
    pinger::without_a_loss(path, || disturb(&mut all))?;
    // A client of all servers may meet the dead one.
    until("the leases are there as they were", || Ok(values(&all).is_ok_and(|now| now == before)))?;
    all.join(scene.dir())?;
    for (from, to) in [(0, 3), (3, 0), (2, 3), (0, 1)] {
        reach::ping(reach::path(all.pod(from)?, all.pod(to)?, Family::V4)?)
            .with_context(|| format!("from pod {from} to pod {to}"))?;
    }
    all.stop()
}

fn nodes_find_each_other_and_leave_flannels_keys(scene: &Scene) -> anyhow::Result<()> {
    for (backend, inner) in [("vxlan", Inner::V4), ("udp", Inner::V4), ("vxlan", Inner::Dual)] {
        let dir = scene.dir().join(format!("{backend}-{inner:?}"));
        let plan = Plan::nodes(3);
        let all = OverEtcd::start(&plan, &dir, 1, &net_conf(backend, inner), 2)?;
        for family in inner.families() {
            reach::ping(reach::path(all.pod(0)?, all.pod(1)?, *family)?)?;
        }
        let leases = all.leases()?;
        ensure!(leases.len() == 2, "{leases:?}");
        for (env, number) in all.envs.iter().zip(1..) {
            let key: Vec<_> = env
                .subnets
                .iter()
                .map(|net| format!("{}-{}", net.trunc().addr(), net.prefix_len()))
                .collect();
            let (value, etcd_lease) =
                leases.get(&key.join("&")).with_context(|| format!("{key:?}: {leases:?}"))?;
            ensure!(
                value.starts_with(&format!(r#"{{"PublicIP":"192.0.2.{number}","PublicIPv6":"#)),
                "{value}"
            );
            ensure!(value.contains(r#""BackendType":"vxlan""#) == (backend == "vxlan"), "{value}");
            let id = *etcd_lease;
            let granted = all
                .by_hand(async move |client| Ok(client.lease_time_to_live(id, None).await?.granted_ttl()))?;
            ensure!(granted == 86_400, "a lease of {granted} s");
        }
        all.stop()?;
    }
    Ok(())
}

fn a_frozen_etcd_costs_no_packet(scene: &Scene) -> anyhow::Result<()> {
    costs_no_packet(scene, 1, |all| {
        all.etcd(|etcd| etcd.members()[0].freeze())?;
        all_say(all, "lost etcd")?;
        all.etcd(|etcd| etcd.members()[0].thaw())?;
        all_say(all, "etcd answers again")
    })
}

fn a_killed_etcd_costs_no_packet(scene: &Scene) -> anyhow::Result<()> {
    costs_no_packet(scene, 1, |all| {
        all.etcd(|etcd| etcd.members_mut()[0].kill())?;
        all_say(all, "lost etcd")?;
        all.etcd(|etcd| etcd.members_mut()[0].restart())?;
        all_say(all, "etcd answers again")
    })
}

fn an_etcd_that_lost_its_data_costs_no_packet_and_gets_the_same_leases(scene: &Scene) -> anyhow::Result<()> {
    costs_no_packet(scene, 1, |all| {
        let before = values(all)?;
        all.etcd(|etcd| etcd.members_mut()[0].wipe())?;
        all_say(all, "etcd answers again")?;
        until("every node publishes itself again", || Ok(values(all).is_ok_and(|now| now == before)))?;
        all.put("config", &net_conf("vxlan", Inner::V4))
    })
}

fn a_killed_leader_of_three_costs_no_packet(scene: &Scene) -> anyhow::Result<()> {
    costs_no_packet(scene, 3, |all| {
        let mut leads = None;
        let urls = all.etcd(|etcd| Ok(etcd.urls()))?;
        for (index, url) in urls.iter().enumerate() {
            let is_leader = all.by_hand_at(std::slice::from_ref(url), async |client| {
                let status = client.status().await?;
                Ok(status.header().is_some_and(|header| header.member_id() == status.leader()))
            })?;
            if is_leader {
                leads = Some(index);
            }
        }
        let leader = leads.context("a leader")?;
        all.etcd(|etcd| etcd.members_mut()[leader].kill())?;
        // The other two have a leader when they take a write.
        until("the other two go on", || Ok(all.put("other", "x").is_ok()))
    })
}

fn a_reservation_stays_one_over_restarts(scene: &Scene) -> anyhow::Result<()> {
    let mut all = OverEtcd::start(&plan(1), scene.dir(), 1, &net_conf("vxlan", Inner::V4), 0)?;
    all.put("subnets/10.5.77.0-24", r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#)?;
    for _ in 0..3 {
        let daemon = all.spawn(0, scene.dir(), &[])?;
        let env = daemon.ready()?;
        ensure!(env.subnets[0].to_string() == "10.5.77.0/24", "{env:?}");
        let leases = all.leases()?;
        ensure!(leases.len() == 1 && leases["10.5.77.0-24"].1 == 0, "{leases:?}");
        daemon.stop()?;
    }
    all.etcd(|etcd| etcd.members_mut()[0].restart())?;
    ensure!(all.leases()?["10.5.77.0-24"].1 == 0, "{:?}", all.leases()?);
    Ok(())
}

fn a_lease_that_another_node_took_ends_the_daemon(scene: &Scene) -> anyhow::Result<()> {
    let mut all = OverEtcd::start(&plan(1), scene.dir(), 1, &net_conf("vxlan", Inner::V4), 1)?;
    let (key, _) = all.leases()?.pop_first().context("a lease")?;
    let theirs = r#"{"PublicIP":"192.0.2.99","PublicIPv6":null}"#;
    all.put(&format!("subnets/{key}"), theirs)?;
    let log = all.daemons.remove(0).ends_with_an_error()?;
    ensure!(log.lines().last().is_some_and(|line| line.contains("192.0.2.99")), "{log}");
    ensure!(values(&all)?.get(&key).is_some_and(|value| value == theirs), "it was overwritten");
    Ok(())
}
