//! What carries the packets of a backend, and why: an ordered list, of which the first that is possible wins. Pure.
//!
//! ```text
//!   Type      tried in this order
//!   vxlan     the kernel's VXLAN device, the engine: the same packets and the same lease
//!   udp       the engine
//!   host-gw   plain routes
//!   alloc     nothing
//! ```
//!
//! `--engine` and the key `Engine` of the backend force the engine (`always`) or forbid it (`never`); the flag goes
//! before the key where it is given.

use std::fmt;

use hostnet::{Errno, HostError};

use crate::network::{BackendConfig, NetworkConfig};
use crate::settings::EngineChoice;

/// What carries packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// The kernel's VXLAN device.
    KernelVxlan,
    /// The engine in this process, in the format of VXLAN.
    EngineVxlan,
    /// The engine in this process, in flannel's raw format.
    EngineUdp,
    /// Routes to nodes on the same link.
    HostGw,
    /// Nothing: somebody else does.
    Alloc,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KernelVxlan => "vxlan in the kernel",
            Self::EngineVxlan => "vxlan by the engine",
            Self::EngineUdp => "udp by the engine",
            Self::HostGw => "host-gw by routes",
            Self::Alloc => "alloc, a lease and nothing more",
        })
    }
}

/// Whether the kernel can make VXLAN devices here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelVxlan {
    /// It can, for this reason.
    Possible(String),
    /// It cannot, for this reason.
    Impossible(String),
}

impl KernelVxlan {
    /// What the attempt to make one says; `there` is a device of another run.
    pub fn probed(attempt: Result<(), HostError>, there: Option<&str>) -> Self {
        match (attempt, there) {
            (Ok(()), _) => Self::Possible("a probe device could be made".to_owned()),
            (Err(error), Some(device)) if error.errno != Errno::EPERM => Self::Possible(format!(
                "{device} of another run is there, although no other could be made ({error})"
            )),
            (Err(error), _) => Self::Impossible(match error.errno {
                Errno::EOPNOTSUPP => {
                    "this kernel has no VXLAN: neither built in nor as a module that loads".to_owned()
                }
                Errno::EPERM => "this process may not make devices: it needs CAP_NET_ADMIN".to_owned(),
                _ => error.to_string(),
            }),
        }
    }
}

/// Who wants the engine or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// What is wanted.
    pub engine: EngineChoice,
    /// Where it is said; empty for the default.
    pub said_by: &'static str,
}

impl Wish {
    /// The flag's, else the network configuration's, else the default.
    pub fn of(flag: Option<EngineChoice>, network: &NetworkConfig) -> Self {
        match (flag, network.engine) {
            (Some(engine), _) => Self { engine, said_by: "--engine" },
            (None, Some(engine)) => Self { engine, said_by: "Backend.Engine" },
            (None, None) => Self { engine: EngineChoice::Auto, said_by: "" },
        }
    }

    /// `--engine=always`.
    fn text(&self) -> String {
        let word = match self.engine {
            EngineChoice::Auto => "auto",
            EngineChoice::Always => "always",
            EngineChoice::Never => "never",
        };
        format!("{}={word}", self.said_by)
    }
}

/// One line of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Considered {
    /// What it is about.
    pub method: Method,
    /// What became of it.
    pub verdict: Verdict,
}

/// What became of one possibility.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is the one, for this reason.
    Chosen(String),
    /// It is not, for this reason.
    PassedOver(String),
    /// One before it was chosen.
    NotNeeded,
}

/// The decision: every possibility in order with its reason, and what the user should know about the chosen one.
/// Prints itself, a line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// What carries the packets.
    pub method: Method,
    /// The list that led to it.
    pub considered: Vec<Considered>,
    /// Options that the chosen one has no use for, each with the reason.
    pub remarks: Vec<String>,
}

/// Nothing on the list is possible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("nothing can carry backend {backend} here: {}. {remedy}", list(considered))]
pub struct NoChoice {
    /// Its type.
    pub backend: &'static str,
    /// The list.
    pub considered: Vec<Considered>,
    /// What to do.
    pub remedy: String,
}

/// The kernel's answer matters to this backend.
pub fn wants_probe(network: &NetworkConfig, wish: Wish) -> bool {
    matches!(network.backend, BackendConfig::Vxlan { .. }) && wish.engine != EngineChoice::Always
}

