//! What the flags mean: [`Settings`], every value checked once, before anything is opened.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU8;
use std::path::PathBuf;
use std::time::Duration;

use dataplane::{Duplex, Features, SourcePorts, Spin, Tuning};
use dataplane_core::SourceCheck;
use regex::Regex;

use crate::flags::RawFlags;

/// Most threads of an engine: a TUN device has at most 256 queues, and no machine needs so many.
const MAX_WORKERS: u8 = 64;
/// Longest spin: beyond it a CPU would burn for traffic that comes a hundred times a second.
const MAX_SPIN_US: u64 = 10_000;

/// Everything the daemon needs to know, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The directory that holds the leases.
    pub lease_dir: PathBuf,
    /// The network configuration, where the lease directory has none.
    pub net_config_path: PathBuf,
    /// How to find the interface of the underlay.
    pub interface: InterfaceChoice,
    /// Where subnet.env goes.
    pub subnet_file: PathBuf,
    /// How long before its end a lease is renewed.
    pub renew_margin: Duration,
    /// Said in subnet.env.
    pub ip_masq: bool,
    /// Engine features to do without.
    pub engine_off: Features,
    /// The engine's threads.
    pub tuning: Tuning,
    /// What to do with inner sources outside the cluster.
    pub source_check: SourceCheck,
    /// How to log.
    pub log: LogSettings,
    /// End when the parent process ends.
    pub exit_with_parent: bool,
    /// What the user should know about their flags, for the log.
    pub notices: Vec<String>,
}

/// How the underlay's interface is chosen; flannel's flags, in flannel's order.
#[derive(Debug, Clone, Default)]
pub struct InterfaceChoice {
    /// Names or addresses, in order.
    pub interfaces: Vec<String>,
    /// Patterns over addresses and names, tried after them.
    pub patterns: Vec<Regex>,
    /// The interface towards this address, tried last.
    pub can_reach: Option<IpAddr>,
    /// The IPv4 address to publish; without any of the above it chooses the interface too.
    pub public_ip: Option<Ipv4Addr>,
    /// The IPv6 address to publish.
    pub public_ipv6: Option<Ipv6Addr>,
}

/// How to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSettings {
    /// Form of the lines.
    pub format: LogFormat,
    /// 0 what a user sees changing, 1 to 4 decisions, 5 everything.
    pub verbosity: i64,
}

/// Form of the log's lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A flag whose value makes no sense. The process ends with status 2.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The value is not what the flag takes.
    #[error("{from}={text}: {problem}")]
    BadValue {
        /// The flag or the variable.
        from: String,
        /// The value.
        text: String,
        /// What it should be.
        problem: String,
    },
    /// No store was chosen.
    #[error(
        "no lease store: give --file-subnet-mgr DIR, a directory that all nodes share (this version has no etcd or Kubernetes store)"
    )]
    NoStore,
    /// No store was chosen, and a word stands where flags end: a subcommand was meant, or a flag behind the word.
    #[error(
        "{word:?} is no subcommand (there is `flanneld demo`), and no flag before it names a lease store: see \
         `flanneld --help`"
    )]
    Word {
        /// The word.
        word: String,
    },
}

impl Settings {
    /// Checks every flag.
    pub fn settle(flags: &RawFlags) -> Result<Self, SettingsError> {
        let log = Self::log(flags)?;
        let refuse = |name: &str, problem: String| SettingsError::BadValue {
            from: flags.source(name),
            text: flags.text(name).to_owned(),
            problem,
        };
        let lease_dir = flags.text("file-subnet-mgr");
        if lease_dir.is_empty() {
            return Err(match flags.words.first() {
                Some(word) => SettingsError::Word { word: word.clone() },
                None => SettingsError::NoStore,
            });
        }
        let subnet_file = flags.text("subnet-file");
        if subnet_file.is_empty() {
            return Err(refuse("subnet-file", "expected a path".to_owned()));
        }
        let margin = flags.integer("subnet-lease-renew-margin");
        if !(1..=1439).contains(&margin) {
            return Err(SettingsError::BadValue {
                from: flags.source("subnet-lease-renew-margin"),
                text: margin.to_string(),
                problem: "expected minutes from 1 to 1439: a lease lasts 1440".to_owned(),
            });
        }
        let engine_off = flags
            .text("engine-off")
            .parse::<Features>()
            .map_err(|error| refuse("engine-off", error.to_string()))?;
        let source_check = match flags.text("source-check") {
            "loose" => SourceCheck::Loose,
            "strict" => SourceCheck::Strict,
            _ => return Err(refuse("source-check", "expected loose or strict".to_owned())),
        };
        let settings = Self {
            lease_dir: lease_dir.into(),
            net_config_path: flags.text("net-config-path").into(),
            interface: InterfaceChoice::settle(flags)?,
            subnet_file: subnet_file.into(),
            renew_margin: Duration::from_secs(margin.unsigned_abs() * 60),
            ip_masq: flags.switch("ip-masq"),
            engine_off,
            tuning: tuning(flags)?,
            source_check,
            log,
            exit_with_parent: flags.switch("exit-with-parent"),
            notices: notices(flags),
        };
        Ok(settings)
    }

