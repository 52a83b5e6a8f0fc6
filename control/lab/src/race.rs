//! The race: the same traffic over every way to carry packets between two nodes, side by side in one run.
//!
//! ```text
//!   way                what carries a packet between the nodes
//!   engine udp         flanneld's engine, flannel's raw format
//!   engine vxlan       flanneld's engine, VXLAN
//!   kernel vxlan       the kernel's VXLAN device, programmed as flannel does it
//!   host routes        nothing: plain routes, the ceiling
//!   floor              engine udp with every feature off: one packet a system call
//! ```
//!
//! Every way has a pair of nodes with a pod each, in namespaces of their own, and all pairs exist from the start. Rounds
//! go over all ways before the next begins, so that a machine that gets slower slows all of them; only ratios inside one
//! run are worth comparing. The engine's ways are real `flanneld` processes, and their pods are made from the
//! `subnet.env` that those wrote.

pub mod machine;
pub mod report;
pub mod scenario;
pub mod track;
pub mod way;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

pub use machine::Machine;
pub use report::{Outcome, Report, Run, Settings, Skipped, Summary};
pub use scenario::Scenario;
pub use track::Track;
pub use way::{Carrier, Way};

use crate::cluster::LinkModel;

/// A run with more foreign CPU time than this share of the machine says little, and is thrown away.
pub const FOREIGN_LIMIT: f64 = 0.03;

/// What to race.
#[derive(Clone, Debug)]
pub struct Race {
    /// Who takes part.
    pub ways: Vec<Way>,
    /// How the link between the nodes treats large packets: one set of pairs each.
    pub models: Vec<LinkModel>,
    /// What is measured.
    pub scenarios: Vec<Scenario>,
    /// How often; medians are taken over the rounds.
    pub rounds: usize,
    /// How long one measurement takes, after its warm-up.
    pub duration: Duration,
    /// How many further rounds may be spent on replacing runs that were thrown away.
    pub repeats: usize,
    /// The `flanneld` whose engine races.
    pub flanneld: PathBuf,
    /// A directory for lease stores and `subnet.env`.
    pub dir: PathBuf,
    /// Leaves an engine out that does not start, with its reason, and goes on with the others.
    pub skip_broken: bool,
}

/// What the race is about to do, for a line of progress.
#[derive(Clone, Debug)]
pub struct Step<'a> {
    /// Steps done so far.
    pub done: usize,
    /// Steps that are planned; grows when runs are thrown away.
    pub planned: usize,
    /// From 1.
    pub round: usize,
    /// `None` while the pairs are being made.
    pub scenario: Option<Scenario>,
    /// Whose turn it is.
    pub way: &'a Way,
    /// On which link.
    pub model: LinkModel,
}

/// One cell of the result: a way, a link model and a scenario, by index.
#[derive(Clone, Copy)]
struct Cell {
    track: usize,
    scenario: Scenario,
}

impl Race {
    /// Builds all pairs, runs all rounds, takes everything down. `progress` is called before each step.
    ///
    /// # Errors
    ///
    /// When a pair cannot be built. A measurement that fails is a [`Run`] with its failure, and the race goes on.
    pub fn run(&self, mut progress: impl FnMut(&Step<'_>)) -> anyhow::Result<Report> {
        let started = machine::utc_now();
        let (mut tracks, skipped) = self.build(&mut progress)?;
        let cells: Vec<Cell> = self.cells(&tracks);
        let mut runs: Vec<Vec<Run>> = vec![Vec::new(); cells.len()];
        let (mut done, mut planned) = (0, cells.len() * self.rounds);
        let mut todo: Vec<usize> = (0..cells.len()).collect();
        for round in 1..=self.rounds + self.repeats {
            if round > self.rounds {
                todo.retain(|&index| {
                    report::kept(&runs[index]) < self.rounds && !report::hopeless(&runs[index])
                });
                planned += todo.len();
            }
            for &index in &todo {
                let Cell { track, scenario } = cells[index];
                let track = &mut tracks[track];
                let (way, model) = (&track.way.clone(), track.model);
                progress(&Step { done, planned, round, scenario: Some(scenario), way, model });
                runs[index].push(Run::of(round, scenario.measure(track, self.duration), FOREIGN_LIMIT));
                done += 1;
            }
        }
        let settings = Settings {
            rounds: self.rounds,
            seconds: self.duration.as_secs_f64(),
            foreign_limit: FOREIGN_LIMIT,
        };
        let measured = cells.iter().zip(runs).map(|(cell, runs)| {
            let track = &tracks[cell.track];
            Outcome::new(&track.way, track.model, cell.scenario, runs)
        });
        Ok(Report::new(Machine::look(started), settings, skipped, measured.collect()))
    }

    fn build(&self, progress: &mut impl FnMut(&Step<'_>)) -> anyhow::Result<(Vec<Track>, Vec<Skipped>)> {
        let (mut tracks, mut skipped) = (Vec::new(), Vec::new());
        let planned = self.models.len() * self.ways.len();
        for &model in &self.models {
            for way in &self.ways {
                let done = tracks.len() + skipped.len();
                progress(&Step { done, planned, round: 0, scenario: None, way, model });
                let dir = self.dir.join(format!("pair-{done}"));
                match Track::build(way, model, &self.flanneld, &dir) {
                    Ok(track) => tracks.push(track),
                    Err(error) if self.skip_broken || way.may_be_missing() => {
                        skipped.push(Skipped { way: way.name(), model, reason: format!("{error:#}") });
                    }
                    Err(error) => return Err(error).with_context(|| format!("make the pair of {way}")),
                }
            }
        }
        Ok((tracks, skipped))
    }

    /// In the order of one round: all ways of one model and scenario follow each other.
    fn cells(&self, tracks: &[Track]) -> Vec<Cell> {
        let mut cells = Vec::new();
        for &model in &self.models {
            for &scenario in &self.scenarios {
                let of_model = tracks.iter().enumerate().filter(|(_, track)| track.model == model);
                cells.extend(of_model.map(|(track, _)| Cell { track, scenario }));
            }
        }
        cells
    }
}
