//! flannel's packet filter rules as values, and both texts of them: chains of iptables, tables of nftables.
//!
//! P is this node's pods, N the pods of the cluster. What happens to a packet on its way out, in this order:
//!
//! | from | to | what | why |
//! |---|---|---|---|
//! | marked 0x4000 | | left alone | kube-proxy masquerades it itself |
//! | P | N | left alone | pods see each other's addresses |
//! | N | P | left alone | |
//! | outside N | P | left alone | pods see who calls them |
//! | N | outside, no multicast | masqueraded | nobody outside knows the way back |
//! | outside N | N, pods of other nodes | masqueraded | the answer has to come back through this node |
//!
//! The words and their order are flannel's, in both systems, for whoever looks at a node compares them with what they
//! know; flannel's own tests compare them letter by letter.
//!
//! # One rule of flannel's that is dead, and what stands in for it
//!
//! flannel's nftables rule for the fourth row says "from outside **P** to **N**", not "from outside N to P". So the last
//! row never happens there: what comes from outside for a pod of another node keeps its address, and the answer takes
//! another way back. We keep the text of flannel's chain `postrtg`, and a chain of our own in the same table does what
//! flannel's iptables rules do. It hangs behind `postrtg` (`srcnat + 1`): NAT goes to the first chain that decides, so
//! it sees what `postrtg` and kube-proxy let pass.
//!
//! What is left of a difference concerns packets from pods of other nodes to pods of other nodes, which have no business on
//! this one: flannel's iptables rules would masquerade them, its nftables rules do not.
//!
//! `accept` in nftables ends one chain, not the hook: a firewall of another table can still drop what our `forward` chain
//! accepts. It is flannel's chain all the same, and does no harm.

use dataplane_core::IpNet;
use hostnet::filter::IpVersion;
use hostnet::filter::{iptables, nft};

/// The pods of one family, and what they get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRules {
    /// The pods of the cluster: N.
    pub network: IpNet,
    /// The pods of this node: P. Of the same family.
    pub subnet: IpNet,
    /// Masquerade what leaves the cluster (`--ip-masq`).
    pub masquerade: bool,
    /// Accept what is forwarded to and from pods (`--iptables-forward-rules`).
    pub forward: bool,
}

/// Names of what flannel makes in iptables.
const POSTROUTING_CHAIN: &str = "FLANNEL-POSTRTG";
const FORWARD_CHAIN: &str = "FLANNEL-FWD";
const MASQUERADE_COMMENT: &str = "flanneld masq";
const FORWARD_COMMENT: &str = "flanneld forward";

/// The mark of packets that kube-proxy masquerades.
const MARK: u32 = 0x4000;

impl PodRules {
    /// Of the two networks.
    pub fn version(&self) -> IpVersion {
        version(&self.network)
    }

    /// The chains of iptables, those that nobody asked for left out.
    pub fn chains(&self, fully_random: bool) -> Vec<iptables::Chain> {
        let mut chains = Vec::new();
        if self.masquerade {
            chains.push(Self::masquerade_chain(&self.leaving(), fully_random));
        }
        if self.forward {
            chains.push(Self::forward_chain(&self.forwarded()));
        }
        chains
    }

    /// The chains of iptables that are not asked for and have no business there; their rules are left out.
    pub fn unwanted_chains(&self) -> Vec<iptables::Chain> {
        let wanted = [self.masquerade, self.forward];
        let chains = every_chain().into_iter().zip(wanted);
        chains.filter(|(_, wanted)| !wanted).map(|(chain, _)| chain).collect()
    }

    fn masquerade_chain(rules: &[Rule], fully_random: bool) -> iptables::Chain {
        iptables::Chain {
            table: "nat",
            name: POSTROUTING_CHAIN,
            from: "POSTROUTING",
            jump: format!("-m comment --comment \"{MASQUERADE_COMMENT}\" -j {POSTROUTING_CHAIN}"),
            rules: rules.iter().map(|rule| rule.iptables(MASQUERADE_COMMENT, fully_random)).collect(),
        }
    }

