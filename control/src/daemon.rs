//! The daemon: start, the one loop, stop.
//!
//! ```text
//! start   store ─ network ─ interface ─ MAC ─ engines ─ lease ─ first snapshot ─ reconcile ─ run engines ─ subnet.env
//! loop    lease update │ tick │ link notification │ renewal due │ signal
//! stop    engines end, their devices go with them; subnet.env stays for the next start
//! ```
//!
//! subnet.env is written when the device is up and the routes of every known peer are there, so whoever waits for the
//! file finds a network that works. (flannel writes it first and programs peers afterwards.)

use std::time::Duration;

use anyhow::{Context, bail};
use nix::unistd::{Pid, getppid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior};

use crate::settings::{Settings, StoreChoice};
use crate::status::StoreStatus;
use crate::store::{Clock, FileStore, LeaseStore, LeaseWatch, SystemClock};

mod board;
mod guests;
mod health;
mod instance;
mod metrics;
mod node;
mod own_lease;
mod socket;
mod start;

use board::Board;
use instance::Instance;
pub use node::Node;

/// How often to look at the engines' events, the clock and the parent.
const LOOK: Duration = Duration::from_secs(1);
/// How often to read back the whole host, whether or not anything was told.
const RESYNC: Duration = Duration::from_secs(5);
/// How often to ask the store for our own lease: a watch keeps what was known of an entry that somebody spoiled.
const OWN_LEASE_CHECK: Duration = Duration::from_secs(30);

/// Runs the node until a signal; an error is what to tell the operator.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    let instance = Instance::claim(&settings.subnet_file)?;
    match &settings.store {
        StoreChoice::File { dir } => {
            let store = FileStore::open(dir, &settings.net_config_path, SystemClock)?;
            run_with(settings, instance, &store).await
        }
        StoreChoice::Kube(_) => bail!("this build has no Kubernetes store"),
        StoreChoice::Etcd(_) => bail!("this build has no etcd store"),
    }
}

async fn run_with(
    settings: &Settings,
    mut instance: Instance,
    store: &impl LeaseStore,
) -> anyhow::Result<()> {
    let parent = getppid();
    let mut terminate = signal(SignalKind::terminate()).context("catch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catch SIGINT")?;
    tracing::info!("Created subnet manager: {}", store.name());
    let board = Board::open(settings, store.name());
    let mut node = tokio::select! {
        node = start::start(settings, &mut instance, store) => node?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let outcome = tokio::select! {
        outcome = keep(settings, parent, store, &mut node, &board) => outcome,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    node.stop();
    outcome
}

/// The loop. Ends only with an error, or when the parent ended and that was asked for.
async fn keep(
    settings: &Settings,
    parent: Pid,
    store: &impl LeaseStore,
    node: &mut Node,
    board: &Board,
) -> anyhow::Result<()> {
    let mut watch = store.watch().await?;
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut resync = Instant::now() + RESYNC;
    let mut renewal_after = Instant::now();
    let mut own_check = Instant::now() + OWN_LEASE_CHECK;
    loop {
        board.show(|identity, store| node.reading(identity, StoreStatus::met(store, watch.contact())));
        tokio::select! {
            update = watch.next() => {
                let own = node.own_state(&update);
                node.apply(update);
                node.heed(store, own).await?;
                node.reconcile().await?;
            }
            () = node.host_changed() => {
                node.heed_engines().await?;
                node.reconcile().await?;
            }
            _ = look.tick() => {
                // A thread of the parent may start us and end, so the kernel's own death signal would come too early.
                if settings.exit_with_parent && getppid() != parent {
                    tracing::info!("the parent process ended");
                    return Ok(());
                }
                node.heed_engines().await?;
                if Instant::now() >= resync {
                    node.reconcile().await?;
                    // A look at the whole host needs memory for every route of it, for a moment.
                    dataplane::give_back_memory();
                    resync = Instant::now() + RESYNC;
                }
                if Instant::now() >= own_check {
                    node.check_own_lease(store).await?;
                    own_check = Instant::now() + OWN_LEASE_CHECK;
                }
                if node.renewal_is_due(SystemClock.now()) && Instant::now() >= renewal_after {
                    // flannel tries again every minute and never gives up; neither do we, until somebody else has it.
                    renewal_after = Instant::now() + Duration::from_secs(60);
                    node.renew(store).await?;
                }
            }
        }
        if !node.has_underlay() {
            bail!(
                "interface {} is gone, and with it the addresses that peers send to. Bring it back, or name another \
                 with --iface; then start again",
                node.underlay_device()
            );
        }
    }
}
