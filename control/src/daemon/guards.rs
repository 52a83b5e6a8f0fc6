//! The guards of this node: one for each device of kernel VXLAN, none for any other backend or where they are off.
//!
//! A peer is let in before anything leads to it, and kept out after nothing does: [`Guards::admit_more`] before the host is
//! put in shape, [`Guards::admit`] after.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use dataplane_core::{Encap, Family, Vni};
use tokio::time::Instant;

use crate::backend::Backend;
use crate::choose::Method;
use crate::guard::Guard;
use crate::plan::{Peers, Plan};

/// How often the tables are read back, at the next pass over the host: those are made every four seconds at least.
const LOOK: Duration = Duration::from_secs(3);

/// In the order of the backend's tunnels, or empty.
#[derive(Debug)]
pub(super) struct Guards {
    guards: Vec<Guard>,
    looked: Instant,
}

impl Guards {
    /// Those that the backend needs. Nothing is there before peers are let in, but guards of earlier runs that this one
    /// does not need go.
    pub(super) async fn of(backend: &Backend, on: bool) -> Self {
        let needed: Vec<(u16, Vni, Family)> = match backend.method() {
            Method::KernelVxlan if on => backend
                .tunnels()
                .iter()
                .filter_map(|tunnel| match tunnel.encap {
                    Encap::Vxlan { vni } => Some((tunnel.bind.port(), vni, tunnel.family)),
                    Encap::Raw => None,
                })
                .collect(),
            _ => Vec::new(),
        };
        let kept: Vec<(Vni, Family)> = needed.iter().map(|(_, vni, family)| (*vni, *family)).collect();
        match Guard::sweep(&kept).await {
            Ok(0) => {}
            Ok(gone) => tracing::info!(tables = gone, "took away guards of an earlier run"),
            Err(error) => tracing::warn!(%error, "cannot take away guards that an earlier run may have left"),
        }
        let guards = needed.into_iter().map(|(port, vni, family)| Guard::new(port, vni, family)).collect();
        Self { guards, looked: Instant::now() }
    }

    /// Who the plan has as peers gets packets in, beside those that do already.
    pub(super) async fn admit_more(&mut self, plan: &Plan) {
        for (guard, peers) in self.guards.iter_mut().zip(&plan.peers) {
            guard.admit_more(&addresses(peers)).await;
        }
    }

    /// Who the plan has as peers gets packets in, and nobody else. Now and then reads back what is there.
    pub(super) async fn admit(&mut self, plan: &Plan) {
        let look = self.looked.elapsed() >= LOOK;
        for (guard, peers) in self.guards.iter_mut().zip(&plan.peers) {
            guard.admit(&addresses(peers)).await;
            if look {
                guard.keep().await;
            }
        }
        if look {
            self.looked = Instant::now();
        }
    }

    /// Packets of strangers that were dropped, as of the last look; `None` where there is no guard.
    pub(super) fn drops(&self) -> Option<u64> {
        self.guards.iter().filter_map(Guard::seen_drops).reduce(u64::wrapping_add)
    }

    /// Why strangers are not kept out though they should be.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.guards.iter().find_map(Guard::trouble)
    }
}

fn addresses(peers: &Peers) -> BTreeSet<IpAddr> {
    peers.peers.iter().map(|peer| peer.endpoint.ip()).collect()
}
