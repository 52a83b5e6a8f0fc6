//! The node and its host: put in shape at the start, kept in shape from then on.

use std::time::Duration;

use anyhow::bail;
use hostnet::change::Change;
use hostnet::reconcile::{Outcome, converge, step};
use tokio::time::Instant;

use super::super::carrier;
use super::super::earlier;
use super::super::guards::Guards;
use super::super::rules::Rules;
use super::Node;
use crate::plan::Plan;

/// How long notifications are gathered before the host is looked at: what is changed by hand comes in bursts, and so do
/// the notifications of our own changes.
const GATHER: Duration = Duration::from_millis(20);
/// The same where a look is slow, because there is much to look at.
const LONGEST_GATHER: Duration = Duration::from_secs(1);

impl Node {
    /// The first time: devices get their addresses and routes, then the engines run, then subnet.env says so. What an
    /// earlier run left, of this backend or another, goes when everything new is there.
    pub(in crate::daemon) async fn bring_up(&mut self) -> anyhow::Result<()> {
        self.reopen_engines().await?;
        self.prepare_devices().await?;
        let plan = self.plan();
        for device in &plan.devices {
            carrier::ensure(&self.kernel, device).await?;
        }
        // Before routes: an answer that a new route brings is let in.
        self.guards.insert(Guards::of(&self.backend, self.settings.guard).await).admit_more(&plan).await;
        // flannel's host-gw routes bear no mark. While this daemon runs, others may make routes of their form.
        let mut scope = Plan::scope(&self.backend);
        scope.gateway_routes = true;
        let outcome = converge(&self.kernel, &scope, &plan.host).await;
        let fatal = |change: &Change| matches!(change, Change::SetLink(_) | Change::AddAddress(_));
        if let Some((_change, error)) = outcome.failed.iter().find(|(change, _)| fatal(change)) {
            bail!("cannot set up the overlay's device: {error}");
        }
        if let Some(error) = outcome.unread {
            return Err(error.into());
        }
        self.provide_peers(&plan)?;
        self.report(&outcome);
        self.tally.note(&outcome, true);
        self.tally_peers();
        if let Err(error) = earlier::remove(&self.kernel, &self.backend).await {
            tracing::warn!(%error, "cannot remove what an earlier run left");
        }
        // Before subnet.env: pods that come find their packets masqueraded.
        self.rules = Some(Rules::start(self.settings.rules, &self.network, &self.own.subnet).await);
        self.write_subnet_env();
        Ok(())
    }

    /// Puts the host in shape; what cannot be done is said once and tried again at the next call. A change of the leases
    /// is made at once, as the difference to what is known; the kernel tells of it, and the look that follows finds
    /// whatever was not as known.
    pub(in crate::daemon) async fn reconcile(&mut self) -> anyhow::Result<()> {
        self.end_renamed_engines().await?;
        self.reopen_engines().await?;
        let plan = self.plan();
        // Peers before routes: a packet that a new route brings finds its peer.
        self.inform_running(&plan)?;
        if let Some(guards) = &mut self.guards {
            guards.admit_more(&plan).await;
        }
        let known = self.known.take();
        let outcome = match known {
            Some(known) if self.changed => {
                let outcome = step(&self.kernel, &known, &plan.host).await;
                if !outcome.is_settled() {
                    self.noticed.get_or_insert_with(Instant::now);
                }
                outcome
            }
            _ => self.look(&plan).await,
        };
        if outcome.unread.is_none() {
            self.provide_peers(&plan)?;
        }
        if let Some(guards) = &mut self.guards {
            guards.admit(&plan).await;
        }
        self.report(&outcome);
        self.tally.note(&outcome, self.changed);
        if self.changed {
            self.tally_peers();
        }
        self.changed = false;
        self.known = (outcome.is_settled() && self.device_trouble.is_none()).then_some(plan.host);
        if let Some(rules) = &self.rules {
            rules.follow(&self.own.subnet);
        }
        self.write_subnet_env();
        Ok(())
    }

    /// Looks at the whole host, and makes it what the plan says.
    async fn look(&mut self, plan: &Plan) -> Outcome {
        let begin = Instant::now();
        self.noticed = None;
        let mut device_trouble = None;
        for device in &plan.devices {
            match carrier::ensure(&self.kernel, device).await {
                Ok(made) => self.changed |= made,
                Err(error) => device_trouble = Some(format!("{error:#}")),
            }
        }
        self.device_trouble = device_trouble;
        let outcome = converge(&self.kernel, &Plan::scope(&self.backend), &plan.host).await;
        self.last_look = begin.elapsed();
        outcome
    }

    /// Waits until the kernel tells that something about our devices or the underlay's changed, and a moment longer: a
    /// look costs what there is on the host, and must not be all that this process does. May be dropped while it waits.
    pub(in crate::daemon) async fn host_changed(&mut self) {
        loop {
            if let Some(noticed) = self.noticed {
                tokio::time::sleep_until(noticed + (self.last_look * 4).clamp(GATHER, LONGEST_GATHER)).await;
                return;
            }
            let Some(watch) = &mut self.watch else { return std::future::pending().await };
            match watch.next().await {
                Some(mut noticed) => {
                    // The underlay's neighbours come and go all the time, and are nobody's business here.
                    noticed.neighbours.remove(&self.underlay.device);
                    if !noticed.is_empty() {
                        tracing::debug!(?noticed, "the kernel told of changes");
                        self.noticed = Some(Instant::now());
                    }
                }
                None => {
                    tracing::warn!("the kernel's notifications ended; looking at intervals");
                    self.watch = None;
                }
            }
        }
    }

    fn report(&mut self, outcome: &Outcome) {
        for (at, change) in outcome.applied.iter().enumerate() {
            // A device that went down loses every route: thousands of lines would say no more than a few.
            if self.changed || at >= 3 {
                tracing::debug!("{change}");
            } else {
                tracing::warn!("somebody had changed what is ours, put right: {change}");
            }
        }
        if !self.changed && outcome.applied.len() > 3 {
            tracing::warn!(
                "somebody had changed what is ours, put right: {} things more",
                outcome.applied.len() - 3
            );
        }
        // What follows from a device that cannot be made says less than why it cannot.
        let of_outcome = || (!outcome.is_settled()).then(|| outcome.to_string());
        let trouble = self.device_trouble.clone().or_else(of_outcome);
        if trouble == self.trouble {
            return;
        }
        match &trouble {
            Some(trouble) => tracing::warn!("the host is not as it should be, trying again: {trouble}"),
            None => tracing::info!("the host is as it should be again"),
        }
        self.trouble = trouble;
    }
}
