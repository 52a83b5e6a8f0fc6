//! `overload`: what happens to a node that gets more than it can carry, in namespaces of its own. `make overload` runs it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use benches::overload::cast::Place as Files;
use benches::overload::{Overload, churn, garbage, load, peers, show};
use clap::{Parser, ValueEnum};
use lab::race::{Machine, machine::utc_now};
use lab::{Place, run_inside};

/// Measures goodput and loss under overload: too much traffic, garbage, a bad peer, a churn of leases.
#[derive(Parser)]
#[command(name = "overload", version)]
struct Arguments {
    /// Seconds of one measurement
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only these
    #[arg(long, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Only garbage whose name contains this
    #[arg(long, default_value = "")]
    matching: String,
    /// The flanneld to measure [default: beside this program]
    #[arg(long)]
    flanneld: Option<PathBuf>,
    /// Directory for the result
    #[arg(long, default_value = "benches/results")]
    out: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Load,
    Garbage,
    Peers,
    Churn,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // The guard must never have had a thread, so this comes before anything else.
    let done = match run_inside("flannel-overload") {
        Ok(Place::Outside(code)) => return code,
        Ok(Place::Inside(_)) => measure(&arguments),
        Err(error) => Err(error.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // There is nobody left to tell when standard error is gone.
            let _untold = writeln!(io::stderr(), "overload: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    if !(0.1..=600.0).contains(&arguments.seconds) {
        bail!("--seconds {}: give 0.1 to 600", arguments.seconds);
    }
    let flanneld = match &arguments.flanneld {
        Some(path) => path.clone(),
        None => std::env::current_exe().context("find this program")?.with_file_name("flanneld"),
    };
    if !flanneld.exists() {
        bail!("there is no {}: build it with `cargo build --release -p control`", flanneld.display());
    }
    let files = Files { flanneld: flanneld.canonicalize().context("find flanneld")?, dir: lab::scratch()? };
    let wanted = |kind| arguments.only.is_empty() || arguments.only.contains(&kind);
    let duration = Duration::from_secs_f64(arguments.seconds);
    let started = utc_now();
    let progress = |what: &str| {
        // Progress that nobody can read is no reason to end.
        let _unread = writeln!(io::stderr(), "{what}");
    };
    let load = if wanted(Kind::Load) { load::measure(&files, duration, progress)? } else { Vec::new() };
    let garbage = if wanted(Kind::Garbage) {
        garbage::measure(&files, duration, &arguments.matching, progress)?
    } else {
        Vec::new()
    };
    let peers = if wanted(Kind::Peers) { peers::measure(&files, duration, progress)? } else { Vec::new() };
    let churn = if wanted(Kind::Churn) { churn::measure(&files, duration, progress)? } else { Vec::new() };
    let machine = Machine::look(started);
    let result = Overload { machine, seconds: arguments.seconds, load, garbage, peers, churn };
    say(&show::tables(&result))?;
    fs::create_dir_all(&arguments.out).with_context(|| format!("make {}", arguments.out.display()))?;
    let day = result.machine.started.split('T').next().unwrap_or("undated");
    let json = arguments.out.join(format!("{day}-{}-overload.json", result.machine.kernel));
    let file = File::create(&json).with_context(|| format!("write {}", json.display()))?;
    serde_json::to_writer_pretty(file, &result).with_context(|| format!("write {}", json.display()))?;
    say(&format!("\nwritten: {}\n", json.display()))
}

fn say(text: &str) -> anyhow::Result<()> {
    io::stdout().write_all(text.as_bytes()).context("write to standard output")
}
