//! From a batch of messages to the socket: what the kernel refuses is sent in smaller pieces, or counted.

use std::io;
use std::time::Duration;

use dataplane_core::{Direction, DropReason, TxBatch, TxMessage};

use crate::event::{EngineEvent, Events};
use crate::io::{Outgoing, UdpPort};
use crate::offload::Offload;
use crate::probe::Feature;

/// How long a batch may wait for room in the socket, once. The TUN reader must not stand still longer.
const WAIT_FOR_ROOM: Duration = Duration::from_millis(1);
/// How often a batch is offered again after an interruption by a signal.
const INTERRUPTIONS: u32 = 16;

/// Sends every message of `batch` in order. Each datagram ends in `tx` as passed or under one reason.
pub(super) fn send_batch<U: UdpPort>(
    udp: &mut U,
    batch: &TxBatch,
    offload: &mut Offload,
    tx: &mut Direction,
    events: &Events,
) {
    let messages = batch.messages();
    let mut sender = Sender { udp, offload, tx, events, may_wait: true, interruptions: INTERRUPTIONS };
    sender.send_all(messages.len(), &|at| Item::message(batch, &messages[at]));
}

/// A message and what it counts for.
struct Item<'a> {
    outgoing: Outgoing<'a>,
    packets: u64,
    inner_bytes: usize,
}

impl<'a> Item<'a> {
    fn message(batch: &'a TxBatch, message: &TxMessage) -> Self {
        let bytes = batch.bytes_of(message);
        let outgoing = Outgoing {
            to: message.to,
            tos: message.tos,
            bytes,
            stride: message.train.stride,
            lane: message.lane,
        };
        Self { outgoing, packets: message.count() as u64, inner_bytes: message.inner_bytes }
    }

    /// Datagram `at` of this message, which has `self.packets` of them.
    fn datagram(&self, at: usize) -> Self {
        let Outgoing { to, tos, lane, bytes, stride } = self.outgoing;
        let start = (at * stride).min(bytes.len());
        let bytes = &bytes[start..(start + stride).min(bytes.len())];
        // Every datagram of a train has the same encapsulation in front.
        let encap = (self.outgoing.bytes.len() - self.inner_bytes) / (self.packets.max(1) as usize);
        let outgoing = Outgoing { to, tos, lane, bytes, stride };
        Self { outgoing, packets: 1, inner_bytes: bytes.len().saturating_sub(encap) }
    }
}

/// What to do about an error.
enum Remedy {
    /// The call was interrupted: the same again.
    Again,
    /// No room in the socket: wait a little, once, then drop.
    Wait,
    /// The kernel does not take this train: send its datagrams one by one.
    Apart {
        /// It will not take the next one either.
        demote: bool,
    },
    /// The datagram cannot be sent.
    Drop,
}

impl Remedy {
    fn of(error: &io::Error, is_train: bool) -> Self {
        match error.raw_os_error() {
            Some(libc::EINTR) => Self::Again,
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => Self::Wait,
            // The path to this peer is too narrow for a train, as a lower route MTU makes it.
            Some(libc::EMSGSIZE) if is_train => Self::Apart { demote: false },
            // EIO: the device cannot sum the segments up (before 6.11), or IPsec is on the path. EINVAL: too many
            // segments, or a socket without checksums.
            Some(libc::EINVAL | libc::EIO | libc::EOPNOTSUPP) if is_train => Self::Apart { demote: true },
            _ => Self::Drop,
        }
    }
}

struct Sender<'a, U> {
    udp: &'a mut U,
    offload: &'a mut Offload,
    tx: &'a mut Direction,
    events: &'a Events,
    may_wait: bool,
    interruptions: u32,
}

impl<U: UdpPort> Sender<'_, U> {
    /// Every round of the loop sends or drops at least one item, or uses up the wait or an interruption: it ends.
    fn send_all<'i>(&mut self, len: usize, item: &dyn Fn(usize) -> Item<'i>) {
        let mut next = 0;
        while next < len {
            let error = match self.udp.send((next..len).map(|at| item(at).outgoing)) {
                Ok(sent) if sent > 0 => {
                    let end = (next + sent).min(len);
                    for at in next..end {
                        let item = item(at);
                        self.tx.pass(item.packets, item.inner_bytes);
                    }
                    next = end;
                    continue;
                }
                Ok(_) => io::Error::from(io::ErrorKind::WriteZero),
                Err(error) => error,
            };
            let first = item(next);
            match Remedy::of(&error, first.outgoing.is_train()) {
                Remedy::Again if self.interruptions > 0 => {
                    self.interruptions -= 1;
                    continue;
                }
                Remedy::Wait if self.may_wait => {
                    self.may_wait = false;
                    self.udp.wait_writable(WAIT_FOR_ROOM);
                    continue;
                }
                Remedy::Again | Remedy::Wait => self.tx.drop(DropReason::SendQueueFull, first.packets),
                Remedy::Apart { demote } => {
                    let passed = self.tx.passed;
                    self.send_all(first.packets as usize, &|at| first.datagram(at));
                    // If it takes none of the datagrams alone either, the train was not what it minds.
                    if demote && self.tx.passed != passed {
                        self.demote(&error);
                    }
                }
                Remedy::Drop => self.tx.drop(DropReason::SendRefused, first.packets),
            }
            next += 1;
        }
    }

    fn demote(&mut self, error: &io::Error) {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        if let Some(demotion) = self.offload.demote(Feature::UdpGso, errno) {
            self.events.say(EngineEvent::Demoted(demotion));
        }
    }
}
