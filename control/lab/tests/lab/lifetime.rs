//! Beginning and end: nothing outlives a lab, signals and exit codes pass its guard, others can enter it.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lab::leftovers::Snapshot;
use lab::{Case, Cluster, Place, Plan, Scene};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const ROLE: &str = "LAB_TEST_ROLE";
const MARKER: &str = "LAB_TEST_MARKER";

pub(crate) fn cases() -> Vec<Case> {
    lab::cases![
        nothing_outlives_a_killed_guard,
        nothing_outlives_a_killed_lab,
        a_signal_ends_the_lab_with_its_code,
        the_exit_code_passes_the_guard,
        a_running_lab_can_be_entered_by_name,
        output_of_a_process_is_captured_and_drop_kills_it,
        a_dropped_cluster_leaves_nothing,
    ]
}

/// What this program does when a test starts it again; `None` if it was started as itself.
pub(crate) fn play_role() -> Option<ExitCode> {
    let role = std::env::var(ROLE).ok()?;
    let marker = std::env::var(MARKER).unwrap_or_default();
    let done = match role.as_str() {
        "keep" => keep(&marker),
        "sit" => {
            say("sitting");
            sit()
        }
        "code" => code(&marker),
        "enter" => {
            let argv: Vec<OsString> = std::env::args_os().skip(1).collect();
            lab::enter(&marker, "node-b", &argv).map_err(Into::into)
        }
        other => panic!("no role {other}"),
    };
    Some(done.unwrap_or_else(|error| {
        say(&format!("failed: {error:#}"));
        ExitCode::from(99)
    }))
}

#[expect(clippy::print_stdout, reason = "the test that started this role reads it")]
fn say(text: &str) {
    println!("{text}");
}

/// A lab that stays until it is killed, with a process of its own on a node.
fn keep(marker: &str) -> anyhow::Result<ExitCode> {
    let isolation = match lab::run_inside(marker)? {
        Place::Outside(code) => return Ok(code),
        Place::Inside(isolation) => isolation,
    };
    assert_eq!(std::process::id(), 1);
    let cluster = Cluster::build(&Plan::nodes(2))?;
    let sitter = cluster.nodes()[0].spawn(again("sit", marker, &format!("{marker}-sitter")))?;
    sitter.wait_for_line("sitting", Duration::from_secs(10))?;
    say(&format!("ready {isolation:?}"));
    sit()
}

fn sit() -> anyhow::Result<ExitCode> {
    loop {
        thread::park();
    }
}

fn code(marker: &str) -> anyhow::Result<ExitCode> {
    match lab::run_inside(marker)? {
        Place::Outside(code) => Ok(code),
        Place::Inside(_) => Ok(ExitCode::from(42)),
    }
}

/// This program in another role.
fn again(role: &str, marker: &str, name: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(name).env(ROLE, role).env(MARKER, marker).stdin(Stdio::null());
    command
}

/// A kept lab and the marker that tells it from those of other tests.
fn start_kept(test: &str) -> anyhow::Result<(Child, String)> {
    let marker = format!("kept-{test}-{}", std::process::id());
    let mut guard = again("keep", &marker, "guard").stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(guard.stdout.take().context("stdout")?).read_line(&mut line)?;
    if !line.starts_with("ready") {
        bail!("the lab did not start: {line}");
    }
    assert_eq!(processes(&marker).len(), 1);
    assert_eq!(processes(&format!("{marker}-sitter")).len(), 1);
    Ok((guard, marker))
}

/// Ids of the processes with that `argv[0]`.
fn processes(name: &str) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let named = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|&byte| byte == 0).next() == Some(name.as_bytes())
    };
    pids.filter(named).collect()
}

/// Waits for the kernel to take the lab's processes away.
fn assert_gone(marker: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left = [processes(marker), processes(&format!("{marker}-sitter"))].concat();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "still there: {left:?}");
        thread::yield_now();
    }
}

fn nothing_outlives_a_killed_guard(_: &Scene) -> anyhow::Result<()> {
    let (mut guard, marker) = start_kept("guard")?;
    guard.kill()?;
    guard.wait()?;
    assert_gone(&marker);
    Ok(())
}

