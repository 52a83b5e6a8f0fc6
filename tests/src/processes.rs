//! A process and everything below it, as `/proc` shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::Context;

/// Process ids of everything that descends from `root`, itself included.
///
/// # Errors
///
/// When `/proc` cannot be read.
pub fn family_of(root: u32) -> anyhow::Result<BTreeSet<u32>> {
    let mut children = BTreeMap::<u32, Vec<u32>>::new();
    for pid in all()? {
        // One that has just ended has no parent any more.
        if let Some(parent) = parent_of(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut family, mut next) = (BTreeSet::new(), vec![root]);
    while let Some(pid) = next.pop() {
        if family.insert(pid) {
            next.extend(children.get(&pid).into_iter().flatten());
        }
    }
    Ok(family)
}

/// Network namespaces that threads of these processes are in, by inode.
#[must_use]
pub fn namespaces_of(pids: &BTreeSet<u32>) -> BTreeSet<String> {
    let tasks = pids.iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok());
    tasks.flatten().flatten().filter_map(|task| namespace(&task.path())).collect()
}

/// Which of these namespaces some visible thread is still in.
///
/// # Errors
///
/// When `/proc` cannot be read.
pub fn still_held(namespaces: &BTreeSet<String>) -> anyhow::Result<BTreeSet<String>> {
    let everybody = all()?.into_iter().collect();
    Ok(namespaces_of(&everybody).intersection(namespaces).cloned().collect())
}

/// Which of these processes are alive; one that nobody has waited for is not.
#[must_use]
pub fn alive(pids: &BTreeSet<u32>) -> Vec<u32> {
    let living =
        |pid: &u32| stat(*pid).is_some_and(|fields| fields.first().is_some_and(|state| state != "Z"));
    pids.iter().copied().filter(living).collect()
}

fn all() -> anyhow::Result<Vec<u32>> {
    let entries = fs::read_dir("/proc").context("read /proc")?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// The fields of `/proc/PID/stat` behind the name: state, parent, ...
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields = text.get(text.rfind(')')? + 2..)?;
    Some(fields.split(' ').map(str::to_owned).collect())
}

fn parent_of(pid: u32) -> Option<u32> {
    stat(pid)?.get(1)?.parse().ok()
}

fn namespace(task: &Path) -> Option<String> {
    Some(fs::read_link(task.join("ns/net")).ok()?.to_string_lossy().into_owned())
}
