//! The daemon's connection with its store, beside the loop that keeps the host: joined, watched, asked and tried again.
//!
//! ```text
//!            News: own lease, leases            Errand: publish, look again, announce
//!  store ◄──► StoreLink ─────────────────► Keeper ─────────────────────────────────► StoreLink
//! ```
//!
//! A store that is slow or silent delays nothing on the host: the two halves wait apart. What the store refuses or
//! cannot do is said once and tried again, until it works or a signal ends the process. Only a lease that somebody else
//! holds ends it.

use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::own_lease::{OwnLease, own_lease, renewal_is_due};
use super::retry::{Pace, Saying};
use crate::lease::{Lease, LeaseAttrs, LeaseUpdate};
use crate::network::{ConfigError, NetworkConfig};
use crate::settings::{Settings, StoreChoice};
use crate::store::{Clock, Contact, LeaseStore, LeaseWatch, StoreError, SystemClock};

/// How often to look at the clock.
const LOOK: Duration = Duration::from_secs(1);
/// An attempt that takes longer is none. Every store has a patience of its own that is shorter, and a better reason to tell.
const ATTEMPT: Duration = Duration::from_secs(40);
/// How often to ask a directory for our own lease: its watch keeps what was known of an entry that somebody spoiled.
const OWN_LEASE_CHECK: Duration = Duration::from_secs(30);

/// What the store told.
#[derive(Debug)]
pub(super) enum News {
    /// Our lease as the store has it.
    Own(Lease),
    /// Everybody's leases.
    Leases(LeaseUpdate),
}

/// What the store is to be told or asked.
#[derive(Debug)]
pub(super) enum Errand {
    /// This is what our lease should say.
    Publish(LeaseAttrs),
    /// Somebody asks for a fresh look at everything.
    LookAgain,
    /// The node's network works.
    AnnounceReady,
}

/// Why the connection ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// Our lease is somebody else's.
    Lost(StoreError),
    /// The network is another one than the node was started with: it has to start again.
    OtherNetwork,
}

/// Whether the store knows that the node's network works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Announcement {
    Unwanted,
    Owed,
    Made,
}

/// One half of the running daemon; [`StoreLink::run`] is all of its life.
pub(super) struct StoreLink<'a> {
    settings: &'a Settings,
    network: NetworkConfig,
    /// Our lease as the store has it from us.
    own: Lease,
    /// What it should say.
    attrs: LeaseAttrs,
    /// Addresses that it named before.
    formerly: Vec<IpAddr>,
    news: mpsc::Sender<News>,
    errands: mpsc::UnboundedReceiver<Errand>,
    contact: watch::Sender<Contact>,
    /// The store does not have what it should have of us.
    owes_lease: bool,
    announcement: Announcement,
    look_again: bool,
    /// When to try again what did not work.
    try_at: Instant,
    pace: Pace,
    saying: Saying,
}

impl<'a> StoreLink<'a> {
    /// `own` is what the store has from us, `attrs` what it should have.
    pub(super) fn new(
        settings: &'a Settings,
        network: NetworkConfig,
        own: Lease,
        attrs: LeaseAttrs,
        (news, errands, contact): (
            mpsc::Sender<News>,
            mpsc::UnboundedReceiver<Errand>,
            watch::Sender<Contact>,
        ),
    ) -> Self {
        Self {
            settings,
            network,
            own,
            attrs,
            formerly: Vec::new(),
            news,
            errands,
            contact,
            owes_lease: false,
            announcement: Announcement::Unwanted,
            look_again: false,
            try_at: Instant::now(),
            pace: Pace::default(),
            saying: Saying::default(),
        }
    }

