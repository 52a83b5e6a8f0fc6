//! What a race ran on: without it a figure says nothing.

use std::fs;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

/// The machine, the time and the version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// When the race began, UTC, as RFC 3339 has it.
    pub started: String,
    /// When it was over.
    pub ended: String,
    /// `uname -r`.
    pub kernel: String,
    /// `uname -m`.
    pub architecture: String,
    /// Model name of the first CPU.
    pub cpu: String,
    /// CPUs that are online.
    pub cpus: usize,
    /// Version of flannel-rs.
    pub version: String,
    /// What the raced `flanneld` says to `--version`.
    #[serde(default)]
    pub flanneld: String,
    /// The commit that was raced, with `-dirty` behind it where files differed from it.
    #[serde(default)]
    pub commit: String,
    /// Whether the race was built with optimisation; figures without are worth nothing.
    pub optimised: bool,
}

impl Machine {
    /// Looks at the machine. What it does not tell is empty.
    pub fn look(started: String) -> Self {
        let uname = nix::sys::utsname::uname();
        let said = |part: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
            uname.as_ref().map(|uname| part(uname).to_string_lossy().into_owned()).unwrap_or_default()
        };
        Self {
            started,
            ended: utc_now(),
            kernel: said(nix::sys::utsname::UtsName::release),
            architecture: said(nix::sys::utsname::UtsName::machine),
            cpu: cpu_model(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            flanneld: String::new(),
            commit: String::new(),
            optimised: !cfg!(debug_assertions),
        }
    }
}

/// The first line that a program prints, to standard error if not to standard output; empty when it cannot be run or fails.
pub fn first_line(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().ok().filter(|output| output.status.success());
    let text = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_owned()
}

/// The time, UTC, whole seconds.
pub fn utc_now() -> String {
    let now = jiff::Timestamp::now();
    now.round(jiff::Unit::Second).unwrap_or(now).to_string()
}

/// x86 says `model name`, arm64 says nothing of use for most CPUs but the `CPU part`.
fn cpu_model(cpuinfo: &str) -> String {
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    field("model name")
        .or_else(|| field("CPU part").map(|part| format!("CPU part {part}")))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_named_on_x86_and_on_arm() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: Fast One @ 2 GHz\n"), "Fast One @ 2 GHz");
        assert_eq!(cpu_model("processor\t: 0\nCPU part\t: 0xd0c\n"), "CPU part 0xd0c");
        assert_eq!(cpu_model(""), "");
    }

    #[test]
    fn a_program_that_is_not_there_says_nothing() {
        assert_eq!(first_line(&mut Command::new("/nonexistent/program")), "");
        assert_eq!(first_line(Command::new("/proc/self/exe").arg("--no-such-option")), "");
    }

    #[test]
    fn a_time_has_whole_seconds_and_its_zone() {
        let now = utc_now();
        assert_eq!(now.len(), "2026-01-31T12:00:00Z".len(), "{now}");
        assert!(now.ends_with('Z'), "{now}");
    }
}
