//! From settings to a node that forwards packets, in an order that leaves nothing half done: what can fail for want of
//! a right, a port or a name fails before the lease is published.
//!
//! ```text
//! store answers        ─► network, interface, own lease, all leases ─┐
//! it does not, a cache ─► the same, of the last run; said            ├─► engines ─► lease ─► reconcile ─► subnet.env
//! it does not, no cache ─► try again each second; said               ┘
//! ```

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use anyhow::bail;
use dataplane_core::{Family, MacAddr};
use hostnet::kernel::{Kernel, Watch};
use hostnet::subnet_env::Previous;
use tokio::time::{Instant, timeout_at};

use super::Node;
use super::board::Board;
use super::cache::{self, Known};
use super::carrier::Carrier;
use super::hold_back::HoldBack;
use super::instance::Instance;
use super::retry::{Pace, Saying};
use super::store_link::{Failed, within};
use crate::backend::{Backend, mac};
use crate::choose::{self, Choice, KernelVxlan, Wish};
use crate::lease::{BackendData, LEASE_TTL, Lease, LeaseSet, LeaseUpdate, Subnet};
use crate::network::{BackendConfig, NetworkConfig};
use crate::settings::{InterfaceChoice, Settings};
use crate::store::{Clock, LeaseRequest, LeaseStore, LeaseWatch, PublicAddresses, StoreError, SystemClock};
use crate::underlay::{Families, HostView, Underlay};

/// How long a start that has a cache waits for the store. A node that forwards by what was true a moment ago is better
/// than one that waits for what is true.
const STORE_PATIENCE: Duration = Duration::from_millis(600);

/// A node that forwards, and what its loop goes on with.
pub(super) struct Started<S: LeaseStore> {
    pub(super) node: Node,
    /// The store and its watch; `None`: it was not there, and the node stands on the last run's cache.
    pub(super) begun: Option<(S, S::Watch)>,
    /// Our lease as the store has it.
    pub(super) published: Lease,
    pub(super) hold: HoldBack,
    pub(super) view: View,
    /// When the store was last heard, if that was in an earlier run.
    pub(super) stale: Option<SystemTime>,
}

/// What the choice of the interface depends on beside the host.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) choice: InterfaceChoice,
    pub(super) families: Families,
    pub(super) public: PublicAddresses,
    known_as: Vec<IpAddr>,
}

impl View {
    pub(super) fn new(
        settings: &Settings,
        network: &NetworkConfig,
        public: PublicAddresses,
        known_as: Vec<IpAddr>,
    ) -> Self {
        let mut choice = settings.interface.clone();
        choice.public_ip = public.v4.or(choice.public_ip);
        choice.public_ipv6 = public.v6.or(choice.public_ipv6);
        Self {
            choice,
            families: Families { v4: network.v4.is_some(), v6: network.v6.is_some() },
            public,
            known_as,
        }
    }

    /// What the host has at present.
    pub(super) async fn of_host(&self, kernel: &Kernel) -> Result<HostView, hostnet::HostError> {
        let reach = match self.choice.can_reach {
            Some(ip) => kernel.route_to(ip).await?,
            None => None,
        };
        Ok(HostView {
            links: kernel.links().await?,
            addresses: kernel.addresses().await?,
            routes: kernel.routes().await?,
            reach,
            known_as: self.known_as.clone(),
        })
    }
}

/// What a node stands on: from the store, or from the last run.
struct Ground {
    network: NetworkConfig,
    view: View,
    underlay: Underlay,
    choice: Choice,
    backend: Backend,
    /// The lease that the store holds for us.
    held: Option<Lease>,
    /// Everybody's leases.
    leases: Vec<Lease>,
}

/// A start that did not work.
enum NotYet {
    /// The store's part.
    Store(Failed),
    /// This node's own part, which ends the process.
    Here(anyhow::Error),
}

impl From<Failed> for NotYet {
    fn from(failed: Failed) -> Self {
        Self::Store(failed)
    }
}

impl From<anyhow::Error> for NotYet {
    fn from(error: anyhow::Error) -> Self {
        Self::Here(error)
    }
}

