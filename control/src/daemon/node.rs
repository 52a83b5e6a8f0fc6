//! The running node: its lease, the leases of the others, its engines, and the host it keeps in shape.
//!
//! What it is and what it tells is here; what it does is in its parts.

use std::collections::BTreeMap;
use std::time::Duration;

use hostnet::kernel::{Kernel, Watch};
use hostnet::regular_file::{self, Links};
use hostnet::state::HostState;
use hostnet::subnet_env::SubnetEnv;
use tokio::time::Instant;

use super::carrier::Carrier;
use super::guards::Guards;
use super::rules::Rules;
use crate::backend::Backend;
use crate::choose::Choice;
use crate::lease::{Lease, LeaseChange, LeaseSet, LeaseUpdate, Subnet};
use crate::network::NetworkConfig;
use crate::plan::{Plan, Refusal};
use crate::settings::Settings;
use crate::underlay::Underlay;

mod engines;
mod host;
mod status;
mod underlay;

use status::Tally;

/// What is read back of subnet.env.
const LONGEST_ENV: u64 = 64 * 1024;

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

    /// Writes subnet.env until it is written; a full disk or a missing directory is said once.
    fn write_subnet_env(&mut self) {
        let env = SubnetEnv {
            networks: self.backend.networks().collect(),
            subnets: self.own.subnet.nets().collect(),
            mtu: self.backend.mtu().into(),
            ip_masq: self.settings.rules.masquerade,
        };
        // Whoever overwrites it takes the network from the pods that come next.
        let found = regular_file::read(&self.settings.subnet_file, LONGEST_ENV, Links::Follow);
        if self.env_is_written && found.is_ok_and(|text| text == env.to_string().as_bytes()) {
            return;
        }
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
            peers = self.leases.len() - self.refused.len(),
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

    /// What carries the packets, and why.
    pub fn choice(&self) -> &Choice {
        &self.choice
    }
}