/// Chooses what carries the packets of `network`. `kernel` is not looked at unless [`wants_probe`].
pub fn choose(network: &NetworkConfig, wish: Wish, kernel: &KernelVxlan) -> Result<Choice, NoChoice> {
    let methods: &[Method] = match network.backend {
        BackendConfig::Vxlan { .. } => &[Method::KernelVxlan, Method::EngineVxlan],
        BackendConfig::Udp { .. } => &[Method::EngineUdp],
        BackendConfig::HostGw => &[Method::HostGw],
        BackendConfig::Alloc => &[Method::Alloc],
    };
    let mut considered: Vec<Considered> = Vec::new();
    let mut chosen = None;
    for &method in methods {
        let verdict = match chosen {
            Some(_) => Verdict::NotNeeded,
            None => match judge(method, wish, kernel) {
                Ok(reason) => {
                    chosen = Some(method);
                    Verdict::Chosen(reason)
                }
                Err(reason) => Verdict::PassedOver(reason),
            },
        };
        considered.push(Considered { method, verdict });
    }
    match chosen {
        Some(method) => Ok(Choice { method, considered, remarks: remarks(network, method, wish) }),
        None => Err(NoChoice { backend: network.backend.name(), considered, remedy: remedy(network, wish) }),
    }
}

/// Why it is possible, or why not.
fn judge(method: Method, wish: Wish, kernel: &KernelVxlan) -> Result<String, String> {
    match (method, wish.engine) {
        (Method::KernelVxlan, EngineChoice::Always) => Err(format!("{} forces the engine", wish.text())),
        (Method::KernelVxlan, _) => match kernel {
            KernelVxlan::Possible(reason) => Ok(reason.clone()),
            KernelVxlan::Impossible(reason) => Err(reason.clone()),
        },
        (Method::EngineVxlan | Method::EngineUdp, EngineChoice::Never) => {
            Err(format!("{} forbids the engine", wish.text()))
        }
        (Method::EngineVxlan | Method::EngineUdp, EngineChoice::Always) => {
            Ok(format!("{} forces the engine", wish.text()))
        }
        (Method::EngineVxlan, EngineChoice::Auto) => {
            Ok("it needs no more than a TUN device, and other nodes cannot tell".to_owned())
        }
        (Method::EngineUdp, EngineChoice::Auto) => Ok("nothing else knows this format".to_owned()),
        (Method::HostGw, _) => Ok("each node is the gateway of its subnet".to_owned()),
        (Method::Alloc, _) => Ok("subnet.env is all that is wanted".to_owned()),
    }
}

fn remedy(network: &NetworkConfig, wish: Wish) -> String {
    match network.backend {
        BackendConfig::Udp { .. } => {
            format!("Leave {} out, or let the network have backend vxlan or host-gw", wish.text())
        }
        _ => format!("Make the kernel's VXLAN available (modprobe vxlan), or leave {} out", wish.text()),
    }
}

/// Options that were asked for and that the chosen one has no use for.
fn remarks(network: &NetworkConfig, method: Method, wish: Wish) -> Vec<String> {
    let mut remarks = Vec::new();
    if let (BackendConfig::Vxlan { gbp, learning, .. }, Method::EngineVxlan) = (network.backend, method) {
        if gbp {
            remarks.push(
                "GBP is ignored: the engine knows no group policy, and drops frames that carry one as the kernel does \
                 without it"
                    .to_owned(),
            );
        }
        if learning {
            remarks.push(
                "Learning is ignored: the engine takes peers from leases only, never from packets".to_owned(),
            );
        }
    }
    if matches!(method, Method::HostGw | Method::Alloc) && wish.engine == EngineChoice::Always {
        remarks.push(format!(
            "{} is ignored: {} has no use for an engine",
            wish.text(),
            network.backend.name()
        ));
    }
    remarks
}

impl fmt::Display for Considered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.verdict {
            Verdict::Chosen(reason) => write!(f, "{}: chosen, {reason}", self.method),
            Verdict::PassedOver(reason) => write!(f, "{}: passed over, {reason}", self.method),
            Verdict::NotNeeded => write!(f, "{}: not needed", self.method),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, considered) in self.considered.iter().enumerate() {
            writeln!(f, "{}. {considered}", at + 1)?;
        }
        for remark in &self.remarks {
            writeln!(f, "{remark}")?;
        }
        Ok(())
    }
}

