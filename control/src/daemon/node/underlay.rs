//! The node on another underlay: what it publishes, binds and writes follows the interface.

use dataplane_core::MacAddr;
use hostnet::kernel::{Kernel, Watch};

use super::super::carrier::State;
use super::Node;
use super::engines::sums;
use crate::backend::Backend;
use crate::lease::{Lease, LeaseAttrs};
use crate::network::NetworkConfig;
use crate::underlay::Underlay;

impl Node {
    /// Moves the node to `underlay`, and answers what its lease should say there. Engines whose address or MTU differs end
    /// here, and the next look at the host opens them again: so the caller reconciles. What cannot be there - an MTU that
    /// leaves nothing for pods - is an error, and the node stays as it was.
    pub(in crate::daemon) async fn adopt(&mut self, underlay: Underlay) -> anyhow::Result<LeaseAttrs> {
        let mac = |family| {
            let tunnel = self.backend.tunnels().iter().find(|tunnel| tunnel.family == family);
            tunnel.map_or_else(MacAddr::default, |tunnel| tunnel.mac)
        };
        let backend = Backend::new(&self.network, self.choice.method, &underlay, mac)?;
        let names = backend.tunnels().iter().map(|tunnel| tunnel.device.clone());
        // Before anything changes: what happens to the new interface from here on is noticed.
        let watch = Watch::open(names.chain([underlay.device.clone()])).await?;
        for carrier in &mut self.carriers {
            let Some(tunnel) = backend.tunnels().iter().find(|tunnel| tunnel.device == carrier.tunnel.device)
            else {
                continue;
            };
            if (tunnel.bind, tunnel.mtu) != (carrier.tunnel.bind, carrier.tunnel.mtu) {
                carrier.published = None;
                // One that is open and waits for its device, or has ended, is opened again in any case.
                if let State::Running(handle) = std::mem::replace(&mut carrier.engine, State::Ended) {
                    match handle.stop() {
                        Ok(counters) => {
                            tracing::info!(device = tunnel.device, "stopped to move: {}", sums(&counters));
                        }
                        Err(error) => tracing::warn!(device = tunnel.device, %error, "stopped to move"),
                    }
                }
            }
            carrier.tunnel = tunnel.clone();
        }
        let (before, after) = (self.backend.mtu(), backend.mtu());
        if before != after {
            // The kernel tells them nothing: a pod's own device has the MTU it was made with.
            tracing::warn!(
                before,
                after,
                "the MTU for pods changed: new ones get it from subnet.env, running ones keep theirs until they are made again"
            );
            self.env_is_written = false;
        }
        self.watch = Some(watch);
        self.underlay = underlay;
        self.backend = backend;
        self.own.attrs = self.backend.attrs();
        self.changed = true;
        self.known = None;
        Ok(self.own.attrs.clone())
    }

    /// Where the node is.
    pub(in crate::daemon) fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    /// The kernel of this node's network.
    pub(in crate::daemon) fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The network's configuration.
    pub(in crate::daemon) fn network(&self) -> &NetworkConfig {
        &self.network
    }

    /// This node's lease: its subnet and what it should say.
    pub(in crate::daemon) fn own(&self) -> &Lease {
        &self.own
    }

    /// The other nodes' leases that are in force.
    pub(in crate::daemon) fn peers(&self) -> impl Iterator<Item = &Lease> {
        self.leases.peers()
    }

    /// Pods can get a network: subnet.env is written.
    pub(in crate::daemon) fn is_provided(&self) -> bool {
        self.env_is_written
    }
}
