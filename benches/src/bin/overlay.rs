//! `overlay`: the race between all ways to carry packets, in namespaces of its own. `make bench` runs it.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail};
use benches::plan::Selection;
use benches::{ablation, bare, figures, lookup, markdown, plot, table};
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use lab::race::machine::first_line;
use lab::race::{Doing, Race, Report, Skipped, Step};
use lab::{LinkModel, Place, run_inside};

/// Room for the lease files of the largest crowd, a page and an inode each; memory is taken while they are there.
const SCRATCH_MIB: usize = 1024;

/// Races the engine against kernel VXLAN, plain routes and the engine without offloads, side by side in one run.
#[derive(Parser)]
#[command(name = "overlay", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    race: RaceArguments,
}

#[derive(Subcommand)]
enum Command {
    /// Print the README's table from a result
    Table {
        /// A JSON file that a race wrote
        file: PathBuf,
    },
    /// Put the table between the markers <!-- bench:begin --> and <!-- bench:end --> of a README
    Readme {
        /// A JSON file that a race wrote
        file: PathBuf,
        /// The README
        readme: PathBuf,
    },
    /// Draw the README's picture
    Svg {
        /// A JSON file that a race wrote
        file: PathBuf,
        /// The picture
        svg: PathBuf,
    },
    /// Print the figures to reach beside those of a result
    Figures {
        /// A JSON file that a race wrote
        file: PathBuf,
    },
    /// Print all tables of a result
    Show {
        /// A JSON file that a race wrote
        file: PathBuf,
    },
    /// An engine that is told its peers once: a node of a race
    #[command(hide = true)]
    BareEngine {
        /// 0 or 1
        node: usize,
        /// Leases of nodes that are not there
        crowd: usize,
    },
}

#[derive(clap::Args)]
struct RaceArguments {
    /// Rounds: each measures every way once [default: 5, with --ablation 3]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    runs: Option<u16>,
    /// Seconds of one measurement [default: 1.2, with --ablation 1]
    #[arg(long)]
    seconds: Option<f64>,
    /// How the link treats large packets: on (all offloads), nic (as a network card)
    #[arg(long, value_delimiter = ',', default_value = "on,nic", value_parser = model)]
    model: Vec<LinkModel>,
    /// Only these ways and scenarios, e.g. tcp1,rtt,engine-udp,floor; `standing` for memory, wake-ups and look-up
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Race every permutation of the engine's offloads, and its other settings, against each other
    #[arg(long)]
    ablation: bool,
    /// Extra rounds for runs that were thrown away because other programs were busy
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// The flanneld to race [default: beside this program]
    #[arg(long)]
    flanneld: Option<PathBuf>,
    /// Directory for the result
    #[arg(long, default_value = "benches/results")]
    out: PathBuf,
}

