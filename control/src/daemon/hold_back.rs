//! Holding back a sudden loss: when most nodes vanish from the store at once, they are kept for a while. Pure.
//!
//! A store that was wiped, restored from an old copy, mounted wrong or emptied by a script tells exactly what a cluster
//! tells whose nodes all left. The first happens; the second hardly ever, and waiting costs it nothing but routes to
//! nobody. So what is new or changed applies at once, and only what is gone waits.
//!
//! ```text
//!  store ──► real ──────────────┐
//!              └─ gone at once ─► held, until its time ──► in force = real + held
//! ```

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::lease::{Lease, LeaseUpdate, Subnet, overlap};

/// Removals closer to each other than this are one loss: a store that is wiped key by key tells one after the other.
const WINDOW: Duration = Duration::from_secs(10);
/// Of fewer nodes than this, more than half is one or two, and one or two leave every day.
const FEW: usize = 4;
/// All of them at once is nobody's day, unless all is one.
const FEW_OF_ALL: usize = 2;

/// Between the store's leases and the node.
#[derive(Debug, Clone)]
pub(super) struct HoldBack {
    own: Subnet,
    /// How long; zero for not at all.
    hold: Duration,
    /// What the store says, without our own lease.
    real: BTreeMap<Subnet, Lease>,
    /// What the store took away and is still in force.
    held: BTreeMap<Subnet, Held>,
    /// What was let go within the window, the oldest first.
    recent: VecDeque<(Instant, Lease)>,
}

#[derive(Debug, Clone)]
struct Held {
    lease: Lease,
    until: Instant,
}

/// What to do about an update, and what to say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// What the node is told in its place.
    pub(super) updates: Vec<LeaseUpdate>,
    /// A loss began to be held back.
    pub(super) loss: Option<Loss>,
    /// So many that were held back are there again.
    pub(super) back: usize,
}

/// So many of so many nodes are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Loss {
    /// How many.
    pub(super) missing: usize,
    /// Of how many.
    pub(super) known: usize,
}

impl HoldBack {
    /// For the node that has `own`; `known` are the leases that are in force at the begin.
    pub(super) fn new(own: Subnet, hold: Duration, known: impl IntoIterator<Item = Lease>) -> Self {
        let real = known
            .into_iter()
            .filter(|lease| lease.subnet != own)
            .map(|lease| (lease.subnet, lease))
            .collect();
        Self { own, hold, real, held: BTreeMap::new(), recent: VecDeque::new() }
    }

    /// How many leases are held back.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// Takes what the store tells.
    pub(super) fn take(&mut self, update: LeaseUpdate, now: Instant) -> Taken {
        self.recent.retain(|(at, _)| now.saturating_duration_since(*at) < WINDOW);
        let whole = update.all().is_some();
        // A list without anybody, this node too, is a store without its data, however few there were.
        let is_bare = update.all().is_some_and(<[Lease]>::is_empty);
        let is_rewound = matches!(update, LeaseUpdate::Rewound(_));
        let mut updates = Vec::new();
        if let LeaseUpdate::Upsert(lease) = &update {
            updates.push(LeaseUpdate::Upsert(lease.clone()));
        }
        let mut gone = self.absorb(update);
        let (back, mut replaced) = self.settle(&mut gone);

        let mut loss = None;
        let missing = self.held.len() + self.recent.len() + gone.len();
        let known = self.real.len() + missing;
        let all = self.real.is_empty() && (known >= FEW_OF_ALL || is_bare);
        let most = known >= FEW && missing * 2 > known;
        if !gone.is_empty() && !self.hold.is_zero() && (all || most || is_rewound) {
            if self.held.is_empty() {
                loss = Some(Loss { missing, known });
            }
            let until = now + self.hold;
            // What went a moment ago was the begin of it.
            for (_, lease) in self.recent.drain(..) {
                updates.push(LeaseUpdate::Upsert(lease.clone()));
                self.held.insert(lease.subnet, Held { lease, until });
            }
            self.held.extend(gone.into_iter().map(|lease| (lease.subnet, Held { lease, until })));
        } else {
            replaced.extend(gone.iter().map(|lease| lease.subnet));
            self.recent.extend(gone.into_iter().map(|lease| (now, lease)));
        }
        if whole {
            updates = vec![LeaseUpdate::Snapshot(self.in_force())];
        } else {
            updates.extend(replaced.into_iter().map(LeaseUpdate::Remove));
        }
        Taken { updates, loss, back }
    }

    /// Lets go what had its time.
    pub(super) fn release(&mut self, now: Instant) -> Vec<LeaseUpdate> {
        let over = self.held.extract_if(.., |_, held| held.until <= now);
        over.map(|(subnet, _)| LeaseUpdate::Remove(subnet)).collect()
    }

    /// What is in force: what the store says and what is held back.
    pub(super) fn in_force(&self) -> Vec<Lease> {
        self.real.values().chain(self.held.values().map(|held| &held.lease)).cloned().collect()
    }

    /// The store's word becomes `real`; answers what is gone by it.
    fn absorb(&mut self, update: LeaseUpdate) -> Vec<Lease> {
        match update {
            LeaseUpdate::Snapshot(all) | LeaseUpdate::Rewound(all) => {
                let next = all
                    .into_iter()
                    .filter(|lease| lease.subnet != self.own)
                    .map(|lease| (lease.subnet, lease))
                    .collect();
                let before = std::mem::replace(&mut self.real, next);
                before.into_values().filter(|lease| !self.real.contains_key(&lease.subnet)).collect()
            }
            LeaseUpdate::Upsert(lease) => {
                if lease.subnet != self.own {
                    self.real.insert(lease.subnet, lease);
                }
                Vec::new()
            }
            LeaseUpdate::Remove(subnet) => self.real.remove(&subnet).into_iter().collect(),
        }
    }

    /// What the store has an answer for is not missing: it is there again, or somebody else has its addresses, or its
    /// node has other ones. Answers how many held ones are there again, and the subnets of the last two kinds.
    fn settle(&mut self, gone: &mut Vec<Lease>) -> (usize, Vec<Subnet>) {
        if self.held.is_empty() && self.recent.is_empty() && gone.is_empty() {
            return (0, Vec::new());
        }
        let real = &self.real;
        let owners: HashSet<IpAddr> = real.values().filter_map(|lease| lease.attrs.owner()).collect();
        let answered = |lease: &Lease| {
            lease.attrs.owner().is_some_and(|owner| owners.contains(&owner))
                || lease
                    .subnet
                    .nets()
                    .any(|ours| real.keys().any(|other| other.nets().any(|theirs| overlap(&ours, &theirs))))
        };
        self.recent.retain(|(_, lease)| !real.contains_key(&lease.subnet) && !answered(lease));
        let back = self.held.extract_if(.., |subnet, _| real.contains_key(subnet)).count();
        let mut replaced: Vec<Subnet> =
            self.held.extract_if(.., |_, held| answered(&held.lease)).map(|(subnet, _)| subnet).collect();
        replaced.extend(gone.extract_if(.., |lease| answered(lease)).map(|lease| lease.subnet));
        (back, replaced)
    }
}

#[cfg(test)]
mod tests;
