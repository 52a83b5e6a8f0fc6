//! A server with a history, a network that loses, doubles and reorders, and the machine between them: whatever happens,
//! the leases that were told are those of the nodes that are there.
//!
//! `KUBE_MODEL=1000x10000` sets seeds and events a seed.

use std::collections::BTreeMap;

use super::*;
use crate::lease::{Lease, Subnet};
use crate::store::kube::testing::{Draft, families, keys, node};

/// Names of nodes, so that they are deleted and made again often.
const NAMES: u32 = 12;
/// podCIDRs, fewer than names: nodes want the same ones.
const CIDRS: u32 = 14;
/// Nodes a page.
const SMALL_PAGE: usize = 5;

#[derive(Clone)]
enum Past {
    Put(Draft),
    Gone(Draft),
}

/// The API server: objects, and what happened to them since the last compaction.
struct Server {
    nodes: BTreeMap<String, Draft>,
    history: Vec<(u64, Past)>,
    compacted: u64,
    version: u64,
    /// Lists of which a page was given, by version: further pages come from them.
    lists: BTreeMap<u64, BTreeMap<String, Draft>>,
    random: fastrand::Rng,
}

impl Server {
    fn draw(&mut self, name: &str) -> Draft {
        let cidr = self.random.u32(0..CIDRS);
        // The last two hold several of the others.
        let cidr = match cidr {
            12 => "10.244.0.0/22".to_owned(),
            13 => "10.244.4.0/23".to_owned(),
            third => format!("10.244.{third}.0/24"),
        };
        node(name, self.random.u64(0..50), self.version).uid(&format!("{name}-{}", self.version)).cidr(&cidr)
    }

    fn change(&mut self) {
        self.version += self.random.u64(1..4);
        let name = format!("n{}", self.random.u32(0..NAMES));
        let known = self.nodes.get(&name).cloned();
        let past = match (known, self.random.u32(0..10)) {
            (Some(node), 0..=1) => {
                self.nodes.remove(&name);
                Past::Gone(node.version(self.version))
            }
            (Some(node), 2) => Past::Put(node.unmanaged().version(self.version)),
            (Some(node), 3) => Past::Put(node.address("not an address").version(self.version)),
            (Some(node), 4) => Past::Put(node.version(self.version)),
            (Some(node), _) => {
                let address = format!("192.0.2.{}", self.random.u32(1..250));
                Past::Put(node.address(&address).version(self.version))
            }
            (None, _) => Past::Put(self.draw(&name)),
        };
        if let Past::Put(node) = &past {
            self.nodes.insert(name, node.clone());
        }
        self.history.push((self.version, past));
        if self.version > 40_000 && self.random.u32(0..400) == 0 {
            // Restored from a backup: an older version, and other objects.
            self.version -= 20_000;
            self.compacted = self.version;
            self.history.clear();
            self.lists.clear();
            let kept: Vec<String> = self.nodes.keys().step_by(2).cloned().collect();
            self.nodes.retain(|name, _| kept.contains(name));
            for node in self.nodes.values_mut() {
                *node = node.clone().version(self.version);
            }
        }
        if self.random.u32(0..200) == 0 {
            self.compacted = self.version;
            self.history.clear();
            self.lists.clear();
        }
    }
}

/// What the daemon knows.
#[derive(Default)]
struct Known {
    leases: BTreeMap<Subnet, Lease>,
    snapshots: usize,
    changes: usize,
}

impl Known {
    fn take(&mut self, update: LeaseUpdate) {
        match update {
            LeaseUpdate::Snapshot(all) | LeaseUpdate::Rewound(all) => {
                self.leases = all.into_iter().map(|lease| (lease.subnet, lease)).collect();
                self.snapshots += 1;
            }
            LeaseUpdate::Upsert(lease) => {
                self.leases.insert(lease.subnet, lease);
                self.changes += 1;
            }
            LeaseUpdate::Remove(subnet) => {
                assert!(self.leases.remove(&subnet).is_some(), "{subnet} goes and was not there");
                self.changes += 1;
            }
        }
        let nets: Vec<_> = self.leases.keys().flat_map(Subnet::nets).collect();
        for (n, one) in nets.iter().enumerate() {
            for other in &nets[n + 1..] {
                assert!(!crate::lease::overlap(one, other), "{one} and {other} at once");
            }
        }
    }
}

/// One seed: `events` changes under faults, then quiet, then the comparison. Returns how many changes and how many lists
/// were told.
fn run(seed: u64, events: usize) -> (usize, usize) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut server = Server {
        nodes: BTreeMap::new(),
        history: Vec::new(),
        compacted: 0,
        version: 50_000,
        lists: BTreeMap::new(),
        random: random.fork(),
    };
    let mut follow = Follow::new(Table::new(keys(), families()), random.fork());
    let mut known = Known::default();
    let mut changes = 0;
    while changes < events {
        let burst = random.usize(0..30);
        (0..burst).for_each(|_| server.change());
        changes += burst;
        question(&mut follow, &mut server, &mut known, &mut random, true);
    }
    // Nobody says nonsense any more, nothing is lost any more: a few questions later all is known.
    let names: Vec<String> = server.nodes.keys().cloned().collect();
    for name in names {
        server.version += 1;
        let node = server.nodes[&name].clone().address("198.51.100.1").version(server.version);
        server.history.push((server.version, Past::Put(node.clone())));
        server.nodes.insert(name, node);
    }
    (0..40).for_each(|_| question(&mut follow, &mut server, &mut known, &mut random, false));

    let drafts: Vec<NodeObject> = server.nodes.values().map(Draft::build).collect();
    let mut fold = Table::new(keys(), families());
    let seen = drafts.iter().map(|node| fold.look_at(node)).collect();
    let LeaseUpdate::Snapshot(expected) = fold.replace(seen) else { panic!("a replacement is a snapshot") };
    let told: Vec<Lease> = known.leases.into_values().collect();
    assert_eq!(told, expected, "seed {seed}");
    (known.changes, known.snapshots)
}

