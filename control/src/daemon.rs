//! The daemon: start, the one loop, stop.
//!
//! ```text
//! start   store or cache ─ network ─ interface ─ MAC ─ engines ─ lease ─ reconcile ─ run engines ─ subnet.env
//! loop    store: join │ watch │ renew │ publish          (store_link)
//!         host:  leases │ tick │ link notification │ SIGHUP   (keep)
//! stop    engines end, their devices go with them; subnet.env stays for the next start
//! ```
//!
//! subnet.env is written when the device is up and the routes of every known peer are there, so whoever waits for the
//! file finds a network that works. (flannel writes it first and programs peers afterwards.)
//!
//! The last known network outlives its store: a store that is not there costs no packet, at the start or later.

use anyhow::Context;
use nix::unistd::{Pid, getppid};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::settings::{Settings, StoreChoice};
use crate::store::{Contact, FileStore, KubeStore, LeaseStore, StoreError, SystemClock};

mod board;
mod cache;
mod carrier;
mod earlier;
mod explain;
mod follow_underlay;
mod guards;
mod guests;
mod health;
mod hold_back;
mod instance;
mod keep;
mod metrics;
mod node;
mod own_lease;
mod retry;
mod rules;
mod socket;
mod start;
mod store_link;
mod supervisor;

use board::Board;
pub use explain::explain;
use instance::Instance;
pub use node::Node;

#[cfg(not(feature = "etcd"))]
const WITHOUT_ETCD: &str = "this flanneld is built without etcd: choose --kube-subnet-mgr or --file-subnet-mgr DIR, or \
                            take one that is built with the cargo feature `etcd`";
/// How many pieces of news may wait for the host's half.
const NEWS: usize = 64;

/// Runs the node until a signal; an error is what to tell the operator.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    match &settings.store {
        StoreChoice::File { dir } => {
            run_with(settings, async || FileStore::open(dir, &settings.net_config_path, SystemClock)).await
        }
        StoreChoice::Kube(kube) => {
            // What is wrong with the flags is an error at once; nothing is asked of the API yet.
            KubeStore::open(kube, &settings.net_config_path)?;
            run_with(settings, async || KubeStore::open(kube, &settings.net_config_path)).await
        }
        #[cfg(feature = "etcd")]
        StoreChoice::Etcd(etcd) => {
            crate::store::EtcdStore::open(etcd)?;
            run_with(settings, async || crate::store::EtcdStore::open(etcd)).await
        }
        #[cfg(not(feature = "etcd"))]
        StoreChoice::Etcd(_) => anyhow::bail!(WITHOUT_ETCD),
    }
}

/// Runs the node over the store that `open` opens, now or when it is there.
async fn run_with<S: LeaseStore>(
    settings: &Settings,
    open: impl AsyncFn() -> Result<S, StoreError>,
) -> anyhow::Result<()> {
    let mut instance = Instance::claim(&settings.subnet_file)?;
    let mut board = Board::open(settings);
    let parent = getppid();
    let mut terminate = signal(SignalKind::terminate()).context("catch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catch SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("catch SIGHUP")?;
    let outcome = loop {
        let mut started = tokio::select! {
            started = start::start(settings, &mut instance, &board, &open) => started?,
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
        };
        if let Some((store, _)) = &started.begun {
            board.name_store(store.name());
        }
        let outcome = tokio::select! {
            outcome = live(settings, &board, parent, &open, &mut started, &mut hangup) => outcome,
            _ = terminate.recv() => Ok(Ending::Stop),
            _ = interrupt.recv() => Ok(Ending::Stop),
        };
        started.node.stop();
        match outcome {
            Ok(Ending::Again) => {}
            Ok(Ending::Stop) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    supervisor::stopping();
    outcome
}

/// How a node's life ended without an error.
enum Ending {
    /// The process is to end.
    Stop,
    /// It stands on a network that is not the store's any more.
    Again,
}

/// The two halves side by side, until one ends.
async fn live<S: LeaseStore>(
    settings: &Settings,
    board: &Board,
    parent: Pid,
    open: &impl AsyncFn() -> Result<S, StoreError>,
    started: &mut start::Started<S>,
    hangup: &mut Signal,
) -> anyhow::Result<Ending> {
    let (news, told) = mpsc::channel(NEWS);
    let (errands, asked) = mpsc::unbounded_channel();
    let (contact, seen) = watch::channel(Contact::default());
    let node = &mut started.node;
    let link = store_link::StoreLink::new(
        settings,
        node.network().clone(),
        started.published.clone(),
        node.own().attrs.clone(),
        (news, asked, contact),
    );
    let keeper = keep::Keeper {
        settings,
        board,
        node,
        hold: started.hold.clone(),
        view: started.view.clone(),
        stale: started.stale,
        cache: settings.lease_cache.as_deref().map(|path| cache::Cache::new(path, &settings.store)),
        errands,
        contact: seen,
        anywhere: None,
        underlay_trouble: retry::Saying::default(),
        to_remember: true,
        remembered: Instant::now(),
        ready: false,
    };
    tokio::select! {
        ended = link.run(open, started.begun.take()) => match ended {
            store_link::Ended::Lost(lost) => Err(lost.into()),
            store_link::Ended::OtherNetwork => {
                tracing::warn!("the store has another network configuration than the last run's: starting again with it");
                Ok(Ending::Again)
            }
        },
        outcome = keeper.run(parent, told, hangup) => outcome.map(|()| Ending::Stop),
    }
}
