//! The running node: its lease, the leases of the others, its engines, and the host it keeps in shape.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use dataplane::{Engine, EngineEvent, EngineHandle};
use dataplane_core::{Counters, Family, OverlayMtu};
use hostnet::kernel::{Kernel, LinkSettings, Watch};
use hostnet::reconcile::{Outcome, converge};
use hostnet::subnet_env::SubnetEnv;
use hostnet::sysctl;

use super::rules::Rules;
use super::start::open_engine;
use crate::backend::{Backend, Tunnel};
use crate::lease::{Lease, LeaseChange, LeaseSet, LeaseUpdate, Subnet};
use crate::network::NetworkConfig;
use crate::plan::{Peers, Plan, Refusal};
use crate::settings::Settings;
use crate::underlay::Underlay;

mod status;
mod underlay;

use status::Tally;

/// The TUN ring holds this many packets of up to 64 KiB. The kernel's 500 overflow in a burst without a trace; far more
/// would only be delay.
const TX_QUEUE_LEN: u32 = 1000;

/// A running node.
pub struct Node {
    settings: Settings,
    network: NetworkConfig,
    kernel: Kernel,
    /// `None` when the kernel's notifications ended; the tick remains.
    watch: Option<Watch>,
    underlay: Underlay,
    backend: Backend,
    own: Lease,
    leases: LeaseSet,
    carriers: Vec<Carrier>,
    refused: BTreeMap<Subnet, Refusal>,
    /// The last trouble with the host that was said.
    trouble: Option<String>,
    /// The leases changed since the host was last put in shape, so differences are expected.
    changed: bool,
    env_trouble: Option<String>,
    env_is_written: bool,
    /// Packet filter rules; `None` before they were put in place for the first time.
    rules: Option<Rules>,
    /// Why an engine that ended cannot be opened again, which has been said.
    engine_trouble: Option<String>,
    tally: Tally,
}

/// A tunnel and the engine that carries it.
pub(super) struct Carrier {
    tunnel: Tunnel,
    engine: State,
    published: Option<Peers>,
}

enum State {
    /// The device is there and has yet to get its address.
    Open(Engine),
    Running(EngineHandle),
    /// It ended; the next look opens it again.
    Ended,
}

impl Carrier {
    pub(super) fn open(tunnel: Tunnel, engine: Engine) -> Self {
        Self { tunnel, engine: State::Open(engine), published: None }
    }

    /// Starts the engine if its device is ready, or gives it the new peers.
    fn provide(&mut self, peers: &Peers) -> anyhow::Result<()> {
        if self.published.as_ref() == Some(peers) {
            return Ok(());
        }
        let table = peers.table()?;
        match std::mem::replace(&mut self.engine, State::Ended) {
            State::Open(engine) => self.engine = State::Running(engine.start(table)?),
            State::Running(handle) => {
                handle.publish(table);
                self.engine = State::Running(handle);
            }
            State::Ended => return Ok(()),
        }
        self.published = Some(peers.clone());
        Ok(())
    }
}

impl Node {
    pub(super) fn new(
        (settings, network): (Settings, NetworkConfig),
        (kernel, watch): (Kernel, Watch),
        underlay: Underlay,
        backend: Backend,
        own: Lease,
        leases: LeaseSet,
        carriers: Vec<Carrier>,
    ) -> Self {
        Self {
            settings,
            network,
            kernel,
            watch: Some(watch),
            underlay,
            backend,
            own,
            leases,
            carriers,
            refused: BTreeMap::new(),
            trouble: None,
            changed: true,
            env_trouble: None,
            env_is_written: false,
            rules: None,
            engine_trouble: None,
            tally: Tally::default(),
        }
    }

