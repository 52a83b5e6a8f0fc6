//! What the flags mean: [`Settings`], every value checked once, before anything is opened.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU8;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use dataplane::{Duplex, Features, SourcePorts, Spin, Tuning};
use dataplane_core::SourceCheck;
use regex::Regex;

use crate::flags::RawFlags;

/// Most threads of an engine: a TUN device has at most 256 queues, and no machine needs so many.
const MAX_WORKERS: u8 = 64;
/// How often rules are looked after where `--iptables-resync` is 0: flannel's default.
const RULE_RESYNC: Duration = Duration::from_secs(5);
/// Longest spin: beyond it a CPU would burn for traffic that comes a hundred times a second.
const MAX_SPIN_US: u64 = 10_000;

/// Everything the daemon needs to know, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where leases are kept.
    pub store: StoreChoice,
    /// The network configuration, where the store has none.
    pub net_config_path: PathBuf,
    /// How to find the interface of the underlay.
    pub interface: InterfaceChoice,
    /// Where subnet.env goes.
    pub subnet_file: PathBuf,
    /// How long before its end a lease is renewed.
    pub renew_margin: Duration,
    /// Packet filter rules. `rules.masquerade` is also said in subnet.env.
    pub rules: RuleSettings,
    /// Keep a blackhole route for the node's own lease (`--ip-blackhole-route`).
    pub blackhole: bool,
    /// Kernel VXLAN takes packets from leased nodes only.
    pub guard: bool,
    /// Whether packets are carried in this process; `None`: no flag says it, so the network configuration may.
    pub engine: Option<EngineChoice>,
    /// Engine features to do without.
    pub engine_off: Features,
    /// The engine's threads.
    pub tuning: Tuning,
    /// What to do with inner sources outside the cluster.
    pub source_check: SourceCheck,
    /// Where `/healthz`, `/readyz` and `/metrics` answer; `None`: nowhere.
    pub health: Option<SocketAddr>,
    /// Where `flanneld status` asks; `None`: nowhere.
    pub status_socket: Option<PathBuf>,
    /// The file of last known leases; `None`: none is kept.
    pub lease_cache: Option<PathBuf>,
    /// How long nodes are kept when over half of them vanish at once.
    pub hold_back: Duration,
    /// How to log.
    pub log: LogSettings,
    /// End when the parent process ends.
    pub exit_with_parent: bool,
    /// What the user should know about their flags, for the log.
    pub notices: Vec<String>,
}

/// Where leases are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreChoice {
    /// A directory that all nodes share (`--file-subnet-mgr`).
    File {
        /// The directory.
        dir: PathBuf,
    },
    /// The nodes of the Kubernetes API (`--kube-subnet-mgr`).
    Kube(KubeSettings),
    /// etcd, flannel's choice where no other is named.
    Etcd(EtcdSettings),
}

/// How to reach the Kubernetes API, and who we are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeSettings {
    /// `--kube-api-url`.
    pub api_url: Option<String>,
    /// `--kubeconfig-file`. Without either the client is the pod's own.
    pub kubeconfig: Option<PathBuf>,
    /// `--kube-annotation-prefix`, as given.
    pub annotation_prefix: String,
    /// `NODE_NAME`.
    pub node_name: Option<String>,
    /// `POD_NAME` and `POD_NAMESPACE`, whose node is asked for where `NODE_NAME` is not set.
    pub pod: Option<(String, String)>,
    /// `--set-node-network-unavailable`.
    pub set_network_unavailable: bool,
}

/// How to reach etcd.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdSettings {
    /// `--etcd-endpoints`, at least one, as given.
    pub endpoints: Vec<String>,
    /// `--etcd-prefix`, as given.
    pub prefix: String,
    /// `--etcd-cafile`.
    pub ca: Option<PathBuf>,
    /// `--etcd-certfile` and `--etcd-keyfile`.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// `--etcd-username` and `--etcd-password`.
    pub user: Option<(String, String)>,
}

impl fmt::Debug for EtcdSettings {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdSettings")
            .field("endpoints", &self.endpoints)
            .field("prefix", &self.prefix)
            .field("ca", &self.ca)
            .field("identity", &self.identity)
            .field("user", &self.user.as_ref().map(|(name, _)| name))
            .finish_non_exhaustive()
    }
}

/// Which packet filter rules, and how often they are looked after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleSettings {
    /// `--ip-masq`.
    pub masquerade: bool,
    /// Masquerade with random ports, where the tools can.
    pub fully_random: bool,
    /// `--iptables-forward-rules`.
    pub forward: bool,
    /// `--iptables-resync`.
    pub resync: Duration,
}

/// Whether packets are carried by the engine in this process (`--engine`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineChoice {
    /// Where the kernel cannot carry them.
    #[default]
    Auto,
    /// Even where the kernel could.
    Always,
    /// Not even where the kernel cannot: that is an error then.
    Never,
}

