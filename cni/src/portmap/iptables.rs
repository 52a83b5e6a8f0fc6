//! Port mappings in iptables: a chain for each container, reached through one that all containers share.
//!
//! ```text
//!  PREROUTING, OUTPUT ─(to an address of this host)─► CNI-HOSTPORT-DNAT ─(ports)─► CNI-DN-2bbe0c48b91a7d1b8a675
//!                                                                                  │ ─► CNI-HOSTPORT-SETMARK
//!                                                                                  └ DNAT
//!  POSTROUTING ─► CNI-HOSTPORT-MASQ ─(mark)─► MASQUERADE
//! ```
//!
//! The newest container's ports come first: what a container that nobody disconnected has left takes nothing from it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use hostnet::filter::iptables::Iptables;
use hostnet::filter::{IpVersion, ProgramError};
use ipnet::IpNet;

use super::config::{Mark, Protocol, Way};
use crate::filter::{chain_name, cut, quoted, told, word_after, words};
use crate::protocol::Attachment;

const TABLE: &str = "nat";
/// How often rules that change meanwhile are read again.
const LOOKS: u32 = 5;
const DNAT: &str = "CNI-HOSTPORT-DNAT";
const SET_MARK: &str = "CNI-HOSTPORT-SETMARK";
const MASQUERADE: &str = "CNI-HOSTPORT-MASQ";
const PREFIX: &str = "CNI-DN-";
/// What the match `multiport` holds.
const MOST_PORTS: usize = 15;
/// What `xt_comment` holds, without the zero at its end.
const LONGEST_COMMENT: usize = 255;

/// The rules for one address of a container.
pub(super) struct Rules {
    version: IpVersion,
    chain: String,
    /// What all containers share: chains, and rules with the chain that each is in.
    chains: Vec<&'static str>,
    shared: Vec<Shared>,
    /// What leads to the chain, in `CNI-HOSTPORT-DNAT`.
    entries: Vec<String>,
    /// The chain's rules.
    own: Vec<String>,
}

struct Shared {
    chain: &'static str,
    rule: String,
    /// It stands before all others: the masquerade of a bridge would end the way of the packet.
    is_first: bool,
}

impl Rules {
    pub(super) fn of(way: &Way<'_>) -> Self {
        let chain = chain_name(PREFIX, way.network, way.container_id);
        let (chains, shared) = shared(way);
        Self { version: way.version, entries: entries(way, &chain), own: own(way), chain, chains, shared }
    }

    /// The input for `iptables-restore --noflush` where what is shared is there, and nothing of the container: refused
    /// as a whole where it is otherwise.
    pub(super) fn creation(&self) -> String {
        let mut text = format!("*{TABLE}\n");
        for Shared { chain, rule, .. } in &self.shared {
            let _infallible = writeln!(text, "-C {chain} {rule}");
        }
        let _infallible = writeln!(text, "-N {}", self.chain);
        self.write_own(&mut text);
        text
    }

    /// The same from what is there of each chain.
    pub(super) fn completion(&self, seen: &BTreeMap<&str, Option<Vec<String>>>) -> String {
        let mut text = format!("*{TABLE}\n");
        let rules = |chain: &str| seen.get(chain).and_then(Option::as_deref);
        for chain in self.chains.iter().filter(|chain| rules(chain).is_none()) {
            let _infallible = writeln!(text, "-N {chain}");
        }
        for Shared { chain, rule, is_first } in &self.shared {
            if rules(chain).is_some_and(|rules| rules.contains(rule)) {
                continue;
            }
            let _infallible = match is_first {
                true => writeln!(text, "-I {chain} 1 {rule}"),
                false => writeln!(text, "-A {chain} {rule}"),
            };
        }
        for rule in rules(DNAT).unwrap_or_default().iter().filter(|rule| leads_to(rule, &self.chain)) {
            let _infallible = writeln!(text, "-D {DNAT} {rule}");
        }
        let verb = if rules(&self.chain).is_some() { "-F" } else { "-N" };
        let _infallible = writeln!(text, "{verb} {}", self.chain);
        self.write_own(&mut text);
        text
    }

    fn write_own(&self, text: &mut String) {
        for rule in &self.own {
            let _infallible = writeln!(text, "-A {} {rule}", self.chain);
        }
        for rule in &self.entries {
            let _infallible = writeln!(text, "-I {DNAT} 1 {rule}");
        }
        text.push_str("COMMIT\n");
    }

    /// The input that takes away what is the container's; refused as a whole where there is less or more.
    pub(super) fn removal(&self) -> String {
        let entries: String = self.entries.iter().map(|rule| format!("-D {DNAT} {rule}\n")).collect();
        format!("*{TABLE}\n{entries}-F {chain}\n-X {chain}\nCOMMIT\n", chain = self.chain)
    }