/// Starts the node. Waits for the store as long as it takes, unless the last run left what is needed.
pub(super) async fn start<S: LeaseStore>(
    settings: &Settings,
    instance: &mut Instance,
    board: &Board,
    open: &impl AsyncFn() -> Result<S, StoreError>,
) -> anyhow::Result<Started<S>> {
    let deadline = Instant::now() + STORE_PATIENCE;
    let kernel = Kernel::connect().await?;
    let known = last_run(settings);
    let (ground, mut begun) = match &known {
        None => insist(settings, board, &kernel, open).await.map(|(ground, begun)| (ground, Some(begun)))?,
        Some(known) => {
            let why = match timeout_at(deadline, ground_of_store(settings, &kernel, open)).await {
                Ok(Ok((ground, begun))) => Ok((ground, begun)),
                Ok(Err(NotYet::Here(error))) => return Err(error),
                // What the operator has written is read and refused: the last run must not stand in for it.
                Ok(Err(NotYet::Store(Failed::Store(error)))) if !Failed::may_pass(&error) => {
                    return Err(error.into());
                }
                Ok(Err(NotYet::Store(failed))) => Err(failed.to_string()),
                Err(_elapsed) => Err(format!("no answer within {} ms", STORE_PATIENCE.as_millis())),
            };
            match why {
                Ok((ground, begun)) => (ground, Some(begun)),
                Err(why) => match ground_of_cache(settings, &kernel, known).await {
                    Ok(ground) => {
                        say_stale(known, &why);
                        (ground, None)
                    }
                    Err(unusable) => {
                        tracing::warn!(why = %unusable, "the last run's leases are of no use, waiting for the store");
                        insist(settings, board, &kernel, open)
                            .await
                            .map(|(ground, begun)| (ground, Some(begun)))?
                    }
                },
            }
        }
    };
    let Ground { network, view, underlay, choice, backend, held, leases } = ground;
    for notice in &network.notices {
        tracing::warn!(at = %notice.at, "network configuration: {}", notice.text);
    }
    tracing::info!("Found network config - Backend type: {}", network.backend.name());
    tracing::info!("Using interface {underlay}");
    for doubt in doubts(&network, &underlay) {
        tracing::warn!("network configuration: {doubt}");
    }

    for line in choice.to_string().lines() {
        tracing::info!("carrier {line}");
    }
    instance.hold(backend.tunnels().iter().map(|tunnel| tunnel.device.as_str()))?;
    let carriers = Carrier::open_all(settings, &kernel, &backend).await?;

    // The lease of the last run will do where the store goes away just now, if it is the one that the store would give.
    let usual = known.as_ref().filter(|known| {
        known.network.is_same_as(&network) && cache::is_ours(known, &settings.store, backend.attrs().owner())
    });
    let mut stale = known.as_ref().filter(|_| begun.is_none()).map(|known| known.heard);
    let (own, published) = match &begun {
        Some((store, _)) => {
            let request = LeaseRequest { attrs: backend.attrs(), previous: previous_subnet(settings) };
            match acquire(store, &network, &request, usual.map(|_| deadline)).await? {
                Ok(own) => {
                    let known_subnet = held.as_ref().map(|held| held.subnet).or(request.previous);
                    let again = known_subnet == Some(own.subnet);
                    tracing::info!(subnet = %own.subnet, again, reservation = own.expires.is_none(), "Lease acquired");
                    (own.clone(), own)
                }
                Err(why) => {
                    let known = usual.expect("without it the lease is waited for");
                    say_stale(known, &why);
                    stale = Some(known.heard);
                    begun = None;
                    (Lease { attrs: backend.attrs(), ..known.own.clone() }, known.own.clone())
                }
            }
        }
        None => {
            let published = held.expect("a cache has our own lease");
            (Lease { attrs: backend.attrs(), ..published.clone() }, published)
        }
    };

    let names = backend.tunnels().iter().map(|tunnel| tunnel.device.clone());
    let watch = Watch::open(names.chain([underlay.device.clone()])).await?;
    let (hold, set) = first_leases(settings, own.subnet, known.as_ref(), leases);
    let mut node = Node::new(
        (settings.clone(), network),
        (kernel, watch),
        underlay,
        (choice, backend),
        own,
        set,
        carriers,
    );
    node.bring_up().await?;
    Ok(Started { node, begun, published, hold, view, stale })
}

