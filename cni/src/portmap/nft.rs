//! Port mappings in nftables: a table for each family, which all containers and the reference plugins share.
//!
//! ```text
//!  prerouting, output ─(to an address of this host)─► hostports_all ─► hostip_hostports   ports at one address
//!                                                                   └► hostports          ports at every address
//!  masquerading       what would not find its way back
//!  net_2bbe0c48b91a7d1b   nothing leads there: it says which containers are of which network
//! ```
//!
//! The comment of a rule is the container's ID and nothing else: so the reference plugins find it. Of which network the
//! container was, GC must know; that is what the rules in `net_HASH` are for. The newest container's ports come first:
//! what a container that nobody disconnected has left takes nothing from it.

use std::collections::BTreeSet;
use std::fmt::Write;

use hostnet::filter::nft::{self, keyword};
use hostnet::filter::{IpVersion, ProgramError};

use super::config::{Mapping, Way};
use crate::filter::{NftRule, cut, hash, nft_chain_head, told};
use crate::protocol::Attachment;

const TABLE: &str = "cni_hostport";
/// What a comment of a rule holds.
const LONGEST_COMMENT: usize = 128;
/// The start of a chain's name that says which containers are of a network.
const NETWORK: &str = "net_";
/// Chains that rules of containers are in, beside those of networks.
const CHAINS: [&str; 3] = ["hostports", "hostip_hostports", "masquerading"];
/// The chains that lead to them: name, hook, rules.
const FRAME: [(&str, &str, &[&str]); 3] = [
    ("hostports_all", "", &["jump hostip_hostports", "jump hostports"]),
    ("prerouting", "type nat hook prerouting priority dstnat", &["fib daddr type local jump hostports_all"]),
    // `dstnat` is a name for prerouting only.
    ("output", "type nat hook output priority -100", &["fib daddr type local jump hostports_all"]),
];
const MASQUERADING: &str = "type nat hook postrouting priority srcnat";

fn table(version: IpVersion) -> String {
    format!("{} {TABLE}", keyword(version))
}

fn network_chain(network: &str) -> String {
    format!("{NETWORK}{}", hash(network, 16))
}

fn comment(container_id: &str) -> &str {
    cut(container_id, LONGEST_COMMENT)
}

/// The commands that make the table and what leads to the rules, from nothing or anew.
pub(super) fn frame(version: IpVersion, network: &str) -> String {
    let table = table(version);
    let mut text =
        format!("add table {table}\nadd chain {table} hostports\nadd chain {table} hostip_hostports\n");
    let _infallible = writeln!(text, "add chain {table} {}", network_chain(network));
    let _infallible = writeln!(text, "add chain {table} masquerading {{ {MASQUERADING}; }}");
    for (chain, hook, rules) in FRAME {
        let hook = if hook.is_empty() { String::new() } else { format!(" {{ {hook}; }}") };
        let _infallible = writeln!(text, "add chain {table} {chain}{hook}\nflush chain {table} {chain}");
        for rule in rules {
            let _infallible = writeln!(text, "add rule {table} {chain} {rule}");
        }
    }
    text
}

/// A rule of a container.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rule {
    chain: String,
    /// What was configured: `nft` may list it in other words.
    conditions: String,
    text: String,
}

pub(super) fn rules(way: &Way<'_>) -> Vec<Rule> {
    let conditions: String = way.conditions.iter().map(|word| format!("{word} ")).collect();
    let family = keyword(way.version);
    let ip = way.ip.addr();
    let rule = |chain: &str, text: String| Rule { chain: chain.to_owned(), conditions: String::new(), text };
    let mut rules = Vec::new();
    for Mapping { host_port, container_port, protocol, .. } in &way.mappings {
        let target = match way.version {
            IpVersion::V4 => format!("{ip}:{container_port}"),
            IpVersion::V6 => format!("[{ip}]:{container_port}"),
        };
        let to_port = format!("{protocol} dport {host_port} dnat to {target}");
        rules.push(Rule { conditions: conditions.clone(), ..rule("hostports", to_port) });
        if !way.config.snat {
            continue;
        }
        // What came through this port, and nothing else that leads to the container (a Service of Kubernetes).
        let through = format!(
            "{family} daddr {ip} {protocol} dport {container_port} ct status dnat ct original proto-dst {host_port} masquerade"
        );
        rules.push(match way.config.masquerade_all {
            true => rule("masquerading", through),
            // A neighbour of the container would get the answer from an address that it did not ask.
            false => rule("masquerading", format!("{family} saddr {} {through}", network_of(way))),
        });
    }
    for (rule, mapping) in rules.iter_mut().filter(|rule| rule.chain == "hostports").zip(&way.mappings) {
        if let Some(destination) = mapping.destination() {
            rule.chain = "hostip_hostports".to_owned();
            rule.text = format!("{family} daddr {destination} {}", rule.text);
        }
    }
    if way.config.snat && !way.config.masquerade_all && way.version == IpVersion::V4 {
        let text = format!("{family} saddr 127.0.0.1 {family} daddr {ip} masquerade");
        rules.push(rule("masquerading", text));
    }
    rules.push(rule(&network_chain(way.network), format!("{family} daddr {ip} continue")));
    rules
}

