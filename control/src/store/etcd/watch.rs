//! The task that follows the leases: list once, then the history from the next revision on, for ever.
//!
//! ```text
//!          ┌─────────────────────────────────────────────────────────────┐
//!          ▼                         compacted, or history is another    │
//!        list ──► snapshot ──► watch from revision + 1 ──► events ──► broken, silent
//!                                     ▲                                  │ pause, next server
//!                                     └── the youngest entry is as known ┘
//! ```
//!
//! - A server that says nothing for [`QUIET`] is asked for a sign of life; after [`PATIENCE`] without one the next server
//!   is taken. A frozen server, or one behind a wall, is left within five seconds.
//! - A server whose data were lost and that counts its revisions from the start would be followed in vain until it comes
//!   to ours. So before the history is followed further after a break, the youngest entry that is known is looked at as
//!   it was at the revision of its last change: it is there, with its etcd lease, only in the same history. In another
//!   one nobody left who is not there: nodes publish themselves again one after the other.
//! - An error is never an empty list. Until a list comes, nothing is told.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{KeyValue, WatchOptions, WatchResponse};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::connection::{AtRevision, Connection, Line, PATIENCE};
use super::fault::Fault;
use super::keys::Keys;
use super::known::{Known, Witness};
use super::listing::{LONGEST, Listing};
use super::pair_of;
use crate::lease::LeaseUpdate;
use crate::store::followed::{Followed, SharedContact};
use crate::store::{Clock, StoreError};

/// How long a server may be silent before it is asked for a sign of life.
const QUIET: Duration = Duration::from_millis(2500);
/// The first and the longest pause after a failure.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];
/// Updates that wait for the daemon.
const ROOM: usize = 64;

/// Starts to watch the leases in etcd.
pub(super) fn watch<C: Clock + Send + Sync + 'static>(
    connection: Arc<Connection>,
    keys: Keys,
    clock: C,
) -> Followed {
    let known = Known::new(keys.clone());
    Followed::begin(ROOM, |updates, contact| {
        Follower { connection, keys, clock, known, next: None, reached: 0, updates, contact }.follow()
    })
}

struct Follower<C> {
    connection: Arc<Connection>,
    keys: Keys,
    clock: C,
    known: Known,
    /// The revision from which to follow the history; `None`: list first.
    next: Option<i64>,
    /// The revision up to which a history was followed.
    reached: i64,
    updates: mpsc::Sender<LeaseUpdate>,
    contact: SharedContact,
}

/// What etcd has of the history that was followed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum History {
    /// All that comes after.
    Same,
    /// Nothing: its data were lost, or it was restored from an older copy.
    Other,
    /// It cannot be told any more.
    Forgotten,
}

/// Why a stretch of following ended.
enum End {
    /// Nobody listens any more.
    Closed,
    /// The history is not there any more: list again.
    Behind,
    /// The server, for this reason.
    Broken(String),
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        Self::Broken(error.to_string())
    }
}