/// The leases that the last run left, if they are of this store.
fn last_run(settings: &Settings) -> Option<Known> {
    let path = settings.lease_cache.as_ref()?;
    match cache::read(path, &settings.store) {
        Ok(known) => known,
        Err(why) => {
            tracing::warn!(file = %path.display(), %why, "the last run's leases are passed over");
            None
        }
    }
}

fn say_stale(known: &Known, why: &str) {
    let age = SystemClock.now().duration_since(known.heard).unwrap_or_default();
    tracing::warn!(
        %why, seconds = age.as_secs(), leases = known.leases.len(),
        "the store is not there: starting with the leases of the last run, which may be stale, until it is"
    );
}

/// What was in force in the last run stays so until the store's list has been looked at: a list that lost most of it is
/// held back like any other. After a day every lease has ended or moved.
fn first_leases(
    settings: &Settings,
    own: Subnet,
    known: Option<&Known>,
    leases: Vec<Lease>,
) -> (HoldBack, LeaseSet) {
    let now = SystemClock.now();
    let is_recent = |known: &&Known| now.duration_since(known.heard).is_ok_and(|age| age < LEASE_TTL);
    let before = known.filter(is_recent).into_iter().flat_map(|known| &known.leases);
    let before: Vec<Lease> = before.filter(|lease| !lease.is_over(now)).cloned().collect();
    let mut set = LeaseSet::new(own);
    set.apply(LeaseUpdate::Snapshot(before.clone()));
    let mut hold = HoldBack::new(own, settings.hold_back, before);
    let taken = hold.take(LeaseUpdate::Snapshot(leases), std::time::Instant::now());
    super::keep::say_taken(&taken, settings.hold_back);
    for update in taken.updates {
        set.apply(update);
    }
    (hold, set)
}

/// Until the store answers.
async fn insist<S: LeaseStore>(
    settings: &Settings,
    board: &Board,
    kernel: &Kernel,
    open: &impl AsyncFn() -> Result<S, StoreError>,
) -> anyhow::Result<(Ground, (S, S::Watch))> {
    let (mut pace, mut saying) = (Pace::default(), Saying::default());
    loop {
        match ground_of_store(settings, kernel, open).await {
            Ok(ground) => return Ok(ground),
            Err(NotYet::Here(error)) => return Err(error),
            Err(NotYet::Store(Failed::Store(error))) if !Failed::may_pass(&error) => return Err(error.into()),
            Err(NotYet::Store(failed)) => {
                let why = failed.to_string();
                if saying.is_news(&why) {
                    tracing::warn!(%why, "no network yet, trying again each second");
                    board.wait(&why);
                }
            }
        }
        tokio::time::sleep(pace.pause(fastrand::f64)).await;
    }
}

async fn ground_of_store<S: LeaseStore>(
    settings: &Settings,
    kernel: &Kernel,
    open: &impl AsyncFn() -> Result<S, StoreError>,
) -> Result<(Ground, (S, S::Watch)), NotYet> {
    let store = within(open()).await?;
    let network = within(store.network()).await?;
    let public = within(store.public_addresses()).await?;
    let known_as = within(store.node_addresses()).await?;
    let view = View::new(settings, &network, public, known_as);
    let underlay = choose_underlay(&view, kernel).await?;
    let choice = choose_carrier(settings, &network, kernel).await?;
    let anonymous = Backend::new(&network, choice.method, &underlay, |_| MacAddr::default())
        .map_err(anyhow::Error::new)?;
    let held = match anonymous.attrs().owner() {
        Some(owner) => within(store.held_by(owner)).await?,
        None => None,
    };
    // Watched from here on, so that what happens until the loop begins is an update. The list has no time limit: the
    // nodes of a large cluster take turns, and a watch whose store goes away says so and tries again by itself.
    let mut watch = within(store.watch()).await?;
    let leases = watch.next().await.all().unwrap_or_default().to_vec();
    tracing::info!("Created subnet manager: {}", store.name());
    let parts = (&network, &underlay);
    let backend = settle_backend(settings, parts, anonymous, held.as_ref(), &leases, Macs::Remember)?;
    Ok((Ground { network, view, underlay, choice, backend, held, leases }, (store, watch)))
}

