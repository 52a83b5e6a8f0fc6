//! What a race found: every run as it was, and medians, extremes and ratios over the runs that count.

use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::measure::Figures;
use super::scenario::{Better, Scenario};
use super::standing::{Aside, Quantity};
use super::way::{Role, Way};
use crate::cluster::LinkModel;

/// Tries after which a cell whose every run fails is given up.
const FAILURES: usize = 2;

/// The whole result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What it ran on.
    pub machine: Machine,
    /// How it was run.
    pub settings: Settings,
    /// Who could not take part, and why.
    pub skipped: Vec<Skipped>,
    /// One for each link model, scenario and way.
    pub outcomes: Vec<Outcome>,
    /// Figures that no traffic was needed for.
    #[serde(default)]
    pub asides: Vec<Aside>,
}

/// How a race was run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Rounds asked for.
    pub rounds: usize,
    /// Seconds of one measurement.
    pub seconds: f64,
    /// Share of foreign CPU time, 0 to 1, above which a run was thrown away.
    pub foreign_limit: f64,
}

/// A way that could not take part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its name.
    pub way: String,
    /// On which link.
    pub model: LinkModel,
    /// What the machine lacks.
    pub reason: String,
}

/// One cell: a way, on a link, with one kind of traffic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The way's name.
    pub way: String,
    /// What the way stands for.
    pub role: Role,
    /// Features of the engine that were forced off.
    #[serde(default)]
    pub off: Vec<String>,
    /// The link.
    pub model: LinkModel,
    /// The traffic.
    pub scenario: Scenario,
    /// Unit of the values.
    pub unit: String,
    /// Whether more is better.
    pub better: Better,
    /// Over the runs that count; `None` when every run failed.
    pub value: Option<Summary>,
    /// The same for the 99th percentile, where there is one.
    pub p99: Option<Summary>,
    /// Jain's index over the streams, where there are several.
    pub fairness: Option<Summary>,
    /// Payload gigabits a second that arrived, where the value is something else.
    pub gigabits_per_second: Option<Summary>,
    /// Busy CPU seconds of the machine per payload gigabit.
    pub cpu_machine: Option<Summary>,
    /// CPU seconds of daemons and traffic threads per payload gigabit.
    pub cpu_processes: Option<Summary>,
    /// Median divided by the floor's.
    pub to_floor: Option<f64>,
    /// Median divided by kernel VXLAN's.
    pub to_kernel_vxlan: Option<f64>,
    /// Median divided by that of plain routes.
    pub to_host_routes: Option<f64>,
    /// Whether a run was quiet enough to count. If none was, the figures are over all runs, and doubtful.
    pub quiet: bool,
    /// Every run, in order.
    pub runs: Vec<Run>,
}

/// Median, least and most.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The middle value, or the mean of the middle two.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

/// One measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// In which round, from 1.
    pub round: usize,
    /// In the unit of the scenario; `None` when it failed.
    pub value: Option<f64>,
    /// 99th percentile, where the value is a median.
    pub p99: Option<f64>,
    /// Jain's index over the streams, where there are several.
    pub fairness: Option<f64>,
    /// Payload gigabits a second that arrived.
    pub gigabits_per_second: Option<f64>,
    /// Busy CPU seconds of the machine per payload gigabit.
    pub cpu_machine: Option<f64>,
    /// CPU seconds of daemons and traffic threads per payload gigabit.
    pub cpu_processes: Option<f64>,
    /// Share of the machine that other programs used meanwhile, 0 to 1.
    pub foreign: f64,
    /// It counts for nothing, because too much of the machine was somebody else's.
    pub thrown_away: bool,
    /// Why there is no value.
    pub failure: Option<String>,
}

impl Run {
    pub(super) fn of(round: usize, measured: anyhow::Result<Figures>, limit: f64) -> Self {
        match measured {
            Ok(figures) => Self {
                round,
                value: Some(figures.value),
                p99: figures.p99,
                fairness: figures.fairness,
                gigabits_per_second: figures.gigabits_per_second,
                cpu_machine: figures.cpu_machine,
                cpu_processes: figures.cpu_processes,
                foreign: figures.foreign,
                thrown_away: figures.foreign > limit,
                failure: None,
            },
            Err(error) => Self { round, failure: Some(format!("{error:#}")), ..Self::default() },
        }
    }

