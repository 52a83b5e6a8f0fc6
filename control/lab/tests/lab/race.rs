//! The race: ways are measured side by side, and what cannot take part is said.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lab::cluster::vxlan::subnets;
use lab::race::way::{Role, Started, Starter};
use lab::race::{Doing, Race, Scenario, Way};
use lab::{Case, Cluster, LinkModel, Scene};

pub(crate) fn cases() -> Vec<Case> {
    lab::cases![
        every_round_measures_every_way_and_ratios_are_within_one_race,
        a_way_that_cannot_take_part_is_named_with_its_reason,
        a_program_that_ends_takes_no_other_way_with_it,
        a_thousand_nodes_are_reached_in_turn,
    ]
}

fn race(scene: &Scene, ways: Vec<Way>) -> Race {
    Race {
        ways,
        models: vec![LinkModel::On, LinkModel::Nic],
        scenarios: vec![Scenario::Tcp1, Scenario::Rtt],
        rounds: 2,
        duration: Duration::from_millis(100),
        repeats: 0,
        flanneld: PathBuf::from("/nonexistent/flanneld"),
        dir: scene.dir().to_owned(),
        skip_broken: true,
        standing: false,
    }
}

fn every_round_measures_every_way_and_ratios_are_within_one_race(scene: &Scene) -> anyhow::Result<()> {
    let mut order = Vec::new();
    let report = race(scene, vec![Way::host_routes(), Way::kernel_vxlan()]).run(|step| {
        if let Doing::Measuring(scenario) = step.doing {
            order.push((step.round, step.model, scenario, step.way.name()));
        }
    })?;
    if let Some(skipped) = report.skipped.first() {
        return Err(lab::skip(&skipped.reason));
    }
    assert_eq!(order.len(), 2 * 2 * 2 * 2, "{order:?}");
    assert!(
        order[..8].iter().all(|step| step.0 == 1) && order[8..].iter().all(|step| step.0 == 2),
        "{order:?}"
    );
    assert!(order.chunks(2).all(|turn| turn[0].3 != turn[1].3), "ways take turns: {order:?}");
    assert_eq!(report.outcomes.len(), 2 * 2 * 2);
    for outcome in &report.outcomes {
        assert_eq!((outcome.runs.len(), outcome.failure()), (2, None), "{outcome:?}");
        let value = outcome.value.as_ref().ok_or_else(|| anyhow::anyhow!("no value: {outcome:?}"))?;
        assert!(value.min > 0.0 && value.min <= value.median && value.median <= value.max, "{outcome:?}");
        assert!(outcome.to_kernel_vxlan.is_some() && outcome.to_floor.is_none(), "{outcome:?}");
    }
    Ok(())
}

fn a_way_that_cannot_take_part_is_named_with_its_reason(scene: &Scene) -> anyhow::Result<()> {
    let report = race(scene, vec![Way::engine_udp(), Way::host_routes()]).run(|_| {})?;
    assert_eq!(report.skipped.len(), 2, "one for each link: {:?}", report.skipped);
    let skipped = &report.skipped[0];
    assert_eq!(skipped.way, "engine udp");
    assert!(skipped.reason.contains("/nonexistent/flanneld"), "{skipped:?}");
    assert_eq!(report.ways(), ["host routes"]);
    let strict = Race { skip_broken: false, ..race(scene, vec![Way::engine_udp()]) };
    assert!(strict.run(|_| {}).is_err());
    Ok(())
}

/// Plain routes beside a process that ends as soon as packets flow: a tunnel that dies, seen from outside.
#[derive(Debug)]
struct ShortLived;

impl Starter for ShortLived {
    fn name(&self) -> String {
        "short-lived".to_owned()
    }

    fn role(&self) -> Role {
        Role::Program
    }

    fn takes(&self, _: Scenario) -> bool {
        true
    }

    fn start(&self, cluster: &Cluster, dir: &Path) -> anyhow::Result<Started> {
        assert!(dir.starts_with("/"), "it gets a place for its files: {}", dir.display());
        let networks = cluster.host_routes(&subnets(2, true, false))?;
        let node = &cluster.nodes()[0];
        let mut shell = Command::new("sh");
        // The pair waits for a first ping; this one outlives it.
        shell.args(["-c", "echo and that was it; sleep 1"]);
        Ok(Started { networks, processes: vec![node.spawn(shell)?] })
    }
}

fn a_program_that_ends_takes_no_other_way_with_it(scene: &Scene) -> anyhow::Result<()> {
    let ways = vec![Way::program(ShortLived), Way::host_routes()];
    let race = Race {
        models: vec![LinkModel::On],
        rounds: 4,
        duration: Duration::from_millis(400),
        ..race(scene, ways)
    };
    let report = race.run(|_| {})?;
    let of = |way, scenario| report.outcome(LinkModel::On, scenario, way);
    for scenario in [Scenario::Tcp1, Scenario::Rtt] {
        let other = of("host routes", scenario).ok_or_else(|| anyhow::anyhow!("it raced"))?;
        assert_eq!((other.runs.len(), other.failure()), (4, None), "{other:?}");
    }
    let failure = of("short-lived", Scenario::Rtt).and_then(|outcome| outcome.failure());
    let failure = failure.ok_or_else(|| anyhow::anyhow!("its end went unnoticed: {report:?}"))?;
    assert!(failure.contains("has ended") && failure.contains("and that was it"), "{failure}");
    Ok(())
}

fn a_thousand_nodes_are_reached_in_turn(scene: &Scene) -> anyhow::Result<()> {
    let race = Race {
        models: vec![LinkModel::Nic],
        scenarios: vec![Scenario::Peers1, Scenario::Peers1000],
        ..race(scene, vec![Way::kernel_vxlan(), Way::host_routes()])
    };
    let report = race.run(|_| {})?;
    if let Some(skipped) = report.skipped.first() {
        return Err(lab::skip(&skipped.reason));
    }
    assert_eq!(report.ways(), ["kernel vxlan"], "plain routes know no leases");
    for outcome in &report.outcomes {
        // Datagrams of another size than the tunnel makes of ours would be a failure.
        assert_eq!((outcome.runs.len(), outcome.failure()), (2, None), "{outcome:?}");
        assert!(outcome.value.is_some_and(|value| value.min > 0.0), "{outcome:?}");
    }
    Ok(())
}