/// The last run's ground, or why it is not this node's.
async fn ground_of_cache(settings: &Settings, kernel: &Kernel, known: &Known) -> anyhow::Result<Ground> {
    let view = View::new(settings, &known.network, known.public, Vec::new());
    let underlay = choose_underlay(&view, kernel).await?;
    let choice = choose_carrier(settings, &known.network, kernel).await?;
    let anonymous = Backend::new(&known.network, choice.method, &underlay, |_| MacAddr::default())?;
    let (theirs, ours) = (known.own.attrs.owner(), anonymous.attrs().owner());
    if !cache::is_ours(known, &settings.store, ours) {
        let text =
            |owner: Option<IpAddr>| owner.map_or_else(|| "nobody".to_owned(), |owner| owner.to_string());
        bail!("they are of the node {}, and this one is {}", text(theirs), text(ours));
    }
    let parts = (&known.network, &underlay);
    let backend =
        settle_backend(settings, parts, anonymous, Some(&known.own), &known.leases, Macs::Remember)?;
    Ok(Ground {
        network: known.network.clone(),
        view,
        underlay,
        choice,
        backend,
        held: Some(known.own.clone()),
        leases: known.leases.clone(),
    })
}

/// The lease; tried again until it is there, or until the time is over, and then the answer is why.
async fn acquire(
    store: &impl LeaseStore,
    network: &NetworkConfig,
    request: &LeaseRequest,
    deadline: Option<Instant>,
) -> anyhow::Result<Result<Lease, String>> {
    let (mut pace, mut saying) = (Pace::default(), Saying::default());
    loop {
        let attempt = within(store.acquire(network, request));
        let failed = match deadline {
            // What the kernel was asked meanwhile took its part of the time.
            Some(deadline) => {
                match timeout_at(deadline.max(Instant::now() + STORE_PATIENCE / 3), attempt).await {
                    Ok(Ok(lease)) => return Ok(Ok(lease)),
                    Ok(Err(failed)) => return Ok(Err(failed.to_string())),
                    Err(_elapsed) => return Ok(Err("the lease was not granted in time".to_owned())),
                }
            }
            None => match attempt.await {
                Ok(lease) => return Ok(Ok(lease)),
                Err(Failed::Store(error)) if !Failed::may_pass(&error) => return Err(error.into()),
                Err(failed) => failed,
            },
        };
        let why = failed.to_string();
        if saying.is_news(&why) {
            tracing::warn!(%why, "no lease yet, trying again each second");
        }
        tokio::time::sleep(pace.pause(fastrand::f64)).await;
    }
}

/// Asks the kernel where that matters, and chooses what carries the packets.
async fn choose_carrier(
    settings: &Settings,
    network: &NetworkConfig,
    kernel: &Kernel,
) -> anyhow::Result<Choice> {
    let wish = Wish::of(settings.engine, network);
    let found = match choose::wants_probe(network, wish) {
        true => {
            KernelVxlan::probed(kernel.probe_vxlan().await, existing_vxlan(network, kernel).await?.as_deref())
        }
        false => KernelVxlan::Impossible("it was not asked for".to_owned()),
    };
    Ok(choose::choose(network, wish, &found)?)
}

/// The kernel's device of another run, by flannel's names.
pub(super) async fn existing_vxlan(
    network: &NetworkConfig,
    kernel: &Kernel,
) -> anyhow::Result<Option<String>> {
    for (_family, device) in Backend::vtep_devices(&network.backend).into_iter().flatten() {
        if kernel.link(&device).await?.is_some_and(|link| link.vxlan.is_some()) {
            return Ok(Some(device));
        }
    }
    Ok(None)
}

pub(super) async fn choose_underlay(view: &View, kernel: &Kernel) -> anyhow::Result<Underlay> {
    let host = view.of_host(kernel).await?;
    Ok(Underlay::choose(&view.choice, view.families, &host)?)
}

/// What flannel takes without a word too, and what hardly anybody can have meant.
fn doubts(network: &NetworkConfig, underlay: &Underlay) -> Vec<String> {
    let mut doubts = Vec::new();
    let ends = [underlay.v4.map(|end| end.local.into()), underlay.v6.map(|end| end.local.into())];
    for end in ends.into_iter().flatten() {
        if let Some(pool) = network.pools().find(|pool| pool.network().contains::<&IpAddr>(&end)) {
            doubts.push(format!(
                "the pod network {} holds this node's own address {end}: a lease can take the way between nodes. \
                 Give pods a network that nothing else uses",
                pool.network()
            ));
        }
    }
    if let BackendConfig::Vxlan { mtu: Some(mtu), .. } = network.backend
        && mtu > underlay.mtu.0
    {
        doubts.push(format!(
            "Backend MTU {mtu} is more than the {} of {}: the kernel takes no more than that, and by the engine large \
             packets travel in fragments. Leave it out, or give the interface that MTU",
            underlay.mtu.0, underlay.device
        ));
    }
    doubts
}

