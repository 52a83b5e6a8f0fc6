//! Watching the lease directory: inotify says when to look, a tick looks anyway, and each look is a whole snapshot.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use tokio::time::Instant;

use super::Scan;
use crate::lease::{Lease, LeaseUpdate};
use crate::store::{Clock, Contact, LeaseWatch};

/// How often to look without being told: for a directory that was replaced, for network file systems, and where the
/// kernel grants no inotify watch.
const RESYNC: Duration = Duration::from_secs(5);
/// Events are let gather this long, so that a hundred nodes that start together are a few looks and not a hundred.
const GATHER: Duration = Duration::from_millis(20);

/// A watch on the directory.
pub struct FileWatch<C> {
    dir: PathBuf,
    clock: C,
    events: Option<EventStream<[u8; 4096]>>,
    /// A look is due before any event: at the start, and after events were seen.
    due: bool,
    /// When to look at the latest. Kept here, because whoever waits for the next update may give up waiting and begin
    /// again many times before it comes.
    look_by: Instant,
    /// What was last told; `None` before the first snapshot.
    told: Option<Vec<Lease>>,
    /// Files already named in the log.
    named: HashSet<PathBuf>,
    /// The kernel's refusal to watch has been said.
    unwatched: bool,
    /// The directory cannot be read, for this reason, which has been said.
    failing: Option<String>,
    /// When it last could.
    read_at: Option<Instant>,
}

impl<C: Clock> FileWatch<C> {
    pub(super) fn new(dir: PathBuf, clock: C) -> Self {
        Self {
            dir,
            clock,
            events: None,
            due: true,
            look_by: Instant::now(),
            told: None,
            named: HashSet::new(),
            unwatched: false,
            failing: None,
            read_at: None,
        }
    }

    /// The watch follows the directory's inode; one that was replaced needs a new watch.
    fn arm(&mut self) {
        let begin = || -> std::io::Result<EventStream<[u8; 4096]>> {
            let inotify = Inotify::init()?;
            let mask = WatchMask::CLOSE_WRITE
                | WatchMask::MOVE
                | WatchMask::DELETE
                | WatchMask::DELETE_SELF
                | WatchMask::MOVE_SELF
                | WatchMask::ONLYDIR;
            inotify.watches().add(&self.dir, mask)?;
            inotify.into_event_stream([0; 4096])
        };
        match begin() {
            Ok(events) => self.events = Some(events),
            Err(error) => {
                if !std::mem::replace(&mut self.unwatched, true) {
                    tracing::warn!(dir = %self.dir.display(), %error, every = ?RESYNC, "cannot watch the lease directory; looking at intervals");
                }
            }
        }
    }

    /// One look: a snapshot if something differs from what was told.
    fn look(&mut self) -> Option<LeaseUpdate> {
        let scan = match Scan::of(&self.dir) {
            Ok(scan) => scan,
            // No node has ever written a lease there.
            Err(_) if self.told.is_none() && !self.dir.exists() => Scan::default(),
            Err(error) => {
                if self.failing.replace(error.to_string()).is_none() {
                    tracing::warn!(%error, "keeping the leases that are known");
                }
                self.events = None;
                return None;
            }
        };
        self.read_at = Some(Instant::now());
        if self.failing.take().is_some() {
            tracing::info!(dir = %self.dir.display(), "the lease directory can be read again");
        }
        for file in &scan.unreadable {
            if self.named.insert(file.path.clone()) {
                tracing::warn!(file = %file.path.display(), why = %file.why, "not a lease, passed over; delete the file to free its subnet");
            }
        }
        // A file that was mended and breaks again is named again.
        self.named.retain(|path| scan.unreadable.iter().any(|file| file.path == *path));
        let now = self.clock.now();
        let spoiled = scan.unreadable_subnets();
        let mut leases = scan.leases;
        // A file that was a lease and makes no sense any more is no node that left: what was known of it stays.
        leases.extend(self.told.iter().flatten().filter(|lease| spoiled.contains(&lease.subnet)).cloned());
        leases.retain(|lease| !lease.is_over(now));
        leases.sort_by_key(|lease| lease.subnet);
        if self.told.as_ref() == Some(&leases) {
            return None;
        }
        self.told = Some(leases.clone());
        Some(LeaseUpdate::Snapshot(leases))
    }

    /// When to look again without being told: the tick, or the end of the next lease.
    fn next_look(&self) -> Instant {
        let now = self.clock.now();
        let ends = self.told.iter().flatten().filter_map(|lease| lease.expires);
        let next_end = ends.filter_map(|end| end.duration_since(now).ok()).min();
        Instant::now() + next_end.map_or(RESYNC, |end| end.min(RESYNC))
    }

    /// Until something happened, or it is time to look.
    async fn something(&mut self) {
        let Some(events) = &mut self.events else { return };
        match tokio::time::timeout_at(self.look_by, events.next()).await {
            Err(_tick) => {}
            Ok(Some(Ok(event))) => {
                let gone = inotify::EventMask::DELETE_SELF
                    | inotify::EventMask::MOVE_SELF
                    | inotify::EventMask::IGNORED;
                let mut lost = event.mask.intersects(gone);
                self.due = true;
                tokio::time::sleep(GATHER).await;
                while let Some(Some(Ok(event))) = futures_util::FutureExt::now_or_never(events.next()) {
                    lost |= event.mask.intersects(gone);
                }
                if lost {
                    self.events = None;
                }
            }
            Ok(Some(Err(_)) | None) => self.events = None,
        }
    }
}

impl<C: Clock> LeaseWatch for FileWatch<C> {
    async fn next(&mut self) -> LeaseUpdate {
        loop {
            if self.events.is_none() {
                // Watched before looking: what happens between the two is an event.
                self.arm();
                self.due = true;
            }
            if !self.due {
                self.something().await;
            }
            self.due = false;
            let update = self.look();
            self.look_by = self.next_look();
            if let Some(update) = update {
                return update;
            }
            if self.events.is_none() {
                tokio::time::sleep(RESYNC).await;
            }
        }
    }

    fn contact(&self) -> Contact {
        Contact { last: self.read_at, trouble: self.failing.clone() }
    }
}