    fn counts(&self) -> bool {
        self.value.is_some() && !self.thrown_away
    }
}

/// How many runs count.
pub(super) fn kept(runs: &[Run]) -> usize {
    runs.iter().filter(|run| run.counts()).count()
}

/// Whether more tries are wasted time.
pub(super) fn hopeless(runs: &[Run]) -> bool {
    runs.len() >= FAILURES && runs.iter().all(|run| run.failure.is_some())
}

impl Summary {
    /// Of some values; `None` for none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let upper = sorted.get(middle).copied().unwrap_or(max);
        let lower = if sorted.len().is_multiple_of(2) { sorted.get(middle - 1).copied() } else { None };
        Some(Self { median: lower.map_or(upper, |lower| f64::midpoint(lower, upper)), min, max })
    }
}

impl Outcome {
    pub(super) fn new(way: &Way, model: LinkModel, scenario: Scenario, runs: Vec<Run>) -> Self {
        let quiet = kept(&runs) > 0;
        let over = |field: fn(&Run) -> Option<f64>| {
            Summary::of(runs.iter().filter(|run| run.counts() || !quiet).filter_map(field))
        };
        Self {
            way: way.name(),
            role: way.role(),
            off: way.off(),
            model,
            scenario,
            unit: scenario.unit().to_owned(),
            better: scenario.better(),
            value: over(|run| run.value),
            p99: over(|run| run.p99),
            fairness: over(|run| run.fairness),
            gigabits_per_second: over(|run| run.gigabits_per_second),
            cpu_machine: over(|run| run.cpu_machine),
            cpu_processes: over(|run| run.cpu_processes),
            to_floor: None,
            to_kernel_vxlan: None,
            to_host_routes: None,
            quiet,
            runs,
        }
    }

    /// The first reason why a run failed.
    pub fn failure(&self) -> Option<&str> {
        self.runs.iter().find_map(|run| run.failure.as_deref())
    }
}

impl Report {
    pub(super) fn new(
        machine: Machine,
        settings: Settings,
        skipped: Vec<Skipped>,
        mut outcomes: Vec<Outcome>,
    ) -> Self {
        let medians: Vec<_> = outcomes
            .iter()
            .filter_map(|outcome| {
                Some((outcome.model, outcome.scenario, outcome.role, outcome.value?.median))
            })
            .collect();
        for outcome in &mut outcomes {
            let ratio = |to: Role| {
                let same = |&&(model, scenario, role, _): &&(_, _, _, _)| {
                    (model, scenario, role) == (outcome.model, outcome.scenario, to)
                };
                let reference = medians.iter().find(same)?.3;
                (reference > 0.0).then_some(outcome.value?.median / reference)
            };
            (outcome.to_floor, outcome.to_kernel_vxlan, outcome.to_host_routes) =
                (ratio(Role::Floor), ratio(Role::KernelVxlan), ratio(Role::HostRoutes));
        }
        Self { machine, settings, skipped, outcomes, asides: Vec::new() }
    }

    /// The first aside of a quantity with so many leases, of any way.
    pub fn aside(&self, quantity: Quantity, leases: usize) -> Option<&Aside> {
        self.asides.iter().find(|aside| (aside.quantity, aside.leases) == (quantity, leases))
    }

    /// The cell of a way.
    pub fn outcome(&self, model: LinkModel, scenario: Scenario, way: &str) -> Option<&Outcome> {
        let is = |outcome: &&Outcome| {
            (outcome.model, outcome.scenario, outcome.way.as_str()) == (model, scenario, way)
        };
        self.outcomes.iter().find(is)
    }

    /// The models that were raced on, in order.
    pub fn models(&self) -> Vec<LinkModel> {
        let mut models = Vec::new();
        for outcome in &self.outcomes {
            if !models.contains(&outcome.model) {
                models.push(outcome.model);
            }
        }
        models
    }

    /// The names of the ways that took part, in order.
    pub fn ways(&self) -> Vec<&str> {
        let mut ways: Vec<&str> = Vec::new();
        for outcome in &self.outcomes {
            if !ways.contains(&outcome.way.as_str()) {
                ways.push(&outcome.way);
            }
        }
        ways
    }

