//! A ping that goes on while something else happens, and what became of each.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use anyhow::ensure;
use lab::traffic::Path;
use lab::traffic::ping::Ping;

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(10);
/// Fewer questions than this say nothing about what happened meanwhile.
const ENOUGH: usize = 20;

/// Asks the far end of the path all the while that `work` runs, and answers what `work` does.
///
/// # Errors
///
/// Those of `work`, and every question that got no answer within a second.
pub fn without_a_loss<T>(path: Path<'_>, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| ask(path, &over));
        let outcome = work();
        over.store(true, Ordering::Relaxed);
        let (answered, lost) = joined(asking)?;
        let value = outcome?;
        ensure!(lost.is_empty(), "{} of {} pings had no answer: {lost:?}", lost.len(), lost.len() + answered);
        Ok(value)
    })
}

fn joined<T>(thread: ScopedJoinHandle<'_, anyhow::Result<T>>) -> anyhow::Result<T> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// How many were answered, and what came back to the others.
fn ask(path: Path<'_>, over: &AtomicBool) -> anyhow::Result<(usize, Vec<String>)> {
    path.from.run("pinger", || {
        let (mut answered, mut lost) = (0, Vec::new());
        while answered < ENOUGH || !over.load(Ordering::Relaxed) {
            let answer = Ping::new(path.address).send()?;
            match answer.microseconds() {
                Some(_) => answered += 1,
                None => lost.push(format!("number {}: {answer:?}", answered + lost.len() + 1)),
            }
            if lost.len() > 100 {
                break;
            }
            thread::sleep(PAUSE);
        }
        anyhow::Ok((answered, lost))
    })?
}
