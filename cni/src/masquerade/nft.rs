//! The masquerade in nftables: a table that all containers and the reference plugins share, a rule for each address.
//!
//! ```text
//!  table inet cni_plugins_masquerade {
//!      chain masq_checks {
//!          ip saddr 10.244.1.5 ip daddr != 10.244.1.0/24 masquerade comment "8f3c...-0b1d..., net: cbr0, if: eth0, id: 4f1d"
//!      }
//!      chain postrouting {
//!          type nat hook postrouting priority srcnat; policy accept;
//!          ip daddr 224.0.0.0/4 return
//!          ip6 daddr ff00::/8 return
//!          goto masq_checks
//!      }
//!  }
//! ```

use std::collections::BTreeSet;
use std::fmt::Write;

use hostnet::filter::ProgramError;
use hostnet::filter::nft;
use ipnet::IpNet;

use super::Masquerade;
use crate::filter::{NftRule, cut, hash, nft_chain_head};
use crate::protocol::Attachment;

const TABLE: &str = "inet cni_plugins_masquerade";
const CHAIN: &str = "masq_checks";
/// What a comment of a rule holds in nftables.
const LONGEST_COMMENT: usize = 128;
/// What leads to the chain, as `nft` lists it.
const ENTRY: [&str; 3] = ["ip daddr 224.0.0.0/4 return", "ip6 daddr ff00::/8 return", "goto masq_checks"];
const HOOK: &str = "type nat hook postrouting priority srcnat; policy accept;";

/// How the comments of an attachment begin.
pub(super) fn mark(network: &str, attachment: &Attachment) -> String {
    let Attachment { container_id, ifname } = attachment;
    format!("{}-{}", hash(network, 16), hash(&format!("{ifname}:{container_id}"), 16))
}

fn comment(network: &str, attachment: &Attachment) -> String {
    // A comment cannot hold quotation marks. Networks and containers have none; a device may.
    let ifname = attachment.ifname.replace('"', "");
    let mark = mark(network, attachment);
    let comment = format!("{mark}, net: {network}, if: {ifname}, id: {}", attachment.container_id);
    cut(&comment, LONGEST_COMMENT).to_owned()
}

/// The rules of the attachment, as `nft` lists them.
pub(super) fn rules(masquerade: &Masquerade) -> Vec<String> {
    let rule = |ip: &IpNet| {
        let family = if ip.addr().is_ipv4() { "ip" } else { "ip6" };
        let network = match ip.prefix_len() == ip.max_prefix_len() {
            true => ip.addr().to_string(),
            false => ip.trunc().to_string(),
        };
        format!("{family} saddr {} {family} daddr != {network} masquerade", ip.addr())
    };
    masquerade.ips.iter().map(rule).collect()
}

/// The commands that make the table and what leads to the rules, from nothing or anew.
pub(super) fn frame() -> String {
    let mut text = format!(
        "add table {TABLE}\nadd chain {TABLE} {CHAIN}\nadd chain {TABLE} postrouting {{ {HOOK} }}\n\
         flush chain {TABLE} postrouting\n"
    );
    for rule in ENTRY {
        let _infallible = writeln!(text, "add rule {TABLE} postrouting {rule}");
    }
    text
}

/// The commands that list what is there, and make the rules.
pub(super) fn commands(masquerade: &Masquerade) -> String {
    let mut text = format!("list table {TABLE}\n");
    let comment = comment(&masquerade.network, &masquerade.attachment);
    for rule in rules(masquerade) {
        let _infallible = writeln!(text, "add rule {TABLE} {CHAIN} {rule} comment \"{comment}\"");
    }
    text
}

/// What leads to the rules is there.
fn is_entered(listing: &str, listed: &[NftRule]) -> bool {
    let entry: Vec<&str> =
        listed.iter().filter(|rule| rule.chain == "postrouting").map(|rule| rule.text.as_str()).collect();
    nft_chain_head(listing, "postrouting").is_some_and(|hook| hook.starts_with("type nat hook postrouting"))
        && entry == ENTRY
}

pub(super) async fn add(masquerade: &Masquerade) -> Result<(), ProgramError> {
    let commands = commands(masquerade);
    // Making the frame anew takes the kernel longer than all the rest: it is done where it is not there as it should be.
    let before = match nft::apply_and_list(&commands).await {
        Err(error) if error.is_absent() => {
            nft::apply(&frame()).await?;
            nft::apply_and_list(&commands).await?
        }
        other => other?,
    };
    if !is_entered(&before, &NftRule::all(&before)) {
        nft::apply(&frame()).await?;
    }
    // An earlier ADD of the same attachment that no DEL followed. Its rules go after the new ones came: at no moment is
    // the container without.
    let mark = mark(&masquerade.network, &masquerade.attachment);
    delete(&before, |comment| comment.starts_with(&mark)).await
}

pub(super) async fn remove(masquerade: &Masquerade) -> Result<(), ProgramError> {
    let mark = mark(&masquerade.network, &masquerade.attachment);
    delete_listed(|comment| comment.starts_with(&mark)).await
}

pub(super) async fn gc(network: &str, valid: &[Attachment]) -> Result<(), ProgramError> {
    let of_network = format!("{}-", hash(network, 16));
    let kept: BTreeSet<String> = valid.iter().map(|attachment| mark(network, attachment)).collect();
    let is_kept = |comment: &str| comment.split(',').next().is_some_and(|mark| kept.contains(mark));
    delete_listed(|comment| comment.starts_with(&of_network) && !is_kept(comment)).await
}

async fn delete_listed(is_meant: impl Fn(&str) -> bool) -> Result<(), ProgramError> {
    let mut is_again = false;
    loop {
        let Some(listing) = nft::handles(TABLE).await? else { return Ok(()) };
        match delete(&listing, &is_meant).await {
            // Somebody else deleted one of them meanwhile.
            Err(error) if error.is_absent() && !is_again => is_again = true,
            other => return other,
        }
    }
}

async fn delete(listing: &str, is_meant: impl Fn(&str) -> bool) -> Result<(), ProgramError> {
    let mut text = String::new();
    for rule in NftRule::all(listing) {
        if rule.chain == CHAIN && is_meant(&rule.comment) {
            let _infallible = writeln!(text, "delete rule {TABLE} {CHAIN} handle {}", rule.handle);
        }
    }
    match text.is_empty() {
        true => Ok(()),
        false => nft::apply(&text).await,
    }
}

/// The first thing that is not there.
pub(super) async fn missing(masquerade: &Masquerade) -> Result<Option<String>, ProgramError> {
    let Some(listing) = nft::handles(TABLE).await? else {
        return Ok(Some(format!("there is no table {TABLE}")));
    };
    let listed = NftRule::all(&listing);
    if !is_entered(&listing, &listed) {
        return Ok(Some(format!("nothing leads to the chain {CHAIN} of the table {TABLE}")));
    }
    let mark = mark(&masquerade.network, &masquerade.attachment);
    let ours: Vec<&NftRule> =
        listed.iter().filter(|rule| rule.chain == CHAIN && rule.comment.starts_with(&mark)).collect();
    let absent = rules(masquerade).into_iter().find(|wanted| !ours.iter().any(|rule| rule.text == *wanted));
    Ok(absent.map(|rule| format!("the rule is not in chain {CHAIN} of the table {TABLE}: {rule}")))
}
