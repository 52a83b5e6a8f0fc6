//! The masquerade in iptables: a chain for each container, and a jump to it for each of its addresses.
//!
//! ```text
//!  -A POSTROUTING -s 10.244.1.5/32 -m comment --comment "name: \"cbr0\" id: \"4f1d\"" -j CNI-2bbe0c48b91a7d1b8a6753a8
//!  -A CNI-2bbe0c48b91a7d1b8a6753a8 -d 10.244.1.0/24 ... -j ACCEPT
//!  -A CNI-2bbe0c48b91a7d1b8a6753a8 ! -d 224.0.0.0/4 ... -j MASQUERADE
//! ```

use std::collections::BTreeSet;
use std::fmt::Write;

use hostnet::filter::iptables::Iptables;
use hostnet::filter::{IpVersion, ProgramError};
use ipnet::IpNet;

use super::Masquerade;
use crate::filter::{Backend, chain_name, cut, quoted, word_after, words};
use crate::protocol::Attachment;

/// How often rules that change meanwhile are read again.
const LOOKS: u32 = 5;
const TABLE: &str = "nat";
const FROM: &str = "POSTROUTING";
/// What `xt_comment` holds, without the zero at its end.
const LONGEST_COMMENT: usize = 255;

/// The rules of one family.
pub(super) struct Rules {
    chain: String,
    /// Without `-A POSTROUTING`.
    jumps: Vec<String>,
    /// Without `-A CHAIN`.
    own: Vec<String>,
}

impl Rules {
    /// `None`: the container has no address of the family.
    pub(super) fn of(masquerade: &Masquerade, version: IpVersion) -> Option<Self> {
        let ips: Vec<IpNet> = of_family(&masquerade.ips, version).collect();
        if ips.is_empty() {
            return None;
        }
        let (network, id) = (&masquerade.network, &masquerade.attachment.container_id);
        let chain = chain_name("CNI-", network, id);
        let comment = format!("name: \"{network}\" id: \"{id}\"");
        let comment = format!("-m comment --comment {}", quoted(cut(&comment, LONGEST_COMMENT)));
        let jumps =
            ips.iter().map(|ip| format!("-s {} {comment} -j {chain}", IpNet::from(ip.addr()))).collect();
        // All networks before the masquerade: the first address's would end the chain for the second one's network.
        let networks: BTreeSet<IpNet> = ips.iter().map(IpNet::trunc).collect();
        let mut own: Vec<String> =
            networks.iter().map(|network| format!("-d {network} {comment} -j ACCEPT")).collect();
        own.push(format!("! -d {} {comment} -j MASQUERADE", multicast(version)));
        Some(Self { chain, jumps, own })
    }

    /// The input for `iptables-restore --noflush` where nothing of it is there yet; refused as a whole where the chain
    /// is.
    pub(super) fn creation(&self) -> String {
        let Self { chain, .. } = self;
        self.input(&format!("-N {chain}\n"), &self.own, &[])
    }

    /// The same where the chain is there: its rules of other addresses stay.
    pub(super) fn completion(&self, own: &[String], jumps: &[String]) -> String {
        let is_masquerade = |rule: &&String| rule.ends_with("-j MASQUERADE");
        let (last, first): (Vec<_>, Vec<_>) = self.own.iter().chain(own).partition(is_masquerade);
        let mut rules: Vec<String> = Vec::new();
        for rule in first.into_iter().chain(last) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
        self.input(&format!(":{} - [0:0]\n", self.chain), &rules, jumps)
    }

    /// The input that takes all of it away; refused as a whole where there is less or more.
    pub(super) fn removal(&self) -> String {
        let Self { chain, jumps, .. } = self;
        let jumps: String = jumps.iter().map(|jump| format!("-D {FROM} {jump}\n")).collect();
        format!("*{TABLE}\n{jumps}-F {chain}\n-X {chain}\nCOMMIT\n")
    }

    fn input(&self, head: &str, own: &[String], present: &[String]) -> String {
        let mut text = format!("*{TABLE}\n{head}");
        for rule in own {
            let _infallible = writeln!(text, "-A {} {rule}", self.chain);
        }
        for jump in self.jumps.iter().filter(|jump| !present.contains(jump)) {
            let _infallible = writeln!(text, "-A {FROM} {jump}");
        }
        text.push_str("COMMIT\n");
        text
    }
}

pub(super) async fn add(masquerade: &Masquerade) -> Result<(), ProgramError> {
    for version in IpVersion::ALL {
        let Some(rules) = Rules::of(masquerade, version) else { continue };
        let iptables = Iptables::locate(version)?;
        let Err(refused) = iptables.restore(&rules.creation()).await else { continue };
        // Most often the chain is there: of an ADD that was cut off, or of another device of this container.
        let Some(own) = iptables.rules(TABLE, &rules.chain).await? else { return Err(refused) };
        let jumps = iptables.rules(TABLE, FROM).await?.unwrap_or_default();
        iptables.restore(&rules.completion(&own, &jumps)).await?;
    }
    Ok(())
}

