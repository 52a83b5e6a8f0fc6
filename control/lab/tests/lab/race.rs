//! The race: ways are measured side by side, and what cannot take part is said.

use std::path::PathBuf;
use std::time::Duration;

use lab::race::{Doing, Race, Scenario, Way};
use lab::{Case, LinkModel, Scene};

pub(crate) fn cases() -> Vec<Case> {
    lab::cases![
        every_round_measures_every_way_and_ratios_are_within_one_race,
        a_way_that_cannot_take_part_is_named_with_its_reason,
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