    fn forward_chain(rules: &[Rule]) -> iptables::Chain {
        iptables::Chain {
            table: "filter",
            name: FORWARD_CHAIN,
            from: "FORWARD",
            jump: format!("-m comment --comment \"{FORWARD_COMMENT}\" -j {FORWARD_CHAIN}"),
            rules: rules.iter().map(|rule| rule.iptables(FORWARD_COMMENT, false)).collect(),
        }
    }

    /// The table of nftables; without a chain if nobody asked for any, as in flannel.
    pub fn table(&self, fully_random: bool) -> nft::Table {
        let version = self.version();
        let print = |rules: &[Rule]| rules.iter().map(|rule| rule.nftables(version, fully_random)).collect();
        let mut chains = Vec::new();
        if self.masquerade {
            chains.push(nft::Chain {
                name: "postrtg".to_owned(),
                comment: "chain to manage traffic masquerading by flannel".to_owned(),
                hook: "type nat hook postrouting priority srcnat; policy accept;".to_owned(),
                rules: print(&self.leaving_by_nftables()),
            });
            chains.push(nft::Chain {
                name: "postrtg-remote".to_owned(),
                comment: "masquerades traffic from outside to pods of other nodes".to_owned(),
                hook: "type nat hook postrouting priority srcnat + 1; policy accept;".to_owned(),
                rules: print(&self.for_outsiders()),
            });
        }
        if self.forward {
            chains.push(nft::Chain {
                name: "forward".to_owned(),
                comment: "chain to accept flannel traffic".to_owned(),
                hook: "type filter hook forward priority filter; policy accept;".to_owned(),
                rules: print(&self.forwarded()),
            });
        }
        let name = table_name(version).to_owned();
        nft::Table { version, comment: format!("rules for {name}"), name, objects: Vec::new(), chains }
    }

    /// The table of the header.
    fn leaving(&self) -> Vec<Rule> {
        let (n, p) = (self.network, self.subnet);
        vec![
            Rule::marked(Condition::Mark),
            Rule::between(is(p), is(n), Verdict::Return),
            Rule::between(is(n), is(p), Verdict::Return),
            Rule::between(not(n), is(p), Verdict::Return),
            Rule::between(is(n), not(multicast(&n)), Verdict::Masquerade),
            Rule::between(not(n), is(n), Verdict::Masquerade),
        ]
    }

    /// The same in flannel's words for nftables: see the header.
    fn leaving_by_nftables(&self) -> Vec<Rule> {
        let mut rules = self.leaving();
        rules[0] = Rule::marked(Condition::MarkAlone);
        rules[3] = Rule::between(not(self.subnet), is(self.network), Verdict::Return);
        rules
    }

    /// The rows of the header that [`Self::leaving_by_nftables`] does not do.
    fn for_outsiders(&self) -> Vec<Rule> {
        let (n, p) = (self.network, self.subnet);
        vec![
            Rule::marked(Condition::Mark),
            Rule::between(not(n), is(p), Verdict::Return),
            Rule::between(not(n), is(n), Verdict::Masquerade),
        ]
    }

    fn forwarded(&self) -> Vec<Rule> {
        let one = |condition| Rule { conditions: vec![condition], verdict: Verdict::Accept };
        vec![one(Condition::From(is(self.network))), one(Condition::To(is(self.network)))]
    }
}

/// Every chain that flannel makes in iptables, by name, table and jump, without rules.
pub fn every_chain() -> [iptables::Chain; 2] {
    [PodRules::masquerade_chain(&[], false), PodRules::forward_chain(&[])]
}

/// The table that flannel makes in nftables.
pub fn table_name(version: IpVersion) -> &'static str {
    match version {
        IpVersion::V4 => "flannel-ipv4",
        IpVersion::V6 => "flannel-ipv6",
    }
}

/// Commands that an `nft` and a kernel take which know fully random masquerading.
pub fn fully_random_probe() -> String {
    let chain = nft::Chain {
        name: "probe".to_owned(),
        comment: "only checked".to_owned(),
        hook: "type nat hook postrouting priority srcnat; policy accept;".to_owned(),
        rules: vec![Verdict::Masquerade.nftables(true).to_owned()],
    };
    let name = "flannel-probe".to_owned();
    let (comment, objects) = (String::new(), Vec::new());
    nft::Table { version: IpVersion::V4, name, comment, objects, chains: vec![chain] }.to_string()
}

