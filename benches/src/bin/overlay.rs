//! `overlay`: the race between all ways to carry packets, in namespaces of its own. `make bench` runs it.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use benches::{markdown, plot, table};
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use lab::daemons::Backend;
use lab::race::{Race, Report, Scenario, Step, Way};
use lab::{LinkModel, Place, run_inside};

/// The single features that an ablation switches off, as `flanneld --engine-off` names them.
const FEATURES: [&str; 6] = ["tun-vnet-hdr", "tun-tso", "tun-uso", "udp-gso", "udp-gro", "mmsg"];

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
}

#[derive(clap::Args)]
struct RaceArguments {
    /// Rounds: each measures every way once
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Seconds of one measurement
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// How the link treats large packets: on (all offloads), nic (as a network card)
    #[arg(long, value_delimiter = ',', default_value = "on,nic", value_parser = model)]
    model: Vec<LinkModel>,
    /// Only these ways and scenarios, e.g. tcp1,rtt,engine-udp,floor
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Also race the engine with every feature forced off, one at a time
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
    let race = plan(arguments)?;
    let bar = bar();
    let report = race.run(|step| show(&bar, step))?;
    bar.finish_and_clear();
    say(&table::tables(&report))?;
    fs::create_dir_all(&arguments.out).with_context(|| format!("make {}", arguments.out.display()))?;
    let day = report.machine.started.split('T').next().unwrap_or("undated");
    let json = arguments.out.join(format!("{day}-{}.json", report.machine.kernel));
    let file = File::create(&json).with_context(|| format!("write {}", json.display()))?;
    serde_json::to_writer_pretty(file, &report).with_context(|| format!("write {}", json.display()))?;
    let svg = json.with_extension("svg");
    let picture = plot::svg(&report).context("draw the result")?;
    fs::write(&svg, picture).with_context(|| format!("write {}", svg.display()))?;
    say(&format!("\nwritten: {} and {}\n", json.display(), svg.display()))
}

fn plan(arguments: &RaceArguments) -> anyhow::Result<Race> {
    if !(0.1..=600.0).contains(&arguments.seconds) {
        bail!("--seconds {}: give 0.1 to 600", arguments.seconds);
    }
    let (mut ways, mut scenarios) = (Vec::new(), Vec::new());
    for name in &arguments.only {
        match (Way::by_name(name), Scenario::by_name(name)) {
            (Some(way), _) => ways.push(way),
            (None, Some(scenario)) => scenarios.push(scenario),
            (None, None) => bail!("--only {name}: {}", names()),
        }
    }
    if ways.is_empty() {
        ways = Way::all();
    }
    if arguments.ablation {
        for backend in [Backend::Udp, Backend::Vxlan] {
            ways.extend(FEATURES.map(|off| Way::engine_without(backend, off)));
        }
    }
    if scenarios.is_empty() {
        scenarios = Scenario::ALL.to_vec();
    }
    let flanneld = match &arguments.flanneld {
        Some(path) => path.clone(),
        None => std::env::current_exe().context("find this program")?.with_file_name("flanneld"),
    };
    if !flanneld.exists() {
        bail!("there is no {}: build it with `cargo build --release -p control`", flanneld.display());
    }
    Ok(Race {
        ways,
        models: arguments.model.clone(),
        scenarios,
        rounds: usize::from(arguments.runs),
        duration: Duration::from_secs_f64(arguments.seconds),
        repeats: arguments.repeats,
        flanneld: flanneld.canonicalize().context("find flanneld")?,
        dir: lab::scratch()?,
        skip_broken: true,
        standing: arguments.standing,
    })
}

fn names() -> String {
    let ways: Vec<String> = Way::all().iter().map(|way| way.name().replace(' ', "-")).collect();
    let scenarios = Scenario::ALL.map(Scenario::name);
    format!("the ways are {}; the scenarios are {}", ways.join(", "), scenarios.join(", "))
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
    let what = match step.scenario {
        Some(scenario) => format!("round {}: {scenario}, {} ({model})", step.round, step.way),
        None => format!("making the pair of {} ({model})", step.way),
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
