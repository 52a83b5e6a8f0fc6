//! Forwarding while leases of other nodes come and go: what is lost, and what a round trip takes.

use std::fs;
use std::path::Path as FilePath;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::LinkModel;
use lab::daemons::Backend;
use lab::traffic::echo::udp_round_trips;
use lab::traffic::udp::{Flood, flood};
use serde::Serialize;

use super::cast::{Carrier, Cast, Place};

/// Leases that come and go in turn: subnets 10.5.100.0/24 and up.
const LEASES: u64 = 100;
/// Changes a second.
const RATE: f64 = 1000.0;
/// Datagrams a second of the flow that must lose nothing: little enough for any machine.
const FLOW: f64 = 20e3;
/// Between two round trips.
const PAUSE: Duration = Duration::from_micros(500);

/// Forwarding with or without churn.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChurnRow {
    /// Lease files that were made or removed, a second.
    pub changes_per_second: f64,
    /// Datagrams sent meanwhile.
    pub sent: u64,
    /// Datagrams of them that did not arrive.
    pub lost: u64,
    /// Microseconds of a round trip: median.
    pub p50: f64,
    /// Its 99th percentile.
    pub p99: f64,
    /// Round trips without an answer.
    pub unanswered: usize,
}

/// Measures a quiet pair, then the same pair while a thousand leases a second change in the daemons' store.
///
/// # Errors
///
/// When the pair cannot be built, its store cannot be written, or no traffic flows.
pub fn measure(
    place: &Place,
    duration: Duration,
    mut progress: impl FnMut(&str),
) -> anyhow::Result<Vec<ChurnRow>> {
    let cast = Cast::build(place, Carrier::Engine(Backend::Vxlan), LinkModel::Nic, 2, &[])?;
    progress("forwarding without churn");
    let quiet = row(&cast, duration, 0.0)?;
    progress("forwarding while leases come and go");
    let ended = AtomicBool::new(false);
    let churned = thread::scope(|scope| {
        let churn = scope.spawn(|| churn(&cast.store, &ended));
        let row = row(&cast, duration, 0.0);
        ended.store(true, Ordering::Release);
        let rate = churn.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        anyhow::Ok(ChurnRow { changes_per_second: rate, ..row? })
    })?;
    Ok(vec![quiet, churned])
}

fn row(cast: &Cast, duration: Duration, changes_per_second: f64) -> anyhow::Result<ChurnRow> {
    let path = cast.path(1)?;
    let report = flood(path, &Flood { rate: Some(FLOW), ..Flood::new(1200, duration / 2) })?;
    let count = (duration.as_secs_f64() / 2.0 / PAUSE.as_secs_f64() / 1.5) as usize;
    let trips = udp_round_trips(path, 64, count.max(50), PAUSE)?;
    Ok(ChurnRow {
        changes_per_second,
        sent: report.sent,
        lost: report.sent - report.received,
        p50: trips.p50,
        p99: trips.p99,
        unanswered: trips.lost,
    })
}

/// Makes and removes lease files as another node's daemon would. Answers changes a second.
fn churn(store: &FilePath, ended: &AtomicBool) -> anyhow::Result<f64> {
    let subnets = store.join("subnets");
    let example = fs::read_dir(&subnets)?.next().context("the daemons have leases")??.path();
    let example: serde_json::Value = serde_json::from_str(&fs::read_to_string(example)?)?;
    ensure!(example.is_object(), "a lease is an object: {example}");
    let started = Instant::now();
    let mut changes = 0_u64;
    while !ended.load(Ordering::Acquire) {
        let number = changes % LEASES;
        let path = subnets.join(format!("10.5.{}.0-24", 100 + number));
        if (changes / LEASES).is_multiple_of(2) {
            let mut lease = example.clone();
            lease["PublicIP"] = format!("192.0.2.{}", 100 + number).into();
            lease["BackendData"]["VtepMAC"] = format!("02:00:00:00:07:{number:02x}").into();
            // Whole or not at all, as a daemon does it.
            let aside = store.join("aside");
            fs::write(&aside, lease.to_string())?;
            fs::rename(&aside, &path)?;
        } else {
            fs::remove_file(&path)?;
        }
        changes += 1;
        let due = started + Duration::from_secs_f64(changes as f64 / RATE);
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(changes as f64 / started.elapsed().as_secs_f64())
}
