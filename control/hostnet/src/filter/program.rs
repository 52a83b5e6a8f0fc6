//! Runs a program of the packet filter: found where administrators' programs are, given its input, not waited for for
//! ever, and its refusal told with what to do about it.
use std::env;
use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Longer than the five seconds that iptables itself is told to wait for its lock.
const PATIENCE: Duration = Duration::from_secs(15);
/// Service managers and containers may leave these out of `PATH`.
const MORE_PLACES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// As much of what a program says goes into an error.
const LONGEST_WORDS: usize = 400;

/// A program of the packet filter did not do what it was asked.
#[derive(Debug)]
pub enum ProgramError {
    /// It is not installed.
    Missing {
        /// Its name.
        program: &'static str,
    },
    /// It cannot be started or talked to.
    Start {
        /// Its name.
        program: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// It ended with an error.
    Refused {
        /// Its name and arguments.
        command: String,
        /// Its exit status; `None`: ended by a signal.
        status: Option<i32>,
        /// What it said, at most a few lines.
        said: String,
    },
    /// It was ended after so long.
    Slow {
        /// Its name and arguments.
        command: String,
        /// How long it was given.
        after: Duration,
    },
}

impl ProgramError {
    /// The program is not installed.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }

    /// What it was asked about is not in the kernel (`nft`).
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Refused { said, .. } if said.contains("No such file or directory"))
    }

    /// The status with which the program ended.
    pub fn status(&self) -> Option<i32> {
        match self {
            Self::Refused { status, .. } => *status,
            _ => None,
        }
    }

    /// What a person can do about it.
    fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Missing { program: "nft" } => {
                Some("install the package nftables (Debian and Alpine name it so)")
            }
            Self::Missing { program: "conntrack" } => {
                Some("install the package conntrack (Debian's name; Alpine's is conntrack-tools)")
            }
            Self::Missing { .. } => Some(
                "install the package iptables (Debian and Alpine name it so), or set EnableNFTables in the network \
                 configuration",
            ),
            Self::Refused { said, .. } => {
                let says = |words: &[&str]| words.iter().any(|word| said.contains(word));
                if says(&["Operation not permitted", "Permission denied", "must be root"]) {
                    Some("needs CAP_NET_ADMIN, and iptables-legacy needs CAP_NET_RAW too")
                } else if says(&["Table does not exist", "Module ", "Protocol not supported"]) {
                    Some(
                        "this kernel lacks a module for it: see `modprobe nf_tables`, `modprobe ip_tables`, `modprobe nft_masq`",
                    )
                } else if says(&["xtables lock", "lock file"]) {
                    Some("another program holds the lock: it is tried again")
                } else {
                    None
                }
            }
            Self::Start { .. } | Self::Slow { .. } => None,
        }
    }
}

impl fmt::Display for ProgramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { program } => write!(f, "there is no program {program}")?,
            Self::Start { program, source } => write!(f, "run {program}: {source}")?,
            Self::Refused { command, status: Some(status), said } => {
                write!(f, "{command} ended with status {status}: {said}")?;
            }
            Self::Refused { command, status: None, said } => {
                write!(f, "{command} was ended by a signal: {said}")?;
            }
            Self::Slow { command, after } => {
                write!(f, "{command} did not end within {} s, tried again later", after.as_secs())?;
            }
        }
        match self.remedy() {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ProgramError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Start { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Runs the program to its end and answers what it printed.
///
/// A future that is dropped ends the program; what it had not handed to the kernel by then does not happen.
pub(super) async fn run(
    program: &'static str,
    arguments: &[&str],
    input: &str,
) -> Result<String, ProgramError> {
    // By its path: looked up for a changed PATH, a program is started by a fork, and threads that carry packets would pay
    // for the copy of every page they write to meanwhile.
    let path = find(program).ok_or(ProgramError::Missing { program })?;
    let started = Command::new(path)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let child = started.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => ProgramError::Missing { program },
        _ => ProgramError::Start { program, source },
    })?;
    let command = || format!("{program} {}", arguments.join(" "));
    let (status, output, said) = timeout(PATIENCE, talk(child, input))
        .await
        .map_err(|_elapsed| ProgramError::Slow { command: command(), after: PATIENCE })?
        .map_err(|source| ProgramError::Start { program, source })?;
    if !status.success() {
        return Err(ProgramError::Refused { command: command(), status: status.code(), said: brief(&said) });
    }
    Ok(String::from_utf8_lossy(&output).into_owned())
}

/// Writes and reads at the same time: a program that says much before it has read everything would wait for ever.
async fn talk(mut child: Child, input: &str) -> io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let stdin = child.stdin.take();
    let write = async {
        let Some(mut stdin) = stdin else { return Ok(()) };
        match stdin.write_all(input.as_bytes()).await {
            // It ended before it read everything: its status says why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    };
    let (written, output) = tokio::join!(write, child.wait_with_output());
    let output = output?;
    written?;
    Ok((output.status, output.stdout, output.stderr))
}

pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).chain(MORE_PLACES.iter().map(PathBuf::from));
    places.map(|place| place.join(program)).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// The first lines of what a program said, in one line.
fn brief(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut words: String = lines.join(" / ");
    if words.chars().count() > LONGEST_WORDS {
        words = words.chars().take(LONGEST_WORDS).chain("...".chars()).collect();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_here(program: &'static str, arguments: &[&str], input: &str) -> Result<String, ProgramError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(program, arguments, input))
    }

    #[test]
    fn much_input_and_output_at_once_do_not_block() {
        let input = "x".repeat(1 << 20);
        assert_eq!(run_here("cat", &[], &input).unwrap(), input);
    }

    #[test]
    fn a_missing_program_is_told_with_its_package() {
        let error = run_here("no-such-program-of-iptables", &[], "").unwrap_err();
        assert!(error.is_missing());
        let text = error.to_string();
        assert!(text.contains("no-such-program-of-iptables") && text.contains("package iptables"), "{text}");
        let nft = ProgramError::Missing { program: "nft" }.to_string();
        assert_eq!(
            nft,
            "there is no program nft; install the package nftables (Debian and Alpine name it so)"
        );
    }

    #[test]
    fn a_refusal_is_told_in_one_line_with_its_status() {
        let script = "echo first >&2; echo; echo second: Operation not permitted >&2; exit 4";
        let error = run_here("sh", &["-c", script], "input that nobody reads").unwrap_err();
        assert_eq!(error.status(), Some(4));
        let text = error.to_string();
        assert!(
            text.contains("status 4: first / second: Operation not permitted; needs CAP_NET_ADMIN"),
            "{text}"
        );
        assert_eq!(brief("ä".repeat(1000).as_bytes()).chars().count(), LONGEST_WORDS + 3);
    }
}