fn model(text: &str) -> Result<LinkModel, String> {
    match text {
        "on" => Ok(LinkModel::On),
        "nic" => Ok(LinkModel::Nic),
        _ => Err("a link model is `on` or `nic`".to_owned()),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Some(Command::Table { file }) => read(&file).and_then(|report| say(&markdown::tables(&report))),
        Some(Command::Readme { file, readme }) => put_into_readme(&file, &readme),
        Some(Command::Svg { file, svg }) => read(&file).and_then(|report| draw(&report, &svg)),
        Some(Command::Figures { file }) => read(&file).and_then(|report| say(&figures::table(&report))),
        Some(Command::Show { file }) => {
            read(&file).and_then(|report| say(&(ablation::tables(&report) + &table::tables(&report))))
        }
        Some(Command::BareEngine { node, crowd }) => bare::run(node, crowd),
        // The guard must never have had a thread, so this comes before anything else.
        None => match run_inside("flannel-bench") {
            Ok(Place::Outside(code)) => return code,
            Ok(Place::Inside(_)) => race(&arguments.race),
            Err(error) => Err(error.into()),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // There is nobody left to tell when standard error is gone.
            let _untold = writeln!(io::stderr(), "overlay: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn race(arguments: &RaceArguments) -> anyhow::Result<()> {
    let selection = Selection::of(&arguments.only, arguments.ablation)?;
    let race = plan(arguments, &selection)?;
    // Before the race: files may change while it runs.
    let commit = commit();
    let bar = bar();
    let mut report = race.run(|step| show(&bar, step))?;
    bar.finish_and_clear();
    report.machine.commit = commit;
    if selection.standing {
        report.asides.push(lookup::measure()?);
    }
    if arguments.ablation {
        say(&ablation::tables(&report))?;
    }
    say(&table::tables(&report))?;
    let json = keep(&report, arguments, selection.suffix)?;
    if selection.suffix.is_empty() {
        say(&figures::table(&report))?;
        let svg = json.with_extension("svg");
        draw(&report, &svg)?;
        say(&format!("\nwritten: {}\n", svg.display()))?;
    }
    say(&format!("\nwritten: {}\n", json.display()))?;
    let failed = report.outcomes.iter().filter(|outcome| outcome.value.is_none()).count();
    if failed > 0 {
        bail!("{failed} of {} figures are missing: every run of them failed", report.outcomes.len());
    }
    // A kernel may lack VXLAN; the engine has no excuse.
    let engine = |skipped: &&Skipped| skipped.way.contains("engine") && !skipped.way.contains("kernel");
    if let Some(skipped) = report.skipped.iter().find(engine) {
        bail!("{} was left out: {}", skipped.way, skipped.reason);
    }
    Ok(())
}

/// Writes the whole result; a part of a race gets a name of its own.
fn keep(report: &Report, arguments: &RaceArguments, suffix: &str) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(&arguments.out).with_context(|| format!("make {}", arguments.out.display()))?;
    let day = report.machine.started.split('T').next().unwrap_or("undated");
    let json = arguments.out.join(format!("{day}-{}{suffix}.json", report.machine.kernel));
    let file = File::create(&json).with_context(|| format!("write {}", json.display()))?;
    serde_json::to_writer_pretty(file, report).with_context(|| format!("write {}", json.display()))?;
    Ok(json)
}

fn draw(report: &Report, svg: &Path) -> anyhow::Result<()> {
    let picture = plot::svg(report).context("draw the result")?;
    fs::write(svg, picture).with_context(|| format!("write {}", svg.display()))
}

fn plan(arguments: &RaceArguments, selection: &Selection) -> anyhow::Result<Race> {
    // Of many ways fewer and shorter runs, or it would take an hour.
    let (runs, seconds) = if arguments.ablation { (3, 1.0) } else { (5, 1.2) };
    let seconds = arguments.seconds.unwrap_or(seconds);
    if !(0.1..=600.0).contains(&seconds) {
        bail!("--seconds {seconds}: give 0.1 to 600");
    }
    let flanneld = match &arguments.flanneld {
        Some(path) => path.clone(),
        None => std::env::current_exe().context("find this program")?.with_file_name("flanneld"),
    };
    if !flanneld.exists() {
        bail!("there is no {}: build it with `cargo build --release -p control`", flanneld.display());
    }
    Ok(Race {
        ways: selection.ways.clone(),
        models: arguments.model.clone(),
        scenarios: selection.scenarios.clone(),
        rounds: usize::from(arguments.runs.unwrap_or(runs)),
        duration: Duration::from_secs_f64(seconds),
        repeats: arguments.repeats,
        flanneld: flanneld.canonicalize().context("find flanneld")?,
        dir: lab::scratch_of(SCRATCH_MIB)?,
        skip_broken: true,
        standing: selection.standing,
    })
}

/// The commit of the directory that this runs in, as far as git tells it.
fn commit() -> String {
    let git = |arguments: &[&str]| first_line(process::Command::new("git").args(arguments));
    let commit = git(&["rev-parse", "HEAD"]);
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
    if commit.is_empty() || changed.is_empty() { commit } else { format!("{commit}-dirty") }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {eta} left") {
        bar.set_style(style);
    }
    bar
}

/// A bar on a terminal, a line a step elsewhere.
fn show(bar: &ProgressBar, step: &Step<'_>) {
    let model = if step.model == LinkModel::On { "on" } else { "nic" };
    let what = match step.doing {
        Doing::Measuring(scenario) => format!("round {}: {scenario}, {} ({model})", step.round, step.way),
        Doing::Building => format!("making the pair of {} ({model})", step.way),
        Doing::StandingStill(leases) => format!("{} standing still with {leases} leases", step.way),
    };
    if io::stderr().is_terminal() {
        bar.set_length(step.planned as u64);
        bar.set_position(step.done as u64);
        bar.set_message(what);
    } else {
        // Progress that nobody can read is no reason to end.
        let _unread = writeln!(io::stderr(), "{}/{} {what}", step.done + 1, step.planned);
    }
}

fn read(path: &Path) -> anyhow::Result<Report> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not the result of a race", path.display()))
}

fn put_into_readme(file: &Path, readme: &Path) -> anyhow::Result<()> {
    let tables = markdown::tables(&read(file)?);
    let before = fs::read_to_string(readme).with_context(|| format!("read {}", readme.display()))?;
    let after = markdown::replace_between_markers(&before, &tables)
        .with_context(|| format!("put the table into {}", readme.display()))?;
    fs::write(readme, after).with_context(|| format!("write {}", readme.display()))
}

fn say(text: &str) -> anyhow::Result<()> {
    io::stdout().write_all(text.as_bytes()).context("write to standard output")
}
