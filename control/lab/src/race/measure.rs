//! How one measurement is taken.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::scenario::Scenario;
use super::track::Track;
use crate::leases::Leases;
use crate::traffic::cpu::{CpuUse, Meter};
use crate::traffic::echo::{RttReport, udp_round_trips_for};
use crate::traffic::end::EndOnDrop;
use crate::traffic::scatter::{Scatter, scatter};
use crate::traffic::tcp::{TcpReport, Transfer, transfer};
use crate::traffic::udp::{Flood, UdpReport, flood};

/// Pause between two round trips where every wake-up is to be from idle.
const RTT_PAUSE: Duration = Duration::from_micros(500);
/// Payload of small datagrams.
const SMALL: usize = 64;
/// Datagrams a second while leases change: far below what any way carries, so that a loss has no other reason.
const CHURN_RATE: f64 = 20e3;
/// Lease changes a second.
const CHURN: f64 = 1000.0;
/// How many leases take turns in changing.
const CHANGING: usize = 100;

/// What one measurement found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// In the scenario's unit.
    pub value: f64,
    /// The 99th percentile, where the value is a median over single packets.
    pub p99: Option<f64>,
    /// Jain's index over the streams, where there are several: 1 when all got the same, 1/n when one got all.
    pub fairness: Option<f64>,
    /// Payload gigabits (10^9) a second that arrived.
    pub gigabits_per_second: Option<f64>,
    /// Busy CPU seconds of the whole machine per payload gigabit: softirqs and everybody else included.
    pub cpu_machine: Option<f64>,
    /// CPU seconds of the daemons and of the traffic's own threads per payload gigabit, by the scheduler's account.
    pub cpu_processes: Option<f64>,
    /// Share of the machine that other programs used in user mode meanwhile.
    pub foreign: f64,
}

/// Takes one measurement.
///
/// # Errors
///
/// When no traffic flows, or a daemon of the track has ended.
pub(super) fn measure(scenario: Scenario, track: &mut Track, duration: Duration) -> anyhow::Result<Figures> {
    // One that ended in an earlier measurement costs no time in this one.
    track.check()?;
    let measured = traffic(scenario, track, duration);
    // A daemon that died explains the failure better than a connection that stands still.
    track.check()?;
    measured
}

fn traffic(scenario: Scenario, track: &Track, duration: Duration) -> anyhow::Result<Figures> {
    let tcp = Transfer { watch: track.pids(), ..Transfer::timed(duration) };
    let streams = |count| anyhow::Ok(of_tcp(&transfer(track.there()?, &tcp.clone().streams(count))?));
    match scenario {
        Scenario::Tcp1 => streams(1),
        Scenario::Tcp8 => streams(8),
        Scenario::Tcp64 => streams(64),
        Scenario::TcpBoth => both_directions(track, &tcp),
        Scenario::CpuAt1G => {
            let figures = of_tcp(&transfer(track.there()?, &Transfer { rate: Some(1e9), ..tcp })?);
            Ok(Figures { value: figures.cpu_machine.context("no byte arrived")?, ..figures })
        }
        Scenario::Udp64 => small_datagrams(track, 1, duration),
        Scenario::Udp64Flows => small_datagrams(track, 16, duration),
        Scenario::UdpGso => {
            let plan = Flood { segments: Some(50), watch: track.pids(), ..Flood::new(1200, duration) };
            Ok(of_udp(&flood(track.there()?, &plan)?, plan.payload))
        }
        Scenario::Rtt => round_trips(track, RTT_PAUSE, duration),
        Scenario::RttBackToBack => round_trips(track, Duration::ZERO, duration),
        Scenario::RttLoaded => loaded_round_trips(track, &tcp, duration),
        Scenario::Peers1 => to_peers(track, 1, duration),
        Scenario::Peers1000 => to_peers(track, 1000, duration),
        Scenario::LeaseChurn => lease_churn(track, duration),
    }
}

fn of_tcp(report: &TcpReport) -> Figures {
    let fairness = (report.per_stream.len() > 1).then_some(report.fairness);
    Figures { fairness, ..figures(report.gigabits_per_second, report.bytes as f64 * 8.0 / 1e9, &report.cpu) }
}

fn of_udp(report: &UdpReport, payload: usize) -> Figures {
    figures(report.gigabits_per_second, report.received as f64 * payload as f64 * 8.0 / 1e9, &report.cpu)
}

