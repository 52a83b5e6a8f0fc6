//! List and watch as a state machine without I/O: it says what to ask next, and takes in what came back.
//!
//! ```text
//!  list page ─► list page ─► … ─► watch from the list's version ─► watch from the last event's version ─► …
//!      ▲                              │ 410, as status or as event; a version the server does not know;
//!      └── after a pause ─────────────┘ a server that answers and refuses three times
//! ```
//!
//! A server that does not answer costs no list: the watch goes on from where it was. But a server whose store was
//! restored from a backup counts from an older version, and answers a watch from a later one with silence. So after an
//! outage, and after a watch that told nothing, a list of one node asks for the version first.
//!
//! Pauses grow from one second to half a
//! minute and are jittered. Before all nodes list at once (after a restart of the API server, say) each waits a part of
//! a time that grows with the cluster.

use std::time::Duration;

use super::node::NodeObject;
use super::table::{Seen, Table};
use crate::lease::LeaseUpdate;

/// Nodes a page. A Node is 10 to 50 kB, so a page is some megabytes.
pub(super) const PAGE: u32 = 500;
/// Where pages are too large for us, they get smaller down to this.
const SMALLEST_PAGE: u32 = 10;
/// The server ends a watch after this, and we a little later: a connection that died without a word is noticed in 65 s.
pub(super) const WATCH_SECONDS: u32 = 60;
/// The first pause after a failure, at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause, at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A watch that lasted this long was one, whether or not it told anything.
const STOOD: Duration = Duration::from_secs(5);
/// Over how long the lists of a cluster are spread, for each of its nodes: 30 seconds for 5 000.
const SPREAD_PER_NODE: Duration = Duration::from_millis(6);
/// A watch that an answering server refuses this often in a row is begun again with a list.
const REFUSALS: u32 = 3;

/// What to ask the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ask {
    /// Some nodes: from the beginning, or after a page.
    List {
        /// What the page before said.
        after: Option<String>,
        /// At most so many.
        limit: u32,
    },
    /// What happened since a version.
    Watch {
        /// The version.
        from: String,
        /// The server ends it after this.
        seconds: u32,
    },
}

/// A page of nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) nodes: Vec<NodeObject>,
    /// The version of the whole list.
    pub(super) version: String,
    /// How to ask for the next page, if there is one.
    pub(super) next: Option<String>,
    /// About how many nodes are on further pages.
    pub(super) remaining: Option<u64>,
}

/// A line of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// A node that is new, or differs.
    Put(NodeObject),
    /// A node that was deleted.
    Gone(NodeObject),
    /// Nothing happened up to this version.
    Bookmark(String),
    /// The server ends the watch with a status.
    Error(Failure),
}

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// No answer, or half of one.
    #[error("{0}")]
    Silent(String),
    /// A status that is none of success.
    #[error("HTTP {code}: {message}")]
    Status {
        /// The HTTP status, or the `code` of a Status object.
        code: u16,
        /// What the server says.
        message: String,
        /// `Retry-After`, or the same in the Status object.
        retry_after: Option<Duration>,
        /// The version asked for is one that the server will only have later: its store was replaced.
        version_unknown: bool,
    },
    /// An answer that is longer than any sensible one.
    #[error("the answer is longer than {limit} bytes")]
    TooLong {
        /// Where reading stopped.
        limit: usize,
    },
    /// An answer of another form.
    #[error("the answer is not what the Kubernetes API gives: {0}")]
    Nonsense(String),
}

impl Failure {
    fn lost_track(&self) -> bool {
        matches!(self, Self::Status { code: 410, .. } | Self::Status { version_unknown: true, .. })
    }
}

#[derive(Debug)]
enum Phase {
    Listing {
        seen: Vec<Seen>,
        after: Option<String>,
    },
    /// The next answer is the page of one node that tells the version.
    Probing {
        from: String,
    },
    Watching {
        from: String,
        told: bool,
    },
}

/// The state machine.
#[derive(Debug)]
pub(super) struct Follow {
    phase: Phase,
    table: Table,
    /// What goes before the next question.
    pause: Duration,
    /// Since the last progress of a watch.
    failures: u32,
    /// Refusals of a watch in a row.
    refusals: u32,
    page: u32,
    random: fastrand::Rng,
}

impl Follow {
    /// Begins with a list, at once: the size of the cluster is told by its first page.
    pub(super) fn new(table: Table, random: fastrand::Rng) -> Self {
        Self {
            phase: Phase::Listing { seen: Vec::new(), after: None },
            table,
            pause: Duration::ZERO,
            failures: 0,
            refusals: 0,
            page: PAGE,
            random,
        }
    }

    /// The nodes.
    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    /// What to ask, after which pause.
    pub(super) fn ask(&mut self) -> (Duration, Ask) {
        let pause = std::mem::take(&mut self.pause);
        let ask = match &self.phase {
            Phase::Listing { after, .. } => Ask::List { after: after.clone(), limit: self.page },
            Phase::Probing { .. } => Ask::List { after: None, limit: 1 },
            // Unequal lengths keep watches that began together from ending together.
            Phase::Watching { from, .. } => Ask::Watch {
                from: from.clone(),
                seconds: self.random.u32(WATCH_SECONDS * 3 / 4..=WATCH_SECONDS),
            },
        };
        (pause, ask)
    }