fn nothing_outlives_a_killed_lab(_: &Scene) -> anyhow::Result<()> {
    let (mut guard, marker) = start_kept("lab")?;
    kill(Pid::from_raw(processes(&marker)[0]), Signal::SIGKILL)?;
    assert_eq!(guard.wait()?.code(), Some(128 + 9));
    assert_gone(&marker);
    Ok(())
}

fn a_signal_ends_the_lab_with_its_code(_: &Scene) -> anyhow::Result<()> {
    let (mut guard, marker) = start_kept("signal")?;
    kill(Pid::from_raw(i32::try_from(guard.id())?), Signal::SIGTERM)?;
    // The lab has no handler, and pid 1 of a namespace would ignore the signal.
    assert_eq!(guard.wait()?.code(), Some(128 + 15));
    assert_gone(&marker);
    Ok(())
}

fn the_exit_code_passes_the_guard(_: &Scene) -> anyhow::Result<()> {
    let status = again("code", "code-lab", "guard").status()?;
    assert_eq!(status.code(), Some(42));
    Ok(())
}

fn a_running_lab_can_be_entered_by_name(_: &Scene) -> anyhow::Result<()> {
    let (mut guard, marker) = start_kept("enter")?;
    let known = lab::enter::residents(&marker);
    assert_eq!(known, ["node-a", "node-b", "switch"]);
    let entered = again("enter", &marker, "enter").args(["cat", "/proc/net/fib_trie"]).output()?;
    let seen = String::from_utf8_lossy(&entered.stdout);
    assert!(seen.contains("192.0.2.2") && !seen.contains("192.0.2.1\n"), "{seen}");
    assert_eq!(entered.status.code(), Some(0));
    let failing = again("enter", &marker, "enter").args(["sh", "-c", "exit 7"]).status()?;
    assert_eq!(failing.code(), Some(7));
    let missing = again("enter", &marker, "enter").arg("/no/such/program").output()?;
    let said = String::from_utf8_lossy(&missing.stdout);
    assert!(said.contains("/no/such/program") && missing.status.code() == Some(99), "{said}");
    guard.kill()?;
    guard.wait()?;
    assert_gone(&marker);
    let unknown = lab::enter(&marker, "node-a", &["true".into()]);
    assert!(unknown.is_err_and(|error| error.to_string().contains("no lab is running")));
    Ok(())
}

fn output_of_a_process_is_captured_and_drop_kills_it(_: &Scene) -> anyhow::Result<()> {
    let cluster = Cluster::build(&Plan::nodes(1))?;
    let mut shell = Command::new("sh");
    shell.args(["-c", "echo one; echo two >&2; cat /proc/net/dev; exit 3"]);
    let mut process = cluster.nodes()[0].spawn(shell)?;
    let timeout = Duration::from_secs(10);
    assert_eq!(process.wait_for_line("two", timeout)?, "two");
    assert!(process.wait_for_line("eth0:", timeout)?.contains("eth0"));
    assert_eq!(process.wait(timeout)?.code(), Some(3));
    assert!(process.lines().contains(&"one".to_owned()));
    let never = process.wait_for_line("never", timeout).map_err(|error| error.to_string());
    assert!(never.is_err_and(|said| said.contains("it ended") && said.contains("two")));

    let marker = format!("dropped-{}", std::process::id());
    let mut sitter = cluster.nodes()[0].spawn(again("sit", &marker, &marker))?;
    assert_eq!(sitter.terminate(timeout)?.signal(), Some(15));
    let sitter = cluster.nodes()[0].spawn(again("sit", &marker, &marker))?;
    drop(sitter);
    assert!(processes(&marker).is_empty());
    Ok(())
}

fn a_dropped_cluster_leaves_nothing(_: &Scene) -> anyhow::Result<()> {
    // The namespace of the test stands for the machine.
    let before = Snapshot::take()?;
    let mut cluster = Cluster::build(&Plan::nodes(2))?;
    let networks = cluster.host_routes(&lab::cluster::vxlan::subnets(2, true, true))?;
    for (node, network) in cluster.nodes_mut().iter_mut().zip(&networks) {
        node.add_pod(network)?;
    }
    drop(cluster);
    let mut differences = before.differences(&Snapshot::take()?);
    // Other tests of this binary make namespaces at the same time.
    differences.retain(|line| !line.starts_with("new network namespace"));
    assert_eq!(differences, Vec::<String>::new());
    Ok(())
}
