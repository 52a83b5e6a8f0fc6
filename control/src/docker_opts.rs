//! `flanneld mk-docker-opts`: Docker's options from `subnet.env`, as flannel's script `mk-docker-opts.sh` writes them.
//!
//! ```text
//! DOCKER_OPT_BIP="--bip=10.1.74.1/24"         FLANNEL_SUBNET
//! DOCKER_OPT_IPMASQ="--ip-masq=true"          the inverse of FLANNEL_IPMASQ
//! DOCKER_OPT_MTU="--mtu=1472"                 FLANNEL_MTU
//! DOCKER_OPTS=" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"
//! ```
//!
//! A script reads `subnet.env` as shell and sees the variables that it inherits, and so does this: what the file does not
//! assign comes from the environment, inherited `DOCKER_OPT_*` are passed on, and an inherited variable of the combined
//! name stands in front. One difference is deliberate: the file is read, never executed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hostnet::regular_file::{self, Links};
use ipnet::Ipv4Net;

const USAGE: &str = "\
usage: flanneld mk-docker-opts [-f FILE] [-d FILE] [-i] [-c] [-m] [-k KEY]

  -f FILE  subnet.env to read [/run/flannel/subnet.env]
  -d FILE  where the options go [/run/docker_opts.env]
  -i       one variable an option: DOCKER_OPT_BIP, DOCKER_OPT_IPMASQ, DOCKER_OPT_MTU
  -c       all options in one variable; with neither -i nor -c: both
  -k KEY   the name of that variable [DOCKER_OPTS]
  -m       without --ip-masq
";

/// Every variable that holds one option starts with this.
const OPTION: &str = "DOCKER_OPT_";
/// More than any sane `subnet.env` by far.
const MAX_BYTES: u64 = 64 * 1024;
/// The IPv4 routes of the main table (Linux, `Documentation/networking/proc_net_*`; fib_route_seq_show).
const ROUTES: &str = "/proc/net/route";
/// `RTF_GATEWAY`: the route leads to another router.
const GATEWAY: u32 = 0x2;

/// What was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The `subnet.env` to read.
    pub subnet_env: PathBuf,
    /// The file to write.
    pub docker_env: PathBuf,
    /// Write one variable an option.
    pub individual: bool,
    /// Write all options in one variable.
    pub combined: bool,
    /// Write `--ip-masq`.
    pub ip_masq: bool,
    /// The name of the combined variable.
    pub key: String,
}

/// Why nothing was written. The exit status is 1 whatever it was, as the script's is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `-h`, an unknown option, or an option without its value: the usage is the answer.
    #[error("{0}")]
    Usage(String),
    /// A value that no option can be made of.
    #[error("{what} is {value:?}, expected {expected}")]
    Value {
        /// The variable or the option.
        what: &'static str,
        /// What was found.
        value: String,
        /// What would have been taken.
        expected: &'static str,
    },
}

impl Options {
    /// The words behind `mk-docker-opts`, by the rules of `getopts`: letters may be joined (`-ic`), a value may follow its
    /// letter at once (`-kKEY`), the first word that is no option ends them, and what follows is passed over.
    ///
    /// # Errors
    /// `-h`, `-?`, unknown letters, missing values, and a KEY that is no name of a variable.
    pub fn parse(words: &[String]) -> Result<Self, Refusal> {
        let mut options = Self {
            subnet_env: "/run/flannel/subnet.env".into(),
            docker_env: "/run/docker_opts.env".into(),
            individual: false,
            combined: false,
            ip_masq: true,
            key: "DOCKER_OPTS".to_owned(),
        };
        let mut words = words.iter();
        while let Some(letters) = words.next().and_then(|word| word.strip_prefix('-')) {
            if letters.is_empty() || letters == "-" {
                break;
            }
            let mut rest = letters;
            while let Some(letter) = rest.chars().next() {
                rest = &rest[letter.len_utf8()..];
                match letter {
                    'i' => options.individual = true,
                    'c' => options.combined = true,
                    'm' => options.ip_masq = false,
                    'f' | 'd' | 'k' => {
                        let value = match std::mem::take(&mut rest) {
                            "" => words.next().map(String::as_str),
                            joined => Some(joined),
                        };
                        let value =
                            value.ok_or_else(|| Refusal::Usage(format!("-{letter} needs a value")))?;
                        options.take(letter, value)?;
                    }
                    'h' | '?' => return Err(Refusal::Usage(String::new())),
                    _ => return Err(Refusal::Usage(format!("there is no option -{letter}"))),
                }
            }
        }
        if !options.individual && !options.combined {
            (options.individual, options.combined) = (true, true);
        }
        Ok(options)
    }

    fn take(&mut self, letter: char, value: &str) -> Result<(), Refusal> {
        match letter {
            'f' => self.subnet_env = value.into(),
            'd' => self.docker_env = value.into(),
            _ if is_name(value) => self.key = value.to_owned(),
            _ => {
                let expected = "the name of a variable: letters, digits and underscores";
                return Err(Refusal::Value { what: "-k", value: value.to_owned(), expected });
            }
        }
        Ok(())
    }

