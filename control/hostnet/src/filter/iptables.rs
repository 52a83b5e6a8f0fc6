//! Chains of our own inside the shared tables of iptables, each reached by one jump at the end of a chain of the kernel's.
//!
//! A chain is read with `iptables -S CHAIN`, which prints what `iptables-save` prints of it and nothing else: where
//! kube-proxy has written forty thousand rules into the same table, those are not ours to read every five seconds. What
//! differs is put right by one input of `iptables-restore --noflush`, which is one transaction: the chain is emptied and
//! filled, and no packet sees it in between. Both `iptables-nft` and `iptables-legacy` do so.
use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;

use super::IpVersion;
use super::program::{ProgramError, find, run};

/// How long to wait for the lock that programs of `iptables-legacy` share.
const LOCK_SECONDS: &str = "5";

/// A chain that is ours as a whole, and the jump to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The table: `nat` or `filter`.
    pub table: &'static str,
    /// The chain's name.
    pub name: &'static str,
    /// The chain of the kernel's that jumps to it: `POSTROUTING`.
    pub from: &'static str,
    /// The jump, without `-A POSTROUTING`: `-m comment --comment "flanneld masq" -j FLANNEL-POSTRTG`.
    pub jump: String,
    /// The chain's rules without `-A NAME`, in order, as `iptables -S` prints them.
    pub rules: Vec<String>,
}

/// What is there of a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The chain's rules; `None` where there is no such chain.
    pub rules: Option<Vec<String>>,
    /// The rules of the kernel's chain that jump to it, in order.
    pub jumps: Vec<String>,
}

impl Chain {
    /// What is there, from the two listings of `iptables -S`: of the chain (`None`: there is no such chain) and of the
    /// one that should jump to it. Lines that are no rules of these chains are passed over.
    pub fn seen(&self, own: Option<&str>, from: &str) -> Seen {
        let jumps = rules_of(from, self.from).filter(|rule| leads_to(rule, self.name));
        Seen {
            rules: own.map(|listing| rules_of(listing, self.name).map(str::to_owned).collect()),
            jumps: jumps.map(str::to_owned).collect(),
        }
    }

    /// As it should be.
    pub fn wanted(&self) -> Seen {
        Seen { rules: Some(self.rules.clone()), jumps: vec![self.jump.clone()] }
    }

    /// The input for `iptables-restore --noflush` that makes what should be from what is there. A jump that is there
    /// exactly once stays where it is among the rules of others; else every jump to us is replaced by one at the end,
    /// where flannel puts it.
    pub fn repair(&self, seen: &Seen) -> String {
        let Self { table, name, from, jump, rules } = self;
        let mut text = format!("*{table}\n:{name} - [0:0]\n");
        for rule in rules {
            let _infallible = writeln!(text, "-A {name} {rule}");
        }
        if seen.jumps != [jump.as_str()] {
            for rule in &seen.jumps {
                let _infallible = writeln!(text, "-D {from} {rule}");
            }
            let _infallible = writeln!(text, "-A {from} {jump}");
        }
        text.push_str("COMMIT\n");
        text
    }

    /// The input that takes away what is there: the jumps first, for a chain that something leads to cannot go. `None`
    /// where there is nothing.
    pub fn removal(&self, seen: &Seen) -> Option<String> {
        let Self { table, name, from, .. } = self;
        if seen.rules.is_none() && seen.jumps.is_empty() {
            return None;
        }
        let mut text = format!("*{table}\n:{name} - [0:0]\n");
        for rule in &seen.jumps {
            let _infallible = writeln!(text, "-D {from} {rule}");
        }
        let _infallible = writeln!(text, "-X {name}");
        text.push_str("COMMIT\n");
        Some(text)
    }
}

/// The rules of one chain in a listing, without `-A NAME`.
fn rules_of<'a>(listing: &'a str, chain: &'a str) -> impl Iterator<Item = &'a str> {
    listing
        .lines()
        .filter_map(move |line| line.trim_end().strip_prefix("-A ")?.strip_prefix(chain)?.strip_prefix(' '))
}