/// As `nft` lists it: an address without the length of its prefix where that is the whole of it.
fn network_of(way: &Way<'_>) -> String {
    match way.ip.prefix_len() == way.ip.max_prefix_len() {
        true => way.ip.addr().to_string(),
        false => way.ip.trunc().to_string(),
    }
}

/// The commands that list what is there, and make the rules.
pub(super) fn commands(way: &Way<'_>) -> String {
    let table = table(way.version);
    let comment = comment(way.container_id);
    let mut text = format!("list table {table}\n");
    for Rule { chain, conditions, text: rule } in rules(way) {
        let _infallible =
            writeln!(text, "insert rule {table} {chain} {conditions}{rule} comment \"{comment}\"");
    }
    text
}

/// What leads to the rules is there. The reference plugins lead there too, by other ways.
fn is_entered(listing: &str, listed: &[NftRule]) -> bool {
    let has_hook = |chain: &str| nft_chain_head(listing, chain).is_some();
    let leads = |from: &str, to: &str| {
        let jump = format!("jump {to}");
        listed.iter().any(|rule| rule.chain == from && rule.text.ends_with(&jump))
    };
    let reaches =
        |from: &str, to: &str| leads(from, to) || leads(from, "hostports_all") && leads("hostports_all", to);
    let is_whole = |from: &str| has_hook(from) && CHAINS[..2].iter().all(|to| reaches(from, to));
    is_whole("prerouting") && is_whole("output") && has_hook("masquerading")
}

/// One family after the other: `nft` (1.0.6) cannot list two tables in one input.
pub(super) async fn add(ways: &[Way<'_>]) -> Result<(), ProgramError> {
    for way in ways {
        let commands = commands(way);
        // To add even a chain that is there keeps the kernel busy for longer than all the rest: it is done where something
        // is not there as it should be.
        let before = match nft::apply_and_list(&commands).await {
            Err(error) if error.is_absent() => {
                nft::apply(&frame(way.version, way.network)).await?;
                nft::apply_and_list(&commands).await?
            }
            other => other?,
        };
        let listed = NftRule::all(&before);
        if !is_entered(&before, &listed) {
            nft::apply(&frame(way.version, way.network)).await?;
        }
        // Of an earlier ADD that no DEL followed.
        delete(way.version, &stale(&listed, way.network, way.container_id)).await?;
    }
    Ok(())
}

/// The rules of a container in a network. Where it is in another network as well (then that one's chain says so), only
/// those with its address in this one.
fn stale<'a>(listed: &'a [NftRule], network: &str, container_id: &str) -> Vec<&'a NftRule> {
    let comment = comment(container_id);
    let ours: Vec<&NftRule> = listed.iter().filter(|rule| rule.comment == comment).collect();
    let chain = network_chain(network);
    let is_elsewhere = |rule: &&NftRule| rule.chain.starts_with(NETWORK) && rule.chain != chain;
    if !ours.iter().any(is_elsewhere) {
        return ours;
    }
    let marks = ours.iter().filter(|rule| rule.chain == chain);
    let ips: Vec<&str> = marks.filter_map(|rule| rule.text.split(' ').nth(2)).collect();
    ours.into_iter()
        .filter(|rule| !is_elsewhere(rule) && ips.iter().any(|ip| names(&rule.text, ip)))
        .collect()
}

/// The rule is about this address of a container.
fn names(rule: &str, ip: &str) -> bool {
    rule.split(' ').any(|word| {
        let port =
            word.strip_prefix(ip).or_else(|| word.strip_prefix('[')?.strip_prefix(ip)?.strip_prefix(']'));
        port.is_some_and(|rest| rest.is_empty() || rest.starts_with(':') && !rest.starts_with("::"))
    })
}

