//! The race: the same traffic over every way to carry packets between two nodes, side by side in one run.
//!
//! ```text
//!   way                        what carries a packet between the nodes
//!   engine udp                 flanneld's engine, flannel's raw format
//!   engine vxlan               flanneld's engine, VXLAN
//!   kernel vxlan               the kernel's VXLAN device, programmed as flannel does it
//!   host routes                nothing: plain routes, the ceiling
//!   floor                      engine udp with every feature off: one packet a system call
//!   kernel vxlan to engine     the kernel's device on the sending node, flanneld's engine on the other
//!   anything else              a program of the caller's: way::Starter
//! ```
//!
//! Every way has a pair of nodes with a pod each, in namespaces of their own, and all pairs exist from the start. Rounds
//! go over all ways before the next begins, so that a machine that gets slower slows all of them; only ratios inside one
//! run are worth comparing. The engine's ways are real `flanneld` processes, and their pods are made from the
//! `subnet.env` that those wrote.
//!
//! What has to do with many nodes is measured on a crowd: one node with a thousand leases of others. After the last round,
//! when nobody sends, the crowds' daemons are looked at standing still.

mod crowd;
mod join;
pub mod machine;
mod measure;
pub mod report;
pub mod scenario;
pub mod standing;
pub mod track;
pub mod way;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

pub use machine::Machine;
pub use measure::Figures;
pub use report::{Outcome, Report, Run, Settings, Skipped, Summary};
pub use scenario::{Ground, Scenario};
pub use standing::{Aside, Quantity};
pub use track::Track;
pub use way::{Carrier, Program, Way};

use crate::cluster::LinkModel;

