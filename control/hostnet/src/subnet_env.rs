//! `subnet.env`: the file by which a node agent tells CNI plugins, scripts and its own next start which subnet this
//! node has. The format is flannel's, byte for byte:
//!
//! ```text
//! FLANNEL_NETWORK=10.5.0.0/16            IPv4 pair, where there is one
//! FLANNEL_SUBNET=10.5.72.1/24            the subnet's first address after its base, with the subnet's length
//! FLANNEL_IPV6_NETWORK=fd00::/48         IPv6 pair, where there is one
//! FLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64
//! FLANNEL_MTU=1450
//! FLANNEL_IPMASQ=true
//! ```
//!
//! Two readers: [`SubnetEnv::parse`] wants a whole, right file and says the line that is not; [`Previous`] is what a
//! starting daemon takes from the file of its last run, by flannel's lenient rules, and never stops a start.
use std::fmt;
use std::fs::{DirBuilder, Permissions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use atomic_write_file::AtomicWriteFile;
use ipnet::IpNet;

mod line;

use crate::regular_file::{self, Links};
use line::{Assignment, assignments};

const NETWORK: [&str; 2] = ["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"];
const SUBNET: [&str; 2] = ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"];
const MTU: &str = "FLANNEL_MTU";
const IPMASQ: &str = "FLANNEL_IPMASQ";

/// More than any sane file by far, and little enough to read whatever is found at the path.
const MAX_BYTES: u64 = 64 * 1024;

/// The content of a `subnet.env`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The overlay's networks; flannel writes one for each family.
    pub networks: Vec<IpNet>,
    /// This node's subnets, host bits zero; one for each family.
    pub subnets: Vec<IpNet>,
    /// The MTU for pods, in bytes.
    pub mtu: u32,
    /// Whether the daemon masquerades traffic that leaves the overlay (`--ip-masq`).
    pub ip_masq: bool,
}

/// What is wrong with the text of a `subnet.env`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// A line cannot be read, or its value is not what belongs there.
    #[error("line {line}: {problem}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What was found and what was expected.
        problem: String,
    },
    /// A key that every whole file has is not there.
    #[error("{0} is missing: the file is torn, or it is not flannel's")]
    Missing(String),
}

/// Reading or writing the file failed.
#[derive(Debug, thiserror::Error)]
pub enum SubnetEnvError {
    /// It cannot be read: `NotFound` where no daemon has run since the last boot.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It was read, and is not what it should be.
    #[error("read {path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: ParseError,
    },
    /// It cannot be written; an earlier file is still there and whole.
    #[error("write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl SubnetEnv {
    /// Reads a whole file's text. Blank lines, comments, `export`, quotes and unknown keys are allowed; the last
    /// assignment of a key counts. `FLANNEL_NETWORK` may be a list separated by commas. Host bits are masked away.
    ///
    /// # Errors
    /// The first line that cannot be read, or what is missing: a network, a subnet, the MTU, or the masquerade flag.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let found = assignments(text)?;
        let networks = lists(&found, NETWORK, usize::MAX)?;
        let subnets = lists(&found, SUBNET, 1)?;
        let mtu = needed(&found, MTU)?;
        let ip_masq = needed(&found, IPMASQ)?;
        Ok(Self {
            networks,
            subnets,
            mtu: mtu.value.parse().map_err(|_not_a_number| mtu.problem("a number of bytes, like 1450"))?,
            ip_masq: ip_masq.value.parse().map_err(|_not_a_flag| ip_masq.problem("true or false"))?,
        })
    }

    /// Reads the file at `path`.
    pub fn read(path: &Path) -> Result<Self, SubnetEnvError> {
        let text =
            read_text(path).map_err(|source| SubnetEnvError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|source| SubnetEnvError::Parse { path: path.to_owned(), source })
    }

    /// Writes the file with mode 0644 whatever the umask is, and makes its directory (0755) if need be. Whoever reads
    /// it meanwhile sees the old file or the new one, whole; after a power loss too.
    pub fn write(&self, path: &Path) -> Result<(), SubnetEnvError> {
        self.try_write(path).map_err(|source| SubnetEnvError::Write { path: path.to_owned(), source })
    }

    fn try_write(&self, path: &Path) -> io::Result<()> {
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        }
        let mut file = AtomicWriteFile::open(path)?;
        file.write_all(self.to_string().as_bytes())?;
        file.as_file().set_permissions(Permissions::from_mode(0o644))?;
        file.commit()
    }
}

impl fmt::Display for SubnetEnv {
    /// The file's text, with a newline at its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for family in [V4, V6] {
            for (key, nets, shown) in [
                (NETWORK[family], &self.networks, IpNet::trunc as fn(&IpNet) -> IpNet),
                (SUBNET[family], &self.subnets, first_host),
            ] {
                let nets: Vec<String> = nets
                    .iter()
                    .filter(|net| family_of(net) == family)
                    .map(|net| shown(net).to_string())
                    .collect();
                if !nets.is_empty() {
                    writeln!(f, "{key}={}", nets.join(","))?;
                }
            }
        }
        writeln!(f, "{MTU}={}", self.mtu)?;
        writeln!(f, "{IPMASQ}={}", self.ip_masq)
    }
}