    /// How to log, which is needed before the rest can be complained about.
    pub fn log(flags: &RawFlags) -> Result<LogSettings, SettingsError> {
        let format = match flags.text("log-format") {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            text => {
                return Err(SettingsError::BadValue {
                    from: flags.source("log-format"),
                    text: text.to_owned(),
                    problem: "expected text or json".to_owned(),
                });
            }
        };
        Ok(LogSettings { format, verbosity: flags.integer("v") })
    }
}

impl InterfaceChoice {
    fn settle(flags: &RawFlags) -> Result<Self, SettingsError> {
        let patterns = flags
            .list("iface-regex")
            .iter()
            .map(|pattern| {
                Regex::new(pattern).map_err(|error| SettingsError::BadValue {
                    from: flags.source("iface-regex"),
                    text: pattern.clone(),
                    problem: reason(&error),
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            // flannel takes an empty --iface for none at all.
            interfaces: flags.list("iface").iter().filter(|name| !name.is_empty()).cloned().collect(),
            patterns,
            can_reach: address(flags, "iface-can-reach", "an IP address")?,
            public_ip: address(flags, "public-ip", "an IPv4 address")?,
            public_ipv6: address(flags, "public-ipv6", "an IPv6 address")?,
        })
    }

    /// No flag names an interface.
    pub fn names_none(&self) -> bool {
        self.interfaces.is_empty() && self.patterns.is_empty() && self.can_reach.is_none()
    }
}

fn tuning(flags: &RawFlags) -> Result<Tuning, SettingsError> {
    let refuse = |name: &str, problem: &str| SettingsError::BadValue {
        from: flags.source(name),
        text: flags.text(name).to_owned(),
        problem: problem.to_owned(),
    };
    let workers = match flags.text("engine-workers") {
        "auto" => None,
        text => match text.parse::<NonZeroU8>() {
            Ok(workers) if workers.get() <= MAX_WORKERS => Some(workers),
            _ => return Err(refuse("engine-workers", "expected auto or a number from 1 to 64")),
        },
    };
    let spin = match flags.text("engine-spin") {
        "auto" => Spin::Auto,
        "off" => Spin::Off,
        text => match text.parse::<u64>() {
            Ok(us @ 0..=MAX_SPIN_US) => Spin::UpTo(Duration::from_micros(us)),
            _ => return Err(refuse("engine-spin", "expected auto, off or microseconds from 0 to 10000")),
        },
    };
    let source_ports = match flags.text("engine-source-ports") {
        "auto" => SourcePorts::Auto,
        "fixed" => SourcePorts::Fixed,
        "spread" => SourcePorts::Spread,
        _ => return Err(refuse("engine-source-ports", "expected auto, fixed or spread")),
    };
    let duplex = match flags.text("engine-duplex") {
        "auto" => Duplex::Auto,
        "half" => Duplex::Half,
        "full" => Duplex::Full,
        _ => return Err(refuse("engine-duplex", "expected auto, half or full")),
    };
    Ok(Tuning { workers, duplex, spin, source_ports })
}

fn address<T: std::str::FromStr>(
    flags: &RawFlags,
    name: &str,
    expected: &str,
) -> Result<Option<T>, SettingsError> {
    let text = flags.text(name);
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| SettingsError::BadValue {
        from: flags.source(name),
        text: text.to_owned(),
        problem: format!("expected {expected}"),
    })
}

/// The last line of regex's drawing of the error.
fn reason(error: &regex::Error) -> String {
    error.to_string().lines().last().unwrap_or("not a regular expression").trim().to_owned()
}

fn notices(flags: &RawFlags) -> Vec<String> {
    let mut notices = Vec::new();
    if !flags.words.is_empty() {
        let words = flags.words.join(" ");
        notices.push(format!(
            "ignored after the flags: {words}. A boolean takes its value with an equals sign: --ip-masq=true"
        ));
    }
    for (name, nearest) in &flags.unknown_variables {
        notices.push(format!("{name} is set but names no flag; the nearest is {nearest}"));
    }
    if flags.switch("ip-masq") {
        notices.push(
            "--ip-masq is only written to subnet.env: this version installs no masquerade rules, so pods reach \
             nothing outside the cluster unless something else translates their addresses"
                .to_owned(),
        );
    }
    notices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(words: &[&str]) -> Result<Settings, SettingsError> {
        let words = std::iter::once("-file-subnet-mgr=/leases").chain(words.iter().copied());
        Settings::settle(&RawFlags::parse(words.map(str::to_owned), []).unwrap())
    }

    fn error(words: &[&str]) -> String {
        settle(words).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_flannels() {
        let settings = settle(&[]).unwrap();
        assert_eq!(settings.subnet_file, PathBuf::from("/run/flannel/subnet.env"));
        assert_eq!(settings.net_config_path, PathBuf::from("/etc/kube-flannel/net-conf.json"));
        assert_eq!(settings.renew_margin, Duration::from_secs(3600));
        assert_eq!(settings.source_check, SourceCheck::default());
        assert_eq!(settings.engine_off, Features::NONE);
        assert!(!settings.ip_masq && !settings.exit_with_parent && settings.notices.is_empty());
        assert!(settings.interface.names_none());
    }

    #[test]
    fn the_margin_lies_within_a_lease() {
        for bad in ["0", "1440", "-1", "0x7fffffffffffffff"] {
            assert!(error(&["-subnet-lease-renew-margin", bad]).contains("minutes from 1 to 1439"));
        }
        assert_eq!(settle(&["-subnet-lease-renew-margin=1439"]).unwrap().renew_margin.as_secs(), 1439 * 60);
    }

    #[test]
    fn bad_values_name_the_flag_or_the_variable() {
        assert_eq!(error(&["-public-ip=fd00::1"]), "--public-ip=fd00::1: expected an IPv4 address");
        assert_eq!(error(&["-public-ipv6=1.2.3.4"]), "--public-ipv6=1.2.3.4: expected an IPv6 address");
        assert!(error(&["--iface-regex", "eth("]).starts_with("--iface-regex=eth(: "));
        assert!(error(&["--source-check=hard"]).contains("expected loose or strict"));
        assert!(error(&["--engine-workers=0"]).contains("from 1 to 64"));
        assert!(error(&["--engine-duplex=2"]).contains("auto, half or full"));
        assert!(error(&["--engine-spin=-1"]).contains("from 0 to 10000"));
        assert!(error(&["--engine-source-ports=8472"]).contains("fixed or spread"));
        assert!(error(&["--log-format=xml"]).contains("expected text or json"));
        assert!(error(&["--engine-off=udp-gsoo"]).contains("udp-gso"));
        let environment = [("FLANNELD_PUBLIC_IP".to_owned(), "x".to_owned())];
        let flags = RawFlags::parse(["-file-subnet-mgr=/x".to_owned()], environment).unwrap();
        assert!(Settings::settle(&flags).unwrap_err().to_string().starts_with("FLANNELD_PUBLIC_IP=x: "));
    }

    #[test]
    fn the_engines_threads_are_told_what_to_do() {
        assert_eq!(settle(&[]).unwrap().tuning, Tuning::default());
        let words =
            ["--engine-workers=3", "--engine-duplex=half", "--engine-spin=20", "--engine-source-ports=fixed"];
        let tuning = Tuning {
            workers: NonZeroU8::new(3),
            duplex: Duplex::Half,
            spin: Spin::UpTo(Duration::from_micros(20)),
            source_ports: SourcePorts::Fixed,
        };
        assert_eq!(settle(&words).unwrap().tuning, tuning);
        assert_eq!(settle(&["--engine-spin=off"]).unwrap().tuning.spin, Spin::Off);
    }

    #[test]
    fn without_a_store_the_flag_is_named() {
        let flags = RawFlags::parse([], []).unwrap();
        assert!(Settings::settle(&flags).unwrap_err().to_string().contains("--file-subnet-mgr DIR"));
    }

    #[test]
    fn what_is_ignored_is_told() {
        let settings = settle(&["-ip-masq", "true", "-iface=eth0"]).unwrap();
        assert_eq!(settings.notices.len(), 2);
        assert!(settings.notices[0].contains("true -iface=eth0"), "{:?}", settings.notices);
        assert!(settings.notices[1].contains("installs no masquerade rules"));
    }
}