/// A run with more foreign CPU time than this share of the machine says little, and is thrown away.
pub const FOREIGN_LIMIT: f64 = 0.03;
/// Leases of others in a crowd.
pub const CROWD: usize = 1000;
/// Leases of others in the largest crowd, which is only looked at.
pub const LARGEST_CROWD: usize = 100_000;

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
    /// Leaves a way out that cannot be started, with its reason, and goes on with the others.
    pub skip_broken: bool,
    /// Looks at daemons with many leases after the last round, while nobody sends.
    pub standing: bool,
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
    /// What it does next.
    pub doing: Doing,
    /// Whose turn it is.
    pub way: &'a Way,
    /// On which link.
    pub model: LinkModel,
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Makes a pair of nodes.
    Building,
    /// Lets traffic flow.
    Measuring(Scenario),
    /// Looks at an idle daemon that knows so many leases of others.
    StandingStill(usize),
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
    /// When a pair cannot be built and `skip_broken` is not set. A measurement that fails is a [`Run`] with its failure,
    /// and the race goes on.
    pub fn run(&self, mut progress: impl FnMut(&Step<'_>)) -> anyhow::Result<Report> {
        let started = machine::utc_now();
        let (mut tracks, mut skipped) = self.build(&mut progress)?;
        let cells: Vec<Cell> = self.cells(&tracks);
        let mut runs: Vec<Vec<Run>> = vec![Vec::new(); cells.len()];
        let (mut done, mut planned) = (0, cells.len() * self.rounds);
        let mut todo: Vec<usize> = (0..cells.len()).collect();
        for round in 1..=self.rounds + self.repeats {
            if round > self.rounds {
                todo.retain(|&index| report::kept(&runs[index]) < self.rounds);
                planned += todo.len();
            }
            todo.retain(|&index| !report::hopeless(&runs[index]));
            for &index in &todo {
                let Cell { track, scenario } = cells[index];
                let track = &mut tracks[track];
                let (way, model) = (&track.way.clone(), track.model);
                progress(&Step { done, planned, round, doing: Doing::Measuring(scenario), way, model });
                let measured = measure::measure(scenario, track, self.duration);
                runs[index].push(Run::of(round, measured, FOREIGN_LIMIT));
                done += 1;
            }
        }
        let asides = self.stand_still(&tracks, &mut skipped, &mut progress);
        let settings = Settings {
            rounds: self.rounds,
            seconds: self.duration.as_secs_f64(),
            foreign_limit: FOREIGN_LIMIT,
        };
        let measured = cells.iter().zip(runs).map(|(cell, runs)| {
            let track = &tracks[cell.track];
            Outcome::new(&track.way, track.model, cell.scenario, runs)
        });
        let flanneld = machine::first_line(Command::new(&self.flanneld).arg("--version"));
        let machine = Machine { flanneld, ..Machine::look(started) };
        Ok(Report { asides, ..Report::new(machine, settings, skipped, measured.collect()) })
    }

    fn build(&self, progress: &mut impl FnMut(&Step<'_>)) -> anyhow::Result<(Vec<Track>, Vec<Skipped>)> {
        let (mut tracks, mut skipped) = (Vec::new(), Vec::new());
        let plan = self.grounds();
        for (done, (model, way, ground)) in plan.iter().copied().enumerate() {
            progress(&Step { done, planned: plan.len(), round: 0, doing: Doing::Building, way, model });
            let dir = self.dir.join(format!("pair-{done}"));
            let track = match ground {
                Ground::Pair => Track::build(way, model, &self.flanneld, &dir),
                Ground::Crowd => Track::build_crowd(way, model, &self.flanneld, &dir, CROWD),
            };
            match track {
                Ok(track) => tracks.push(track),
                Err(error) if self.skip_broken || way.may_be_missing() => {
                    let what = if ground == Ground::Crowd { "with a thousand leases: " } else { "" };
                    let reason = format!("{what}{error:#}");
                    skipped.push(Skipped { way: way.name(), model, reason });
                }
                Err(error) => return Err(error).with_context(|| format!("make the pair of {way}")),
            }
        }
        Ok((tracks, skipped))
    }

    /// The pairs and crowds that are needed. A crowd is on one kind of link only, the last: nothing about it is a matter of
    /// large packets.
    fn grounds(&self) -> Vec<(LinkModel, &Way, Ground)> {
        let mut needed = Vec::new();
        for ground in [Ground::Pair, Ground::Crowd] {
            let of_ground: Vec<Scenario> =
                self.scenarios.iter().copied().filter(|scenario| scenario.ground() == ground).collect();
            let models = match ground {
                Ground::Pair => &self.models[..],
                Ground::Crowd => self.models.last().map_or(&[][..], std::slice::from_ref),
            };
            for &model in models {
                let takes = |way: &&Way| of_ground.iter().any(|&scenario| way.takes(scenario));
                needed.extend(self.ways.iter().filter(takes).map(|way| (model, way, ground)));
            }
        }
        needed
    }

    /// In the order of one round: all ways of one model and scenario follow each other.
    fn cells(&self, tracks: &[Track]) -> Vec<Cell> {
        let mut cells = Vec::new();
        for &model in &self.models {
            for &scenario in &self.scenarios {
                let takes = |track: &Track| {
                    (track.model, track.ground()) == (model, scenario.ground()) && track.way.takes(scenario)
                };
                let takes = tracks.iter().enumerate().filter(|(_, track)| takes(track));
                cells.extend(takes.map(|(track, _)| Cell { track, scenario }));
            }
        }
        cells
    }

    /// Looks at the daemons of the crowds that raced, then at one with [`LARGEST_CROWD`] leases.
    fn stand_still(
        &self,
        tracks: &[Track],
        skipped: &mut Vec<Skipped>,
        progress: &mut impl FnMut(&Step<'_>),
    ) -> Vec<Aside> {
        let (true, Some(&model)) = (self.standing, self.models.last()) else { return Vec::new() };
        let mut asides = Vec::new();
        let mut keep = |way: &Way, found: anyhow::Result<Vec<Aside>>| match found {
            Ok(found) => asides.extend(found),
            Err(error) => {
                let reason = format!("standing still: {error:#}");
                skipped.push(Skipped { way: way.name(), model, reason });
            }
        };
        let engines = || self.ways.iter().filter(|way| way.role() == way::Role::Engine);
        for (number, way) in engines().enumerate() {
            let doing = Doing::StandingStill(CROWD);
            progress(&Step { done: number, planned: engines().count() + 1, round: 0, doing, way, model });
            let raced = |track: &&Track| track.ground() == Ground::Crowd && track.way == *way;
            keep(
                way,
                match tracks.iter().find(raced) {
                    Some(track) => watch(track, CROWD, "after it carried the race's traffic"),
                    None => {
                        let dir = self.dir.join(format!("crowd-{number}"));
                        Track::build_crowd(way, model, &self.flanneld, &dir, CROWD)
                            .and_then(|track| watch(&track, CROWD, "after the start, no packet carried"))
                    }
                },
            );
        }
        for track in tracks {
            if let Carrier::Program(Program(program)) = &track.way.carrier
                && program.crowd() > 0
                && track.model == model
            {
                let doing = Doing::StandingStill(program.crowd());
                progress(&Step { done: 0, planned: 1, round: 0, doing, way: &track.way, model });
                keep(&track.way, watch(track, program.crowd(), "after it carried the race's traffic"));
            }
        }
        let (way, doing) = (&Way::engine_vxlan(), Doing::StandingStill(LARGEST_CROWD));
        let planned = engines().count() + 1;
        progress(&Step { done: planned - 1, planned, round: 0, doing, way, model });
        let dir = self.dir.join("largest-crowd");
        let track = Track::build_crowd(way, model, &self.flanneld, &dir, LARGEST_CROWD);
        keep(way, track.and_then(|track| watch(&track, LARGEST_CROWD, "after the start, no packet carried")));
        // Hundreds of MiB in memory. Should it not go, it goes with the mount.
        std::fs::remove_dir_all(&dir).ok();
        asides
    }
}

fn watch(track: &Track, leases: usize, how: &str) -> anyhow::Result<Vec<Aside>> {
    let who = match &track.way.carrier {
        Carrier::Program(_) => "no daemon, leases told once",
        _ => "flanneld, leases as files",
    };
    let how = format!("{who}, {how}");
    let of = |pid| standing::Watched { way: track.way.name(), leases, pid, how: how.clone() };
    // Both nodes of a pair do the same.
    standing::watch(&track.pids().into_iter().take(1).map(of).collect::<Vec<_>>())
}