    async fn look(&self, iptables: &Iptables) -> Result<BTreeMap<&str, Option<Vec<String>>>, ProgramError> {
        let shared = self.shared.iter().map(|shared| shared.chain);
        let chains: BTreeSet<&str> =
            shared.chain(self.chains.iter().copied()).chain([self.chain.as_str()]).collect();
        let mut seen = BTreeMap::new();
        for chain in chains {
            seen.insert(chain, iptables.rules(TABLE, chain).await?);
        }
        Ok(seen)
    }
}

fn shared(way: &Way<'_>) -> (Vec<&'static str>, Vec<Shared>) {
    let rule = |chain, rule: &str| Shared { chain, rule: rule.to_owned(), is_first: false };
    let to_this_host = format!("-m addrtype --dst-type LOCAL -j {DNAT}");
    let mut chains = vec![DNAT];
    let mut shared = vec![rule("PREROUTING", &to_this_host), rule("OUTPUT", &to_this_host)];
    if let (true, Mark::Bit(bit)) = (way.config.snat, &way.config.mark) {
        let mark = format!("{0:#x}/{0:#x}", 1_u32 << bit);
        chains.extend([SET_MARK, MASQUERADE]);
        shared.push(Shared {
            chain: "POSTROUTING",
            rule: format!("-m comment --comment \"CNI portfwd requiring masquerade\" -j {MASQUERADE}"),
            is_first: true,
        });
        let set = format!("-m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark {mark}");
        shared.push(rule(SET_MARK, &set));
        shared.push(rule(MASQUERADE, &format!("-m mark --mark {mark} -j MASQUERADE")));
    }
    (chains, shared)
}

fn entries(way: &Way<'_>, chain: &str) -> Vec<String> {
    let comment = format!("dnat name: \"{}\" id: \"{}\"", way.network, way.container_id);
    let comment = quoted(cut(&comment, LONGEST_COMMENT));
    let conditions: String = way.conditions.iter().map(|word| format!("{} ", quoted(word))).collect();
    let mut ports: BTreeMap<Protocol, BTreeSet<String>> = BTreeMap::new();
    for mapping in &way.mappings {
        ports.entry(mapping.protocol).or_default().insert(mapping.host_port.to_string());
    }
    let mut entries = Vec::new();
    for (protocol, ports) in ports {
        let ports: Vec<String> = ports.into_iter().collect();
        for ports in ports.chunks(MOST_PORTS) {
            entries.push(format!(
                "-p {protocol} -m comment --comment {comment} -m multiport --dports {} {conditions}-j {chain}",
                ports.join(",")
            ));
        }
    }
    entries
}

/// For each port: what must be masqueraded is marked, and then all is sent to the container. Where an address of the
/// host is given, that port comes first.
fn own(way: &Way<'_>) -> Vec<String> {
    let mark = match &way.config.mark {
        Mark::Bit(_) => SET_MARK,
        Mark::Chain(chain) => chain.as_str(),
    };
    let mut mappings = way.mappings.clone();
    mappings.sort_by_key(|mapping| mapping.destination().is_none());
    let mut rules = Vec::new();
    for mapping in mappings {
        let to = mapping.destination().map_or_else(String::new, |ip| format!("-d {} ", IpNet::from(ip)));
        let port = format!("{to}-p {0} -m {0} --dport {1}", mapping.protocol, mapping.host_port);
        if way.config.snat && way.config.masquerade_all {
            rules.push(format!("{port} -j {mark}"));
        } else if way.config.snat {
            // A neighbour of the container would get the answer from an address that it did not ask.
            rules.push(format!("-s {} {port} -j {mark}", way.ip.trunc()));
            if way.version == IpVersion::V4 {
                rules.push(format!("-s 127.0.0.1/32 {port} -j {mark}"));
            }
        }
        let target = match way.version {
            IpVersion::V4 => format!("{}:{}", way.ip.addr(), mapping.container_port),
            IpVersion::V6 => format!("[{}]:{}", way.ip.addr(), mapping.container_port),
        };
        rules.push(format!("{port} -j DNAT --to-destination {target}"));
    }
    rules
}

fn leads_to(rule: &str, chain: &str) -> bool {
    word_after(&words(rule), "-j") == Some(chain)
}