    /// Keeps the connection until the lease is lost. `begun` is a store that was met at the start, with its watch.
    pub(super) async fn run<S: LeaseStore>(
        mut self,
        open: &impl AsyncFn() -> Result<S, StoreError>,
        begun: Option<(S, S::Watch)>,
    ) -> Ended {
        let (store, watch) = match begun {
            Some(begun) => begun,
            None => match self.rejoin(open).await {
                Ok(joined) => joined,
                Err(ended) => return ended,
            },
        };
        match self.attend(&store, watch).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        }
    }

    /// Finds a store again that was not there at the start, and takes up the same lease.
    async fn rejoin<S: LeaseStore>(
        &mut self,
        open: &impl AsyncFn() -> Result<S, StoreError>,
    ) -> Result<(S, S::Watch), Ended> {
        loop {
            let attempt = async {
                let store = open().await?;
                let network = store.network().await?;
                if !network.is_same_as(&self.network) {
                    return Ok(None);
                }
                let lease = store.readdress(&self.network, &self.own, &self.attrs).await?;
                let watch = store.watch().await?;
                Ok(Some((store, watch, lease)))
            };
            match within(attempt).await {
                Ok(Some((store, watch, lease))) => {
                    tracing::info!(subnet = %lease.subnet, "the store is back: the lease is ours, and its list is next");
                    self.succeeded();
                    self.take_lease(lease).await;
                    return Ok((store, watch));
                }
                Ok(None) => return Err(Ended::OtherNetwork),
                Err(Failed::Store(lost @ StoreError::Lost { .. })) => return Err(Ended::Lost(lost)),
                Err(failed) => self.failed(&failed, "going on with the leases that are known"),
            }
            self.wait().await;
        }
    }

    /// Until it is time to try again. Errands are noted, and a wish for a fresh look ends the pause.
    async fn wait(&mut self) {
        loop {
            let errand = tokio::select! {
                () = tokio::time::sleep_until(self.try_at) => return,
                errand = self.errands.recv() => errand,
            };
            match errand {
                Some(errand) => self.note(errand),
                None => std::future::pending().await,
            }
            if std::mem::take(&mut self.look_again) {
                return;
            }
        }
    }

    async fn attend<S: LeaseStore>(
        &mut self,
        store: &S,
        mut watch: S::Watch,
    ) -> Result<std::convert::Infallible, Ended> {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut renewal_after = Instant::now();
        let mut own_check = Instant::now() + OWN_LEASE_CHECK;
        let is_directory = matches!(self.settings.store, StoreChoice::File { .. });
        loop {
            tokio::select! {
                update = watch.next() => self.told(update).await?,
                errand = self.errands.recv() => match errand {
                    Some(errand) => self.note(errand),
                    None => std::future::pending().await,
                },
                _ = look.tick() => {}
            }
            let mut contact = watch.contact();
            contact.trouble = contact.trouble.or_else(|| self.saying.last().map(str::to_owned));
            self.contact.send_if_modified(|old| std::mem::replace(old, contact.clone()) != contact);
            if std::mem::take(&mut self.look_again) {
                // A new watch begins with a list of everything. Where there is none to be had the old one goes on.
                match within(store.watch()).await {
                    Ok(fresh) => watch = fresh,
                    Err(failed) => {
                        tracing::warn!(why = %failed, "no fresh list of the leases; the store is watched on")
                    }
                }
                own_check = Instant::now();
            }
            if is_directory && Instant::now() >= own_check {
                self.check_own(store).await?;
                own_check = Instant::now() + OWN_LEASE_CHECK;
            }
            if renewal_is_due(&self.own, self.settings.renew_margin, SystemClock.now())
                && Instant::now() >= renewal_after
            {
                // flannel tries again every minute and never gives up; neither do we, until somebody else has it.
                renewal_after = Instant::now() + Duration::from_secs(60);
                self.owes_lease = true;
            }
            if Instant::now() >= self.try_at {
                self.settle_debts(store).await?;
            }
        }
    }

    async fn settle_debts(&mut self, store: &impl LeaseStore) -> Result<(), Ended> {
        if self.owes_lease {
            match within(store.readdress(&self.network, &self.own, &self.attrs)).await {
                Ok(lease) => {
                    self.owes_lease = false;
                    self.succeeded();
                    let moved = lease.attrs.owner() != self.own.attrs.owner();
                    tracing::info!(
                        subnet = %lease.subnet, reservation = lease.expires.is_none(),
                        node = moved.then(|| lease.attrs.owner().map(tracing::field::display)).flatten(),
                        "Lease renewed"
                    );
                    self.take_lease(lease).await;
                }
                Err(Failed::Store(lost @ StoreError::Lost { .. })) => return Err(Ended::Lost(lost)),
                Err(failed) => {
                    self.failed(&failed, "cannot renew the lease, trying again");
                    return Ok(());
                }
            }
        }
        if self.announcement == Announcement::Owed {
            match within(store.announce_ready()).await {
                Ok(()) => {
                    self.announcement = Announcement::Made;
                    self.succeeded();
                }
                Err(failed) => {
                    self.failed(&failed, "cannot tell the cluster that this node is ready, trying again")
                }
            }
        }
        Ok(())
    }

    async fn told(&mut self, update: LeaseUpdate) -> Result<(), Ended> {
        let own = own_lease(&self.own, &self.formerly, &update);
        self.send(News::Leases(update)).await;
        self.heed(own).await
    }

    async fn heed(&mut self, own: OwnLease) -> Result<(), Ended> {
        match own {
            OwnLease::Unchanged => {}
            OwnLease::Moved(expires) => {
                self.own.expires = expires;
                self.send(News::Own(self.own.clone())).await;
            }
            OwnLease::Republish => {
                tracing::warn!(subnet = %self.own.subnet, "our lease was deleted or overwritten; publishing it again");
                self.owes_lease = true;
                self.try_at = Instant::now();
            }
            // With Kubernetes the Node object is the owner: an address in it that is not ours is put right.
            OwnLease::Lost(theirs) if matches!(self.settings.store, StoreChoice::Kube(_)) => {
                tracing::warn!(subnet = %self.own.subnet, entry = ?theirs.attrs.owner(), "our lease names another address");
                self.owes_lease = true;
                self.try_at = Instant::now();
            }
            OwnLease::Lost(theirs) => {
                if let Some(owner) = theirs.attrs.owner() {
                    let lost = StoreError::Lost { subnet: self.own.subnet, owner, theirs: theirs.subnet };
                    return Err(Ended::Lost(lost));
                }
            }
        }
        Ok(())
    }

    /// Asks the store itself for our lease. A store that does not answer is the watch's to complain about.
    async fn check_own(&mut self, store: &impl LeaseStore) -> Result<(), Ended> {
        let Some(owner) = self.own.attrs.owner() else { return Ok(()) };
        let Ok(held) = within(store.held_by(owner)).await else { return Ok(()) };
        let snapshot = LeaseUpdate::Snapshot(held.into_iter().collect());
        let own = own_lease(&self.own, &self.formerly, &snapshot);
        self.heed(own).await
    }

    fn note(&mut self, errand: Errand) {
        match errand {
            Errand::Publish(attrs) => {
                self.owes_lease |= attrs != self.own.attrs;
                self.attrs = attrs;
                self.try_at = Instant::now();
            }
            Errand::LookAgain => {
                self.look_again = true;
                self.pace.begin_again();
                self.try_at = Instant::now();
            }
            Errand::AnnounceReady => {
                if self.announcement == Announcement::Unwanted {
                    self.announcement = Announcement::Owed;
                    self.try_at = Instant::now();
                }
            }
        }
    }

    async fn take_lease(&mut self, lease: Lease) {
        let before = self.own.attrs.owner();
        if before != lease.attrs.owner() {
            self.formerly.retain(|address| Some(*address) != lease.attrs.owner());
            self.formerly.extend(before);
        }
        self.own = lease.clone();
        self.send(News::Own(lease)).await;
    }

    async fn send(&self, news: News) {
        if self.news.send(news).await.is_err() {
            // The other half has ended, and this one is about to.
            std::future::pending().await
        }
    }

    fn succeeded(&mut self) {
        self.pace.begin_again();
        self.try_at = Instant::now();
        if self.saying.is_over() {
            tracing::info!("the store does what it is asked again");
        }
    }

    fn failed(&mut self, failed: &Failed, meanwhile: &str) {
        let why = failed.to_string();
        if self.saying.is_news(&why) {
            tracing::warn!(%why, "{meanwhile}");
        }
        self.contact.send_modify(|contact| contact.trouble = Some(why));
        self.try_at = Instant::now() + self.pace.pause(fastrand::f64);
    }
}

/// An attempt that did not work.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    /// The store says why.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It says nothing.
    #[error("the store did not answer within {} s", ATTEMPT.as_secs())]
    Silent,
}

impl Failed {
    /// Trying again can help without a person who mends what this process was given.
    pub(super) fn may_pass(error: &StoreError) -> bool {
        !matches!(
            error,
            StoreError::Lost { .. } | StoreError::NoOwner | StoreError::Config(ConfigError::Text { .. })
        )
    }
}

/// The attempt, given up when it takes too long.
pub(super) async fn within<T>(attempt: impl Future<Output = Result<T, StoreError>>) -> Result<T, Failed> {
    match timeout(ATTEMPT, attempt).await {
        Ok(outcome) => Ok(outcome?),
        Err(_elapsed) => Err(Failed::Silent),
    }
}
