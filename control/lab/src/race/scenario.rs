//! What is measured: names, units and words. How a measurement is taken is in `race::measure`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// One TCP connection at full speed.
    Tcp1,
    /// Eight at once.
    Tcp8,
    /// Sixty-four at once.
    Tcp64,
    /// One connection in each direction at once; the sum of both.
    TcpBoth,
    /// One TCP connection at 1 Gb/s: what it costs.
    #[serde(rename = "cpu-1g")]
    CpuAt1G,
    /// UDP datagrams of 64 bytes, one flow.
    Udp64,
    /// The same in sixteen flows.
    Udp64Flows,
    /// UDP of 1200 bytes, handed to the kernel 50 at a time (`UDP_SEGMENT`), as QUIC senders do.
    UdpGso,
    /// Round trips of 64 bytes, one after the other with a pause between: the median; p99 beside it.
    Rtt,
    /// The same without a pause: nobody gets to sleep for long.
    RttBackToBack,
    /// The same as [`Scenario::Rtt`] beside one TCP connection at full speed.
    RttLoaded,
    /// UDP datagrams of 64 bytes to one node that a lease names, counted on its wire.
    Peers1,
    /// The same to a thousand nodes in turn.
    Peers1000,
    /// Datagrams that get lost while leases change a thousand times a second.
    LeaseChurn,
}

/// What a scenario is measured on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// Two nodes with a pod each.
    Pair,
    /// One node that knows a thousand others, all of which are addresses of the second.
    Crowd,
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
}

impl Scenario {
    /// All of them, in the order of tables.
    pub const ALL: [Self; 14] = [
        Self::Tcp1,
        Self::Tcp8,
        Self::Tcp64,
        Self::TcpBoth,
        Self::CpuAt1G,
        Self::Udp64,
        Self::Udp64Flows,
        Self::UdpGso,
        Self::Rtt,
        Self::RttBackToBack,
        Self::RttLoaded,
        Self::Peers1,
        Self::Peers1000,
        Self::LeaseChurn,
    ];

    /// The name in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp1 => "tcp1",
            Self::Tcp8 => "tcp8",
            Self::Tcp64 => "tcp64",
            Self::TcpBoth => "tcp-both",
            Self::CpuAt1G => "cpu-1g",
            Self::Udp64 => "udp64",
            Self::Udp64Flows => "udp64-flows",
            Self::UdpGso => "udp-gso",
            Self::Rtt => "rtt",
            Self::RttBackToBack => "rtt-back-to-back",
            Self::RttLoaded => "rtt-loaded",
            Self::Peers1 => "peers1",
            Self::Peers1000 => "peers1000",
            Self::LeaseChurn => "lease-churn",
        }
    }

    /// The scenario of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scenario| scenario.name() == name)
    }

    /// What it is, for the head of a table.
    pub fn title(self) -> &'static str {
        match self {
            Self::Tcp1 => "TCP, 1 stream",
            Self::Tcp8 => "TCP, 8 streams",
            Self::Tcp64 => "TCP, 64 streams",
            Self::TcpBoth => "TCP, both directions at once (sum)",
            Self::CpuAt1G => "CPU seconds per gigabit, TCP held at 1 Gb/s",
            Self::Udp64 => "UDP 64 B, 1 flow, delivered",
            Self::Udp64Flows => "UDP 64 B, 16 flows, delivered",
            Self::UdpGso => "UDP 1200 B, sender with GSO, delivered",
            Self::Rtt => "round trip of 64 B, from idle, median",
            Self::RttBackToBack => "round trip of 64 B, back to back, median",
            Self::RttLoaded => "round trip of 64 B beside one TCP stream, median",
            Self::Peers1 => "UDP 64 B to 1 node of 1000, on its wire",
            Self::Peers1000 => "UDP 64 B to 1000 nodes in turn, on their wire",
            Self::LeaseChurn => "UDP 64 B at 20 kpps, 1000 lease changes/s, lost",
        }
    }

    /// The unit of its value.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Tcp1 | Self::Tcp8 | Self::Tcp64 | Self::TcpBoth | Self::UdpGso => "Gb/s",
            Self::CpuAt1G => "cpu-s/Gb",
            Self::Udp64 | Self::Udp64Flows | Self::Peers1 | Self::Peers1000 => "kpps",
            Self::Rtt | Self::RttBackToBack | Self::RttLoaded => "us",
            Self::LeaseChurn => "lost",
        }
    }

    /// Whether a larger value is a better one.
    pub fn better(self) -> Better {
        match self {
            Self::CpuAt1G | Self::Rtt | Self::RttBackToBack | Self::RttLoaded | Self::LeaseChurn => {
                Better::Lower
            }
            _ => Better::Higher,
        }
    }

    /// Whether its value is the median of single round trips, with a 99th percentile beside it.
    pub fn is_round_trip(self) -> bool {
        matches!(self, Self::Rtt | Self::RttBackToBack | Self::RttLoaded)
    }

    /// Whether it has streams that should get equal shares.
    pub fn has_fairness(self) -> bool {
        matches!(self, Self::Tcp8 | Self::Tcp64)
    }

    /// What it is measured on.
    pub fn ground(self) -> Ground {
        match self {
            Self::Peers1 | Self::Peers1000 => Ground::Crowd,
            _ => Ground::Pair,
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_the_command_line_use_one_name() {
        for scenario in Scenario::ALL {
            let written = serde_json::to_string(&scenario).unwrap();
            assert_eq!(written, format!("{:?}", scenario.name()));
            assert_eq!(Scenario::by_name(scenario.name()), Some(scenario));
        }
    }
}
