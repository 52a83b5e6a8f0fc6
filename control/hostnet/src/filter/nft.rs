//! Tables of nftables: as values, as the text that `nft` reads and lists, and in the kernel.
//!
//! The text form goes in and comes out, not JSON: it is what people see in `nft list ruleset` and what flannel's own tests
//! compare, and `nft -j` leaves out the comments of tables and chains (1.0.6 and before). One printer serves for both
//! ways. JSON is only asked for where numbers are read, [`json`].
use std::fmt;

use super::IpVersion;
use super::program::{ProgramError, find, run};

const PROGRAM: &str = "nft";

/// A table that is ours as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Which packets it sees.
    pub version: IpVersion,
    /// Its name.
    pub name: String,
    /// Its comment; empty: none.
    pub comment: String,
    /// What stands in it before its chains (sets, counters), as `nft` lists it: one line each, without indentation.
    pub objects: Vec<String>,
    /// Its chains, in order.
    pub chains: Vec<Chain>,
}

/// A chain at a hook of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Its comment.
    pub comment: String,
    /// Where it hangs: `type nat hook postrouting priority srcnat; policy accept;`.
    pub hook: String,
    /// Its rules, in order, as `nft` lists them.
    pub rules: Vec<String>,
}

impl Table {
    /// `ip flannel-ipv4`: how commands name it.
    pub fn address(&self) -> String {
        format!("{} {}", keyword(self.version), self.name)
    }

    /// The commands that put this table in the place of whatever bears its name. `nft` hands one input to the kernel as
    /// one transaction, so every packet sees the old table or the new one; the first line is for the second to succeed
    /// where there is none.
    pub fn replacement(&self) -> String {
        let address = self.address();
        format!("add table {address}\ndelete table {address}\n{self}")
    }
}

impl fmt::Display for Table {
    /// As `nft list table` shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {{", self.address())?;
        if !self.comment.is_empty() {
            writeln!(f, "\tcomment \"{}\"", self.comment)?;
        }
        for object in &self.objects {
            writeln!(f, "\t{object}")?;
        }
        for (at, chain) in self.chains.iter().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            writeln!(f, "\tchain {} {{", chain.name)?;
            writeln!(f, "\t\tcomment \"{}\"", chain.comment)?;
            writeln!(f, "\t\t{}", chain.hook)?;
            for rule in &chain.rules {
                writeln!(f, "\t\t{rule}")?;
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

/// A table as `nft` lists it, without the values of counters; `None` where there is none or it cannot be listed. Why it
/// cannot be listed is told by the transaction that would make it.
///
/// # Errors
/// There is no `nft`, or it cannot be run.
pub async fn list(version: IpVersion, name: &str) -> Result<Option<String>, ProgramError> {
    match run(PROGRAM, &["--stateless", "list", "table", keyword(version), name], "").await {
        Ok(listing) => Ok(Some(listing)),
        Err(ProgramError::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What `nft -j list WHAT` prints.
///
/// # Errors
/// There is no `nft`, it cannot be run, or what was asked for is not there.
pub async fn json(what: &[&str]) -> Result<String, ProgramError> {
    run(PROGRAM, &[&["--json", "list"], what].concat(), "").await
}

/// Hands commands to the kernel as one transaction: all of it happens or nothing.
///
/// # Errors
/// There is no `nft`, it cannot be run, or it or the kernel refuses.
pub async fn apply(commands: &str) -> Result<(), ProgramError> {
    run(PROGRAM, &["--file", "-"], commands).await.map(drop)
}

/// [`apply`], and answers what the listings among the commands print, with the handles of rules. They show what was there
/// before.
///
/// # Errors
/// As [`apply`].
pub async fn apply_and_list(commands: &str) -> Result<String, ProgramError> {
    run(PROGRAM, &["--handle", "--file", "-"], commands).await
}

/// A table of any family (`inet cni`) with the handles of its rules; `None` where there is none.
///
/// # Errors
/// There is no `nft`, it cannot be run, or the kernel refuses.
pub async fn handles(address: &str) -> Result<Option<String>, ProgramError> {
    match apply_and_list(&format!("list table {address}\n")).await {
        Ok(listing) => Ok(Some(listing)),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether there is an `nft`; it is not started.
pub fn is_installed() -> bool {
    find(PROGRAM).is_some()
}

/// Whether this `nft` and this kernel take the commands; nothing is changed.
///
/// # Errors
/// There is no `nft`, or it cannot be run.
pub async fn takes(commands: &str) -> Result<bool, ProgramError> {
    match run(PROGRAM, &["--check", "--file", "-"], commands).await {
        Ok(_) => Ok(true),
        Err(ProgramError::Refused { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Deletes a table if it is there; answers whether it was.
///
/// # Errors
/// There is no `nft`, it cannot be run, or the kernel refuses.
pub async fn delete(version: IpVersion, name: &str) -> Result<bool, ProgramError> {
    let there = list(version, name).await?.is_some();
    if there {
        apply(&format!("delete table {} {name}\n", keyword(version))).await?;
    }
    Ok(there)
}

/// A table that is kept: put in place when it is not there or not as it should be.
#[derive(Debug)]
pub struct KeptTable {
    table: Table,
    /// How this `nft` lists the table where that is not how we print it. Versions differ in such things; what it showed
    /// after it had made the table is the table.
    listed: Option<String>,
}

impl KeptTable {
    /// To be kept from the first [`KeptTable::keep`] on.
    pub fn new(table: Table) -> Self {
        Self { table, listed: None }
    }

    /// What should be there.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Puts the table in place if it is not there as it should be; answers whether it was not.
    ///
    /// # Errors
    /// There is no `nft`, it cannot be run, or it or the kernel refuses.
    pub async fn keep(&mut self) -> Result<bool, ProgramError> {
        let (version, name) = (self.table.version, self.table.name.as_str());
        let text = self.table.to_string();
        if let Some(listing) = list(version, name).await?
            && (listing == text || self.listed.as_ref() == Some(&listing))
        {
            return Ok(false);
        }
        apply(&self.table.replacement()).await?;
        self.listed = list(version, name).await?.filter(|listing| *listing != text);
        Ok(true)
    }
}

/// The word for the family in commands and listings.
pub fn keyword(version: IpVersion) -> &'static str {
    match version {
        IpVersion::V4 => "ip",
        IpVersion::V6 => "ip6",
    }
}