pub(super) async fn remove(masquerade: &Masquerade) -> Result<(), ProgramError> {
    let chain = chain_name("CNI-", &masquerade.network, &masquerade.attachment.container_id);
    for version in IpVersion::ALL {
        let wanted = Rules::of(masquerade, version);
        if wanted.is_none() && !masquerade.ips.is_empty() {
            continue;
        }
        let Ok(iptables) = Iptables::locate(version) else { continue };
        // Most often all is as ADD left it, and one start of a program is enough.
        if let Some(wanted) = wanted.as_ref().filter(|_| masquerade.backend != Some(Backend::Nftables))
            && iptables.restore(&wanted.removal()).await.is_ok()
        {
            continue;
        }
        if iptables.rules(TABLE, &chain).await?.is_none() {
            continue;
        }
        let is_meant = |target: &str, words: &[String]| {
            let source = word_after(words, "-s");
            let is_another = |source: &str| {
                // Old versions of the reference plugins wrote the address with the length of its network: iptables
                // shows a network then. In this chain that is nobody else's.
                let jump = format!("-s {source} ");
                is_single(source, version)
                    && wanted
                        .as_ref()
                        .is_some_and(|wanted| !wanted.jumps.iter().any(|ours| ours.starts_with(&jump)))
            };
            target == chain && !source.is_some_and(is_another)
        };
        take_away_again(&iptables, Some(&chain), is_meant).await?;
    }
    Ok(())
}

pub(super) async fn gc(network: &str, valid: &[Attachment]) -> Result<(), ProgramError> {
    let kept: BTreeSet<&str> = valid.iter().map(|attachment| attachment.container_id.as_str()).collect();
    let is_meant = |target: &str, words: &[String]| {
        let Some((of, id)) = word_after(words, "--comment").and_then(read_comment) else { return false };
        of == network && !kept.contains(id) && target == chain_name("CNI-", network, id)
    };
    for version in IpVersion::ALL {
        match Iptables::locate(version) {
            Ok(iptables) => take_away_again(&iptables, None, is_meant).await?,
            Err(_missing) => {}
        }
    }
    Ok(())
}

/// The network and the container of a comment of ours.
pub(super) fn read_comment(comment: &str) -> Option<(&str, &str)> {
    comment.strip_prefix("name: \"")?.strip_suffix('"')?.split_once("\" id: \"")
}

/// What was read may be gone, or be more, before it is taken away, by an ADD or a DEL of the same container: then it is read
/// again.
async fn take_away_again(
    iptables: &Iptables,
    own: Option<&str>,
    is_meant: impl Fn(&str, &[String]) -> bool,
) -> Result<(), ProgramError> {
    let mut left = LOOKS;
    loop {
        left -= 1;
        // A chain that is gone is no one to empty.
        let own = match own {
            Some(chain) if iptables.rules(TABLE, chain).await?.is_none() => None,
            own => own,
        };
        match take_away(iptables, own, &is_meant).await {
            Err(_changed) if left > 0 => {}
            other => return other,
        }
    }
}

/// Takes away the jumps that are meant, with the chains that they led to and `own`, unless something else leads there.
async fn take_away(
    iptables: &Iptables,
    own: Option<&str>,
    is_meant: impl Fn(&str, &[String]) -> bool,
) -> Result<(), ProgramError> {
    let rules = iptables.rules(TABLE, FROM).await?.unwrap_or_default();
    let mut text = String::new();
    // The reference plugins' single steps may leave a chain without a jump.
    let mut chains: BTreeSet<String> = own.into_iter().map(str::to_owned).collect();
    let mut still_used = BTreeSet::new();
    for rule in &rules {
        let words = words(rule);
        let Some(target) = word_after(&words, "-j").or_else(|| word_after(&words, "-g")) else { continue };
        if is_meant(target, &words) {
            let _infallible = writeln!(text, "-D {FROM} {rule}");
            chains.insert(target.to_owned());
        } else {
            still_used.insert(target.to_owned());
        }
    }
    for chain in chains.difference(&still_used) {
        let _infallible = writeln!(text, "-F {chain}\n-X {chain}");
    }
    match text.is_empty() {
        true => Ok(()),
        false => iptables.restore(&format!("*{TABLE}\n{text}COMMIT\n")).await,
    }
}

/// The first thing that is not there.
pub(super) async fn missing(masquerade: &Masquerade) -> Result<Option<String>, ProgramError> {
    for version in IpVersion::ALL {
        let Some(wanted) = Rules::of(masquerade, version) else { continue };
        let iptables = Iptables::locate(version)?;
        let own = iptables.rules(TABLE, &wanted.chain).await?;
        let jumps = iptables.rules(TABLE, FROM).await?.unwrap_or_default();
        let Some(own) = own else {
            return Ok(Some(format!("there is no chain {} in the table nat of {version}", wanted.chain)));
        };
        let first = |wanted: &[String], seen: &[String], chain: &str| {
            let absent = wanted.iter().find(|rule| !seen.contains(rule));
            absent.map(|rule| format!("the rule is not in the table nat of {version}: -A {chain} {rule}"))
        };
        let absent = first(&wanted.own, &own, &wanted.chain).or_else(|| first(&wanted.jumps, &jumps, FROM));
        if absent.is_some() {
            return Ok(absent);
        }
    }
    Ok(None)
}

fn of_family(ips: &[IpNet], version: IpVersion) -> impl Iterator<Item = IpNet> {
    ips.iter().copied().filter(move |ip| ip.addr().is_ipv4() == (version == IpVersion::V4))
}

fn multicast(version: IpVersion) -> &'static str {
    match version {
        IpVersion::V4 => "224.0.0.0/4",
        IpVersion::V6 => "ff00::/8",
    }
}

/// Whether a source stands for one address, as iptables shows it.
fn is_single(source: &str, version: IpVersion) -> bool {
    source.ends_with(match version {
        IpVersion::V4 => "/32",
        IpVersion::V6 => "/128",
    })
}