pub(super) async fn add(ways: &[Way<'_>]) -> Result<(), ProgramError> {
    for rules in ways.iter().map(Rules::of) {
        let iptables = Iptables::locate(rules.version)?;
        if iptables.restore(&rules.creation()).await.is_ok() {
            continue;
        }
        let mut last = None;
        loop {
            let seen = rules.look(&iptables).await?;
            match iptables.restore(&rules.completion(&seen)).await {
                Ok(()) => break,
                // Another container's first ADD made a shared chain between our look and our transaction.
                Err(error) if error.status().is_some() && last.as_ref() != Some(&seen) => last = Some(seen),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// `ways` is what ADD made, as far as that is known; what else there is of the container goes too. `is_likely`: it is in
/// this system, as far as is known.
pub(super) async fn remove(
    network: &str,
    container_id: &str,
    ways: &[Way<'_>],
    is_likely: bool,
) -> Result<(), ProgramError> {
    let chain = chain_name(PREFIX, network, container_id);
    for version in IpVersion::ALL {
        let Ok(iptables) = Iptables::locate(version) else { continue };
        // Most often all is as ADD left it, and one start of a program is enough.
        let way = ways.iter().find(|way| way.version == version).filter(|_| is_likely);
        if let Some(way) = way
            && iptables.restore(&Rules::of(way).removal()).await.is_ok()
        {
            continue;
        }
        // What was read may be gone before it is taken away, by another DEL of the same container: then it is read again.
        let mut left = LOOKS;
        while let Some(entries) = iptables.rules(TABLE, DNAT).await? {
            let ours: Vec<String> = entries.into_iter().filter(|rule| leads_to(rule, &chain)).collect();
            if ours.is_empty() && iptables.rules(TABLE, &chain).await?.is_none() {
                break;
            }
            left -= 1;
            match take_away(&iptables, &ours, &BTreeSet::from([chain.clone()])).await {
                Err(_changed) if left > 0 => {}
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
    }
    Ok(())
}

pub(super) async fn gc(network: &str, valid: &[Attachment]) -> Result<(), ProgramError> {
    let kept: BTreeSet<&str> = valid.iter().map(|attachment| attachment.container_id.as_str()).collect();
    for version in IpVersion::ALL {
        let Ok(iptables) = Iptables::locate(version) else { continue };
        let mut chains = BTreeSet::new();
        let mut ours = Vec::new();
        for rule in iptables.rules(TABLE, DNAT).await?.unwrap_or_default() {
            let words = words(&rule);
            let Some((of, id)) = word_after(&words, "--comment").and_then(read_comment) else { continue };
            let chain = chain_name(PREFIX, network, id);
            if of == network && !kept.contains(id) && word_after(&words, "-j") == Some(chain.as_str()) {
                chains.insert(chain);
                ours.push(rule);
            }
        }
        if !ours.is_empty() {
            take_away(&iptables, &ours, &chains).await?;
        }
    }
    Ok(())
}

/// The network and the container of a comment of ours.
pub(super) fn read_comment(comment: &str) -> Option<(&str, &str)> {
    comment.strip_prefix("dnat name: \"")?.strip_suffix('"')?.split_once("\" id: \"")
}

async fn take_away(
    iptables: &Iptables,
    entries: &[String],
    chains: &BTreeSet<String>,
) -> Result<(), ProgramError> {
    let mut text = format!("*{TABLE}\n");
    for rule in entries {
        let _infallible = writeln!(text, "-D {DNAT} {rule}");
    }
    for chain in chains {
        let _infallible = writeln!(text, "-F {chain}\n-X {chain}");
    }
    text.push_str("COMMIT\n");
    iptables.restore(&text).await
}

/// The first rule that is not there.
pub(super) async fn missing(ways: &[Way<'_>]) -> Result<Option<String>, ProgramError> {
    for rules in ways.iter().map(Rules::of) {
        let iptables = Iptables::locate(rules.version)?;
        let shared = rules.shared.iter().map(|shared| format!("{} {}", shared.chain, shared.rule));
        let own = rules.own.iter().map(|rule| format!("{} {rule}", rules.chain));
        let entries = rules.entries.iter().map(|rule| format!("{DNAT} {rule}"));
        let all: Vec<String> = shared.chain(own).chain(entries).collect();
        if let Some(index) = iptables.first_absent(TABLE, &all).await? {
            let rule = all.get(index).map_or("", String::as_str);
            return Ok(Some(format!("the rule is not in the table nat of {}: -A {rule}", rules.version)));
        }
    }
    Ok(None)
}

/// Why it cannot be used, if it cannot.
pub(super) async fn unusable() -> Option<String> {
    let looked = async { Iptables::locate(IpVersion::V4)?.first_absent(TABLE, &[]).await }.await;
    looked.err().map(|error| told(&error))
}
