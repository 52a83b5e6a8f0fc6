//! Keeps flannel's packet filter rules in place, beside the daemon's loop: a lock that somebody holds delays no route.
//!
//! Everything is a comparison of what should be with what is, made at the start and then at intervals. What fails is said
//! once with what to do, is part of readiness ([`Rules::trouble`]), and is tried again. Nothing is taken away at the end,
//! as with flannel: pods go on while the daemon is replaced.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dataplane_core::IpNet;
use hostnet::filter::iptables::{Iptables, KeptChain};
use hostnet::filter::nft::{self, KeptTable};
use hostnet::filter::{IpVersion, ProgramError};
use hostnet::sysctl;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::lease::Subnet;
use crate::masquerade::{PodRules, every_chain, fully_random_probe, table_name, version};
use crate::network::NetworkConfig;
use crate::settings::RuleSettings;

/// The rules of this node, kept by a task that ends with this value.
#[derive(Debug)]
pub(super) struct Rules {
    settings: RuleSettings,
    networks: Vec<IpNet>,
    wanted: watch::Sender<Vec<PodRules>>,
    trouble: Arc<Mutex<Option<String>>>,
    task: JoinHandle<()>,
}

impl Rules {
    /// Puts the rules in place for the first time, then keeps them. Whatever fails does not stop the start.
    pub(super) async fn start(settings: RuleSettings, network: &NetworkConfig, own: &Subnet) -> Self {
        let networks: Vec<IpNet> = network.pools().map(|pool| pool.network()).collect();
        for doubt in doubts(&settings, network.nftables, &networks, |name| sysctl::read(name).ok()) {
            tracing::warn!("{doubt}");
        }
        let (wanted, changes) = watch::channel(pod_rules(&settings, &networks, own));
        let trouble = Arc::new(Mutex::new(None));
        let mut keeper = Keeper::new(network.nftables, settings.fully_random, Arc::clone(&trouble));
        keeper.want(&wanted.borrow());
        keeper.keep().await;
        let task = tokio::spawn(keep_on(keeper, changes, settings.resync));
        Self { settings, networks, wanted, trouble, task }
    }

    /// The node's own subnet is another one: the rules follow at once.
    pub(super) fn follow(&self, own: &Subnet) {
        let rules = pod_rules(&self.settings, &self.networks, own);
        self.wanted.send_if_modified(|wanted| {
            let changes = *wanted != rules;
            *wanted = rules;
            changes
        });
    }

    /// What keeps rules from being in place, with what to do about it; `None`: all are.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep_on(mut keeper: Keeper, mut changes: watch::Receiver<Vec<PodRules>>, resync: Duration) {
    let mut tick = interval(resync.max(Duration::from_secs(1)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick of an interval comes at once, and the first look was at the start.
    tick.tick().await;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                keeper.want(&changes.borrow_and_update());
            }
        }
        keeper.keep().await;
    }
}

/// The rules of each family that has both a network and a subnet.
fn pod_rules(settings: &RuleSettings, networks: &[IpNet], own: &Subnet) -> Vec<PodRules> {
    let subnet_of = |network: &IpNet| own.nets().find(|subnet| version(subnet) == version(network));
    networks
        .iter()
        .filter_map(|network| {
            let subnet = subnet_of(network)?;
            let (masquerade, forward) = (settings.masquerade, settings.forward);
            Some(PodRules { network: *network, subnet, masquerade, forward })
        })
        .filter(|rules| rules.masquerade || rules.forward)
        .collect()
}

/// What the rules cannot do alone. flannel ends where the bridge filter is missing, although only clusters whose pods
/// reach Services on their own bridge need it.
fn doubts(
    settings: &RuleSettings,
    nftables: bool,
    networks: &[IpNet],
    read: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let mut doubts = Vec::new();
    for network in networks {
        let (bridge, forwarding) = match version(network) {
            IpVersion::V4 => ("net/bridge/bridge-nf-call-iptables", "net/ipv4/ip_forward"),
            IpVersion::V6 => ("net/bridge/bridge-nf-call-ip6tables", "net/ipv6/conf/all/forwarding"),
        };
        let dotted = |name: &str| name.replace('/', ".");
        if (settings.masquerade || settings.forward) && !nftables && read(bridge).is_none() {
            doubts.push(format!(
                "the kernel's bridge filter is not there ({} is missing), so pods of one node may not reach each other \
                 through a Service: modprobe br_netfilter, and name it in /etc/modules-load.d",
                dotted(bridge)
            ));
        }
        if read(forwarding).is_some_and(|value| value == "0") {
            doubts.push(format!(
                "this host forwards no {} packets, so its pods reach only each other, until something sets {1} to 1 (a \
                 bridge plugin does with the first pod): sysctl -w {1}=1, and put it into /etc/sysctl.d",
                version(network),
                dotted(forwarding)
            ));
        }
    }
    doubts
}

