//! `flanneld demo`: a cluster of real daemons on this machine, and a race between the ways to carry packets.
//!
//! ```text
//!  demo ── guard ── copy in private namespaces ──┬─ nodes, pods, underlay        (lab::Cluster)
//!                                                ├─ one flanneld a node          (lab::daemons)
//!                                                ├─ wait, table, RTT matrix      (up, show)
//!                                                └─ race                         (lab::race)
//! ```
//!
//! Everything it makes lives in namespaces that end with it; its files are on a tmpfs that only they see. Data goes to
//! standard output, progress and everything said in passing to standard error.

mod arguments;
mod progress;
mod show;
mod up;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use lab::race::{Race, Report, Scenario, Way};
use lab::{Place, enter, run_inside};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use arguments::{Asked, Command, Format, Parsed};
use progress::Progress;
use up::{NodeRow, Rtt, Up};

/// `argv[0]` of the process that holds the namespaces; `demo enter` looks for it.
const MARKER: &str = "flanneld-demo";
/// Rounds of the race: the fewest that have a median with a least and a most.
const ROUNDS: usize = 3;
/// What the race measures: few things, so that all of it stays under a minute.
const SCENARIOS: [Scenario; 3] = [Scenario::Tcp1, Scenario::Udp64, Scenario::Rtt];

/// All that the demo found; `-o json` prints it.
#[derive(Debug, Serialize)]
struct Found {
    /// The nodes as their daemons set them up.
    nodes: Vec<NodeRow>,
    /// Round-trip times between all pods.
    round_trips: Vec<Rtt>,
    /// The race, if it was run.
    race: Option<Report>,
}

/// The subcommand, with the words behind `demo`. Call it before the first thread of the process.
pub fn main(words: Vec<String>) -> ExitCode {
    let command = match arguments::parse(words) {
        Parsed::Command(command) => command,
        Parsed::Answered(code) => return code,
    };
    let done = match command {
        Command::Enter { name, argv } => return enter_lab(&name, argv),
        Command::Run(asked) => match run_inside(MARKER) {
            Ok(Place::Outside(code)) => return code,
            Ok(Place::Inside(_)) => run(&asked),
            Err(error) => Err(error.into()),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&format!("{error:#}")),
    }
}

fn enter_lab(name: &str, argv: Vec<OsString>) -> ExitCode {
    enter(MARKER, name, &argv).unwrap_or_else(|error| complain(&error.to_string()))
}

fn complain(error: &str) -> ExitCode {
    // Nobody is left to tell if stderr is closed.
    writeln!(io::stderr(), "flanneld demo: {error}").ok();
    ExitCode::FAILURE
}

fn run(asked: &Asked) -> anyhow::Result<()> {
    can_make_tun()?;
    let mut progress = Progress::new();
    let dir = lab::scratch()?;
    let mut up = Up::start(asked, &dir, &mut progress)?;
    let (nodes, round_trips) = (up.rows()?, up.round_trips()?);
    if asked.output == Format::Text {
        let text = show::cluster(&nodes, &round_trips, asked.backend);
        progress.aside(|| print(&text))?;
    }
    let race = if asked.no_race { None } else { Some(race(asked, &dir, &mut progress)?) };
    progress.clear();
    if let (Format::Text, Some(report)) = (asked.output, &race) {
        print(&show::race(report, asked.link, io::stdout().is_terminal()))?;
    }
    if asked.output == Format::Json {
        let found = Found { nodes, round_trips, race };
        print(&format!("{}\n", serde_json::to_string_pretty(&found)?))?;
    }
    if asked.keep {
        keep(&mut up)?;
    }
    Ok(())
}

/// Asks before anything is made: it is what most often stands in the way of a demo without root.
fn can_make_tun() -> anyhow::Result<()> {
    const TUN: &str = "/dev/net/tun";
    let Err(error) = File::options().read(true).write(true).open(TUN) else { return Ok(()) };
    let what_to_do = match error.kind() {
        io::ErrorKind::NotFound => {
            "Load the module (modprobe tun), or give the container --device /dev/net/tun"
        }
        io::ErrorKind::PermissionDenied => {
            "Run the demo as root, or let users make TUN devices (chmod 666 /dev/net/tun)"
        }
        _ => "The kernel seems to be built without CONFIG_TUN",
    };
    bail!("cannot open {TUN}, without which the engine gets no packet: {error}. {what_to_do}")
}

fn race(asked: &Asked, dir: &Path, progress: &mut Progress) -> anyhow::Result<Report> {
    let race = Race {
        ways: Way::all(),
        models: vec![asked.link],
        scenarios: SCENARIOS.to_vec(),
        rounds: ROUNDS,
        duration: Duration::from_secs_f64(asked.seconds),
        repeats: 0,
        flanneld: PathBuf::from(up::THIS_PROGRAM),
        dir: dir.join("race"),
        skip_broken: true,
        standing: false,
    };
    race.run(|step| progress.step(step)).context("race")
}

/// Says how to look around, and stays until Ctrl-C or the death of a daemon.
fn keep(up: &mut Up) -> anyhow::Result<()> {
    /// How often to look whether the daemons are alive.
    const LOOK: Duration = Duration::from_millis(500);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Caught before anybody is told to send one: a signal without a handler is a kill here, and no clean end.
        let mut interrupt = signal(SignalKind::interrupt()).context("catch SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("catch SIGTERM")?;
        writeln!(io::stderr(), "{}", show::commands(&program(), up.cluster()))?;
        loop {
            tokio::select! {
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                () = tokio::time::sleep(LOOK) => up.check()?,
            }
        }
    })
}

/// How to call this program again: by its name where the shell finds it, else by the shortest path.
fn program() -> String {
    let Ok(path) = std::env::current_exe() else { return "flanneld".to_owned() };
    let directories = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&directories).any(|directory| Some(directory.as_path()) == path.parent()) {
        return path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    }
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(&path).display().to_string()
}

fn print(text: &str) -> anyhow::Result<()> {
    io::stdout().write_all(text.as_bytes()).context("write to standard output")
}
