//! `flanneld status` and `flanneld peers`: what the daemon of this node says, for people and for scripts.
//!
//! Data goes to standard output, words to standard error. Exit status: 0 all is well, 1 no daemon answers, 2 wrong words,
//! 3 it answers and something is wrong, which is then on the first line.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::status::{NodeStatus, PeersAnswer, State, seconds};

mod ask;
mod peers;
mod status;

/// No daemon answers.
const DOWN: u8 = 1;
/// It answers, and something is wrong.
const DEGRADED: u8 = 3;
/// The daemon reads itself every second. One that has not for so long is in trouble that it cannot tell of.
const SILENT_AFTER: u64 = 15;

/// Asks the flanneld of this node.
#[derive(Debug, Parser)]
#[command(name = "flanneld", disable_help_subcommand = true)]
struct CommandLine {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// How this node goes: backend and why, subnet, store, drops. Exit status: 0 well, 1 down, 3 degraded
    Status(Asked),
    /// The other nodes: subnets, addresses, how they are reached, or why not
    Peers(Asked),
}

#[derive(Debug, Args)]
struct Asked {
    /// Form of the answer on standard output
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// The daemon's socket, as its flag of the same name says
    #[arg(long, value_name = "PATH", default_value_os_t = default_socket())]
    status_socket: PathBuf,
}

/// Form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// For people with a wide screen.
    Wide,
    /// One JSON object.
    Json,
}

/// The subcommand that `words` begin with.
pub fn main(words: Vec<String>) -> ExitCode {
    let line = match CommandLine::try_parse_from(std::iter::once("flanneld".to_owned()).chain(words)) {
        Ok(line) => line,
        Err(error) => {
            // Nobody is left to tell if the output is closed.
            error.print().ok();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let (word, asked) = match &line.verb {
        Verb::Status(asked) => ("status", asked),
        Verb::Peers(asked) => ("peers", asked),
    };
    let done = ask::ask(&asked.status_socket, word).and_then(|answer| match &line.verb {
        Verb::Status(asked) => show_status(&answer, asked.output),
        Verb::Peers(asked) => show_peers(&answer, asked.output),
    });
    done.unwrap_or_else(|error| {
        writeln!(io::stderr(), "flanneld {word}: {error:#}").ok();
        ExitCode::from(DOWN)
    })
}

fn show_status(answer: &[u8], format: Format) -> anyhow::Result<ExitCode> {
    let mut node: NodeStatus = ask::read(answer)?;
    let now = seconds(SystemTime::now());
    if now.saturating_sub(node.at) > SILENT_AFTER {
        node.problems.insert(0, format!("the daemon has not looked at itself for {} s", now - node.at));
        if node.state == State::Ready {
            node.state = State::Degraded;
        }
    }
    match format {
        Format::Text | Format::Wide => print(&status::text(&node, now))?,
        Format::Json => print_json(&node)?,
    }
    Ok(match node.state {
        State::Ready => ExitCode::SUCCESS,
        State::Degraded | State::NotReady => ExitCode::from(DEGRADED),
    })
}

fn show_peers(answer: &[u8], format: Format) -> anyhow::Result<ExitCode> {
    let answer: PeersAnswer = ask::read(answer)?;
    match format {
        Format::Text => print(&peers::text(&answer, false))?,
        Format::Wide => print(&peers::text(&answer, true))?,
        Format::Json => print_json(&answer)?,
    }
    let refused = answer.peers.iter().any(|peer| peer.refused.is_some());
    Ok(if refused { ExitCode::from(DEGRADED) } else { ExitCode::SUCCESS })
}

fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        // `flanneld peers | head` has read enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Where a daemon with flannel's files has it, unless its variable says otherwise.
fn default_socket() -> PathBuf {
    let given = std::env::var_os("FLANNELD_STATUS_SOCKET").filter(|path| !path.is_empty());
    given.map_or_else(|| PathBuf::from("/run/flannel/flanneld.sock"), PathBuf::from)
}