    /// The first time: devices get their addresses and routes, then the engines run, then subnet.env says so.
    pub(super) async fn bring_up(&mut self) -> anyhow::Result<()> {
        self.prepare_devices().await?;
        let plan = self.plan();
        let outcome = self.converge(&plan).await;
        if let Some((change, error)) = outcome.failed.first() {
            bail!("cannot set up the overlay's device: {change}: {error}");
        }
        if let Some(error) = outcome.unread {
            return Err(error.into());
        }
        self.provide_peers(&plan)?;
        self.tally.note(&outcome, true);
        self.tally_peers();
        // Before subnet.env: pods that come find their packets masqueraded.
        self.rules = Some(Rules::start(self.settings.rules, &self.network, &self.own.subnet).await);
        self.write_subnet_env();
        Ok(())
    }

    /// What keeps packet filter rules from being in place.
    pub fn rules_trouble(&self) -> Option<String> {
        self.rules.as_ref().and_then(Rules::trouble)
    }

    /// Settings of the devices that are wanted before they are up: the kernel sizes the ring then, and makes IPv6
    /// link-local addresses that nobody needs on a TUN device.
    async fn prepare_devices(&self) -> anyhow::Result<()> {
        for carrier in self.carriers.iter().filter(|carrier| matches!(carrier.engine, State::Open(_))) {
            let device = &carrier.tunnel.device;
            let ring = LinkSettings { tx_queue_len: Some(TX_QUEUE_LEN), ..LinkSettings::default() };
            self.kernel.set_link(device, &ring).await?;
            let quiet = LinkSettings { addr_gen_none: true, ..LinkSettings::default() };
            if let Err(error) = self.kernel.set_link(device, &quiet).await {
                // A kernel without IPv6 has no such setting, and needs none.
                tracing::debug!(device, %error, "IPv6 link-local addresses are left on");
            }
            // The engine's ICMP answers enter by the device and bear its own address. Without this the kernel takes them
            // for martians and the pods never hear that a destination is not there.
            if carrier.tunnel.family == Family::V4
                && let Err(error) = sysctl::set(&format!("net/ipv4/conf/{device}/accept_local"), "1")
            {
                tracing::warn!(device, %error, "pods will not get the tunnel's ICMP errors");
            }
        }
        Ok(())
    }

    /// Reads the host and puts it in shape; what cannot be done is said once and tried again at the next call.
    pub(super) async fn reconcile(&mut self) -> anyhow::Result<()> {
        self.reopen_engines().await?;
        let plan = self.plan();
        // Peers before routes: a packet that a new route brings finds its peer.
        self.inform_running(&plan)?;
        let outcome = self.converge(&plan).await;
        if outcome.unread.is_none() {
            self.provide_peers(&plan)?;
        }
        self.report(&outcome);
        self.tally.note(&outcome, self.changed);
        self.tally_peers();
        self.changed = false;
        if let Some(rules) = &self.rules {
            rules.follow(&self.own.subnet);
        }
        self.write_subnet_env();
        Ok(())
    }

    /// Waits until the kernel tells that something about our devices or the underlay's changed.
    pub(super) async fn host_changed(&mut self) {
        if let Some(watch) = &mut self.watch {
            if let Some(noticed) = watch.next().await {
                tracing::debug!(?noticed, "the kernel told of changes");
                return;
            }
            tracing::warn!("the kernel's notifications ended; looking at intervals");
            self.watch = None;
        }
        std::future::pending().await
    }

    async fn converge(&self, plan: &Plan) -> Outcome {
        converge(&self.kernel, &Plan::scope(&self.backend), &plan.host).await
    }

    fn plan(&mut self) -> Plan {
        let plan = self.backend.plan(&self.own, &self.leases);
        for (subnet, why) in &plan.refused {
            if self.refused.get(subnet) != Some(why) {
                tracing::warn!(%subnet, %why, "a lease is not used");
            }
        }
        self.refused.clone_from(&plan.refused);
        plan
    }

    /// Gives every engine its peers; one whose device was waiting for its address begins to run.
    fn provide_peers(&mut self, plan: &Plan) -> anyhow::Result<()> {
        for (carrier, peers) in self.carriers.iter_mut().zip(&plan.peers) {
            carrier.provide(peers).with_context(|| format!("run the engine on {}", carrier.tunnel.device))?;
        }
        Ok(())
    }

