//! What the plugins that write packet filter rules share: the choice between the two systems, the names by which the
//! reference plugins and these find each other's rules, and how rules are read back.

use std::fmt::{self, Write};

use hostnet::filter::ProgramError;
use sha2::{Digest, Sha512};

use crate::protocol::CniError;

/// A system of packet filter rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// `iptables` and `ip6tables`, of either kind.
    Iptables,
    /// `nft`.
    Nftables,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        })
    }
}

impl Backend {
    /// The value of an option (`key` names it); an empty text is none, which leaves the choice to the plugin.
    ///
    /// # Errors
    /// It names neither system.
    pub fn from_option(key: &str, value: Option<&str>) -> Result<Option<Self>, CniError> {
        match value {
            None | Some("") => Ok(None),
            Some("iptables") => Ok(Some(Self::Iptables)),
            Some("nftables") => Ok(Some(Self::Nftables)),
            Some(other) => Err(CniError::config(format!("unknown {key} {other:?}"))
                .with_details("it is iptables or nftables; left out, iptables is used where it works")),
        }
    }
}

/// The first characters of the hexadecimal SHA-512.
pub fn hash(text: &str, length: usize) -> String {
    let mut hex = String::new();
    for byte in Sha512::digest(text.as_bytes()) {
        let _infallible = write!(hex, "{byte:02x}");
    }
    hex.truncate(length);
    hex
}

/// A container's own chain of iptables: as long as iptables allows a name to be.
pub fn chain_name(prefix: &str, network: &str, container_id: &str) -> String {
    const LONGEST: usize = 28;
    let hash = hash(&format!("{network}{container_id}"), LONGEST - prefix.len().min(LONGEST));
    format!("{prefix}{hash}")
}

/// As much of a text as so many bytes hold.
pub fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// A word of a rule, in quotes where `iptables-save` prints it so.
pub fn quoted(word: &str) -> String {
    let is_bare = |c: char| !c.is_whitespace() && !matches!(c, '"' | '\'' | '\\');
    if !word.is_empty() && word.chars().all(is_bare) {
        return word.to_owned();
    }
    let escaped: String = word.chars().fold(String::new(), |mut text, c| {
        if matches!(c, '"' | '\'' | '\\') {
            text.push('\\');
        }
        text.push(c);
        text
    });
    format!("\"{escaped}\"")
}

/// The words of a rule that `iptables-save` printed, without their quotes.
pub fn words(rule: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut is_quoted = false;
    let mut letters = rule.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => {
                is_quoted = !is_quoted;
                word.get_or_insert_default();
            }
            '\\' if is_quoted => word.get_or_insert_default().extend(letters.next()),
            letter if letter.is_whitespace() && !is_quoted => words.extend(word.take()),
            letter => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

/// The word after another one: `--comment` and its text, `-j` and its target.
pub fn word_after<'a>(words: &'a [String], name: &str) -> Option<&'a str> {
    let at = words.iter().position(|word| word == name)?;
    words.get(at + 1).map(String::as_str)
}

/// A rule in a listing of nftables with handles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftRule {
    /// The chain it is in.
    pub chain: String,
    /// By what it is deleted.
    pub handle: u64,
    /// What it does, without its comment.
    pub text: String,
    /// Its comment; empty: none.
    pub comment: String,
}

impl NftRule {
    /// The rules in what `nft --handle list table` printed. Lines that are no rules are passed over.
    pub fn all(listing: &str) -> Vec<Self> {
        let mut rules = Vec::new();
        let mut chain = "";
        for line in listing.lines() {
            let line = line.trim();
            if let Some(name) = line.strip_prefix("chain ").and_then(|rest| rest.split(' ').next()) {
                chain = name;
            } else if !line.contains(" { # handle ") {
                rules.extend(Self::parse(chain, line));
            }
        }
        rules
    }

    fn parse(chain: &str, line: &str) -> Option<Self> {
        let (rule, handle) = line.rsplit_once(" # handle ")?;
        let commented = rule.strip_suffix('"').and_then(|rule| rule.rsplit_once("comment \""));
        let (text, comment) = commented.unwrap_or((rule, ""));
        Some(Self {
            chain: chain.to_owned(),
            handle: handle.parse().ok()?,
            text: text.trim_end().to_owned(),
            comment: comment.to_owned(),
        })
    }
}

/// The hook and the rules of one chain in a listing, without handles: what CHECK compares.
pub fn nft_chain_head<'a>(listing: &'a str, chain: &str) -> Option<&'a str> {
    let mut lines = listing.lines().map(str::trim);
    let is_head = |line: &&str| {
        line.strip_prefix("chain ").and_then(|rest| rest.split(' ').next()).is_some_and(|name| name == chain)
    };
    lines.find(is_head)?;
    lines.take_while(|line| *line != "}").find(|line| line.starts_with("type "))
}

/// What a program's failure is in the words of a plugin: `hostnet` knows the daemon's options only.
pub fn told(error: &ProgramError) -> String {
    match error {
        ProgramError::Missing { program } => {
            let package = if *program == "nft" { "nftables" } else { "iptables" };
            format!(
                "there is no program {program}; install the package {package} (Debian and Alpine name it so)"
            )
        }
        error => error.to_string(),
    }
}

/// A failure of the program of a system, with the option that chooses the other one.
pub fn failed(action: &str, option: &str, error: &ProgramError) -> CniError {
    let failure = CniError::internal(format!("{action}: {}", told(error)));
    match error.is_missing() {
        true => failure.with_details(format!("{option} chooses the system: iptables or nftables")),
        false => failure,
    }
}

/// The end of something that was done in both systems. A program that is not installed has left nothing.
///
/// # Errors
/// What either failed with.
pub fn in_both(
    action: &str,
    in_iptables: Result<(), ProgramError>,
    in_nft: Result<(), ProgramError>,
) -> Result<(), CniError> {
    let errors =
        [in_iptables, in_nft].into_iter().filter_map(Result::err).filter(|error| !error.is_missing());
    let all: Vec<String> = errors.map(|error| told(&error)).collect();
    match all.is_empty() {
        true => Ok(()),
        false => Err(CniError::internal(format!("{action}: {}", all.join("; ")))),
    }
}

/// What is missing of rules in the system that was chosen; where none was, they may be in either.
///
/// # Errors
/// It cannot be looked at.
pub async fn missing(
    backend: Option<Backend>,
    in_iptables: impl Future<Output = Result<Option<String>, ProgramError>>,
    in_nft: impl Future<Output = Result<Option<String>, ProgramError>>,
) -> Result<Option<String>, ProgramError> {
    match backend {
        Some(Backend::Iptables) => in_iptables.await,
        Some(Backend::Nftables) => in_nft.await,
        None => match in_iptables.await {
            Ok(None) => Ok(None),
            Ok(Some(missing)) => match in_nft.await {
                Ok(None) => Ok(None),
                Ok(Some(_)) | Err(_) => Ok(Some(missing)),
            },
            Err(error) => in_nft.await.or(Err(error)),
        },
    }
}

/// What CHECK says where something is missing.
pub fn not_as_made(what: &str) -> CniError {
    CniError::check(what.to_owned())
        .with_details("somebody removed or changed the rule; a restart of the pod makes it again")
}

#[cfg(test)]
mod tests;
