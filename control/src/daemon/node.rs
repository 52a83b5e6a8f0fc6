//! The running node: its lease, the leases of the others, its engines, and the host it keeps in shape.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use dataplane::EngineEvent;
use dataplane_core::{Counters, Family};
use hostnet::change::Change;
use hostnet::kernel::{Kernel, LinkSettings, Watch};
use hostnet::reconcile::{Outcome, converge, step};
use hostnet::state::HostState;
use hostnet::subnet_env::SubnetEnv;
use hostnet::sysctl;
use tokio::time::Instant;

use super::carrier::{self, Carrier, State};
use super::earlier;
use super::guards::Guards;
use super::rules::Rules;
use crate::backend::Backend;
use crate::choose::Choice;
use crate::lease::{Lease, LeaseChange, LeaseSet, LeaseUpdate, Subnet};
use crate::network::NetworkConfig;
use crate::plan::{Plan, Refusal};
use crate::settings::Settings;
use crate::underlay::Underlay;

mod status;
mod underlay;

use status::Tally;

/// The TUN ring holds this many packets of up to 64 KiB. The kernel's 500 overflow in a burst without a trace; far more
/// would only be delay.
const TX_QUEUE_LEN: u32 = 1000;

/// How long notifications are gathered before the host is looked at: what is changed by hand comes in bursts, and so do
/// the notifications of our own changes.
const GATHER: Duration = Duration::from_millis(20);
/// The same where a look is slow, because there is much to look at.
const LONGEST_GATHER: Duration = Duration::from_secs(1);

/// A running node.
pub struct Node {
    settings: Settings,
    network: NetworkConfig,
    kernel: Kernel,
    /// `None` when the kernel's notifications ended; the tick remains.
    watch: Option<Watch>,
    /// When the kernel told of a change that has not been looked at.
    noticed: Option<Instant>,
    /// How long the last look at the whole host took.
    last_look: Duration,
    underlay: Underlay,
    choice: Choice,
    backend: Backend,
    own: Lease,
    leases: LeaseSet,
    carriers: Vec<Carrier>,
    refused: BTreeMap<Subnet, Refusal>,
    /// Why a device of the kernel could not be made at the last look.
    device_trouble: Option<String>,
    /// The last trouble with the host that was said.
    trouble: Option<String>,
    /// The leases changed since the host was last put in shape, so differences are expected.
    changed: bool,
    /// What the host is like as far as is known; `None` where a look has to tell.
    known: Option<HostState>,
    env_trouble: Option<String>,
    env_is_written: bool,
    /// Packet filter rules; `None` before they were put in place for the first time.
    rules: Option<Rules>,
    /// Who gets packets in by kernel VXLAN; `None` before the first time.
    guards: Option<Guards>,
    /// Why an engine that ended cannot be opened again, which has been said.
    engine_trouble: Option<String>,
    tally: Tally,
}

impl Node {
    pub(super) fn new(
        (settings, network): (Settings, NetworkConfig),
        (kernel, watch): (Kernel, Watch),
        underlay: Underlay,
        (choice, backend): (Choice, Backend),
        own: Lease,
        leases: LeaseSet,
        carriers: Vec<Carrier>,
    ) -> Self {
        Self {
            settings,
            network,
            kernel,
            watch: Some(watch),
            noticed: None,
            last_look: Duration::ZERO,
            underlay,
            choice,
            backend,
            own,
            leases,
            carriers,
            refused: BTreeMap::new(),
            device_trouble: None,
            trouble: None,
            changed: true,
            known: None,
            env_trouble: None,
            env_is_written: false,
            rules: None,
            guards: None,
            engine_trouble: None,
            tally: Tally::default(),
        }
    }

    /// The first time: devices get their addresses and routes, then the engines run, then subnet.env says so. What an
    /// earlier run left, of this backend or another, goes when everything new is there.
    pub(super) async fn bring_up(&mut self) -> anyhow::Result<()> {
        self.reopen_engines().await?;
        self.prepare_devices().await?;
        let plan = self.plan();
        for device in &plan.devices {
            carrier::ensure(&self.kernel, device).await?;
        }
        // Before routes: an answer that a new route brings is let in.
        self.guards.insert(Guards::of(&self.backend, self.settings.guard).await).admit_more(&plan).await;
        // flannel's host-gw routes bear no mark. While this daemon runs, others may make routes of their form.
        let mut scope = Plan::scope(&self.backend);
        scope.gateway_routes = true;
        let outcome = converge(&self.kernel, &scope, &plan.host).await;
        let fatal = |change: &Change| matches!(change, Change::SetLink(_) | Change::AddAddress(_));
        if let Some((change, error)) = outcome.failed.iter().find(|(change, _)| fatal(change)) {
            bail!("cannot set up the overlay's device: {change}: {error}");
        }
        if let Some(error) = outcome.unread {
            return Err(error.into());
        }
        self.provide_peers(&plan)?;
        self.report(&outcome);
        self.tally.note(&outcome, true);
        self.tally_peers();
        if let Err(error) = earlier::remove(&self.kernel, &self.backend).await {
            tracing::warn!(%error, "cannot remove what an earlier run left");
        }
        // Before subnet.env: pods that come find their packets masqueraded.
        self.rules = Some(Rules::start(self.settings.rules, &self.network, &self.own.subnet).await);
        self.write_subnet_env();
        Ok(())
    }

