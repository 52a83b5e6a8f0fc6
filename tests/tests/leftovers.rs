//! The machine is as it was before: links, addresses, routes, filters, namespaces.
//!
//! Run by itself it compares the machine before and after demos that are killed at any moment. With `FLANNEL_SNAPSHOT`
//! naming a file that is not there yet, it only notes the machine's state there; with a file that is there, it compares
//! with that too: `make test` runs it so before everything else and after it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lab::leftovers::Snapshot;
use promises::binary;

/// Processes end and namespaces go a moment after the signal.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn nothing_is_left_on_the_machine() {
    let before = match std::env::var_os("FLANNEL_SNAPSHOT").map(std::path::PathBuf::from) {
        None => Snapshot::take().unwrap(),
        Some(file) if file.exists() => serde_json::from_slice(&fs::read(file).unwrap()).unwrap(),
        Some(file) => return note(&file),
    };
    binary::build().unwrap();
    // In the middle of everything that a start does, and when all of it stands.
    for delay in [0, 1, 3, 10, 30, 60, 100, 150] {
        let Some(mut demo) = start() else { return };
        thread::sleep(Duration::from_millis(delay));
        demo.kill().unwrap();
        demo.wait().unwrap();
    }
    let Some(mut demo) = start() else { return };
    let said = BufReader::new(demo.stderr.take().unwrap());
    assert!(said.lines().any(|line| line.unwrap().contains("enter")), "it stands");
    demo.kill().unwrap();
    demo.wait().unwrap();

    let deadline = Instant::now() + PATIENCE;
    loop {
        let differences = before.differences(&Snapshot::take().unwrap());
        if differences.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left on the machine:\n{}", differences.join("\n"));
        thread::sleep(Duration::from_millis(50));
    }
}

fn note(file: &Path) {
    fs::write(file, serde_json::to_vec(&Snapshot::take().unwrap()).unwrap()).unwrap();
}

/// A demo that stays; `None`, said aloud, where the machine lets nobody make namespaces.
fn start() -> Option<std::process::Child> {
    if let Err(error) = hostnet::netns::NetNs::new() {
        let name = "nothing_is_left_on_the_machine";
        writeln!(std::io::stderr(), "skipped: {name}: no private network namespace: {error}").unwrap();
        return None;
    }
    let mut command = Command::new(binary::flanneld().unwrap());
    command.args(["demo", "--no-race", "--keep"]).stdout(Stdio::null()).stderr(Stdio::piped());
    Some(command.spawn().unwrap())
}