/// The rule's target is the chain. A comment can hold any words, so only what stands outside of quotes counts.
fn leads_to(rule: &str, chain: &str) -> bool {
    let mut quoted = false;
    let mut escaped = false;
    let bare: String = rule
        .chars()
        .map(|c| {
            let hidden = quoted || c == '"';
            match c {
                _ if escaped => escaped = false,
                '\\' if quoted => escaped = true,
                '"' => quoted = !quoted,
                _ => {}
            }
            if hidden { '_' } else { c }
        })
        .collect();
    let words: Vec<&str> = bare.split_whitespace().collect();
    words.windows(2).any(|pair| matches!(pair[0], "-j" | "-g") && pair[1] == chain)
}

/// The programs of one family, and what their version can do.
#[derive(Clone, Debug)]
pub struct Iptables {
    version: IpVersion,
    release: Option<[u32; 3]>,
    legacy: bool,
}

impl Iptables {
    /// Asks the program what it is.
    ///
    /// # Errors
    /// It is not installed, or cannot be run.
    pub async fn find(version: IpVersion) -> Result<Self, ProgramError> {
        let said = run(program(version), &["--version"], "").await?;
        // Programs since 1.8 say which of the two kinds they are; before, there was one.
        Ok(Self { version, release: release(&said), legacy: !said.contains("nf_tables") })
    }

    /// The program as it lies there, without starting it: taken for a recent release, and for the kind that its file's
    /// name says (`xtables-legacy-multi`). For whoever makes one change and ends, and for whom another start of a program
    /// would be half of the work.
    ///
    /// # Errors
    /// It is not installed.
    pub fn locate(version: IpVersion) -> Result<Self, ProgramError> {
        let program = program(version);
        let path = find(program).ok_or(ProgramError::Missing { program })?;
        let file = fs::canonicalize(&path).unwrap_or(path);
        let legacy = file.file_name().is_some_and(|name| name.to_string_lossy().contains("legacy"));
        Ok(Self { version, release: None, legacy })
    }

    /// `MASQUERADE --random-fully` is known (1.6.2). A release that cannot be read is taken for a recent one.
    pub fn can_be_fully_random(&self) -> bool {
        self.is_at_least([1, 6, 2])
    }

    fn is_at_least(&self, least: [u32; 3]) -> bool {
        self.release.is_none_or(|release| release >= least)
    }

    /// Reads what is there of a chain.
    ///
    /// # Errors
    /// The program is missing, cannot be run, or cannot list the kernel's chain.
    pub async fn look(&self, chain: &Chain) -> Result<Seen, ProgramError> {
        let from = self.list(chain.table, chain.from).await?;
        let own = match self.list(chain.table, chain.name).await {
            Ok(listing) => Some(listing),
            // Status 1: there is no such chain. The kernel's chain of the same table could be read a moment ago.
            Err(error) if error.status() == Some(1) => None,
            Err(error) => return Err(error),
        };
        Ok(chain.seen(own.as_deref(), &from))
    }

