//! The node's engines: their devices, their peers, what they tell, their end.

use anyhow::Context;
use dataplane::EngineEvent;
use dataplane_core::{Counters, Family};
use hostnet::kernel::LinkSettings;
use hostnet::sysctl;

use super::super::carrier::{self, State};
use super::Node;
use crate::plan::Plan;

/// The TUN ring holds this many packets of up to 64 KiB. The kernel's 500 overflow in a burst without a trace; far more
/// would only be delay.
const TX_QUEUE_LEN: u32 = 1000;

impl Node {
    /// Settings of the devices that are wanted before they are up: the kernel sizes the ring then, and makes IPv6
    /// link-local addresses that nobody needs on a TUN device.
    pub(super) async fn prepare_devices(&self) -> anyhow::Result<()> {
        for carrier in self.carriers.iter().filter(|carrier| matches!(carrier.engine, State::Open(_))) {
            let device = &carrier.tunnel.device;
            let ring = LinkSettings { tx_queue_len: Some(TX_QUEUE_LEN), ..LinkSettings::default() };
            self.kernel.set_link(device, &ring).await?;
            let quiet = LinkSettings { addr_gen_none: true, ..LinkSettings::default() };
            if let Err(error) = self.kernel.set_link(device, &quiet).await {
                // A kernel without IPv6 has no such setting, and needs none.
                tracing::debug!(device, %error, "IPv6 link-local addresses are left on");
            }
            // The engine's ICMP answers enter by the device and bear its own address. Without this the kernel takes them
            // for martians and the pods never hear that a destination is not there.
            if carrier.tunnel.family == Family::V4
                && let Err(error) = sysctl::set(&format!("net/ipv4/conf/{device}/accept_local"), "1")
            {
                tracing::warn!(device, %error, "pods will not get the tunnel's ICMP errors");
            }
        }
        Ok(())
    }

    /// Gives every engine its peers; one whose device was waiting for its address begins to run.
    pub(super) fn provide_peers(&mut self, plan: &Plan) -> anyhow::Result<()> {
        for (carrier, peers) in self.carriers.iter_mut().zip(&plan.peers) {
            carrier.provide(peers).with_context(|| format!("run the engine on {}", carrier.tunnel.device))?;
        }
        Ok(())
    }

    pub(super) fn inform_running(&mut self, plan: &Plan) -> anyhow::Result<()> {
        let carriers = self.carriers.iter_mut().zip(&plan.peers);
        for (carrier, peers) in carriers.filter(|(carrier, _)| matches!(carrier.engine, State::Running(_))) {
            carrier.provide(peers)?;
        }
        Ok(())
    }

    /// Says what the engines told. An engine that ended is opened again: a deleted device is one more difference
    /// between what is and what should be.
    pub(in crate::daemon) async fn heed_engines(&mut self) -> anyhow::Result<()> {
        let mut ended = false;
        for carrier in &mut self.carriers {
            let State::Running(handle) = &carrier.engine else { continue };
            let mut gone = false;
            for event in handle.events().try_iter() {
                let device = &carrier.tunnel.device;
                gone |= matches!(event, EngineEvent::DeviceGone { .. } | EngineEvent::SocketFailed { .. });
                if event.is_good_news() {
                    tracing::info!(device, "{event}");
                } else {
                    tracing::warn!(device, "{event}");
                }
            }
            if gone {
                carrier.engine = State::Ended;
                carrier.published = None;
                ended = true;
            }
        }
        if ended {
            self.reconcile().await?;
        }
        Ok(())
    }

    /// An engine whose device has another name carries nothing, for routes lead to the name: it ends, and is opened again.
    pub(super) async fn end_renamed_engines(&mut self) -> anyhow::Result<()> {
        for carrier in &mut self.carriers {
            let device = carrier.tunnel.device.clone();
            if !matches!(carrier.engine, State::Running(_)) {
                continue;
            }
            match self.kernel.link(&device).await? {
                Some(link) => self.changed |= carrier::detach(&self.kernel, &link).await?,
                None => {
                    tracing::warn!(device, "the engine's device is not there under its name, made again");
                    // Its device goes with the engine, whatever its name.
                    if let State::Running(handle) = std::mem::replace(&mut carrier.engine, State::Ended) {
                        handle.stop().ok();
                    }
                    carrier.published = None;
                }
            }
        }
        Ok(())
    }

    /// Opens again what ended. What cannot be opened now is said once, and tried again at the next look.
    pub(super) async fn reopen_engines(&mut self) -> anyhow::Result<()> {
        let mut opened = false;
        let mut trouble = None;
        for carrier in &mut self.carriers {
            match carrier.reopen(&self.settings, &self.kernel, &self.backend).await {
                Ok(true) => {
                    opened = true;
                    tracing::info!(device = carrier.tunnel.device, "made the device");
                }
                Ok(false) => {}
                Err(error) => trouble = Some(format!("{error:#}")),
            }
        }
        if let Some(why) = &trouble
            && self.engine_trouble != trouble
        {
            tracing::warn!(%why, "pods' packets are not carried, trying again");
        }
        self.engine_trouble = trouble;
        if opened {
            self.changed = true;
            self.known = None;
            self.prepare_devices().await?;
        }
        Ok(())
    }

    /// Stops the engines; their devices and routes go with them. subnet.env and the lease stay.
    pub(in crate::daemon) fn stop(self) {
        for carrier in self.carriers {
            let State::Running(handle) = carrier.engine else { continue };
            match handle.stop() {
                Ok(counters) => {
                    tracing::info!(device = carrier.tunnel.device, "stopped: {}", sums(&counters))
                }
                Err(error) => tracing::warn!(device = carrier.tunnel.device, %error, "stopped"),
            }
        }
    }
}

/// The counters in one line, drops by reason.
pub(super) fn sums(counters: &Counters) -> String {
    let direction = |name: &str, verb: &str, d: &dataplane_core::counters::Direction| {
        let drops: Vec<String> = d.drops().map(|(reason, count)| format!(", {reason} {count}")).collect();
        format!(
            "{name} {} packets, {verb} {} ({} bytes){}",
            d.packets,
            d.passed,
            d.passed_bytes,
            drops.concat()
        )
    };
    let lost = |count: u64, what: &str| match count {
        0 => String::new(),
        count => format!("; {count} {what}"),
    };
    [
        direction("rx", "delivered", &counters.rx),
        "; ".to_owned(),
        direction("tx", "sent", &counters.tx),
        lost(counters.socket_overflows, "messages found the socket's buffer full or were a flood"),
        lost(counters.ring_overflows, "packets found the device's ring full"),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataplane_core::DropReason;

    #[test]
    fn the_last_line_accounts_for_every_packet() {
        let mut counters = Counters::default();
        counters.rx.take(10, 1000);
        counters.rx.pass(7, 700);
        counters.rx.drop(DropReason::UnknownPeer, 3);
        counters.tx.take(2, 200);
        counters.tx.pass(2, 200);
        assert_eq!(
            sums(&counters),
            "rx 10 packets, delivered 7 (700 bytes), unknown_peer 3; tx 2 packets, sent 2 (200 bytes)"
        );
        counters.socket_overflows = 5;
        counters.ring_overflows = 6;
        assert!(sums(&counters).ends_with(
            "sent 2 (200 bytes); 5 messages found the socket's buffer full or were a flood; 6 packets found the device's ring full"
        ));
    }
}