/// The family of a prefix.
pub fn version(net: &IpNet) -> IpVersion {
    match net {
        IpNet::V4(_) => IpVersion::V4,
        IpNet::V6(_) => IpVersion::V6,
    }
}

/// Conditions that all hold, and what happens then.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    conditions: Vec<Condition>,
    verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    /// The packet's mark has the bit.
    Mark,
    /// The packet's mark is the bit and nothing else, as flannel's nftables rule says.
    MarkAlone,
    From(Place),
    To(Place),
}

/// Inside a prefix, or outside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    outside: bool,
    net: IpNet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Return,
    Accept,
    Masquerade,
}

impl Rule {
    fn marked(mark: Condition) -> Self {
        Self { conditions: vec![mark], verdict: Verdict::Return }
    }

    fn between(from: Place, to: Place, verdict: Verdict) -> Self {
        Self { conditions: vec![Condition::From(from), Condition::To(to)], verdict }
    }

    /// As `iptables -S` prints it, without `-A CHAIN`.
    fn iptables(&self, comment: &str, fully_random: bool) -> String {
        let mut words: Vec<String> = self.conditions.iter().map(Condition::iptables).collect();
        words.push(format!("-m comment --comment \"{comment}\""));
        words.push(format!("-j {}", self.verdict.iptables(fully_random)));
        words.join(" ")
    }

    /// As `nft list` prints it.
    fn nftables(&self, version: IpVersion, fully_random: bool) -> String {
        let mut words: Vec<String> =
            self.conditions.iter().map(|condition| condition.nftables(version)).collect();
        words.push(self.verdict.nftables(fully_random).to_owned());
        words.join(" ")
    }
}

impl Condition {
    fn iptables(&self) -> String {
        let place = |word, place: &Place| {
            let not = if place.outside { "! " } else { "" };
            format!("{not}{word} {}", place.net)
        };
        match self {
            Self::Mark | Self::MarkAlone => format!("-m mark --mark {MARK:#x}/{MARK:#x}"),
            Self::From(from) => place("-s", from),
            Self::To(to) => place("-d", to),
        }
    }

    fn nftables(&self, version: IpVersion) -> String {
        let place = |word, place: &Place| {
            let not = if place.outside { "!= " } else { "" };
            format!("{} {word} {not}{}", nft::keyword(version), place.net)
        };
        match self {
            Self::Mark => format!("meta mark & {MARK:#010x} == {MARK:#010x}"),
            Self::MarkAlone => format!("meta mark {MARK:#010x}"),
            Self::From(from) => place("saddr", from),
            Self::To(to) => place("daddr", to),
        }
    }
}

impl Verdict {
    fn iptables(self, fully_random: bool) -> &'static str {
        match self {
            Self::Return => "RETURN",
            Self::Accept => "ACCEPT",
            Self::Masquerade if fully_random => "MASQUERADE --random-fully",
            Self::Masquerade => "MASQUERADE",
        }
    }

    fn nftables(self, fully_random: bool) -> &'static str {
        match self {
            Self::Return => "return",
            Self::Accept => "accept",
            Self::Masquerade if fully_random => "masquerade fully-random",
            Self::Masquerade => "masquerade",
        }
    }
}

fn is(net: IpNet) -> Place {
    Place { outside: false, net }
}

fn not(net: IpNet) -> Place {
    Place { outside: true, net }
}

/// Multicast of the family: it is for many, so nobody masquerades it.
fn multicast(family: &IpNet) -> IpNet {
    use std::net::{Ipv4Addr, Ipv6Addr};
    match family {
        IpNet::V4(_) => IpNet::new_assert(Ipv4Addr::new(224, 0, 0, 0).into(), 4),
        IpNet::V6(_) => IpNet::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into(), 8),
    }
}

#[cfg(test)]
mod tests;
