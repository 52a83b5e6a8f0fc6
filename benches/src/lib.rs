//! What `overlay`, the side-by-side race, shows of its result: tables and plots; and what `overload` measures.
//!
//! The criterion benches of the core are in `benches/core.rs`.
#![forbid(unsafe_code)]

pub mod markdown;
pub mod overload;
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
            model: LinkModel::On,
            scenario,
            unit: scenario.unit().to_owned(),
            better: scenario.better(),
            value: value.and_then(|value| Summary::of([value])),
            p99: None,
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
        Report { machine: Machine::look(String::new()), settings, skipped: Vec::new(), outcomes }
    }
}