/// What a starting daemon takes from the file of its last run. Each key gives at most one prefix: with none that can be
/// read, or with more than one, it counts as empty and `problems` says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Previous {
    /// The overlay's networks of that run, at most one for each key.
    pub networks: Vec<IpNet>,
    /// This node's subnets of that run, at most one for each key.
    pub subnets: Vec<IpNet>,
    /// What was passed over, and why; one line each.
    pub problems: Vec<String>,
}

impl Previous {
    /// From a file's text. A line that is no assignment makes all of it empty.
    pub fn parse(text: &str) -> Self {
        let found = match assignments(text) {
            Ok(found) => found,
            Err(error) => return Self { problems: vec![error.to_string()], ..Self::default() },
        };
        let mut previous = Self::default();
        previous.networks = previous.one_of_each(&found, NETWORK);
        previous.subnets = previous.one_of_each(&found, SUBNET);
        previous
    }

    /// From the file at `path`; nothing, and no problem, if there is none.
    pub fn read(path: &Path) -> Self {
        match read_text(path) {
            Ok(text) => Self::parse(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                Self { problems: vec![format!("read {}: {error}", path.display())], ..Self::default() }
            }
        }
    }

    fn one_of_each(&mut self, found: &[Assignment<'_>], keys: [&'static str; 2]) -> Vec<IpNet> {
        let mut nets = Vec::new();
        for (family, key) in keys.into_iter().enumerate() {
            let Some(assignment) = last(found, key) else { continue };
            let (good, bad) = prefixes(assignment, family);
            self.problems.extend(bad.iter().map(ToString::to_string));
            match good.as_slice() {
                [net] => nets.push(*net),
                [] => {}
                _ => self.problems.push(assignment.problem("a single prefix").to_string()),
            }
        }
        nets
    }
}

/// Positions of the two families in the tables of keys.
const V4: usize = 0;
const V6: usize = 1;

fn family_of(net: &IpNet) -> usize {
    if net.addr().is_ipv4() { V4 } else { V6 }
}

/// The prefixes of both keys, all of them good and no more than `most` for each key; at least one in all.
fn lists(found: &[Assignment<'_>], keys: [&'static str; 2], most: usize) -> Result<Vec<IpNet>, ParseError> {
    let mut nets = Vec::new();
    for (family, key) in keys.into_iter().enumerate() {
        let Some(assignment) = last(found, key) else { continue };
        let (good, bad) = prefixes(assignment, family);
        if let Some(bad) = bad.into_iter().next() {
            return Err(bad);
        }
        if good.len() > most {
            return Err(assignment.problem("a single prefix"));
        }
        nets.extend(good);
    }
    if nets.is_empty() {
        return Err(ParseError::Missing(keys.join(" or ")));
    }
    Ok(nets)
}

/// The prefixes of a list with commas, host bits masked and duplicates dropped, and what is wrong with the others.
fn prefixes(assignment: &Assignment<'_>, family: usize) -> (Vec<IpNet>, Vec<ParseError>) {
    let mut good = Vec::new();
    let mut bad = Vec::new();
    for item in assignment.value.split(',') {
        match item.trim().parse::<IpNet>() {
            Ok(net) if family_of(&net) == family => {
                if !good.contains(&net.trunc()) {
                    good.push(net.trunc());
                }
            }
            _ => bad.push(assignment.problem(EXPECTED_PREFIX[family])),
        }
    }
    (good, bad)
}

const EXPECTED_PREFIX: [&str; 2] =
    ["an IPv4 prefix, like 10.5.72.1/24", "an IPv6 prefix, like fd00:0:0:1::1/64"];

/// The last assignment of a key counts, as in a shell.
fn last<'a>(found: &'a [Assignment<'a>], key: &str) -> Option<&'a Assignment<'a>> {
    found.iter().rfind(|assignment| assignment.key == key)
}

fn needed<'a>(found: &'a [Assignment<'a>], key: &str) -> Result<&'a Assignment<'a>, ParseError> {
    last(found, key).ok_or_else(|| ParseError::Missing(key.to_owned()))
}

/// The address of a subnet's bridge: the one after its base, where the subnet has room for it.
fn first_host(net: &IpNet) -> IpNet {
    let base = net.trunc();
    let next = match base.addr() {
        IpAddr::V4(ip) => ip.to_bits().checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(ip) => ip.to_bits().checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    };
    next.filter(|next| base.contains(next))
        .and_then(|next| IpNet::new(next, base.prefix_len()).ok())
        .unwrap_or(base)
}

fn read_text(path: &Path) -> io::Result<String> {
    let bytes = regular_file::read(path, MAX_BYTES, Links::Follow)?;
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes().iter().take(good).filter(|byte| **byte == b'\n').count();
        io::Error::new(io::ErrorKind::InvalidData, format!("line {line}: not UTF-8 text"))
    })
}

#[cfg(test)]
mod tests;