impl<C: Clock + Send + Sync + 'static> Follower<C> {
    async fn follow(mut self) {
        let [shortest, longest] = PAUSES;
        let mut pause = shortest;
        loop {
            let begin = self.heard();
            match self.stretch().await {
                End::Closed => return,
                End::Behind => {
                    tracing::info!(
                        "the history of etcd is not the one that was followed; listing the leases again"
                    );
                    self.next = None;
                    // A server that says so each time must not be asked in a circle.
                    sleep(shortest).await;
                }
                End::Broken(why) => {
                    self.trouble(&why);
                    if self.heard() != begin {
                        pause = shortest;
                    }
                    // Unequal pauses: the other nodes lost the same server at the same moment.
                    sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
                    pause = (pause * 2).min(longest);
                }
            }
        }
    }

    /// Follows until something ends it.
    async fn stretch(&mut self) -> End {
        match self.try_stretch().await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn try_stretch(&mut self) -> Result<std::convert::Infallible, End> {
        let history = self.history().await?;
        let from = match self.next {
            Some(next) if history == History::Same => next,
            _ => self.list(history).await?,
        };
        let line = self.connection.line().await.map_err(|(index, fault)| self.leave(index, &fault))?;
        let outcome = self.events(&line, from).await;
        if let Err(End::Broken(why)) = outcome {
            return Err(self.leave(line.index(), &Fault::Failed(why)));
        }
        outcome
    }

    async fn list(&mut self, history: History) -> Result<i64, End> {
        let now = self.clock.now();
        let listing = Listing::of(&self.connection, &self.keys, now).await?;
        let all = self.known.list(&listing.pairs, now);
        self.met();
        // Revisions only grow.
        let update = match history == History::Other || listing.revision < self.reached {
            true => {
                tracing::warn!(
                    revision = listing.revision,
                    followed_to = self.reached,
                    leases = all.len(),
                    "etcd went back to an older state: who is missing there now is kept for a while"
                );
                LeaseUpdate::Rewound(all)
            }
            false => LeaseUpdate::Snapshot(all),
        };
        self.tell(update).await?;
        self.reached = listing.revision;
        self.next = Some(listing.revision + 1);
        Ok(listing.revision + 1)
    }

    /// Whether etcd still has the entry that was last seen to change.
    async fn history(&self) -> Result<History, End> {
        let Some(Witness { key, modified, etcd_lease }) = self.known.witness().cloned() else {
            return Ok(History::Forgotten);
        };
        let is_it = |kv: &KeyValue| kv.mod_revision() == modified && kv.lease() == etcd_lease;
        Ok(match self.connection.get_at(key.clone(), modified).await? {
            AtRevision::Found(found) if found.as_ref().is_some_and(is_it) => History::Same,
            AtRevision::Found(_) | AtRevision::Future => History::Other,
            // As it is now tells at least whether it is the same.
            AtRevision::Compacted => match self.connection.get(key).await?.as_ref().is_some_and(is_it) {
                true => History::Same,
                false => History::Forgotten,
            },
        })
    }

    async fn events(&mut self, line: &Line, from: i64) -> Result<std::convert::Infallible, End> {
        let options = WatchOptions::new().with_prefix().with_start_revision(from).with_progress_notify();
        let mut client = line.client.watch_client().max_decoding_message_size(LONGEST);
        let broken = |error: &etcd_client::Error| self.connection.fault(error).to_string();
        let mut stream = timeout(PATIENCE, client.watch(self.keys.leases(), Some(options)))
            .await
            .map_err(|_late| End::Broken(Fault::late(PATIENCE).to_string()))?
            .map_err(|error| End::Broken(broken(&error)))?;
        // The server tells at once that the watch is made.
        let mut asked = true;
        let mut deadline = Instant::now() + PATIENCE;
        loop {
            tokio::select! {
                response = stream.message() => match response {
                    Ok(Some(response)) => {
                        self.take(&response).await?;
                        asked = false;
                        deadline = Instant::now() + QUIET;
                    }
                    Ok(None) => return Err(End::Broken("it ended the watch".to_owned())),
                    Err(error) => return Err(End::Broken(self.connection.fault(&error).to_string())),
                },
                () = sleep_until(deadline) => {
                    if asked {
                        return Err(End::Broken(format!("silent for {:?}", QUIET + PATIENCE)));
                    }
                    stream.request_progress().await.map_err(|error| End::Broken(error.to_string()))?;
                    asked = true;
                    deadline = Instant::now() + PATIENCE;
                }
            }
        }
    }

    async fn take(&mut self, response: &WatchResponse) -> Result<(), End> {
        if response.compact_revision() > 0 {
            return Err(End::Behind);
        }
        if response.canceled() {
            return Err(End::Broken(format!("it ended the watch: {}", response.cancel_reason())));
        }
        self.met();
        let now = self.clock.now();
        for kv in response.events().iter().filter_map(|event| event.kv()) {
            // A deleted key has no version; what kind of event it is the client tells by a panic for kinds to come.
            let update = match kv.version() {
                0 => self.known.deleted(kv.key()),
                _ => self.known.put(&pair_of(kv), now),
            };
            if let Some(update) = update {
                self.tell(update).await?;
            }
            // Kept in step with what was told: whatever ends this, nothing is told twice or left out.
            self.reached = kv.mod_revision();
            self.next = Some(kv.mod_revision() + 1);
        }
        Ok(())
    }

    async fn tell(&self, update: LeaseUpdate) -> Result<(), End> {
        self.updates.send(update).await.map_err(|_closed| End::Closed)
    }

    fn leave(&self, index: usize, fault: &Fault) -> End {
        let endpoint = self.connection.endpoint(index).to_string();
        self.connection.leave(index);
        End::Broken(format!("{endpoint}: {fault}"))
    }

    fn heard(&self) -> Option<Instant> {
        self.contact.lock().last
    }

    fn met(&self) {
        let mut contact = self.contact.lock();
        contact.last = Some(Instant::now());
        if contact.trouble.take().is_some() {
            tracing::info!("etcd answers again");
        }
    }

    fn trouble(&self, why: &str) {
        if self.contact.lock().trouble.replace(why.to_owned()).is_none() {
            tracing::warn!(%why, "lost etcd; keeping the leases that are known");
        }
    }
}