/// The chains of networks stay: a chain goes with whatever another container has put into it meanwhile.
async fn delete(version: IpVersion, rules: &[&NftRule]) -> Result<(), ProgramError> {
    if rules.is_empty() {
        return Ok(());
    }
    let table = table(version);
    let mut text = String::new();
    for NftRule { chain, handle, .. } in rules {
        let _infallible = writeln!(text, "delete rule {table} {chain} handle {handle}");
    }
    nft::apply(&text).await
}

/// Lists the table of a family, and deletes what is meant of it.
async fn delete_listed(
    version: IpVersion,
    meant: impl for<'a> Fn(&'a [NftRule]) -> Vec<&'a NftRule>,
) -> Result<(), ProgramError> {
    let mut is_again = false;
    loop {
        let Some(listing) = nft::handles(&table(version)).await? else { return Ok(()) };
        let listed = NftRule::all(&listing);
        match delete(version, &meant(&listed)).await {
            // Somebody else deleted one of them meanwhile.
            Err(error) if error.is_absent() && !is_again => is_again = true,
            other => return other,
        }
    }
}

/// The families that have a table, by one start of `nft`.
async fn those_there(versions: &[IpVersion]) -> Result<Vec<IpVersion>, ProgramError> {
    let tables = nft::apply_and_list("list tables\n").await?;
    let is_there = |version: &IpVersion| {
        let line = format!("table {}", table(*version));
        tables.lines().any(|found| found.split(" # ").next() == Some(line.as_str()))
    };
    Ok(versions.iter().copied().filter(is_there).collect())
}

/// `is_likely`: the rules are in this system, as far as is known.
pub(super) async fn remove(
    network: &str,
    container_id: &str,
    versions: &[IpVersion],
    is_likely: bool,
) -> Result<(), ProgramError> {
    let versions = if is_likely { versions.to_vec() } else { those_there(versions).await? };
    for version in versions {
        delete_listed(version, |listed| stale(listed, network, container_id)).await?;
    }
    Ok(())
}

pub(super) async fn gc(network: &str, valid: &[Attachment]) -> Result<(), ProgramError> {
    let kept: BTreeSet<&str> = valid.iter().map(|attachment| comment(&attachment.container_id)).collect();
    let chain = network_chain(network);
    for version in those_there(&IpVersion::ALL).await? {
        delete_listed(version, |listed| {
            let of_network = listed.iter().filter(|rule| rule.chain == chain);
            let gone: BTreeSet<&str> =
                of_network.map(|rule| rule.comment.as_str()).filter(|id| !kept.contains(id)).collect();
            gone.iter().flat_map(|id| stale(listed, network, id)).collect()
        })
        .await?;
    }
    Ok(())
}

/// The first thing that is not there.
pub(super) async fn missing(ways: &[Way<'_>]) -> Result<Option<String>, ProgramError> {
    for way in ways {
        let table = table(way.version);
        let Some(listing) = nft::handles(&table).await? else {
            return Ok(Some(format!("there is no table {table}")));
        };
        let listed = NftRule::all(&listing);
        if !is_entered(&listing, &listed) {
            return Ok(Some(format!("nothing leads to the chain hostports of the table {table}")));
        }
        let comment = comment(way.container_id);
        let is_there = |wanted: &Rule| {
            listed.iter().filter(|rule| rule.comment == comment && rule.chain == wanted.chain).any(|rule| {
                match wanted.conditions.is_empty() {
                    true => rule.text == wanted.text,
                    false => rule.text.ends_with(&wanted.text),
                }
            })
        };
        // The chain of the network is for GC: without it the container's ports work.
        let mut wanted = rules(way).into_iter().filter(|rule| !rule.chain.starts_with(NETWORK));
        if let Some(Rule { chain, text, .. }) = wanted.find(|wanted| !is_there(wanted)) {
            return Ok(Some(format!("the rule is not in chain {chain} of the table {table}: {text}")));
        }
    }
    Ok(None)
}

/// Why it cannot be used, if it cannot. Nothing is changed.
pub(super) async fn unusable(network: &str) -> Option<String> {
    match nft::takes(&frame(IpVersion::V4, network)).await {
        Ok(true) => None,
        Ok(false) => Some(format!(
            "nft or this kernel refuses the table {}; try `nft add table {0}` and see `modprobe nft_chain_nat`",
            table(IpVersion::V4)
        )),
        Err(error) => Some(told(&error)),
    }
}
