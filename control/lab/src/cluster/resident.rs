//! A thread that stands for a namespace: it carries the name by which other processes find the namespace.

use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use anyhow::Context;
use hostnet::netns::NetNs;

/// A namespace and the thread that sits in it and does nothing else. Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct Resident {
    namespace: NetNs,
    thread: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Resident {
    /// `name` shows in `/proc/PID/task/TID/comm`; at most 15 bytes of it.
    pub(super) fn start(namespace: NetNs, name: &str) -> anyhow::Result<Self> {
        let (alive, ended) = channel::<()>();
        let wait = move || while ended.recv().is_ok() {};
        let thread = namespace.spawn(name, wait).with_context(|| format!("start the thread of {name}"))?;
        Ok(Self { namespace, thread: Some((alive, thread)) })
    }

    pub(super) fn namespace(&self) -> &NetNs {
        &self.namespace
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        if let Some((alive, thread)) = self.thread.take() {
            drop(alive);
            // It runs no code that could panic, and there is nobody to tell.
            drop(thread.join());
        }
    }
}