    /// What keeps packet filter rules from being in place.
    pub fn rules_trouble(&self) -> Option<String> {
        self.rules.as_ref().and_then(Rules::trouble)
    }

    /// Packets of nodes without a lease that were kept out of kernel VXLAN; `None` where nothing keeps them out.
    pub fn guard_drops(&self) -> Option<u64> {
        self.guards.as_ref().and_then(Guards::drops)
    }

    /// Why nodes without a lease are not kept out of kernel VXLAN though they should be.
    pub fn guard_trouble(&self) -> Option<&str> {
        self.guards.as_ref().and_then(Guards::trouble)
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

    /// Puts the host in shape; what cannot be done is said once and tried again at the next call. A change of the leases
    /// is made at once, as the difference to what is known; the kernel tells of it, and the look that follows finds
    /// whatever was not as known.
    pub(super) async fn reconcile(&mut self) -> anyhow::Result<()> {
        self.reopen_engines().await?;
        let plan = self.plan();
        // Peers before routes: a packet that a new route brings finds its peer.
        self.inform_running(&plan)?;
        if let Some(guards) = &mut self.guards {
            guards.admit_more(&plan).await;
        }
        let known = self.known.take();
        let outcome = match known {
            Some(known) if self.changed => {
                let outcome = step(&self.kernel, &known, &plan.host).await;
                if !outcome.is_settled() {
                    self.noticed.get_or_insert_with(Instant::now);
                }
                outcome
            }
            _ => self.look(&plan).await,
        };
        if outcome.unread.is_none() {
            self.provide_peers(&plan)?;
        }
        if let Some(guards) = &mut self.guards {
            guards.admit(&plan).await;
        }
        self.report(&outcome);
        self.tally.note(&outcome, self.changed);
        self.tally_peers();
        self.changed = false;
        self.known = (outcome.is_settled() && self.device_trouble.is_none()).then_some(plan.host);
        if let Some(rules) = &self.rules {
            rules.follow(&self.own.subnet);
        }
        self.write_subnet_env();
        Ok(())
    }

    /// Looks at the whole host, and makes it what the plan says.
    async fn look(&mut self, plan: &Plan) -> Outcome {
        let begin = Instant::now();
        self.noticed = None;
        let mut device_trouble = None;
        for device in &plan.devices {
            match carrier::ensure(&self.kernel, device).await {
                Ok(made) => self.changed |= made,
                Err(error) => device_trouble = Some(format!("{error:#}")),
            }
        }
        self.device_trouble = device_trouble;
        let outcome = converge(&self.kernel, &Plan::scope(&self.backend), &plan.host).await;
        self.last_look = begin.elapsed();
        outcome
    }

    /// Waits until the kernel tells that something about our devices or the underlay's changed, and a moment longer: a
    /// look costs what there is on the host, and must not be all that this process does. May be dropped while it waits.
    pub(super) async fn host_changed(&mut self) {
        loop {
            if let Some(noticed) = self.noticed {
                tokio::time::sleep_until(noticed + (self.last_look * 4).clamp(GATHER, LONGEST_GATHER)).await;
                return;
            }
            let Some(watch) = &mut self.watch else { return std::future::pending().await };
            match watch.next().await {
                Some(mut noticed) => {
                    // The underlay's neighbours come and go all the time, and are nobody's business here.
                    noticed.neighbours.remove(&self.underlay.device);
                    if !noticed.is_empty() {
                        tracing::debug!(?noticed, "the kernel told of changes");
                        self.noticed = Some(Instant::now());
                    }
                }
                None => {
                    tracing::warn!("the kernel's notifications ended; looking at intervals");
                    self.watch = None;
                }
            }
        }
    }

    fn plan(&mut self) -> Plan {
        let mut plan = self.backend.plan(&self.own, &self.leases);
        if self.settings.blackhole {
            plan.drop_strays(&self.own);
        }
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
        // What follows from a device that cannot be made says less than why it cannot.
        let of_outcome = || (!outcome.is_settled()).then(|| outcome.to_string());
        let trouble = self.device_trouble.clone().or_else(of_outcome);
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
            networks: self.backend.networks().collect(),
            subnets: self.own.subnet.nets().collect(),
            mtu: self.backend.mtu().into(),
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
        let devices: Vec<&str> = self.backend.tunnels().iter().map(|tunnel| tunnel.device.as_str()).collect();
        tracing::info!(
            subnet = %self.own.subnet,
            backend = %self.backend.method(),
            device = (!devices.is_empty()).then(|| devices.join(" and ")),
            mtu = self.backend.mtu(),
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
            match carrier.reopen(&self.settings, &self.kernel, &self.backend).await {
                Ok(true) => {
                    opened = true;
                    tracing::info!(device = carrier.tunnel.device, "made the device");
                }
                Ok(false) => {}
                Err(error) => trouble = Some(format!("{error:#}")),
            }
        }
        if let Some(why) = &trouble
            && self.engine_trouble != trouble
        {
            tracing::warn!(%why, "pods' packets are not carried, trying again");
        }
        self.engine_trouble = trouble;
        if opened {
            self.changed = true;
            self.known = None;
            self.prepare_devices().await?;
        }
        Ok(())
    }

    /// What carries the packets, and why.
    pub fn choice(&self) -> &Choice {
        &self.choice
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
