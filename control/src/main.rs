//! `flanneld`: parse → settle → build → run; and the subcommands. Called by the name of one of flannel's other programs,
//! it is that program: the image has links of those names.

use std::ffi::OsStr;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use control::daemon;
use control::demo;
use control::docker_opts;
use control::flags::{Help, RawFlags};
use control::install_conf;
use control::operator;
use control::settings::{LogFormat, LogSettings, Settings};
use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Wrong flags: another status than a daemon that could not run, and never flannel's 0.
const WRONG_FLAGS: u8 = 2;

fn main() -> ExitCode {
    let words: Vec<String> = match std::env::args_os().skip(1).map(std::ffi::OsString::into_string).collect()
    {
        Ok(words) => words,
        Err(word) => return refuse(&format!("{} is not UTF-8", word.display())),
    };
    let called = std::env::args_os().next().unwrap_or_default();
    match Path::new(&called).file_name().and_then(OsStr::to_str) {
        Some("mk-docker-opts" | "mk-docker-opts.sh") => return docker_opts::main(&words),
        Some("install-conf") => return install_conf::main(&words),
        _ => {}
    }
    match words.first().map(String::as_str) {
        Some("status" | "peers") => operator::main(words),
        Some("demo") => demo::main(words.into_iter().skip(1).collect()),
        Some("mk-docker-opts") => docker_opts::main(&words[1..]),
        Some("install-conf") => install_conf::main(&words[1..]),
        Some("explain") => run_daemon(words.into_iter().skip(1).collect(), Task::Explain),
        _ => run_daemon(words, Task::Run),
    }
}

/// What to do with the daemon's flags.
enum Task {
    /// Be the daemon.
    Run,
    /// Print what the daemon would do.
    Explain,
}

fn run_daemon(words: Vec<String>, task: Task) -> ExitCode {
    // A variable that is not UTF-8 cannot be one of ours.
    let environment =
        std::env::vars_os().filter_map(|(name, value)| name.into_string().ok().zip(value.into_string().ok()));
    let flags = match RawFlags::parse(words, environment) {
        Ok(flags) => flags,
        Err(error) => return refuse(&error.to_string()),
    };
    if flags.help {
        return say(&mut io::stdout(), Help);
    }
    if flags.switch("version") {
        // flannel writes its version to stderr, and scripts read it there.
        return say(&mut io::stderr(), format_args!("v{}\n", env!("CARGO_PKG_VERSION")));
    }
    let settings = match Settings::settle(&flags) {
        Ok(settings) => settings,
        Err(error) => return refuse(&error.to_string()),
    };
    log_to_stderr(settings.log);
    let doing = match task {
        Task::Run => "starts",
        Task::Explain => "explains",
    };
    tracing::info!("flanneld v{} {doing}, options: {}", env!("CARGO_PKG_VERSION"), flags.shown());
    for notice in &settings.notices {
        tracing::warn!("{notice}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => match task {
            Task::Run => runtime.block_on(daemon::run(&settings)).map(|()| None),
            Task::Explain => runtime.block_on(daemon::explain(&settings)).map(Some),
        },
        Err(error) => Err(anyhow::Error::new(error).context("start the runtime")),
    };
    match outcome {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(text)) => say(&mut io::stdout(), text),
        Err(error) => {
            tracing::error!("{}", in_one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, without those whose words are in it already.
fn in_one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !line.contains(&cause) {
            line.push_str(if line.is_empty() { "" } else { ": " });
            line.push_str(&cause);
        }
    }
    line
}

fn log_to_stderr(settings: LogSettings) {
    // A client of ours says what happened; its libraries would say it again, each time, and less well.
    let quiet = ["kube_client", "tower", "hyper", "hyper_util", "h2", "tonic", "rustls"]
        .map(|target| (target, LevelFilter::OFF));
    let filter = match settings.verbosity {
        ..=0 => Targets::new().with_default(Level::INFO).with_targets(quiet),
        1..=4 => Targets::new()
            .with_default(Level::INFO)
            .with_targets(quiet)
            .with_targets(["control", "hostnet", "dataplane"].map(|target| (target, Level::DEBUG))),
        5.. => Targets::new().with_default(Level::TRACE),
    };
    let log = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let log = match settings.format {
        LogFormat::Text => log.with_target(false).with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => log.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(log.with_filter(filter)).init();
}

fn refuse(error: &str) -> ExitCode {
    // Nobody is left to tell if stderr is closed.
    writeln!(io::stderr(), "flanneld: {error}").ok();
    ExitCode::from(WRONG_FLAGS)
}

fn say(to: &mut impl Write, text: impl std::fmt::Display) -> ExitCode {
    match write!(to, "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
