//! What `flanneld demo` is asked for.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use lab::LinkModel;
use lab::daemons::Backend;

/// Makes a cluster of real flanneld processes on this machine, shows that every pod reaches every other, and races the
/// ways to carry packets. All of it lives in network namespaces that nobody else sees and that end with this command.
#[derive(Debug, Parser)]
#[command(name = "flanneld demo", args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
struct CommandLine {
    #[command(subcommand)]
    inside: Option<Inside>,
    #[command(flatten)]
    asked: Asked,
}

#[derive(Debug, Subcommand)]
enum Inside {
    /// Run a command inside a node or pod of a demo that was started with --keep
    Enter {
        /// node-a, pod-b, ...
        name: String,
        /// The command and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        argv: Vec<OsString>,
    },
}

/// A run of the demo.
#[derive(Debug, Args)]
pub(super) struct Asked {
    /// How many nodes, with a pod each
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=100))]
    pub(super) nodes: u16,
    /// How the daemons carry packets
    #[arg(long, default_value = "vxlan", value_parser = backend)]
    pub(super) backend: Backend,
    /// Leave the cluster up afterwards and say how to look around in it; Ctrl-C ends it
    #[arg(long)]
    pub(super) keep: bool,
    /// Only the cluster, no race
    #[arg(long)]
    pub(super) no_race: bool,
    /// Seconds of each measurement of the race
    #[arg(long, default_value_t = 0.7, value_parser = seconds)]
    pub(super) seconds: f64,
    /// The link of the race: nic (1500-byte frames, as a network card) or on (all offloads, as containers of one host)
    #[arg(long, default_value = "nic", value_parser = link)]
    pub(super) link: LinkModel,
    /// Form of the result on standard output
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    pub(super) output: Format,
}

/// Form of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Tables for people.
    Text,
    /// One JSON object.
    Json,
}

/// What to do.
#[derive(Debug)]
pub(super) enum Command {
    Run(Asked),
    Enter { name: String, argv: Vec<OsString> },
}

/// The outcome of reading the words.
pub(super) enum Parsed {
    Command(Command),
    /// Help was asked for, or the words were wrong; the answer has been printed.
    Answered(ExitCode),
}

/// Reads the words behind `flanneld demo`.
pub(super) fn parse(words: Vec<String>) -> Parsed {
    match CommandLine::try_parse_from(std::iter::once("flanneld demo".to_owned()).chain(words)) {
        Ok(line) => Parsed::Command(match line.inside {
            Some(Inside::Enter { name, argv }) => Command::Enter { name, argv },
            None => Command::Run(line.asked),
        }),
        Err(answer) => {
            // Nobody is left to tell if the stream is closed.
            answer.print().ok();
            Parsed::Answered(ExitCode::from(u8::try_from(answer.exit_code()).unwrap_or(2)))
        }
    }
}

fn backend(text: &str) -> Result<Backend, String> {
    match text {
        "udp" => Ok(Backend::Udp),
        "vxlan" => Ok(Backend::Vxlan),
        _ => Err("the demo's backends are `udp` and `vxlan`".to_owned()),
    }
}

fn link(text: &str) -> Result<LinkModel, String> {
    match text {
        "on" => Ok(LinkModel::On),
        "nic" => Ok(LinkModel::Nic),
        _ => Err("a link is `nic` or `on`".to_owned()),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=60.0).contains(seconds));
    seconds.ok_or_else(|| "give 0.1 to 60 seconds".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Option<Command> {
        match parse(words.iter().map(|word| (*word).to_owned()).collect()) {
            Parsed::Command(command) => Some(command),
            Parsed::Answered(_) => None,
        }
    }

    #[test]
    fn plain_demo_has_three_vxlan_nodes() {
        let Some(Command::Run(asked)) = parsed(&[]) else { panic!("not a run") };
        assert_eq!((asked.nodes, asked.backend, asked.keep), (3, Backend::Vxlan, false));
    }

    #[test]
    fn dashes_behind_enter_belong_to_the_command() {
        for words in
            [&["enter", "node-a", "--", "ip", "-br", "addr"][..], &["enter", "node-a", "ip", "-br", "addr"]]
        {
            let Some(Command::Enter { name, argv }) = parsed(words) else {
                panic!("not an enter: {words:?}")
            };
            assert_eq!(
                (name.as_str(), argv.as_slice()),
                ("node-a", &["ip".into(), "-br".into(), "addr".into()][..])
            );
        }
    }

    #[test]
    fn senseless_values_are_refused() {
        for words in
            [&["--nodes", "1"][..], &["--seconds", "NaN"], &["--backend", "wireguard"], &["enter", "node-a"]]
        {
            assert!(parsed(words).is_none(), "{words:?}");
        }
    }
}