/// Compares and puts right.
struct Keeper {
    system: System,
    fully_random: bool,
    families: Vec<PodRules>,
    /// Rules of earlier runs that nobody wants are still to be looked for.
    sweep: bool,
    sweep_trouble: Option<String>,
    trouble: Arc<Mutex<Option<String>>>,
    /// The rules were changed by us since they were last in place.
    changed: bool,
}

enum System {
    Nftables {
        /// Whether `nft` and the kernel know random ports; `None`: not asked yet.
        can_be_random: Option<bool>,
        kept: Vec<KeptTable>,
    },
    Iptables {
        kept: Vec<KeptFamily>,
    },
}

struct KeptFamily {
    rules: PodRules,
    /// `None` until the program was found; its version decides what the rules are.
    found: Option<(Iptables, Vec<KeptChain>)>,
}

impl Keeper {
    fn new(nftables: bool, fully_random: bool, trouble: Arc<Mutex<Option<String>>>) -> Self {
        let system = if nftables {
            System::Nftables { can_be_random: None, kept: Vec::new() }
        } else {
            System::Iptables { kept: Vec::new() }
        };
        let (sweep, sweep_trouble) = (true, None);
        Self { system, fully_random, families: Vec::new(), sweep, sweep_trouble, trouble, changed: true }
    }

    fn want(&mut self, families: &[PodRules]) {
        self.families = families.to_vec();
        self.changed = true;
        match &mut self.system {
            System::Nftables { kept, .. } => kept.clear(),
            System::Iptables { kept } => {
                *kept =
                    families.iter().map(|rules| KeptFamily { rules: rules.clone(), found: None }).collect();
            }
        }
    }

    async fn keep(&mut self) {
        let mut repaired = Vec::new();
        let mut troubles = Vec::new();
        match &mut self.system {
            System::Nftables { can_be_random, kept } => {
                keep_tables(
                    can_be_random,
                    kept,
                    &self.families,
                    self.fully_random,
                    &mut repaired,
                    &mut troubles,
                )
                .await;
            }
            System::Iptables { kept } => {
                for family in kept {
                    let version = family.rules.version();
                    if let Err(error) = family.keep(self.fully_random, &mut repaired).await {
                        troubles.push(format!("{version} rules: {error}"));
                    }
                }
            }
        }
        if self.sweep {
            self.sweep().await;
        }
        self.report(&repaired, &troubles);
    }

    fn report(&mut self, repaired: &[String], troubles: &[String]) {
        if !repaired.is_empty() {
            let what = repaired.join(", ");
            if self.changed {
                tracing::info!("packet filter rules are in place: {what}");
            } else {
                tracing::warn!("somebody had changed our packet filter rules, put right: {what}");
            }
        }
        self.changed &= !troubles.is_empty();
        let trouble = (!troubles.is_empty()).then(|| troubles.join("; "));
        let mut last = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != trouble {
            match &trouble {
                Some(trouble) => {
                    tracing::warn!("packet filter rules are not in place, trying again: {trouble}")
                }
                None => tracing::info!("packet filter rules are as they should be again"),
            }
            *last = trouble;
        }
    }

    /// Takes away what earlier runs left and this one does not keep: rules in the other system, of a family that the
    /// cluster has no more, or of a kind that is switched off. A system that is not installed can hold none.
    async fn sweep(&mut self) {
        let mut troubles = Vec::new();
        let mut note = |what: String, outcome: Result<bool, ProgramError>| match outcome {
            Ok(true) => tracing::info!("took away what an earlier run left: {what}"),
            Ok(false) => {}
            Err(error) if error.is_missing() => {}
            Err(error) => troubles.push(format!("{what}: {error}")),
        };
        let nftables = matches!(self.system, System::Nftables { .. });
        for version in IpVersion::ALL {
            let kept = self.families.iter().find(|rules| rules.version() == version);
            if kept.is_none() || !nftables {
                let name = table_name(version);
                note(format!("{version} table {name} of nftables"), nft::delete(version, name).await);
            }
            let unwanted = match kept {
                Some(rules) if !nftables => rules.unwanted_chains(),
                _ => every_chain().to_vec(),
            };
            if unwanted.is_empty() {
                continue;
            }
            match Iptables::find(version).await {
                Ok(iptables) => {
                    for chain in unwanted {
                        let what = format!("{version} chain {} of iptables", chain.name);
                        note(what, iptables.remove(&chain).await);
                    }
                }
                Err(error) => note(format!("{version} chains of iptables"), Err(error)),
            }
        }
        self.sweep = !troubles.is_empty();
        let trouble = self.sweep.then(|| troubles.join("; "));
        if let Some(trouble) = trouble.as_ref().filter(|_| trouble != self.sweep_trouble) {
            tracing::warn!("cannot take away what an earlier run may have left, trying again: {trouble}");
        }
        self.sweep_trouble = trouble;
    }
}

