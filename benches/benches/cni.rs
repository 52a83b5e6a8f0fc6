//! Our CNI plugins beside the reference ones, in one run in private namespaces: one container at a time, and a hundred at once.
//!
//! `make cni-bench`, or `cargo bench -p benches --no-default-features --bench cni -- OURS [THEIRS]` with the directories of
//! the plugins, from / on. Both do the same: `bridge` with a gateway and `host-local`.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hostnet::netns::NetNs;
use lab::cni::{Container, Runtime};
use serde_json::json;

/// Where Debian's package `containernetworking-plugins` puts them.
const THEIRS: &str = "/usr/lib/cni";
/// Each is measured so often, in turn.
const ROUNDS: usize = 7;
/// Containers one after another in a round.
const SINGLE: usize = 20;
/// Containers at once.
const AT_ONCE: usize = 100;

/// What is measured.
const FIGURES: [&str; 6] =
    ["one ADD", "one DEL", "one ADD, ipMasq", "one DEL, ipMasq", "100 ADDs at once", "100 DELs at once"];

#[expect(clippy::print_stdout, reason = "it is what a benchmark is for")]
fn main() -> anyhow::Result<()> {
    // `cargo test --benches` only wants to know that it builds.
    if !std::env::args().any(|word| word == "--bench") {
        return Ok(());
    }
    let words: Vec<PathBuf> =
        std::env::args().skip(1).filter(|word| !word.starts_with("--")).map(PathBuf::from).collect();
    let ours = words.first().context("name the directory of our plugins: target/plugin")?.canonicalize()?;
    let theirs = words.get(1).cloned().unwrap_or_else(|| PathBuf::from(THEIRS));
    if !theirs.join("bridge").exists() {
        println!(
            "skipped: cni: no reference plugins in {}: install containernetworking-plugins",
            theirs.display()
        );
        return Ok(());
    }
    lab::isolation::isolate().context("make private namespaces")?;
    let directory = tempfile::tempdir()?;
    let mut times: [[Vec<Duration>; 2]; FIGURES.len()] = Default::default();
    // The same ones all the time: the kernel takes a namespace apart long after its end, and holds its lock for that.
    let containers: anyhow::Result<Vec<Container>> =
        (0..AT_ONCE).map(|number| Container::new(format!("c{number}"))).collect();
    let containers = containers?;
    for _ in 0..ROUNDS {
        for (side, place) in [&ours, &theirs].into_iter().enumerate() {
            let took = measure(place, &directory.path().join(side.to_string()), &containers)?;
            for (all, one) in times.iter_mut().zip(took) {
                all[side].push(one);
            }
        }
    }
    println!("{:<18}{:>12}{:>12}{:>10}", "", "ours", "theirs", "ratio");
    for (name, [ours, theirs]) in FIGURES.iter().zip(&mut times) {
        let (ours, theirs) = (median(ours), median(theirs));
        println!("{name:<18}{ours:>9.1} ms{theirs:>9.1} ms{:>10.2}", ours / theirs);
    }
    println!("medians of {ROUNDS} rounds; one ADD and one DEL are the mean of {SINGLE} in each");
    if console_is_told() {
        println!(
            "the kernel writes several lines about each device that joins a bridge to its console, which takes longer \
             than joining where that is a serial line; `dmesg -n 4` keeps it from that, `dmesg -n 7` is the default again"
        );
    }
    Ok(())
}

/// Whether messages of level 6 (info) are written to a console: the first number of `kernel.printk` is the first level
/// that is not.
fn console_is_told() -> bool {
    let levels = std::fs::read_to_string("/proc/sys/kernel/printk").unwrap_or_default();
    let first = levels.split_whitespace().next().and_then(|level| level.parse::<u8>().ok());
    first.is_some_and(|first| first > 6)
}

/// One round of one side, on a bridge of its own.
fn measure(
    plugins: &Path,
    data: &Path,
    containers: &[Container],
) -> anyhow::Result<[Duration; FIGURES.len()]> {
    let side = data.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let runtime = Runtime::new(
        &[plugins],
        json!({
            "cniVersion": "0.3.1", "name": "pods", "type": "bridge", "bridge": format!("cni{side}"), "isGateway": true, "mtu": 1450,
            "ipam": {"type": "host-local", "dataDir": data, "ranges": [[{"subnet": format!("10.244.{side}.0/24")}]]},
        }),
    );
    // The bridge is made by the first one.
    runtime.add(containers.first().context("a container")?)?;
    runtime.delete(containers.first().context("a container")?)?;
    let some = containers.get(..SINGLE).context("enough containers")?;
    let one_add = timed(|| some.iter().try_for_each(|one| runtime.add(one).map(drop)))?;
    let one_delete = timed(|| some.iter().try_for_each(|one| runtime.delete(one)))?;
    let mut masked = runtime.clone();
    masked.config["ipMasq"] = true.into();
    let mask_add = timed(|| some.iter().try_for_each(|one| masked.add(one).map(drop)))?;
    let mask_delete = timed(|| some.iter().try_for_each(|one| masked.delete(one)))?;
    let all_add = timed(|| at_once(containers, |one| runtime.add(one).map(drop)))?;
    let all_delete = timed(|| at_once(containers, |one| runtime.delete(one)))?;
    let left = std::fs::read_dir(data.join("pods"))?.filter_map(Result::ok);
    let left = left.filter(|file| file.file_name().to_string_lossy().starts_with("10.244")).count();
    ensure!(left == 0, "{} leaked {left} addresses", plugins.display());
    let each = u32::try_from(SINGLE)?;
    Ok([one_add / each, one_delete / each, mask_add / each, mask_delete / each, all_add, all_delete])
}

fn timed(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    work()?;
    Ok(begin.elapsed())
}

fn at_once(
    containers: &[Container],
    work: impl Fn(&Container) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    let here = NetNs::current()?;
    thread::scope(|scope| {
        let running: Vec<_> = containers
            .iter()
            .map(|one| {
                let (here, work) = (&here, &work);
                scope.spawn(move || {
                    here.enter()?;
                    work(one)
                })
            })
            .collect();
        running
            .into_iter()
            .try_for_each(|one| one.join().unwrap_or_else(|_panic| anyhow::bail!("a thread failed")))
    })
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default().as_secs_f64() * 1e3
}
