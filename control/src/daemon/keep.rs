//! The loop of a running node: the store's news, the kernel's, the clock and the operator's wishes, each ending in one
//! look at what should be and what is.

use std::time::{Duration, SystemTime};

use hostnet::kernel::Watch;
use nix::unistd::{Pid, getppid};
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Node;
use super::board::Board;
use super::cache::{Cache, Known};
use super::follow_underlay::{Found, difference, look};
use super::hold_back::{HoldBack, Taken};
use super::retry::Saying;
use super::start::View;
use super::store_link::{Errand, News};
use super::supervisor;
use crate::lease::LeaseUpdate;
use crate::settings::Settings;
use crate::store::{Clock, Contact, SystemClock};

/// How often to look at the engines' events, the clock and the parent.
const LOOK: Duration = Duration::from_secs(1);
/// How often to read back the whole host, whether or not anything was told: with [`LOOK`] on top, what was changed by
/// hand is put right within 5 seconds.
const RESYNC: Duration = Duration::from_secs(4);

/// The half of the daemon that keeps the host; the store's half is [`super::store_link::StoreLink`].
pub(super) struct Keeper<'a> {
    pub(super) settings: &'a Settings,
    /// Where others read how it goes.
    pub(super) board: &'a Board,
    pub(super) node: &'a mut Node,
    pub(super) hold: HoldBack,
    pub(super) view: View,
    /// When the store was last heard, while that was in an earlier run.
    pub(super) stale: Option<SystemTime>,
    pub(super) cache: Option<Cache>,
    pub(super) errands: mpsc::UnboundedSender<Errand>,
    pub(super) contact: watch::Receiver<Contact>,
    /// Every device is listened to while the underlay is gone: it may come back as any.
    pub(super) anywhere: Option<Watch>,
    /// What is wrong with the underlay, which has been said.
    pub(super) underlay_trouble: Saying,
    /// Something that the cache says changed.
    pub(super) to_remember: bool,
    /// When the cache was last looked after.
    pub(super) remembered: Instant,
    pub(super) ready: bool,
}