/// A text that is no [`EngineChoice`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected auto, always or never")]
pub struct NotAnEngineChoice;

impl FromStr for EngineChoice {
    type Err = NotAnEngineChoice;

    fn from_str(text: &str) -> Result<Self, NotAnEngineChoice> {
        match text {
            "auto" => Ok(Self::Auto),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            _ => Err(NotAnEngineChoice),
        }
    }
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
    /// The store's directory has no name.
    #[error(
        "--file-subnet-mgr is empty: give the directory where nodes keep their leases, or leave the flag out"
    )]
    EmptyStore,
    /// Two stores were chosen.
    #[error("--kube-subnet-mgr and --file-subnet-mgr name two stores for the leases: give one of them")]
    TwoStores,
    /// No flag names a store, and a word stands where flags end: a subcommand was meant, or a flag behind the word.
    #[error(
        "{word:?} is no subcommand (there are demo, status, peers, explain, mk-docker-opts and install-conf), and no flag \
         before it names a lease store: see `flanneld --help`"
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
        let store = StoreChoice::settle(flags)?;
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
        let engine = flags
            .text("engine")
            .parse::<EngineChoice>()
            .map_err(|NotAnEngineChoice| refuse("engine", NotAnEngineChoice.to_string()))?;
        // A default leaves the choice to the network configuration.
        let engine = flags.is_given("engine").then_some(engine);
        let seconds = |name: &str| match u32::try_from(flags.integer(name)) {
            Ok(seconds) => Ok(Duration::from_secs(seconds.into())),
            Err(_) => Err(SettingsError::BadValue {
                from: flags.source(name),
                text: flags.integer(name).to_string(),
                problem: "expected seconds, 0 or more".to_owned(),
            }),
        };
        let subnet_file = PathBuf::from(subnet_file);
        let status_socket = match flags.text("status-socket") {
            "off" => None,
            "" => Some(subnet_file.with_file_name("flanneld.sock")),
            path => Some(path.into()),
        };
        let lease_cache = match flags.text("lease-cache") {
            "off" => None,
            "" => Some(subnet_file.with_file_name("leases.json")),
            path => Some(path.into()),
        };
        let settings = Self {
            store,
            net_config_path: flags.text("net-config-path").into(),
            interface: InterfaceChoice::settle(flags)?,
            subnet_file,
            renew_margin: Duration::from_secs(margin.unsigned_abs() * 60),
            rules: RuleSettings {
                masquerade: flags.switch("ip-masq"),
                fully_random: !flags.switch("ip-masq-fully-random-disable"),
                forward: flags.switch("iptables-forward-rules"),
                // Zero would be a loop without a pause.
                resync: Some(seconds("iptables-resync")?).filter(|s| !s.is_zero()).unwrap_or(RULE_RESYNC),
            },
            blackhole: flags.switch("ip-blackhole-route"),
            guard: flags.switch("nftables-guard"),
            engine,
            engine_off,
            tuning: tuning(flags)?,
            source_check,
            health: health(flags)?,
            status_socket,
            lease_cache,
            hold_back: seconds("hold-back")?,
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

impl StoreChoice {
    fn settle(flags: &RawFlags) -> Result<Self, SettingsError> {
        let given = |name: &str| Some(flags.text(name)).filter(|text| !text.is_empty()).map(str::to_owned);
        let dir = given("file-subnet-mgr");
        // An empty variable of a unit file, say: flannel's default store would be another cluster's.
        if dir.is_none() && flags.is_given("file-subnet-mgr") {
            return Err(SettingsError::EmptyStore);
        }
        if flags.switch("kube-subnet-mgr") {
            if dir.is_some() {
                return Err(SettingsError::TwoStores);
            }
            let variable = |name| flags.variables.get(name).cloned();
            return Ok(Self::Kube(KubeSettings {
                api_url: given("kube-api-url"),
                kubeconfig: given("kubeconfig-file").map(PathBuf::from),
                annotation_prefix: flags.text("kube-annotation-prefix").to_owned(),
                node_name: variable("NODE_NAME"),
                pod: variable("POD_NAME").zip(variable("POD_NAMESPACE")),
                set_network_unavailable: flags.switch("set-node-network-unavailable"),
            }));
        }
        if let Some(dir) = dir {
            return Ok(Self::File { dir: dir.into() });
        }
        if let Some(word) = flags.words.first()
            && !flags.is_given("etcd-endpoints")
        {
            return Err(SettingsError::Word { word: word.clone() });
        }
        let refuse = |name: &str, problem: &str| SettingsError::BadValue {
            from: flags.source(name),
            text: flags.text(name).to_owned(),
            problem: problem.to_owned(),
        };
        let endpoints: Vec<String> = flags
            .text("etcd-endpoints")
            .split(',')
            .map(|endpoint| endpoint.trim().to_owned())
            .filter(|endpoint| !endpoint.is_empty())
            .collect();
        if endpoints.is_empty() {
            return Err(refuse("etcd-endpoints", "expected URLs such as http://127.0.0.1:2379"));
        }
        let identity = match (given("etcd-certfile"), given("etcd-keyfile")) {
            (Some(cert), Some(key)) => Some((cert.into(), key.into())),
            (None, None) => None,
            (Some(_), None) => return Err(refuse("etcd-certfile", "needs --etcd-keyfile beside it")),
            (None, Some(_)) => return Err(refuse("etcd-keyfile", "needs --etcd-certfile beside it")),
        };
        Ok(Self::Etcd(EtcdSettings {
            endpoints,
            prefix: flags.text("etcd-prefix").to_owned(),
            ca: given("etcd-cafile").map(PathBuf::from),
            identity,
            user: given("etcd-username").map(|name| (name, flags.text("etcd-password").to_owned())),
        }))
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

fn health(flags: &RawFlags) -> Result<Option<SocketAddr>, SettingsError> {
    let ip = address(flags, "healthz-ip", "an IP address")?;
    match flags.integer("healthz-port") {
        // flannel: 0 or less is no health server.
        ..=0 => Ok(None),
        port @ 1..=65535 => {
            let ip = ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            Ok(Some(SocketAddr::new(ip, u16::try_from(port).unwrap_or(u16::MAX))))
        }
        port => Err(SettingsError::BadValue {
            from: flags.source("healthz-port"),
            text: port.to_string(),
            problem: "expected a port up to 65535".to_owned(),
        }),
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

fn address<T: FromStr>(flags: &RawFlags, name: &str, expected: &str) -> Result<Option<T>, SettingsError> {
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
    for name in ["vmodule", "log_backtrace_at"] {
        if !flags.text(name).is_empty() {
            notices.push(format!("--{name} is of flannel's log and has no effect: use -v and --log-format"));
        }
    }
    if flags.integer("iptables-resync") == 0 {
        notices.push(format!("{} is 0: taken as 5 seconds", flags.source("iptables-resync")));
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
        assert!(!settings.rules.masquerade && settings.rules.forward && settings.rules.fully_random);
        assert!(!settings.exit_with_parent && settings.notices.is_empty());
        assert_eq!((settings.health, settings.engine), (None, None));
        assert_eq!(settings.status_socket, Some(PathBuf::from("/run/flannel/flanneld.sock")));
        assert_eq!(settings.lease_cache, Some(PathBuf::from("/run/flannel/leases.json")));
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
    fn stores_are_chosen_as_flannel_does() {
        let of = |words: &[&str], environment: &[(&str, &str)]| {
            let environment = environment.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
            let flags = RawFlags::parse(words.iter().map(|&word| word.to_owned()), environment).unwrap();
            Settings::settle(&flags).map(|settings| settings.store)
        };
        let StoreChoice::Etcd(etcd) = of(&[], &[]).unwrap() else { panic!("etcd is the default") };
        assert_eq!(etcd.endpoints, ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
        assert_eq!(etcd.prefix, "/coreos.com/network");
        let secret = ["-etcd-username=u", "-etcd-password=hunter2"];
        let StoreChoice::Etcd(etcd) = of(&secret, &[]).unwrap() else { panic!() };
        assert_eq!(etcd.user, Some(("u".to_owned(), "hunter2".to_owned())));
        assert!(!format!("{etcd:?}").contains("hunter2"));
        let pod = [("POD_NAME", "p"), ("POD_NAMESPACE", "kube-flannel"), ("NODE_NAME", "")];
        let StoreChoice::Kube(kube) = of(&["-kube-subnet-mgr"], &pod).unwrap() else { panic!() };
        assert_eq!(kube.pod, Some(("p".to_owned(), "kube-flannel".to_owned())));
        assert_eq!((kube.node_name, kube.set_network_unavailable), (None, true));
        let both = ["-kube-subnet-mgr", "-file-subnet-mgr=/x"];
        assert_eq!(of(&both, &[]), Err(SettingsError::TwoStores));
        let half = of(&["-etcd-certfile=/c"], &[]).unwrap_err().to_string();
        assert_eq!(half, "--etcd-certfile=/c: needs --etcd-keyfile beside it");
    }

    #[test]
    fn the_health_server_is_off_unless_it_has_a_port() {
        assert_eq!(settle(&["-healthz-port=-1"]).unwrap().health, None);
        let health = settle(&["-healthz-port=10256", "-healthz-ip=::1"]).unwrap().health;
        assert_eq!(health, Some("[::1]:10256".parse().unwrap()));
        assert!(error(&["-healthz-port=65536"]).contains("up to 65535"));
    }

    #[test]
    fn what_is_ignored_is_told() {
        let settings = settle(&["-vmodule=a=1", "-ip-masq", "true", "-iface=eth0"]).unwrap();
        assert_eq!(settings.notices.len(), 2);
        assert!(settings.notices[0].contains("true -iface=eth0"), "{:?}", settings.notices);
        assert!(settings.notices[1].contains("vmodule"));
    }
}