async fn keep_tables(
    can_be_random: &mut Option<bool>,
    kept: &mut Vec<KeptTable>,
    families: &[PodRules],
    fully_random: bool,
    repaired: &mut Vec<String>,
    troubles: &mut Vec<String>,
) {
    if families.is_empty() {
        return;
    }
    let random = match (fully_random, *can_be_random) {
        (false, _) => false,
        (true, Some(can)) => can,
        (true, None) => match nft::takes(&fully_random_probe()).await {
            Ok(can) => *can_be_random.insert(can),
            Err(error) => {
                troubles.push(error.to_string());
                return;
            }
        },
    };
    if kept.is_empty() {
        kept.extend(families.iter().map(|rules| KeptTable::new(rules.table(random))));
    }
    for table in kept {
        let name = format!("nftables {}", table.table().address());
        match table.keep().await {
            Ok(true) => repaired.push(name),
            Ok(false) => {}
            Err(error) => troubles.push(format!("{name}: {error}")),
        }
    }
}

impl KeptFamily {
    async fn keep(&mut self, fully_random: bool, repaired: &mut Vec<String>) -> Result<(), ProgramError> {
        let (iptables, chains) = match &mut self.found {
            Some(found) => found,
            none => {
                let iptables = Iptables::find(self.rules.version()).await?;
                let chains = self.rules.chains(fully_random && iptables.can_be_fully_random());
                none.insert((iptables, chains.into_iter().map(KeptChain::new).collect()))
            }
        };
        let mut failed = Ok(());
        // One that cannot be made is no reason to leave the other out.
        for kept in chains {
            match kept.keep(iptables).await {
                Ok(true) => repaired.push(format!("{} {}", self.rules.version(), kept.chain().name)),
                Ok(false) => {}
                Err(error) => failed = Err(error),
            }
        }
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ON: RuleSettings =
        RuleSettings { masquerade: true, fully_random: true, forward: true, resync: Duration::from_secs(5) };

    fn both() -> Vec<IpNet> {
        vec!["10.5.0.0/16".parse().unwrap(), "fd00:5::/48".parse().unwrap()]
    }

    #[test]
    fn every_family_with_a_network_and_a_subnet_gets_rules() {
        let subnet = |v4: Option<&str>, v6: Option<&str>| {
            Subnet::new(v4.map(|net| net.parse().unwrap()), v6.map(|net| net.parse().unwrap())).unwrap()
        };
        let dual = subnet(Some("10.5.72.0/24"), Some("fd00:5:0:48::/64"));
        let rules = pod_rules(&ON, &both(), &dual);
        assert_eq!(rules.len(), 2);
        assert_eq!(rules[0].subnet.to_string(), "10.5.72.0/24");
        assert_eq!(rules[1].network.to_string(), "fd00:5::/48");
        assert_eq!(pod_rules(&ON, &both(), &subnet(Some("10.5.72.0/24"), None)).len(), 1);
        let off = RuleSettings { masquerade: false, forward: false, ..ON };
        assert!(pod_rules(&off, &both(), &dual).is_empty());
    }

    #[test]
    fn what_the_host_lacks_is_told_with_the_remedy() {
        let nothing = |_: &str| Some("1".to_owned());
        assert!(doubts(&ON, false, &both(), nothing).is_empty());
        let no_bridge = |name: &str| (!name.contains("bridge")).then(|| "1".to_owned());
        let told = doubts(&ON, false, &both(), no_bridge);
        assert_eq!(told.len(), 2);
        assert!(
            told[0].contains("net.bridge.bridge-nf-call-iptables")
                && told[0].contains("modprobe br_netfilter")
        );
        assert!(told[1].contains("net.bridge.bridge-nf-call-ip6tables"));
        assert!(doubts(&ON, true, &both(), no_bridge).is_empty(), "nftables does not need it");
        let off = RuleSettings { masquerade: false, forward: false, ..ON };
        assert!(doubts(&off, false, &both(), no_bridge).is_empty());
        let told = doubts(&ON, true, &both(), |_: &str| Some("0".to_owned()));
        assert_eq!(told.len(), 2);
        assert!(told[0].contains("IPv4") && told[0].contains("sysctl -w net.ipv4.ip_forward=1"), "{told:?}");
        assert!(told[1].contains("sysctl -w net.ipv6.conf.all.forwarding=1"), "{told:?}");
    }
}