/// Value and rate are the same here; both costs are per gigabit that arrived.
fn figures(gigabits_per_second: f64, gigabits: f64, cpu: &CpuUse) -> Figures {
    let watched: f64 = cpu.watched.iter().map(|process| process.seconds).sum();
    let per_gigabit = |seconds: f64| (gigabits > 0.0).then(|| seconds / gigabits);
    Figures {
        value: gigabits_per_second,
        p99: None,
        fairness: None,
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
        (one, joined(other))
    });
    let (one, other) = (one?, other?);
    // Both windows are the same stretch of time but for the start of a thread, so one of the two CPU accounts is it.
    let gigabits = (one.bytes + other.bytes) as f64 * 8.0 / 1e9;
    Ok(figures(one.gigabits_per_second + other.gigabits_per_second, gigabits, &one.cpu))
}

fn small_datagrams(track: &Track, flows: usize, duration: Duration) -> anyhow::Result<Figures> {
    let plan = Flood { flows, watch: track.pids(), ..Flood::new(SMALL, duration) };
    let report = flood(track.there()?, &plan)?;
    Ok(Figures { value: report.kilopackets_per_second, ..of_udp(&report, SMALL) })
}

fn round_trips(track: &Track, pause: Duration, duration: Duration) -> anyhow::Result<Figures> {
    let meter = Meter::start(&track.pids())?;
    let report = udp_round_trips_for(track.there()?, SMALL, duration, pause)?;
    Ok(of_round_trips(&report, meter.stop()?.foreign))
}

fn of_round_trips(report: &RttReport, foreign: f64) -> Figures {
    Figures {
        value: report.p50,
        p99: Some(report.p99),
        fairness: None,
        gigabits_per_second: None,
        cpu_machine: None,
        cpu_processes: None,
        foreign,
    }
}

/// Round trips while a TCP stream goes the same way. A figure without that stream would be of an idle path, so it must move.
fn loaded_round_trips(track: &Track, tcp: &Transfer, duration: Duration) -> anyhow::Result<Figures> {
    let path = track.there()?;
    // The stream begins before the pings and ends behind them.
    let load = Transfer { warm_up: tcp.warm_up * 2, ..Transfer::timed(duration) };
    let load = Transfer { watch: tcp.watch.clone(), ..load };
    let (load, trips) = thread::scope(|scope| {
        let load = scope.spawn(|| transfer(path, &load));
        thread::sleep(tcp.warm_up);
        let trips = udp_round_trips_for(path, SMALL, duration, RTT_PAUSE);
        (joined(load), trips)
    });
    let load = load.context("the TCP stream beside the round trips")?;
    let figures = of_round_trips(&trips?, load.cpu.foreign);
    Ok(Figures { gigabits_per_second: Some(load.gigabits_per_second), ..figures })
}

fn to_peers(track: &Track, peers: usize, duration: Duration) -> anyhow::Result<Figures> {
    let crowd = track.crowd()?;
    let destinations = crowd.destinations.iter().copied().take(peers).collect();
    let plan = Scatter {
        from: track.sender()?,
        destinations,
        payload: SMALL,
        to: crowd.wire,
        at: crowd.port,
        on_the_wire: SMALL + crowd.overhead,
        duration,
        watch: track.pids(),
    };
    let report = scatter(&plan)?;
    if report.wrong_size > 0 {
        bail!("{} datagrams on the wire have not {} bytes", report.wrong_size, plan.on_the_wire);
    }
    Ok(Figures { value: report.kilopackets_per_second, ..of_udp(&report, SMALL) })
}

/// Datagrams at a modest rate while other nodes' leases change all the time. Every change is a file that a daemon sees.
fn lease_churn(track: &Track, duration: Duration) -> anyhow::Result<Figures> {
    let store = track.store().context("leases change only where daemons read them from files")?;
    let mut leases = Leases::spare(&store, track.backend(), CHANGING)?;
    let plan = Flood { rate: Some(CHURN_RATE), watch: track.pids(), ..Flood::new(SMALL, duration) };
    let done = AtomicBool::new(false);
    let (report, changed) = thread::scope(|scope| {
        let end = EndOnDrop(&done);
        let changing = scope.spawn(|| churn(&mut leases, &done));
        let report = flood(track.there()?, &plan)?;
        drop(end);
        anyhow::Ok((report, joined(changing)?))
    })?;
    let wanted = CHURN * duration.as_secs_f64();
    if (changed as f64) < wanted * 0.9 {
        bail!("only {changed} of {wanted} lease changes were written in time");
    }
    Ok(Figures { value: (report.sent - report.received.min(report.sent)) as f64, ..of_udp(&report, SMALL) })
}

/// Changes a lease a millisecond until told to end; answers how often.
fn churn(leases: &mut Leases, done: &AtomicBool) -> anyhow::Result<usize> {
    let (started, mut changed) = (Instant::now(), 0);
    while !done.load(Ordering::Acquire) {
        let due = (started.elapsed().as_secs_f64() * CHURN) as usize;
        while changed < due {
            leases.change(changed)?;
            changed += 1;
        }
        thread::sleep(Duration::from_secs_f64(1.0 / CHURN));
    }
    Ok(changed)
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
