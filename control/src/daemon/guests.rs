//! Connections that are served at once, so many and no more: a newcomer takes the place of the one that stayed longest.
//!
//! Turning newcomers away would let a hundred idle connections keep the supervisor's probe out.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::task::AbortHandle;

/// The connections, the oldest first.
#[derive(Debug)]
pub(super) struct Guests {
    most: usize,
    stay: Duration,
    here: VecDeque<AbortHandle>,
}

impl Guests {
    /// At most so many, none for longer than `stay`.
    pub(super) fn new(most: usize, stay: Duration) -> Self {
        Self { most, stay, here: VecDeque::new() }
    }

    /// Serves one.
    pub(super) fn admit(&mut self, service: impl Future<Output = ()> + Send + 'static) {
        self.here.retain(|guest| !guest.is_finished());
        while self.here.len() >= self.most {
            let Some(oldest) = self.here.pop_front() else { break };
            oldest.abort();
        }
        let stay = self.stay;
        let guest = tokio::spawn(async move {
            // Who stays too long is cut off in the middle, and learns it by the end of the connection.
            tokio::time::timeout(stay, service).await.ok();
        });
        self.here.push_back(guest.abort_handle());
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_newcomer_takes_the_place_of_the_one_that_stayed_longest() {
        let mut guests = Guests::new(2, Duration::from_secs(3600));
        let mut ends = Vec::new();
        for _ in 0..3 {
            let (here, gone) = oneshot::channel::<()>();
            guests.admit(async move {
                let _here = here;
                std::future::pending().await
            });
            ends.push(gone);
        }
        let mut ends = ends.into_iter();
        assert!(ends.next().unwrap().await.is_err(), "the first is gone");
        tokio::task::yield_now().await;
        for mut still in ends {
            assert!(still.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_stays_for_ever() {
        let mut guests = Guests::new(2, Duration::from_secs(5));
        let (here, gone) = oneshot::channel::<()>();
        guests.admit(async move {
            let _here = here;
            std::future::pending().await
        });
        assert!(gone.await.is_err());
    }
}
