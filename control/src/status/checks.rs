//! What readiness is made of: a list of checks over the rest of the status. Pure.
//!
//! A node is ready when packets can flow. What is wrong beside that (a store that is not heard, one peer that cannot be
//! routed to) makes it degraded: taking its pods' network away would help nobody.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::shown::span;
use super::{Name, NodeStatus, State};

/// One thing that has to be so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// Its name, one of a fixed set.
    pub name: Name,
    /// Whether it is so.
    pub verdict: Verdict,
    /// What is wrong, or empty.
    pub text: String,
}

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is so.
    Ok,
    /// It is not, and packets flow all the same.
    Degraded,
    /// It is not, and packets cannot flow.
    Failed,
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, text: impl Into<String>) -> Self {
        Self { name: Name::Borrowed(name), verdict, text: text.into() }
    }

    /// Failed with this text, or fine without one.
    fn unless(name: &'static str, verdict: Verdict, trouble: Option<String>) -> Self {
        match trouble {
            Some(text) => Self::new(name, verdict, text),
            None => Self::new(name, Verdict::Ok, ""),
        }
    }
}

impl fmt::Display for Check {
    /// In the manner of `kubectl get --raw /readyz?verbose`: the sign says whether it keeps the node from being ready.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.verdict {
            Verdict::Ok => write!(f, "[+]{} ok", self.name),
            Verdict::Degraded => write!(f, "[+]{} degraded: {}", self.name, self.text),
            Verdict::Failed => write!(f, "[-]{} failed: {}", self.name, self.text),
        }
    }
}

impl NodeStatus {
    /// Fills in the checks, and from them the state and the problems.
    pub fn judge(&mut self) {
        self.checks = vec![
            self.store(),
            self.lease(),
            self.device(),
            self.host(),
            self.peers(),
            self.rules(),
            self.file(),
        ];
        let any = |verdict| self.checks.iter().any(|check| check.verdict == verdict);
        self.state = match (any(Verdict::Failed), any(Verdict::Degraded)) {
            (true, _) => State::NotReady,
            (false, true) => State::Degraded,
            (false, false) => State::Ready,
        };
        let of = |verdict| {
            self.checks
                .iter()
                .filter(move |check| check.verdict == verdict)
                .map(|check| format!("{}: {}", check.name, check.text))
        };
        self.problems = of(Verdict::Failed).chain(of(Verdict::Degraded)).collect();
    }

    fn store(&self) -> Check {
        let trouble = self.store.stale_since.map(|since| {
            let silence = span(self.at.saturating_sub(since));
            let known = format!("not heard for {silence}; what was known stays in use");
            match &self.store.trouble {
                Some(trouble) => format!("{known}: {trouble}"),
                None => known,
            }
        });
        Check::unless("store", Verdict::Degraded, trouble)
    }

    fn lease(&self) -> Check {
        match &self.lease {
            None => Check::new("lease", Verdict::Failed, "this node has none yet"),
            Some(lease) => {
                let ended = lease.expires.filter(|end| *end <= self.at);
                let trouble = ended.map(|end| {
                    let ago = span(self.at.saturating_sub(end));
                    format!("it ended {ago} ago and could not be renewed; another node may get the subnet")
                });
                Check::unless("lease", Verdict::Degraded, trouble)
            }
        }
    }

    /// The overlay's devices, and what carries their packets.
    fn device(&self) -> Check {
        let Some(backend) = &self.backend else {
            return Check::new("device", Verdict::Failed, "it is not made yet");
        };
        let still: Vec<String> = backend
            .devices
            .iter()
            .filter(|device| !device.running)
            .map(|device| format!("{} carries no packets", device.name))
            .collect();
        let gone = self.underlay.as_ref().and_then(|underlay| {
            let trouble = underlay.trouble.as_ref()?;
            Some(format!("the interface {} does not carry it: {trouble}", underlay.device))
        });
        let troubles: Vec<String> = still.into_iter().chain(gone).collect();
        Check::unless("device", Verdict::Failed, Some(troubles.join(", ")).filter(|text| !text.is_empty()))
    }

    /// Addresses and routes. They were all there once when there was a first time.
    fn host(&self) -> Check {
        match (&self.reconcile.trouble, self.reconcile.last_ok) {
            (None, Some(_)) => Check::new("routes", Verdict::Ok, ""),
            (None, None) => Check::new("routes", Verdict::Failed, "they are not set yet"),
            (Some(trouble), None) => Check::new("routes", Verdict::Failed, trouble.clone()),
            (Some(trouble), Some(_)) => Check::new("routes", Verdict::Degraded, trouble.clone()),
        }
    }

    fn peers(&self) -> Check {
        let refused = (self.peers.refused > 0).then(|| {
            format!("{} of the other nodes' leases cannot be used: see flanneld peers", self.peers.refused)
        });
        Check::unless("peers", Verdict::Degraded, refused)
    }

    fn rules(&self) -> Check {
        Check::unless("rules", Verdict::Degraded, self.rules.trouble.clone())
    }

    fn file(&self) -> Check {
        let path = self.subnet_file.path.display();
        match (&self.subnet_file.trouble, self.subnet_file.written) {
            (None, true) => Check::new("subnet-file", Verdict::Ok, ""),
            (None, false) => Check::new("subnet-file", Verdict::Failed, format!("{path} is not written yet")),
            (Some(trouble), _) => Check::new("subnet-file", Verdict::Failed, trouble.clone()),
        }
    }
}
