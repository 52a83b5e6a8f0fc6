//! One step of making a host what it should be: read, difference, apply, look again.
use std::fmt;

use crate::change::Change;
use crate::host::{Host, HostError};
use crate::state::{HostState, Scope};

/// How often the difference is taken. Some changes undo others as a side effect (the kernel drops routes with an
/// address or a device's up state), so one look at the result is part of the work; a third would find only a fight
/// with somebody else.
const ROUNDS: usize = 3;

/// What a step did. Nothing in it means that the host was as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Made, in this order.
    pub applied: Vec<Change>,
    /// Refused, each with the reason. The others went on.
    pub failed: Vec<(Change, HostError)>,
    /// Made and still missing afterwards: somebody else undoes them, or they are wanted outside the scope.
    pub undone: Vec<Change>,
    /// The host could not be read, so what came before may be incomplete.
    pub unread: Option<HostError>,
}

impl Outcome {
    /// The host is as it should be.
    pub fn is_settled(&self) -> bool {
        self.failed.is_empty() && self.undone.is_empty() && self.unread.is_none()
    }

    async fn make<H: Host>(&mut self, host: &H, changes: Vec<Change>) {
        let results = host.apply_all(&changes).await;
        for (change, result) in changes.into_iter().zip(results) {
            match result {
                Ok(()) => self.applied.push(change),
                Err(error) => self.failed.push((change, error)),
            }
        }
    }
}

/// Makes what `scope` covers of the host what `want` says. Each change is tried on its own: one that fails delays no
/// other, and is tried again by the next call.
pub async fn converge<H: Host>(host: &H, scope: &Scope, want: &HostState) -> Outcome {
    let mut outcome = Outcome::default();
    for round in 0..=ROUNDS {
        let have = match host.read(scope).await {
            Ok(have) => have,
            Err(error) => {
                outcome.unread = Some(error);
                break;
            }
        };
        let mut changes = have.changes_to(want);
        changes.retain(|change| !outcome.failed.iter().any(|(failed, _why)| failed == change));
        if changes.is_empty() {
            break;
        }
        if round == ROUNDS {
            outcome.undone = changes;
            break;
        }
        outcome.make(host, changes).await;
    }
    outcome
}

/// Makes the difference between two wanted states without a look at the host: right if the host is what the first
/// wanted, and quick because its cost is that of the difference. [`converge`] soon afterwards finds what was not so.
pub async fn step<H: Host>(host: &H, from: &HostState, to: &HostState) -> Outcome {
    let mut outcome = Outcome::default();
    outcome.make(host, from.changes_to(to)).await;
    outcome
}

impl fmt::Display for Outcome {
    /// One line: counts, and the first thing that went wrong.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} changes made", self.applied.len())?;
        if let Some((_change, error)) = self.failed.first() {
            write!(f, ", {} refused: {error}", self.failed.len())?;
        }
        if let Some(change) = self.undone.first() {
            write!(f, ", {} undone by somebody else: {change}", self.undone.len())?;
        }
        match &self.unread {
            Some(error) => write!(f, ", then {error}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