    fn inform_running(&mut self, plan: &Plan) -> anyhow::Result<()> {
        let carriers = self.carriers.iter_mut().zip(&plan.peers);
        for (carrier, peers) in carriers.filter(|(carrier, _)| matches!(carrier.engine, State::Running(_))) {
            carrier.provide(peers)?;
        }
        Ok(())
    }

    fn report(&mut self, outcome: &Outcome) {
        for (at, change) in outcome.applied.iter().enumerate() {
            // A device that went down loses every route: thousands of lines would say no more than a few.
            if self.changed || at >= 3 {
                tracing::debug!("{change}");
            } else {
                tracing::warn!("somebody had changed what is ours, put right: {change}");
            }
        }
        if !self.changed && outcome.applied.len() > 3 {
            tracing::warn!(
                "somebody had changed what is ours, put right: {} things more",
                outcome.applied.len() - 3
            );
        }
        let trouble = (!outcome.is_settled()).then(|| outcome.to_string());
        if trouble == self.trouble {
            return;
        }
        match &trouble {
            Some(trouble) => tracing::warn!("the host is not as it should be, trying again: {trouble}"),
            None => tracing::info!("the host is as it should be again"),
        }
        self.trouble = trouble;
    }

    /// Writes subnet.env until it is written; a full disk or a missing directory is said once.
    fn write_subnet_env(&mut self) {
        if self.env_is_written && self.settings.subnet_file.exists() {
            return;
        }
        let env = SubnetEnv {
            networks: self.backend.tunnels().iter().map(|tunnel| tunnel.network).collect(),
            subnets: self.own.subnet.nets().collect(),
            mtu: self.backend.mtu().map_or(0, |mtu| mtu.get().into()),
            ip_masq: self.settings.rules.masquerade,
        };
        match env.write(&self.settings.subnet_file) {
            Ok(()) => {
                tracing::info!("Wrote subnet file to {}", self.settings.subnet_file.display());
                // Pods get a network from the file, so nothing is ready before it is there.
                if !self.env_is_written {
                    self.say_ready();
                }
                self.env_is_written = true;
                self.env_trouble = None;
            }
            Err(error) => {
                let trouble = error.to_string();
                if self.env_trouble.as_ref() != Some(&trouble) {
                    tracing::warn!("pods get no network until this works, trying again: {trouble}");
                    self.env_trouble = Some(trouble);
                }
            }
        }
    }

    fn say_ready(&self) {
        tracing::info!(
            subnet = %self.own.subnet,
            backend = self.backend.tunnels().iter().map(|tunnel| tunnel.device.as_str()).collect::<Vec<_>>().join(" and "),
            mtu = self.backend.mtu().map(OverlayMtu::get),
            peers = self.leases.len(),
            "flannel is ready"
        );
    }

    /// Takes an update of the leases in.
    pub(super) fn apply(&mut self, update: LeaseUpdate) {
        for change in self.leases.apply(update) {
            self.changed = true;
            match change {
                LeaseChange::Joined(lease) => tracing::info!(
                    subnet = %lease.subnet, node = lease.attrs.owner().map(tracing::field::display), "a node joined"
                ),
                LeaseChange::Changed { to: lease, .. } => tracing::info!(
                    subnet = %lease.subnet, node = lease.attrs.owner().map(tracing::field::display), "a node changed"
                ),
                LeaseChange::Left(lease) => tracing::info!(
                    subnet = %lease.subnet, node = lease.attrs.owner().map(tracing::field::display), "a node left"
                ),
                LeaseChange::Renewed(lease) => {
                    tracing::debug!(subnet = %lease.subnet, "a node renewed its lease")
                }
            }
        }
    }

    /// Our lease, as the store has it.
    pub(super) fn take_lease(&mut self, own: Lease) {
        self.own.expires = own.expires;
    }

