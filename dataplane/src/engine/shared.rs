//! What a worker and the engine's handle have in common: the peer table one way, the counters the other way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use dataplane_core::{Counters, PeerTable};

use super::board::Board;

/// What a worker shares with the engine's handle.
pub struct Shared {
    /// The peers as of the last publication.
    pub(super) table: Arc<ArcSwap<PeerTable>>,
    /// The counters as of the end of the last turn.
    pub(super) board: Board,
    /// How many workers' sockets have a guard, which has to follow the peers: wake them when these change.
    pub(super) guarded: Arc<AtomicUsize>,
    /// All workers shall end.
    pub(super) stop: Arc<AtomicBool>,
    /// The next turn that reads a packet shall fail: for tests of what happens then.
    pub(super) fault: Arc<AtomicBool>,
}

impl Shared {
    /// A worker's share, with its first peer table.
    #[must_use]
    pub fn new(table: PeerTable) -> Arc<Self> {
        Arc::new(Self {
            table: Arc::new(ArcSwap::from_pointee(table)),
            board: Board::default(),
            guarded: Arc::default(),
            stop: Arc::default(),
            fault: Arc::default(),
        })
    }

    /// The share of another worker of the same engine: the same peers, counters of its own.
    #[must_use]
    pub fn sibling(&self) -> Arc<Self> {
        Arc::new(Self {
            table: self.table.clone(),
            board: Board::default(),
            guarded: self.guarded.clone(),
            stop: self.stop.clone(),
            fault: self.fault.clone(),
        })
    }

    /// Replaces the peer table from the next turn on.
    pub fn publish(&self, table: PeerTable) {
        self.table.store(Arc::new(table));
    }

    /// The counters as of the end of the last turn.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.board.read()
    }

    /// Makes the worker panic while it holds the next packet that it reads from the TUN.
    #[doc(hidden)]
    pub fn fail_once(&self) {
        self.fault.store(true, Ordering::Relaxed);
    }
}
