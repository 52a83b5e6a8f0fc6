//! Where the loop shows the node, and those who read it there: the health server and the local socket.
//!
//! The loop writes and never waits for a reader. The readers run between its turns on the same thread, so an answer also
//! proves that the loop turns.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{health, socket};
use crate::settings::{Settings, StoreChoice};
use crate::status::{Identity, NodeStatus, Reading, STALE_AFTER, StoreStatus, seconds};
use crate::store::Contact;

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
    pub(super) fn open(settings: &Settings) -> Self {
        let identity = Identity::of_this_process();
        let store = match &settings.store {
            StoreChoice::File { .. } => "file",
            StoreChoice::Kube(_) => "Kubernetes",
            StoreChoice::Etcd(_) => "etcd",
        };
        let status = StoreStatus { name: store.to_owned(), ..StoreStatus::default() };
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
        Self { identity, store: store.to_owned(), shown, _readers: readers }
    }

    /// The store is open, and this is its name.
    pub(super) fn name_store(&mut self, name: String) {
        self.store = name;
    }

    /// Shows what a start waits for.
    pub(super) fn wait(&self, why: &str) {
        let subnet_file = self.shown.borrow().node.subnet_file.path.clone();
        let trouble = Some(why.to_owned());
        let store = StoreStatus { name: self.store.clone(), trouble, ..StoreStatus::default() };
        let node = NodeStatus::starting(self.identity, subnet_file, store, why);
        self.shown.send_replace(Arc::new(Reading { node, peers: Arc::default() }));
    }

    /// Shows the node. `earlier` is when the store was last heard, if that was in an earlier run.
    pub(super) fn show(
        &self,
        contact: Contact,
        earlier: Option<SystemTime>,
        reading: impl FnOnce(Identity, StoreStatus) -> Reading,
    ) {
        let store = met(&self.store, contact, earlier);
        self.shown.send_replace(Arc::new(reading(self.identity, store)));
    }
}

/// The store, from how it was last met.
fn met(name: &str, contact: Contact, earlier: Option<SystemTime>) -> StoreStatus {
    let now = SystemTime::now();
    let silence = contact.last.map(|last| Instant::now().saturating_duration_since(last));
    let last = silence.and_then(|silence| now.checked_sub(silence)).or(earlier).map(seconds);
    let is_stale = earlier.is_some()
        || contact.trouble.is_some()
        || silence.is_some_and(|silence| silence > STALE_AFTER);
    StoreStatus {
        name: name.to_owned(),
        last_heard: last,
        stale_since: is_stale.then(|| last.unwrap_or_else(|| seconds(now))),
        trouble: contact.trouble,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_store_is_stale_in_trouble_in_silence_and_when_only_an_earlier_run_heard_it() {
        let heard = |last: Option<Instant>, trouble: Option<&str>| Contact {
            last,
            trouble: trouble.map(str::to_owned),
        };
        let begin = Instant::now();
        let fresh = met("file", heard(Some(begin), None), None);
        assert!(fresh.stale_since.is_none() && fresh.last_heard.is_some());
        assert!(met("file", heard(None, None), None).stale_since.is_none(), "it has had no time to answer");
        assert!(met("file", heard(Some(begin), Some("refused")), None).stale_since.is_some());
        let earlier = SystemTime::now() - Duration::from_secs(3600);
        assert_eq!(met("file", heard(None, None), Some(earlier)).stale_since, Some(seconds(earlier)));
        tokio::time::advance(STALE_AFTER + Duration::from_secs(1)).await;
        let silent = met("file", heard(Some(begin), None), None);
        assert_eq!(silent.stale_since, silent.last_heard);
    }
}