impl Keeper<'_> {
    /// Ends only with an error, or when the parent ended and that was asked for.
    pub(super) async fn run(
        mut self,
        parent: Pid,
        mut news: mpsc::Receiver<News>,
        hangup: &mut Signal,
    ) -> anyhow::Result<()> {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut resync = Instant::now() + RESYNC;
        self.became_ready();
        self.show();
        loop {
            tokio::select! {
                Some(first) = news.recv() => {
                    self.take(first);
                    while let Ok(more) = news.try_recv() {
                        self.take(more);
                    }
                    self.node.reconcile().await?;
                }
                () = self.node.host_changed() => {
                    self.node.heed_engines().await?;
                    self.follow_underlay().await?;
                    self.node.reconcile().await?;
                }
                () = something(&mut self.anywhere) => {
                    self.follow_underlay().await?;
                    self.node.reconcile().await?;
                }
                _ = hangup.recv() => {
                    tracing::info!("SIGHUP: looking at the store and the host again");
                    self.ask(Errand::LookAgain);
                    self.follow_underlay().await?;
                    self.node.reconcile().await?;
                }
                _ = look.tick() => {
                    // A thread of the parent may start us and end, so the kernel's own death signal would come too early.
                    if self.settings.exit_with_parent && getppid() != parent {
                        tracing::info!("the parent process ended");
                        return Ok(());
                    }
                    self.node.heed_engines().await?;
                    let released = self.hold.release(std::time::Instant::now());
                    if !released.is_empty() {
                        tracing::warn!(leases = released.len(), "the nodes that vanished are not back: letting them go");
                        self.tell(released);
                        self.node.reconcile().await?;
                    }
                    if Instant::now() >= resync {
                        self.follow_underlay().await?;
                        self.node.reconcile().await?;
                        // A look at the whole host needs memory for every route of it, for a moment.
                        dataplane::give_back_memory();
                        resync = Instant::now() + RESYNC;
                    }
                    self.remember();
                }
            }
            self.became_ready();
            self.show();
        }
    }

    fn take(&mut self, news: News) {
        self.to_remember = true;
        match news {
            News::Own(own) => self.node.take_lease(own),
            News::Leases(update) => {
                if update.all().is_some() && self.stale.take().is_some() {
                    tracing::info!("the leases are the store's again, not the last run's");
                }
                let taken = self.hold.take(update, std::time::Instant::now());
                say_taken(&taken, self.settings.hold_back);
                self.tell(taken.updates);
            }
        }
    }

    fn tell(&mut self, updates: Vec<LeaseUpdate>) {
        for update in updates {
            self.node.apply(update);
        }
        self.to_remember = true;
    }

    /// Looks whether the interface that carries the overlay is still what it was, and follows it.
    async fn follow_underlay(&mut self) -> anyhow::Result<()> {
        let host = match self.view.of_host(self.node.kernel()).await {
            Ok(host) => host,
            Err(error) => {
                tracing::debug!(%error, "cannot look for the underlay's interface");
                return Ok(());
            }
        };
        let current = self.node.underlay();
        match look(current, &self.view.choice, self.view.families, &host) {
            Found::Same => {
                if self.underlay_trouble.is_over() {
                    tracing::info!("interface {current} is there again");
                }
                self.anywhere = None;
            }
            Found::Down(why) => {
                let why = format!("interface {current} carries nothing: {why}");
                if self.underlay_trouble.is_news(&why) {
                    tracing::warn!("{why}");
                }
            }
            Found::Changed(underlay) => {
                let (what, whole) = (difference(current, &underlay), underlay.to_string());
                match self.node.adopt(underlay).await {
                    Ok(attrs) => {
                        tracing::warn!("the underlay changed, following it: {what}. Using interface {whole}");
                        self.underlay_trouble.is_over();
                        self.anywhere = None;
                        self.to_remember = true;
                        self.ask(Errand::Publish(attrs));
                    }
                    Err(error) => {
                        let why = format!("{error:#}");
                        if self.underlay_trouble.is_news(&why) {
                            tracing::warn!(%why, "the underlay changed, and cannot be followed: {what}");
                        }
                    }
                }
            }
            Found::Gone(error) => {
                let why = error.to_string();
                if self.underlay_trouble.is_news(&why) {
                    tracing::warn!(
                        %why,
                        "interface {current} is gone or has lost its address; keeping everything as it is until there is one"
                    );
                }
                if self.anywhere.is_none() {
                    self.anywhere = Watch::open([]).await.ok();
                }
            }
        }
        Ok(())
    }

    fn show(&self) {
        let contact = self.contact.borrow().clone();
        let underlay_trouble = self.underlay_trouble.last();
        self.board.show(contact, self.stale, |identity, store| {
            self.node.reading(identity, store, underlay_trouble, self.hold.held())
        });
    }

    /// The first time that pods can get a network.
    fn became_ready(&mut self) {
        if !self.ready && self.node.is_provided() {
            self.ready = true;
            self.ask(Errand::AnnounceReady);
            supervisor::ready(&format!("{} on {}", self.node.own().subnet, self.node.underlay()));
        }
    }

    /// Brings the cache up to date, once a second at most.
    fn remember(&mut self) {
        // Nothing new is known, and the file says when it was true.
        if self.stale.is_some() {
            return;
        }
        let Some(cache) = &mut self.cache else { return };
        let due = self.to_remember || self.remembered.elapsed() >= super::cache::STILL_TRUE;
        if !due {
            return;
        }
        let silence = self.contact.borrow().last.map(|last| last.elapsed()).unwrap_or_default();
        let now = SystemClock.now();
        cache.keep(Known {
            network: self.node.network().clone(),
            public: self.view.public,
            own: self.node.own().clone(),
            leases: self.node.peers().cloned().collect(),
            heard: now.checked_sub(silence).unwrap_or(now),
        });
        self.to_remember = false;
        self.remembered = Instant::now();
    }

    fn ask(&self, errand: Errand) {
        // The store's half lives as long as this one.
        self.errands.send(errand).ok();
    }
}

/// Waits for the watch; for ever without one.
async fn something(watch: &mut Option<Watch>) {
    if let Some(open) = watch {
        if open.next().await.is_some() {
            return;
        }
        *watch = None;
    }
    std::future::pending().await
}

/// Says what is held back and what came back.
pub(super) fn say_taken(taken: &Taken, hold: Duration) {
    if let Some(loss) = taken.loss {
        tracing::warn!(
            missing = loss.missing,
            known = loss.known,
            seconds = hold.as_secs(),
            "most nodes vanished from the store at once: keeping them, in case it is a mistake (--hold-back)"
        );
    }
    if taken.back > 0 {
        tracing::info!(leases = taken.back, "nodes that had vanished are back");
    }
}
