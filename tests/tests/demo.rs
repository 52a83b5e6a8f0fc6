//! `flanneld demo`: what a newcomer runs first works, as root or not, and leaves nothing, however it ends.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::Scene;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Pid, geteuid};
use promises::{binary, harness, processes};

fn main() -> ExitCode {
    harness::of_daemons(
        "promise-demo",
        lab::cases![
            every_pod_reaches_every_other,
            either_backend_and_any_number_of_nodes,
            a_user_without_rights_can_run_it,
            it_can_be_kept_and_looked_into_and_then_goes_without_a_trace,
            wrong_words_are_explained,
        ],
    )
}

fn demo(words: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(binary::flanneld()?);
    command.arg("demo").args(words);
    Ok(command)
}

/// The nodes and paths that `-o json` tells of; every pair of pods must be among them.
fn complete(output: &Output, nodes: usize) -> anyhow::Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "it ended with {}: {said}", output.status);
    let found: serde_json::Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("no JSON: {}", String::from_utf8_lossy(&output.stdout)))?;
    let list = |key: &str| found[key].as_array().cloned().with_context(|| format!("no {key} in {found}"));
    ensure!(list("nodes")?.len() == nodes, "{found}");
    let pods: BTreeSet<String> =
        list("nodes")?.iter().filter_map(|node| Some(node["pod"].as_str()?.to_owned())).collect();
    let mut pairs = BTreeSet::new();
    for path in list("round_trips")? {
        ensure!(path["milliseconds"].as_f64().is_some_and(|time| time > 0.0), "{path}");
        pairs.insert((path["from"].to_string(), path["to"].to_string()));
    }
    ensure!(pods.len() == nodes && pairs.len() == nodes * (nodes - 1), "{found}");
    Ok(())
}

fn every_pod_reaches_every_other(_: &Scene) -> anyhow::Result<()> {
    complete(&demo(&["--no-race", "-o", "json"])?.output()?, 3)
}

fn either_backend_and_any_number_of_nodes(_: &Scene) -> anyhow::Result<()> {
    for (backend, nodes) in [("udp", 2), ("vxlan", 4)] {
        let nodes_flag = format!("--nodes={nodes}");
        let words = ["--no-race", "-o", "json", "--backend", backend, &nodes_flag];
        complete(&demo(&words)?.output()?, nodes).with_context(|| backend.to_owned())?;
    }
    Ok(())
}

/// A user of no privilege on a machine that lets users make user namespaces and open `/dev/net/tun`.
fn a_user_without_rights_can_run_it(_: &Scene) -> anyhow::Result<()> {
    if !geteuid().is_root() {
        return Err(lab::skip("takes root to become somebody else"));
    }
    // Where nobody may read it, and a home for nobody.
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let program = dir.path().join("flanneld");
    fs::copy(binary::flanneld()?, &program)?;
    let output = thread::scope(|scope| {
        let run = scope.spawn(|| as_nobody(&program));
        run.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
    })?;
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("cannot make private namespaces") {
        return Err(lab::skip(format!("this machine keeps user namespaces from users: {}", said.trim())));
    }
    complete(&output, 3)
}

/// Runs in a mount namespace of the calling thread's own, whose `/dev/net/tun` is open to all.
fn as_nobody(program: &Path) -> anyhow::Result<Output> {
    const NOBODY: u32 = 65_534;
    let refused = |what: &'static str| move |errno| lab::skip(format!("cannot {what}: {errno}"));
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).map_err(refused("make a mount namespace"))?;
    mount(Some("none"), "/dev/net", Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
        .map_err(refused("mount a /dev/net"))?;
    mknod("/dev/net/tun", SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(10, 200))
        .map_err(refused("make a /dev/net/tun"))?;
    fs::set_permissions("/dev/net/tun", fs::Permissions::from_mode(0o666))?;
    let mut command = Command::new(program);
    command.args(["demo", "--no-race", "-o", "json"]).uid(NOBODY).gid(NOBODY).current_dir("/");
    Ok(command.output()?)
}