fn list(considered: &[Considered]) -> String {
    considered.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(backend: &str) -> NetworkConfig {
        let text = format!("{{\"Network\": \"10.5.0.0/16\", \"Backend\": {{{backend}}}}}");
        NetworkConfig::parse(text.as_bytes()).unwrap()
    }

    fn possible() -> KernelVxlan {
        KernelVxlan::probed(Ok(()), None)
    }

    fn refused(errno: Errno) -> KernelVxlan {
        KernelVxlan::probed(Err(HostError::new("add vxlan", errno)), None)
    }

    fn chosen(backend: &str, flag: Option<EngineChoice>, kernel: &KernelVxlan) -> String {
        let network = network(backend);
        choose(&network, Wish::of(flag, &network), kernel).unwrap().to_string()
    }

    const VXLAN: &str = r#""Type": "vxlan""#;

    #[test]
    fn the_kernel_carries_vxlan_where_it_can() {
        assert_eq!(
            chosen(VXLAN, None, &possible()),
            "1. vxlan in the kernel: chosen, a probe device could be made\n2. vxlan by the engine: not needed\n"
        );
    }

    #[test]
    fn the_engine_carries_vxlan_where_the_kernel_cannot_and_the_reason_is_told() {
        let text = chosen(VXLAN, None, &refused(Errno::EOPNOTSUPP));
        assert!(text.starts_with("1. vxlan in the kernel: passed over, this kernel has no VXLAN"), "{text}");
        assert!(text.contains("2. vxlan by the engine: chosen, "), "{text}");
        let text = chosen(VXLAN, None, &refused(Errno::EPERM));
        assert!(
            text.contains("passed over, this process may not make devices: it needs CAP_NET_ADMIN"),
            "{text}"
        );
    }

    #[test]
    fn a_device_of_another_run_shows_that_the_kernel_can() {
        let error = || Err(HostError::new("add vxlan", Errno::ENOMEM));
        assert!(matches!(KernelVxlan::probed(error(), Some("flannel.1")), KernelVxlan::Possible(_)));
        assert!(matches!(KernelVxlan::probed(error(), None), KernelVxlan::Impossible(_)));
    }

    #[test]
    fn the_flag_goes_before_the_key_and_the_key_before_the_default() {
        let key = r#""Type": "vxlan", "Engine": "always""#;
        let text = chosen(key, None, &possible());
        assert!(text.contains("passed over, Backend.Engine=always forces the engine"), "{text}");
        assert!(text.contains("2. vxlan by the engine: chosen, Backend.Engine=always"), "{text}");
        let text = chosen(key, Some(EngineChoice::Auto), &possible());
        assert!(text.starts_with("1. vxlan in the kernel: chosen"), "{text}");
        let text = chosen(VXLAN, Some(EngineChoice::Always), &possible());
        assert!(text.contains("2. vxlan by the engine: chosen, --engine=always forces the engine"), "{text}");
    }

    #[test]
    fn a_forbidden_engine_on_a_kernel_without_vxlan_is_an_error_that_says_so() {
        let network = network(VXLAN);
        let wish = Wish::of(Some(EngineChoice::Never), &network);
        let error = choose(&network, wish, &refused(Errno::EOPNOTSUPP)).unwrap_err().to_string();
        assert_eq!(
            error,
            "nothing can carry backend vxlan here: vxlan in the kernel: passed over, this kernel has no VXLAN: neither \
             built in nor as a module that loads; vxlan by the engine: passed over, --engine=never forbids the engine. \
             Make the kernel's VXLAN available (modprobe vxlan), or leave --engine=never out"
        );
    }

    #[test]
    fn udp_without_the_engine_is_an_error_that_names_the_others() {
        let network = network(r#""Type": "udp", "Engine": "never""#);
        let error = choose(&network, Wish::of(None, &network), &possible()).unwrap_err().to_string();
        assert!(
            error.contains("Leave Backend.Engine=never out, or let the network have backend vxlan"),
            "{error}"
        );
    }

    #[test]
    fn options_without_a_use_are_told_where_the_carrier_is_known() {
        let key = r#""Type": "vxlan", "GBP": true, "Learning": true"#;
        assert!(!chosen(key, None, &possible()).contains("ignored"));
        let text = chosen(key, Some(EngineChoice::Always), &possible());
        assert!(text.contains("\nGBP is ignored: ") && text.contains("\nLearning is ignored: "), "{text}");
        let text = chosen(r#""Type": "host-gw""#, Some(EngineChoice::Always), &possible());
        assert!(text.contains("--engine=always is ignored: host-gw has no use for an engine"), "{text}");
    }

    #[test]
    fn only_vxlan_asks_the_kernel() {
        let asks = |backend: &str, flag| {
            let network = network(backend);
            wants_probe(&network, Wish::of(flag, &network))
        };
        assert!(asks(VXLAN, None) && asks(VXLAN, Some(EngineChoice::Never)));
        assert!(!asks(VXLAN, Some(EngineChoice::Always)));
        assert!(!asks(r#""Type": "udp""#, None) && !asks(r#""Type": "host-gw""#, None));
    }
}