/// Whether new MACs are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Macs {
    /// For the next run.
    Remember,
    /// Not: this is only a look.
    Forget,
}

/// The backend with its VtepMACs: those of the lease that is held, else of a file, else new ones.
pub(super) fn settle_backend(
    settings: &Settings,
    (network, underlay): (&NetworkConfig, &Underlay),
    anonymous: Backend,
    held: Option<&Lease>,
    leases: &[Lease],
    macs_are: Macs,
) -> anyhow::Result<Backend> {
    let Some(devices) = Backend::vtep_devices(&network.backend) else { return Ok(anonymous) };
    let leased = |family| match held.map(|lease| &lease.attrs.backend) {
        Some(BackendData::Vxlan { v4, v6 }) => match family {
            Family::V4 => v4.map(|data| data.mac),
            Family::V6 => v6.map(|data| data.mac),
        },
        _ => None,
    };
    let used = devices
        .into_iter()
        .filter(|(family, _)| anonymous.tunnels().iter().any(|tunnel| tunnel.family == *family));
    let mut macs = Vec::new();
    let taken = macs_of_others(leases, held);
    for (family, device) in used {
        let file = mac::path(&settings.subnet_file, &device);
        let (address, source) = mac::settle(leased(family), &file, &taken, &mut fastrand::Rng::new());
        if macs_are == Macs::Remember
            && source != mac::MacSource::File
            && let Err(error) = mac::remember(address, &file)
        {
            tracing::warn!(file = %file.display(), %error, "cannot remember the VtepMAC; the lease does");
        }
        tracing::info!(device, mac = %address, "VtepMAC {source}");
        macs.push((family, address));
    }
    let mac = |family| macs.iter().find(|(of, _)| *of == family).map(|(_, mac)| *mac).unwrap_or_default();
    Ok(Backend::new(network, anonymous.method(), underlay, mac)?)
}

/// The VtepMACs in every lease but our own.
fn macs_of_others(leases: &[Lease], own: Option<&Lease>) -> Vec<MacAddr> {
    let others = leases.iter().filter(|lease| own.is_none_or(|own| own.subnet != lease.subnet));
    others
        .filter_map(|lease| match lease.attrs.backend {
            BackendData::Vxlan { v4, v6 } => Some([v4, v6]),
            _ => None,
        })
        .flatten()
        .flatten()
        .map(|data| data.mac)
        .collect()
}

/// What subnet.env says from the last run.
fn previous_subnet(settings: &Settings) -> Option<Subnet> {
    let previous = Previous::read(&settings.subnet_file);
    for problem in &previous.problems {
        tracing::warn!(file = %settings.subnet_file.display(), "passed over in the last run's subnet.env: {problem}");
    }
    let v4 = previous.subnets.iter().find_map(|net| match net {
        dataplane_core::IpNet::V4(v4) => Some(*v4),
        dataplane_core::IpNet::V6(_) => None,
    });
    let v6 = previous.subnets.iter().find_map(|net| match net {
        dataplane_core::IpNet::V6(v6) => Some(*v6),
        dataplane_core::IpNet::V4(_) => None,
    });
    Subnet::new(v4, v6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::underlay::testing::on_eth0;

    #[test]
    fn what_hardly_anybody_means_is_doubted() {
        let underlay = on_eth0();
        let about = |text: &str| doubts(&NetworkConfig::parse(text.as_bytes()).unwrap(), &underlay);
        let fine = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "MTU": 1500}}"#;
        assert!(about(fine).is_empty());
        let overlap = about(r#"{"Network": "192.0.0.0/16"}"#);
        assert!(overlap[0].contains("192.0.0.0/16 holds this node's own address 192.0.2.1"), "{overlap:?}");
        let jumbo = about(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "MTU": 9000}}"#);
        assert!(jumbo[0].contains("MTU 9000 is more than the 1500 of eth0"), "{jumbo:?}");
    }
}