    /// Runs that were thrown away, and all runs.
    pub fn thrown_away(&self) -> (usize, usize) {
        let runs = || self.outcomes.iter().flat_map(|outcome| &outcome.runs);
        (runs().filter(|run| run.thrown_away).count(), runs().count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(value: f64, foreign: f64) -> Run {
        let figures = Figures {
            value,
            p99: None,
            fairness: None,
            gigabits_per_second: None,
            cpu_machine: None,
            cpu_processes: None,
            foreign,
        };
        Run::of(1, Ok(figures), 0.03)
    }

    fn outcome(way: Way, runs: Vec<Run>) -> Outcome {
        Outcome::new(&way, LinkModel::On, Scenario::Tcp1, runs)
    }

    fn report(outcomes: Vec<Outcome>) -> Report {
        let settings = Settings { rounds: 1, seconds: 1.0, foreign_limit: 0.03 };
        Report::new(Machine::look(String::new()), settings, Vec::new(), outcomes)
    }

    #[test]
    fn medians_are_of_the_middle() {
        let summary = |values: &[f64]| Summary::of(values.iter().copied()).map(|summary| summary.median);
        assert_eq!(summary(&[3.0, 1.0, 100.0]), Some(3.0));
        assert_eq!(summary(&[4.0, 1.0, 2.0, 100.0]), Some(3.0));
        assert_eq!(summary(&[]), None);
    }

    #[test]
    fn runs_beside_foreign_work_do_not_count_unless_there_is_no_other() {
        let noisy_once = outcome(Way::engine_udp(), vec![run(10.0, 0.0), run(2.0, 0.5)]);
        assert_eq!(noisy_once.value.unwrap().median, 10.0);
        assert!(noisy_once.quiet && noisy_once.runs[1].thrown_away);
        let noisy = outcome(Way::engine_udp(), vec![run(2.0, 0.5)]);
        assert_eq!(noisy.value.unwrap().median, 2.0);
        assert!(!noisy.quiet);
    }

    #[test]
    fn ratios_are_to_the_same_traffic_on_the_same_link() {
        let other_link = Outcome { model: LinkModel::Nic, ..outcome(Way::floor(), vec![run(1.0, 0.0)]) };
        let report = report(vec![
            other_link,
            outcome(Way::floor(), vec![run(2.0, 0.0)]),
            outcome(Way::engine_udp(), vec![run(12.0, 0.0)]),
            outcome(Way::kernel_vxlan(), vec![run(24.0, 0.0)]),
        ]);
        let engine = report.outcome(LinkModel::On, Scenario::Tcp1, "engine udp").unwrap();
        assert_eq!(
            (engine.to_floor, engine.to_kernel_vxlan, engine.to_host_routes),
            (Some(6.0), Some(0.5), None)
        );
    }

    #[test]
    fn a_failed_run_keeps_its_reason_and_hides_no_other() {
        let failed = Run::of(2, Err(anyhow::anyhow!("no route").context("connect")), 0.03);
        let mixed = outcome(Way::engine_udp(), vec![run(7.0, 0.0), failed.clone()]);
        assert_eq!(mixed.value.unwrap().median, 7.0);
        assert_eq!(mixed.failure(), Some("connect: no route"));
        assert!(hopeless(&[failed.clone(), failed.clone()]) && !hopeless(&[failed]));
    }

    #[test]
    fn shares_are_summed_up_over_the_runs_that_count() {
        let fair = |fairness, foreign| Run { fairness: Some(fairness), ..run(1.0, foreign) };
        let outcome = outcome(Way::engine_udp(), vec![fair(0.9, 0.0), fair(0.98, 0.0), fair(0.1, 0.5)]);
        assert_eq!(outcome.fairness.unwrap(), Summary { median: 0.94, min: 0.9, max: 0.98 });
    }

    #[test]
    fn a_report_survives_its_file() {
        let before = report(vec![outcome(Way::kernel_vxlan(), vec![run(7.5, 0.01)])]);
        let text = serde_json::to_string(&before).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), before);
    }
}
