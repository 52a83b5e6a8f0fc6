//! The handle of a watch that a task of its own keeps: whoever waits for the next update gives up waiting and begins again
//! many times, and a request that is under way must not be lost by that.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::{Contact, LeaseWatch};
use crate::lease::LeaseUpdate;

/// A watch on the leases. Dropping it ends its task.
#[derive(Debug)]
pub struct Followed {
    updates: mpsc::Receiver<LeaseUpdate>,
    contact: SharedContact,
    task: AbortHandle,
}

/// How the store was last met, as the task writes it and the daemon reads it.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedContact(Arc<Mutex<Contact>>);

impl SharedContact {
    pub(super) fn lock(&self) -> MutexGuard<'_, Contact> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Followed {
    /// Starts the task that `follow` makes. So many updates wait for the daemon before the task does.
    pub(super) fn begin<F: Future<Output = ()> + Send + 'static>(
        room: usize,
        follow: impl FnOnce(mpsc::Sender<LeaseUpdate>, SharedContact) -> F,
    ) -> Self {
        let (sender, updates) = mpsc::channel(room);
        let contact = SharedContact::default();
        let task = tokio::spawn(follow(sender, contact.clone())).abort_handle();
        Self { updates, contact, task }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl LeaseWatch for Followed {
    async fn next(&mut self) -> LeaseUpdate {
        match self.updates.recv().await {
            Some(update) => update,
            // The task ends with this watch and with the runtime only; who asks then gets no answer.
            None => std::future::pending().await,
        }
    }

    fn contact(&self) -> Contact {
        self.contact.lock().clone()
    }
}