    /// A page came. Answers all leases with the last one.
    pub(super) fn listed(&mut self, page: Page) -> Option<LeaseUpdate> {
        if let Phase::Probing { from } = &self.phase {
            let from = from.clone();
            self.phase = if is_older(&page.version, &from) {
                self.spread(self.table.len() as u64);
                Phase::Listing { seen: Vec::new(), after: None }
            } else {
                Phase::Watching { from, told: false }
            };
            return None;
        }
        let Phase::Listing { seen, after } = &mut self.phase else { return None };
        let first = after.is_none();
        if first {
            seen.clear();
        }
        seen.extend(
            page.nodes
                .iter()
                .filter(|node| !node.metadata.name.is_empty())
                .map(|node| self.table.look_at(node)),
        );
        if let Some(next) = page.next.filter(|next| !next.is_empty()) {
            *after = Some(next);
            if first {
                let nodes = page.nodes.len() as u64 + page.remaining.unwrap_or(0);
                self.spread(nodes);
            }
            return None;
        }
        let seen = std::mem::take(seen);
        self.phase = Phase::Watching { from: page.version, told: false };
        Some(self.table.replace(seen))
    }

    /// A line of the watch came.
    pub(super) fn event(&mut self, event: Event) -> Vec<LeaseUpdate> {
        let Phase::Watching { from, told } = &mut self.phase else { return Vec::new() };
        *told = true;
        let (version, updates) = match event {
            Event::Put(node) => {
                let updates = self.table.put(&node);
                (node.metadata.resource_version, updates)
            }
            Event::Gone(node) => {
                let updates = self.table.remove(&node);
                (node.metadata.resource_version, updates)
            }
            Event::Bookmark(version) => (version, Vec::new()),
            Event::Error(failure) => {
                self.failed(&failure);
                return Vec::new();
            }
        };
        if is_later(from, &version) {
            *from = version;
        }
        self.progressed();
        updates
    }

    /// The watch ended without an error, after so long.
    pub(super) fn ended(&mut self, lasted: Duration) {
        if let Phase::Watching { from, told } = &mut self.phase
            && !std::mem::replace(told, false)
        {
            self.phase = Phase::Probing { from: std::mem::take(from) };
        }
        if lasted >= STOOD {
            self.progressed();
        } else {
            // A server, or something before it, that ends every watch at once must not be asked without a pause.
            self.failures += 1;
            self.pause = self.backoff();
        }
    }

    /// There is no answer to the last question, or no more of it.
    pub(super) fn failed(&mut self, failure: &Failure) {
        self.failures += 1;
        let watching = matches!(self.phase, Phase::Watching { .. });
        if let (Phase::Watching { from, .. }, Failure::Silent(_)) = (&mut self.phase, failure) {
            self.phase = Phase::Probing { from: std::mem::take(from) };
        }
        if let Failure::Status { code, .. } = failure
            && watching
            && !matches!(*code, 401 | 403 | 429)
        {
            self.refusals += 1;
        }
        if matches!((&self.phase, failure), (Phase::Listing { .. }, Failure::TooLong { .. })) {
            self.page = (self.page / 4).max(SMALLEST_PAGE);
        }
        let listing = matches!(self.phase, Phase::Listing { .. });
        let again =
            failure.lost_track() || self.refusals >= REFUSALS || matches!(failure, Failure::TooLong { .. });
        // Losing track once, after a watch that worked, is usual: then only the spread counts.
        self.pause = if failure.lost_track() && self.failures == 1 { Duration::ZERO } else { self.backoff() };
        if let Failure::Status { retry_after: Some(asked), .. } = failure {
            self.pause = self.pause.max((*asked).min(LONGEST_PAUSE));
        }
        if again {
            self.refusals = 0;
            if !listing {
                self.spread(self.table.len() as u64);
            }
            self.phase = Phase::Listing { seen: Vec::new(), after: None };
        }
    }

    fn progressed(&mut self) {
        self.failures = 0;
        self.refusals = 0;
    }

    /// Half to all of 1, 2, 4 ... 30 seconds.
    fn backoff(&mut self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(5);
        let longest = (FIRST_PAUSE * 2u32.pow(doublings)).min(LONGEST_PAUSE);
        longest.mul_f64(0.5 + self.random.f64() / 2.0)
    }

    fn spread(&mut self, nodes: u64) {
        let over =
            SPREAD_PER_NODE.saturating_mul(u32::try_from(nodes).unwrap_or(u32::MAX)).min(LONGEST_PAUSE);
        self.pause = self.pause.max(over.mul_f64(self.random.f64()));
    }
}

/// Where versions are no numbers nobody can say.
fn is_older(told: &str, known: &str) -> bool {
    matches!((told.parse::<u64>(), known.parse::<u64>()), (Ok(told), Ok(known)) if told < known)
}

/// Where versions are no numbers the last one told counts.
fn is_later(known: &str, told: &str) -> bool {
    match (known.parse::<u64>(), told.parse::<u64>()) {
        (Ok(known), Ok(told)) => told > known,
        _ => !told.is_empty(),
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