    /// The text of the file to write. `variables` are the environment with the assignments of `subnet.env` over it.
    ///
    /// # Errors
    /// FLANNEL_IPMASQ neither true nor false while `--ip-masq` is wanted.
    pub fn render(&self, variables: &BTreeMap<String, String>) -> Result<String, Refusal> {
        let given = |name: &str| variables.get(name).filter(|value| !value.is_empty());
        let mut options: BTreeMap<String, String> = variables
            .iter()
            .filter(|(name, _)| name.starts_with(OPTION))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let mut set = |name: &str, value: String| options.insert(format!("{OPTION}{name}"), value);
        if let Some(subnet) = given("FLANNEL_SUBNET") {
            set("BIP", format!("--bip={subnet}"));
        }
        if let Some(mtu) = given("FLANNEL_MTU") {
            set("MTU", format!("--mtu={mtu}"));
        }
        if let Some(flannel_does) = given("FLANNEL_IPMASQ").filter(|_| self.ip_masq) {
            let docker_does = match flannel_does.as_str() {
                "true" => false,
                "false" => true,
                _ => {
                    let value = flannel_does.clone();
                    return Err(Refusal::Value { what: "FLANNEL_IPMASQ", value, expected: "true or false" });
                }
            };
            set("IPMASQ", format!("--ip-masq={docker_does}"));
        }
        let mut text = String::new();
        // The script puts a blank behind what was there and one before each option.
        let mut together = given(&self.key).map(|first| format!("{first} ")).unwrap_or_default();
        for (name, value) in &options {
            if self.individual {
                text.push_str(&format!("{name}=\"{value}\"\n"));
            }
            together.push(' ');
            together.push_str(value);
        }
        if self.combined {
            text.push_str(&format!("{}=\"{together}\"\n", self.key));
        }
        Ok(text)
    }
}

/// The assignments of an environment file as a shell would make them, as far as they are plain: a line that is none is
/// passed over, and nothing is expanded or executed.
#[must_use]
pub fn assignments(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let line = line.trim_start();
        let line = line.strip_prefix("export ").map_or(line, str::trim_start);
        if let Some((name, value)) = line.split_once('=').filter(|(name, _)| is_name(name)) {
            found.insert(name.to_owned(), shell_word(value));
        }
    }
    found
}

/// The first word of a shell's line without its quotes.
fn shell_word(text: &str) -> String {
    let mut word = String::new();
    let mut quote = None;
    for letter in text.chars() {
        match quote {
            Some(open) if letter == open => quote = None,
            None if letter == '"' || letter == '\'' => quote = Some(letter),
            None if letter.is_whitespace() || letter == ';' => break,
            _ => word.push(letter),
        }
    }
    word
}

fn is_name(text: &str) -> bool {
    text.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
        && text.chars().next().is_some_and(|first| !first.is_ascii_digit())
}

/// The first route of the table (the text of `/proc/net/route`) that sends exactly this subnet to a gateway, for a person:
/// Docker's bridge would shadow it.
#[must_use]
pub fn gateway_route(table: &str, subnet: Ipv4Net) -> Option<String> {
    table.lines().skip(1).find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [device, destination, gateway, flags, _, _, _, mask, ..] = columns[..] else { return None };
        // The columns are 32-bit words as they lie in memory, printed as hexadecimal numbers.
        let address =
            |word| u32::from_str_radix(word, 16).ok().map(|word| Ipv4Addr::from(word.to_ne_bytes()));
        let net = Ipv4Net::with_netmask(address(destination)?, address(mask)?).ok()?;
        let leads_on = u32::from_str_radix(flags, 16).ok()? & GATEWAY != 0;
        (net == subnet.trunc() && leads_on)
            .then(|| format!("{net} via {} dev {device}", address(gateway).unwrap_or(Ipv4Addr::UNSPECIFIED)))
    })
}

/// The subcommand, with the words behind `mk-docker-opts`. 0 when the file is written and usable, else 1.
pub fn main(words: &[String]) -> ExitCode {
    match run(words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell if stderr is closed.
            writeln!(io::stderr(), "{error:#}").ok();
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[String]) -> anyhow::Result<()> {
    let options = Options::parse(words).map_err(|refusal| match refusal {
        Refusal::Usage(why) if why.is_empty() => anyhow::anyhow!("{USAGE}"),
        Refusal::Usage(why) => anyhow::anyhow!("mk-docker-opts: {why}\n{USAGE}"),
        other => anyhow::anyhow!("mk-docker-opts: {other}"),
    })?;
    let mut variables: BTreeMap<String, String> = std::env::vars_os().filter_map(utf8).collect();
    variables.extend(assignments(&read(&options.subnet_env)?));
    let text = options.render(&variables).map_err(|refusal| anyhow::anyhow!("mk-docker-opts: {refusal}"))?;
    // Truncated and written in place, not replaced: the path may be a pipe or /dev/stdout.
    fs::write(&options.docker_env, text).map_err(|error| {
        anyhow::anyhow!("mk-docker-opts: write {}: {error}", options.docker_env.display())
    })?;
    let Some(subnet) = variables.get("FLANNEL_SUBNET").and_then(|text| text.parse::<Ipv4Net>().ok()) else {
        return Ok(());
    };
    let table = match fs::read_to_string(ROUTES) {
        Ok(table) => table,
        Err(error) => {
            // Nobody is left to tell if stderr is closed.
            writeln!(io::stderr(), "mk-docker-opts: routes are not checked: read {ROUTES}: {error}").ok();
            return Ok(());
        }
    };
    match gateway_route(&table, subnet) {
        None => Ok(()),
        Some(route) => anyhow::bail!(
            "mk-docker-opts: {} is written, but the routing table already contains the subnet: {route}. Remove that \
             route, or Docker's bridge will hide it",
            options.docker_env.display()
        ),
    }
}

/// The text of `subnet.env`; empty where there is no such file, as the script takes it.
fn read(path: &Path) -> anyhow::Result<String> {
    match regular_file::read(path, MAX_BYTES, Links::Follow) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(anyhow::anyhow!("mk-docker-opts: read {}: {error}", path.display())),
    }
}

/// A variable that is not UTF-8 is none of ours.
fn utf8((name, value): (OsString, OsString)) -> Option<(String, String)> {
    name.into_string().ok().zip(value.into_string().ok())
}
