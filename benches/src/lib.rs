//! `overlay`, the side-by-side race: what it races, and what it shows of the result.
//!
//! ```text
//! plan       names on the command line to ways and scenarios
//! ablation   every permutation of the offloads, and what each is worth
//! bare       an engine without its daemon, with one lease and with a hundred thousand
//! flannel    real flannel's udp backend, where it has been built
//! overload   more than a node can carry: loss by place, garbage, a bad peer, churn
//! lookup     one look-up among a hundred thousand leases
//! table      everything, for a terminal
//! markdown   the README's table
//! plot       the README's picture
//! figures    the figures to reach, and whether they are
//! ```
//!
//! The benches of the core are in `benches/core.rs` (time) and `benches/instructions.rs` (counts); what both measure is
//! in [`packets`].
#![forbid(unsafe_code)]

pub mod ablation;
pub mod bare;
pub mod figures;
pub mod flannel;
pub mod lookup;
pub mod markdown;
pub mod overload;
pub mod packets;
pub mod plan;
pub mod plot;
pub mod table;

#[cfg(test)]
mod sample {
    //! Small results for the tests of how they are shown.

    use lab::LinkModel;
    use lab::race::way::Role;
    use lab::race::{Machine, Outcome, Report, Scenario, Settings, Summary};

    pub(crate) fn outcome(way: &str, scenario: Scenario, value: Option<f64>) -> Outcome {
        Outcome {
            way: way.to_owned(),
            role: Role::Engine,
            off: Vec::new(),
            model: LinkModel::On,
            scenario,
            unit: scenario.unit().to_owned(),
            better: scenario.better(),
            value: value.and_then(|value| Summary::of([value])),
            p99: None,
            fairness: None,
            gigabits_per_second: None,
            cpu_machine: None,
            cpu_processes: None,
            to_floor: None,
            to_kernel_vxlan: None,
            to_host_routes: None,
            quiet: true,
            runs: Vec::new(),
        }
    }

    pub(crate) fn report(outcomes: Vec<Outcome>) -> Report {
        let settings = Settings { rounds: 1, seconds: 1.0, foreign_limit: 0.03 };
        Report {
            machine: Machine::look(String::new()),
            settings,
            skipped: Vec::new(),
            outcomes,
            asides: Vec::new(),
        }
    }
}
