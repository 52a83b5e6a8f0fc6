//! Where the loop shows the node, and those who read it there: the health server and the local socket.
//!
//! The loop writes and never waits for a reader. The readers run between its turns on the same thread, so an answer also
//! proves that the loop turns.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{health, socket};
use crate::settings::Settings;
use crate::status::{Identity, NodeStatus, Reading, StoreStatus};

/// The node as it was last shown.
pub(super) type Shown = watch::Receiver<Arc<Reading>>;

/// The board. Its readers end with it.
#[derive(Debug)]
pub(super) struct Board {
    identity: Identity,
    store: String,
    shown: watch::Sender<Arc<Reading>>,
    _readers: JoinSet<()>,
}

impl Board {
    /// Begins to answer. What cannot be opened is said and tried again; it stops nothing.
    pub(super) fn open(settings: &Settings, store: String) -> Self {
        let identity = Identity::of_this_process();
        let status = StoreStatus { name: store.clone(), ..StoreStatus::default() };
        let node =
            NodeStatus::starting(identity, settings.subnet_file.clone(), status, "waiting for the store");
        let (shown, look) = watch::channel(Arc::new(Reading { node, peers: Arc::default() }));
        let mut readers = JoinSet::new();
        if let Some(address) = settings.health {
            readers.spawn(health::serve(address, look.clone()));
        }
        if let Some(path) = settings.status_socket.clone() {
            readers.spawn(socket::serve(path, look));
        }
        Self { identity, store, shown, _readers: readers }
    }

    /// Shows the node.
    pub(super) fn show(&self, reading: impl FnOnce(Identity, &str) -> Reading) {
        self.shown.send_replace(Arc::new(reading(self.identity, &self.store)));
    }
}