/// Asks once, and lets the answer come whole or not.
fn question(
    follow: &mut Follow,
    server: &mut Server,
    known: &mut Known,
    random: &mut fastrand::Rng,
    faults: bool,
) {
    let silent = || Failure::Silent("reset".to_owned());
    let status =
        |code| Failure::Status { code, message: String::new(), retry_after: None, version_unknown: false };
    let (_, ask) = follow.ask();
    if faults && random.u32(0..8) == 0 {
        let failure = random.choice([silent(), status(500), status(410), status(429)]).expect("not empty");
        follow.failed(&failure);
        return;
    }
    match ask {
        Ask::List { after, .. } => {
            // The token is the version of the list and the last name, as the API server's is.
            let (version, last) = match after.as_deref().and_then(|after| after.split_once(' ')) {
                Some((version, last)) => (version.parse().expect("ours"), last.to_owned()),
                None => (server.version, String::new()),
            };
            if after.is_none() {
                server.lists.insert(version, server.nodes.clone());
            }
            let Some(list) = server.lists.get(&version) else {
                follow.failed(&status(410));
                return;
            };
            let nodes: Vec<Draft> =
                list.iter().filter(|(name, _)| **name > last).map(|(_, node)| node.clone()).collect();
            let page: Vec<NodeObject> = nodes.iter().take(SMALL_PAGE).map(Draft::build).collect();
            let next = (nodes.len() > SMALL_PAGE)
                .then(|| format!("{version} {}", page.last().expect("a page").metadata.name));
            let page = Page { nodes: page, version: version.to_string(), next, remaining: None };
            if let Some(update) = follow.listed(page) {
                known.take(update);
            }
        }
        Ask::Watch { from, .. } => {
            let from: u64 = from.parse().expect("ours");
            if from < server.compacted {
                match random.bool() {
                    true => follow.failed(&status(410)),
                    false => follow.event(Event::Error(status(410))).into_iter().for_each(|u| known.take(u)),
                }
                return;
            }
            let mut events: Vec<Event> = server
                .history
                .iter()
                .filter(|(at, _)| *at > from)
                .map(|(_, past)| match past {
                    Past::Put(node) => Event::Put(node.build()),
                    Past::Gone(node) => Event::Gone(node.build()),
                })
                .collect();
            let mut cut = events.len();
            if faults {
                disturb(&mut events, random);
                cut = if random.bool() { events.len() } else { random.usize(0..=events.len()) };
                // A connection that breaks between two events that changed places would lose one for good, and no real
                // server does both.
                if cut < events.len() {
                    events.sort_by_key(version_of);
                }
            }
            for event in events.drain(..cut) {
                follow.event(event).into_iter().for_each(|update| known.take(update));
            }
            match random.u32(0..3) {
                0 if faults => follow.failed(&silent()),
                1 => {
                    let at = if cut == 0 { from } else { from.max(1) };
                    follow.event(Event::Bookmark(at.to_string()));
                }
                _ => follow.ended(Duration::from_secs(10)),
            }
        }
    }
}

/// Doubles some events and lets neighbours change places.
fn disturb(events: &mut Vec<Event>, random: &mut fastrand::Rng) {
    for n in (0..events.len()).rev() {
        if random.u32(0..10) == 0 {
            let double = events[n].clone();
            events.insert(n, double);
        }
    }
    for n in 1..events.len() {
        if random.u32(0..10) == 0 {
            events.swap(n - 1, n);
        }
    }
}

fn version_of(event: &Event) -> u64 {
    match event {
        Event::Put(node) | Event::Gone(node) => node.metadata.resource_version.parse().unwrap_or(0),
        Event::Bookmark(_) | Event::Error(_) => 0,
    }
}

#[test]
fn what_is_told_in_the_end_is_what_is_there() {
    let size = std::env::var("KUBE_MODEL").unwrap_or_else(|_| "200x2000".to_owned());
    let (seeds, events) = size.split_once('x').expect("KUBE_MODEL=SEEDSxEVENTS");
    let (seeds, events): (u64, usize) = (seeds.parse().unwrap(), events.parse().unwrap());
    let (mut changes, mut snapshots) = (0, 0);
    for seed in 0..seeds {
        let told = run(seed, events);
        changes += told.0;
        snapshots += told.1;
    }
    // Most changes are told one by one, some by a list: both ways are gone.
    let all = events * usize::try_from(seeds).expect("a number of seeds");
    assert!(changes > all / 10 && snapshots > all / 500, "{changes} changes and {snapshots} lists of {all}");
}