    /// The rules of one chain as `iptables -S` prints them, without `-A NAME`; `None` where there is no such chain.
    ///
    /// # Errors
    /// The program is missing, cannot be run, or cannot list the table.
    pub async fn rules(&self, table: &str, chain: &str) -> Result<Option<Vec<String>>, ProgramError> {
        if self.legacy && !legacy_tables(self.version).contains(table) {
            return Ok(None);
        }
        match self.list(table, chain).await {
            Ok(listing) => Ok(Some(rules_of(&listing, chain).map(str::to_owned).collect())),
            Err(error) if error.status() == Some(1) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn list(&self, table: &str, chain: &str) -> Result<String, ProgramError> {
        let mut arguments = vec!["-t", table, "-S", chain];
        // 1.4.20 learned to wait, 1.6.0 to wait for so long.
        if self.is_at_least([1, 6, 0]) {
            arguments.extend(["-w", LOCK_SECONDS]);
        }
        run(program(self.version), &arguments, "").await
    }

    /// Hands an input to the kernel, one transaction for each table in it.
    ///
    /// # Errors
    /// The program is missing, cannot be run, or it or the kernel refuses.
    pub async fn restore(&self, input: &str) -> Result<(), ProgramError> {
        let mut arguments = vec!["--noflush"];
        if self.is_at_least([1, 6, 2]) {
            arguments.extend(["-w", LOCK_SECONDS]);
        }
        run(restore_program(self.version), &arguments, input).await.map(drop)
    }

    /// The first of these rules (`PREROUTING -j CHAIN`) that is not in the table, by its index. Nothing is changed. The
    /// program itself compares, so a rule may be written in any way.
    ///
    /// # Errors
    /// The program is missing, cannot be run, or refuses for another reason.
    pub async fn first_absent(&self, table: &str, rules: &[String]) -> Result<Option<usize>, ProgramError> {
        let checks: String = rules.iter().map(|rule| format!("-C {rule}\n")).collect();
        let refused = match self.restore(&format!("*{table}\n{checks}COMMIT\n")).await {
            Ok(()) => return Ok(None),
            Err(error) => error,
        };
        // `iptables-restore: line 3 failed`: the first rule is in the second line.
        let line = match &refused {
            ProgramError::Refused { said, .. } => said
                .split_once("line ")
                .and_then(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next()),
            _ => None,
        };
        match line.and_then(|line| line.parse::<usize>().ok()).and_then(|line| line.checked_sub(2)) {
            Some(index) if index < rules.len() => Ok(Some(index)),
            _ => Err(refused),
        }
    }

    /// Takes the chain and the jumps to it away; answers whether anything was there.
    ///
    /// # Errors
    /// The program is missing, cannot be run, or it or the kernel refuses (a chain of somebody else's jumps to ours).
    pub async fn remove(&self, chain: &Chain) -> Result<bool, ProgramError> {
        // Asking iptables-legacy for a table is enough to make the kernel load it.
        if self.legacy && !legacy_tables(self.version).contains(chain.table) {
            return Ok(false);
        }
        let seen = self.look(chain).await?;
        match chain.removal(&seen) {
            Some(input) => self.restore(&input).await.map(|()| true),
            None => Ok(false),
        }
    }
}

/// A chain that is kept: put in place when it or its jump is not as it should be.
#[derive(Debug)]
pub struct KeptChain {
    chain: Chain,
    /// How this iptables shows the chain where that is not how we print it; what it showed after it had made the chain
    /// is the chain.
    shown: Option<Seen>,
}

impl KeptChain {
    /// To be kept from the first [`KeptChain::keep`] on.
    pub fn new(chain: Chain) -> Self {
        Self { chain, shown: None }
    }

    /// What should be there.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Puts the chain in place if it is not there as it should be; answers whether it was not.
    ///
    /// # Errors
    /// A program is missing, cannot be run, or it or the kernel refuses.
    pub async fn keep(&mut self, iptables: &Iptables) -> Result<bool, ProgramError> {
        let seen = iptables.look(&self.chain).await?;
        if seen == self.chain.wanted() || self.shown.as_ref() == Some(&seen) {
            return Ok(false);
        }
        iptables.restore(&self.chain.repair(&seen)).await?;
        let after = iptables.look(&self.chain).await?;
        // Only a form with as many parts is another form of the same.
        let is_ours = after.jumps.len() == 1
            && after.rules.as_ref().is_some_and(|rules| rules.len() == self.chain.rules.len());
        self.shown = Some(after).filter(|after| is_ours && *after != self.chain.wanted());
        Ok(true)
    }
}

/// `iptables v1.8.9 (nf_tables)`: the number.
fn release(said: &str) -> Option<[u32; 3]> {
    let (_, number) = said.split_once(" v")?;
    let mut parts = number.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
    let major = parts.next()??;
    let mut part = || parts.next().flatten().unwrap_or(0);
    Some([major, part(), part()])
}

/// The tables that `iptables-legacy` has in this network namespace.
fn legacy_tables(version: IpVersion) -> BTreeSet<String> {
    let file = match version {
        IpVersion::V4 => "/proc/thread-self/net/ip_tables_names",
        IpVersion::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn program(version: IpVersion) -> &'static str {
    match version {
        IpVersion::V4 => "iptables",
        IpVersion::V6 => "ip6tables",
    }
}

fn restore_program(version: IpVersion) -> &'static str {
    match version {
        IpVersion::V4 => "iptables-restore",
        IpVersion::V6 => "ip6tables-restore",
    }
}

#[cfg(test)]
mod tests;