/// A demo that was kept, and everything it consists of.
struct Kept {
    guard: Child,
    family: BTreeSet<u32>,
    namespaces: BTreeSet<String>,
}

impl Kept {
    /// Five nodes, so that no other test's demo has a node-e.
    fn start() -> anyhow::Result<Self> {
        let mut command = demo(&["--no-race", "--keep", "--nodes", "5"])?;
        let mut guard = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let said = BufReader::new(guard.stderr.take().context("its stderr")?);
        let mut log = Vec::new();
        for line in said.lines() {
            let line = line?;
            let done = line.contains("enter");
            log.push(line);
            if done {
                let family = processes::family_of(guard.id())?;
                // What we are in ourselves does not count.
                let own = processes::namespaces_of(&BTreeSet::from([std::process::id()]));
                let all = processes::namespaces_of(&family);
                let namespaces: BTreeSet<String> = all.difference(&own).cloned().collect();
                // The guard, pid 1, five daemons; five nodes, five pods, a switch.
                ensure!(family.len() >= 7 && namespaces.len() >= 11, "{family:?} in {namespaces:?}");
                return Ok(Self { guard, family, namespaces });
            }
        }
        anyhow::bail!("it ended with {}: {}", guard.wait()?, log.join("\n"))
    }

    /// Waits until no process of it lives and no thread is in its namespaces.
    fn ends_without_a_trace(mut self) -> anyhow::Result<()> {
        self.guard.wait()?;
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let (alive, held) = (processes::alive(&self.family), processes::still_held(&self.namespaces)?);
            if alive.is_empty() && held.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "left: processes {alive:?}, namespaces {held:?}");
            thread::yield_now();
        }
    }

    fn copy(&self) -> anyhow::Result<i32> {
        let cmdline = |pid: &&u32| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words.starts_with(b"flanneld-demo\0"))
        };
        Ok(i32::try_from(*self.family.iter().find(cmdline).context("its pid 1")?)?)
    }
}

fn it_can_be_kept_and_looked_into_and_then_goes_without_a_trace(_: &Scene) -> anyhow::Result<()> {
    let kept = Kept::start()?;
    let look = demo(&["enter", "pod-e", "--", "cat", "/proc/self/net/fib_trie"])?.output()?;
    let trie = String::from_utf8_lossy(&look.stdout);
    ensure!(look.status.success() && trie.contains("10.5."), "{look:?}");
    let devices = demo(&["enter", "node-e", "--", "cat", "/proc/self/net/dev"])?.output()?;
    ensure!(String::from_utf8_lossy(&devices.stdout).contains("flannel.1"), "{devices:?}");
    let nobody = demo(&["enter", "node-z", "--", "true"])?.output()?;
    let said = String::from_utf8_lossy(&nobody.stderr);
    ensure!(!nobody.status.success() && said.contains("node-e"), "it names who there is: {said}");

    let guard = Pid::from_raw(i32::try_from(kept.guard.id())?);
    kill(guard, Signal::SIGINT)?;
    kept.ends_without_a_trace().context("after SIGINT")?;

    let kept = Kept::start()?;
    kill(Pid::from_raw(i32::try_from(kept.guard.id())?), Signal::SIGKILL)?;
    kept.ends_without_a_trace().context("after kill -9 of the command")?;

    let kept = Kept::start()?;
    kill(Pid::from_raw(kept.copy()?), Signal::SIGKILL)?;
    kept.ends_without_a_trace().context("after kill -9 of its pid 1")
}

fn wrong_words_are_explained(_: &Scene) -> anyhow::Result<()> {
    for (words, said) in [
        (&["--nodes", "1"][..], "2..=100"),
        (&["--node", "3"], "--nodes"),
        (&["--backend", "wireguard"], "vxlan"),
        (&["enter"], "NAME"),
    ] {
        let output = demo(words)?.output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && text.contains(said), "{words:?}: {text}");
    }
    Ok(())
}
