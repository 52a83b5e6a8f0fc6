//! What is measured, and how one measurement is taken.

use std::fmt;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::track::Track;
use crate::traffic::cpu::{CpuUse, Meter};
use crate::traffic::echo::udp_round_trips;
use crate::traffic::tcp::{TcpReport, Transfer, transfer};
use crate::traffic::udp::{Flood, flood};

/// Pause between two pings of the round-trip scenario, so that every wake-up is from idle.
const RTT_PAUSE: Duration = Duration::from_micros(500);

/// One kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// One TCP connection at full speed.
    Tcp1,
    /// Eight at once.
    Tcp8,
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

/// What one measurement found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// In the scenario's unit.
    pub value: f64,
    /// The 99th percentile, where the value is a median over single packets.
    pub p99: Option<f64>,
    /// Payload gigabits (10^9) a second that arrived.
    pub gigabits_per_second: Option<f64>,
    /// Busy CPU seconds of the whole machine per payload gigabit: softirqs and everybody else included.
    pub cpu_machine: Option<f64>,
    /// CPU seconds of the daemons and of the traffic's own threads per payload gigabit, by the scheduler's account.
    pub cpu_processes: Option<f64>,
    /// Share of the machine that other programs used in user mode meanwhile.
    pub foreign: f64,
}

impl Scenario {
    /// All of them, in the order of tables.
    pub const ALL: [Self; 8] = [
        Self::Tcp1,
        Self::Tcp8,
        Self::TcpBoth,
        Self::CpuAt1G,
        Self::Udp64,
        Self::Udp64Flows,
        Self::UdpGso,
        Self::Rtt,
    ];

    /// The name in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp1 => "tcp1",
            Self::Tcp8 => "tcp8",
            Self::TcpBoth => "tcp-both",
            Self::CpuAt1G => "cpu-1g",
            Self::Udp64 => "udp64",
            Self::Udp64Flows => "udp64-flows",
            Self::UdpGso => "udp-gso",
            Self::Rtt => "rtt",
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
            Self::TcpBoth => "TCP, both directions at once (sum)",
            Self::CpuAt1G => "CPU seconds per gigabit, TCP held at 1 Gb/s",
            Self::Udp64 => "UDP 64 B, 1 flow, delivered",
            Self::Udp64Flows => "UDP 64 B, 16 flows, delivered",
            Self::UdpGso => "UDP 1200 B, sender with GSO, delivered",
            Self::Rtt => "round trip of 64 B, from idle, median",
        }
    }

    /// The unit of its value.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Tcp1 | Self::Tcp8 | Self::TcpBoth | Self::UdpGso => "Gb/s",
            Self::CpuAt1G => "cpu-s/Gb",
            Self::Udp64 | Self::Udp64Flows => "kpps",
            Self::Rtt => "us",
        }
    }

    /// Whether a larger value is a better one.
    pub fn better(self) -> Better {
        match self {
            Self::CpuAt1G | Self::Rtt => Better::Lower,
            _ => Better::Higher,
        }
    }

    /// Takes one measurement.
    ///
    /// # Errors
    ///
    /// When no traffic flows, or a daemon of the track has ended.
    pub fn measure(self, track: &mut Track, duration: Duration) -> anyhow::Result<Figures> {
        let measured = self.traffic(track, duration);
        // A daemon that died explains the failure better than a connection that stands still.
        track.check()?;
        measured
    }

    fn traffic(self, track: &Track, duration: Duration) -> anyhow::Result<Figures> {
        let watch = track.pids();
        let tcp = Transfer { watch, ..Transfer::timed(duration) };
        match self {
            Self::Tcp1 => Ok(of_tcp(&transfer(track.there()?, &tcp)?)),
            Self::Tcp8 => Ok(of_tcp(&transfer(track.there()?, &tcp.streams(8))?)),
            Self::TcpBoth => both_directions(track, &tcp),
            Self::CpuAt1G => {
                let figures = of_tcp(&transfer(track.there()?, &Transfer { rate: Some(1e9), ..tcp })?);
                Ok(Figures { value: figures.cpu_machine.unwrap_or_default(), ..figures })
            }
            Self::Udp64 => of_udp(track, 64, 1, None, duration),
            Self::Udp64Flows => of_udp(track, 64, 16, None, duration),
            Self::UdpGso => {
                let figures = of_udp(track, 1200, 1, Some(50), duration)?;
                Ok(Figures { value: figures.gigabits_per_second.unwrap_or_default(), ..figures })
            }
            Self::Rtt => round_trips(track, duration),
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn of_tcp(report: &TcpReport) -> Figures {
    figures(report.gigabits_per_second, report.bytes as f64 * 8.0 / 1e9, &report.cpu)
}

/// Value and rate are the same here; both costs are per gigabit that arrived.
fn figures(gigabits_per_second: f64, gigabits: f64, cpu: &CpuUse) -> Figures {
    let watched: f64 = cpu.watched.iter().map(|process| process.seconds).sum();
    let per_gigabit = |seconds: f64| (gigabits > 0.0).then(|| seconds / gigabits);
    Figures {
        value: gigabits_per_second,
        p99: None,
        gigabits_per_second: Some(gigabits_per_second),
        cpu_machine: per_gigabit(cpu.machine),
        cpu_processes: per_gigabit(watched),
        foreign: cpu.foreign,
    }
}

fn both_directions(track: &Track, tcp: &Transfer) -> anyhow::Result<Figures> {
    let (there, back) = (track.there()?, track.back()?);
    let (one, other) = thread::scope(|scope| {
        let other = scope.spawn(|| transfer(back, tcp));
        let one = transfer(there, tcp);
        (one, other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let (one, other) = (one?, other?);
    // Both windows are the same stretch of time but for the start of a thread, so one of the two CPU accounts is it.
    let gigabits = (one.bytes + other.bytes) as f64 * 8.0 / 1e9;
    Ok(figures(one.gigabits_per_second + other.gigabits_per_second, gigabits, &one.cpu))
}

fn of_udp(
    track: &Track,
    payload: usize,
    flows: usize,
    segments: Option<u16>,
    duration: Duration,
) -> anyhow::Result<Figures> {
    let plan = Flood { flows, segments, watch: track.pids(), ..Flood::new(payload, duration) };
    let report = flood(track.there()?, &plan)?;
    let gigabits = report.received as f64 * payload as f64 * 8.0 / 1e9;
    let figures = figures(report.gigabits_per_second, gigabits, &report.cpu);
    Ok(Figures { value: report.kilopackets_per_second, ..figures })
}

fn round_trips(track: &Track, duration: Duration) -> anyhow::Result<Figures> {
    // A round trip and its pause take well under a millisecond on every way that is worth racing.
    let count = (duration.as_secs_f64() * 1200.0).max(50.0) as usize;
    let meter = Meter::start(&track.pids())?;
    let report = udp_round_trips(track.there()?, 64, count, RTT_PAUSE)?;
    let cpu = meter.stop()?;
    Ok(Figures {
        value: report.p50,
        p99: Some(report.p99),
        gigabits_per_second: None,
        cpu_machine: None,
        cpu_processes: None,
        foreign: cpu.foreign,
    })
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
