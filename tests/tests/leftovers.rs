//! The machine is as it was before: links, addresses, routes, filters, namespaces.
//!
//! Run by itself it compares the machine before and after demos that are killed at any moment. With `FLANNEL_SNAPSHOT`
//! naming a file that is not there yet, it only notes the machine's state there; with a file that is there, it compares
//! with that too: `make test` runs it so before everything else and after it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hostnet::netns::NetNs;
use lab::leftovers::Snapshot;
use promises::binary;

/// Processes end and namespaces go a moment after the signal.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn nothing_is_left_on_the_machine() -> anyhow::Result<()> {
    let before = match std::env::var_os("FLANNEL_SNAPSHOT").map(PathBuf::from) {
        None => Snapshot::take()?,
        Some(file) if file.exists() => serde_json::from_slice(&fs::read(file)?)?,
        Some(file) => return Ok(fs::write(file, serde_json::to_vec(&Snapshot::take()?)?)?),
    };
    if let Err(error) = NetNs::new() {
        // Straight to the stream: a test's own output is kept back when it passes.
        let name = "nothing_is_left_on_the_machine";
        return Ok(writeln!(std::io::stderr(), "skipped: {name}: no private network namespace: {error}")?);
    }
    binary::build()?;
    // In the middle of everything that a start does, and when all of it stands.
    for delay in [0, 1, 3, 10, 30, 60, 100, 150] {
        let mut demo = start()?;
        thread::sleep(Duration::from_millis(delay));
        demo.kill()?;
        demo.wait()?;
    }
    let mut demo = start()?;
    let said = BufReader::new(demo.stderr.take().context("its stderr")?);
    ensure!(said.lines().any(|line| line.is_ok_and(|line| line.contains("enter"))), "no demo to kill");
    demo.kill()?;
    demo.wait()?;

    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut differences = before.differences(&Snapshot::take()?);
        // Namespaces are made by others on this machine too (a container that starts meanwhile); ours are held by copies of
        // the demo, which run as /proc/self/exe.
        differences.retain(|line| {
            !line.starts_with("new network namespace")
                || line.contains("(exe)")
                || line.contains("(flanneld)")
        });
        if differences.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "left on the machine:\n{}", differences.join("\n"));
        thread::sleep(Duration::from_millis(50));
    }
}

/// A demo that stays.
fn start() -> anyhow::Result<Child> {
    let mut command = Command::new(binary::flanneld()?);
    command.args(["demo", "--no-race", "--keep"]).stdout(Stdio::null()).stderr(Stdio::piped());
    Ok(command.spawn()?)
}