    /// Says what the engines told. An engine that ended is opened again: a deleted device is one more difference
    /// between what is and what should be.
    pub(super) async fn heed_engines(&mut self) -> anyhow::Result<()> {
        let mut ended = false;
        for carrier in &mut self.carriers {
            let State::Running(handle) = &carrier.engine else { continue };
            let mut gone = false;
            for event in handle.events().try_iter() {
                let device = &carrier.tunnel.device;
                gone |= matches!(event, EngineEvent::DeviceGone { .. } | EngineEvent::SocketFailed { .. });
                if event.is_good_news() {
                    tracing::info!(device, "{event}");
                } else {
                    tracing::warn!(device, "{event}");
                }
            }
            if gone {
                carrier.engine = State::Ended;
                carrier.published = None;
                ended = true;
            }
        }
        if ended {
            self.reconcile().await?;
        }
        Ok(())
    }

    /// Opens again what ended. What cannot be opened now is said once, and tried again at the next look.
    async fn reopen_engines(&mut self) -> anyhow::Result<()> {
        let mut opened = false;
        let mut trouble = None;
        for carrier in &mut self.carriers {
            if matches!(carrier.engine, State::Ended) {
                match open_engine(&self.settings, &self.kernel, &carrier.tunnel).await {
                    Ok(engine) => {
                        carrier.engine = State::Open(engine);
                        opened = true;
                        self.changed = true;
                        tracing::info!(device = carrier.tunnel.device, "made the device again");
                    }
                    Err(error) => trouble = Some(format!("{error:#}")),
                }
            }
        }
        if let Some(why) = &trouble
            && self.engine_trouble != trouble
        {
            tracing::warn!(%why, "pods' packets are not carried, trying again");
        }
        self.engine_trouble = trouble;
        if opened {
            self.prepare_devices().await?;
        }
        Ok(())
    }

    /// Stops the engines; their devices and routes go with them. subnet.env and the lease stay.
    pub(super) fn stop(self) {
        for carrier in self.carriers {
            let State::Running(handle) = carrier.engine else { continue };
            match handle.stop() {
                Ok(counters) => {
                    tracing::info!(device = carrier.tunnel.device, "stopped: {}", sums(&counters))
                }
                Err(error) => tracing::warn!(device = carrier.tunnel.device, %error, "stopped"),
            }
        }
    }
}

/// The counters in one line, drops by reason.
fn sums(counters: &Counters) -> String {
    let direction = |name: &str, verb: &str, d: &dataplane_core::counters::Direction| {
        let drops: Vec<String> = d.drops().map(|(reason, count)| format!(", {reason} {count}")).collect();
        format!(
            "{name} {} packets, {verb} {} ({} bytes){}",
            d.packets,
            d.passed,
            d.passed_bytes,
            drops.concat()
        )
    };
    let lost = |count: u64, what: &str| match count {
        0 => String::new(),
        count => format!("; {count} {what}"),
    };
    [
        direction("rx", "delivered", &counters.rx),
        "; ".to_owned(),
        direction("tx", "sent", &counters.tx),
        lost(counters.socket_overflows, "messages found the socket's buffer full or were a flood"),
        lost(counters.ring_overflows, "packets found the device's ring full"),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataplane_core::DropReason;

    #[test]
    fn the_last_line_accounts_for_every_packet() {
        let mut counters = Counters::default();
        counters.rx.take(10, 1000);
        counters.rx.pass(7, 700);
        counters.rx.drop(DropReason::UnknownPeer, 3);
        counters.tx.take(2, 200);
        counters.tx.pass(2, 200);
        assert_eq!(
            sums(&counters),
            "rx 10 packets, delivered 7 (700 bytes), unknown_peer 3; tx 2 packets, sent 2 (200 bytes)"
        );
        counters.socket_overflows = 5;
        counters.ring_overflows = 6;
        assert!(sums(&counters).ends_with(
            "sent 2 (200 bytes); 5 messages found the socket's buffer full or were a flood; 6 packets found the device's ring full"
        ));
    }
}
