//! From a batch of messages to the socket: what the kernel refuses is sent in smaller pieces, or counted.

use std::io;
use std::time::Duration;

use dataplane_core::forward::Unsent;
use dataplane_core::{Counters, DropReason, Family, Forwarder, PeerTable, ReplyQueue, TxBatch, TxMessage};

use super::paths::{Paths, Refused};
use crate::event::{EngineEvent, Events};
use crate::io::{Outgoing, UdpPort};
use crate::offload::Offload;
use crate::probe::Feature;

/// How long a batch may wait for room in the socket, once. The TUN reader must not stand still longer.
const WAIT_FOR_ROOM: Duration = Duration::from_millis(1);
/// How often a batch is offered again after an interruption by a signal.
const INTERRUPTIONS: u32 = 16;

/// What sending a batch needs besides the socket.
pub(super) struct Sending<'a> {
    /// Features in use; `udp-gso` may be lost and regained.
    pub(super) offload: &'a mut Offload,
    /// Destinations that take no trains.
    pub(super) paths: &'a mut Paths,
    /// Answers inner senders of datagrams that cannot be sent.
    pub(super) forwarder: &'a mut Forwarder,
    /// The peers.
    pub(super) table: &'a PeerTable,
    /// Where the answers go.
    pub(super) replies: &'a mut ReplyQueue,
    /// Each datagram ends in `tx` as passed or under one reason.
    pub(super) counters: &'a mut Counters,
    /// What is said aloud.
    pub(super) events: &'a Events,
    /// The time of this turn.
    pub(super) now_ns: u64,
}

impl Sending<'_> {
    /// Sends every message of `batch` in order.
    pub(super) fn send<U: UdpPort>(self, udp: &mut U, batch: &TxBatch) {
        let messages = batch.messages();
        let mut sender = Sender { udp, with: self, may_wait: true, interruptions: INTERRUPTIONS };
        sender.send_all(messages.len(), &|at| Item::message(batch, &messages[at]));
        if sender.with.paths.look_again(sender.with.now_ns) {
            sender.with.offload.restore(Feature::UdpGso);
            sender.with.events.say(EngineEvent::Restored(Feature::UdpGso));
        }
    }
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

    /// Bytes of encapsulation, the same in front of every datagram of a train.
    fn encap_len(&self) -> usize {
        (self.outgoing.bytes.len() - self.inner_bytes) / (self.packets.max(1) as usize)
    }

    /// Datagram `at` of this message, which has `self.packets` of them.
    fn datagram(&self, at: usize) -> Self {
        let Outgoing { to, tos, lane, bytes, stride } = self.outgoing;
        let start = (at * stride).min(bytes.len());
        let bytes = &bytes[start..(start + stride).min(bytes.len())];
        let outgoing = Outgoing { to, tos, lane, bytes, stride };
        Self { outgoing, packets: 1, inner_bytes: bytes.len().saturating_sub(self.encap_len()) }
    }

    /// The inner packet of its first datagram.
    fn inner(&self) -> &'a [u8] {
        let bytes = self.outgoing.bytes;
        bytes.get(self.encap_len()..self.outgoing.stride.min(bytes.len())).unwrap_or_default()
    }
}

/// What to do about an error.
enum Remedy {
    /// The call was interrupted: the same again.
    Again,
    /// No room in the socket: wait a little, once, then drop.
    Wait,
    /// The kernel does not take this train: send its datagrams one by one.
    Apart,
    /// The datagram cannot be sent, and this is what its sender should know.
    Drop(Option<Unsent>),
}

impl Remedy {
    fn of(error: &io::Error, message: &Outgoing<'_>) -> Self {
        match error.raw_os_error() {
            Some(libc::EINTR) => Self::Again,
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => Self::Wait,
            // EMSGSIZE: the path to this peer is too narrow for a train, as a lower route MTU makes it. EIO: the device
            // cannot sum the segments up (before 6.11), or IPsec is on the path. EINVAL: too many segments, or a socket
            // without checksums.
            Some(libc::EMSGSIZE | libc::EINVAL | libc::EIO | libc::EOPNOTSUPP) if message.is_train() => {
                Self::Apart
            }
            Some(libc::EMSGSIZE) => Self::Drop(Some(Unsent::TooLong(Family::of(&message.to.ip())))),
            Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EPERM | libc::EACCES) => {
                Self::Drop(Some(Unsent::Unreachable))
            }
            _ => Self::Drop(None),
        }
    }
}

struct Sender<'a, U> {
    udp: &'a mut U,
    with: Sending<'a>,
    may_wait: bool,
    interruptions: u32,
}

impl<U: UdpPort> Sender<'_, U> {
    /// Every round of the loop sends, takes apart or drops at least one item, or uses up the wait or an interruption: it
    /// ends.
    fn send_all<'i>(&mut self, len: usize, item: &dyn Fn(usize) -> Item<'i>) {
        let mut next = 0;
        // Items before it may be offered as they are.
        let mut end = 0;
        while next < len {
            if end <= next {
                end = if self.with.paths.is_quiet() { len } else { self.run(next..len, item) };
                if end == next {
                    self.send_apart(&item(next));
                    next += 1;
                    continue;
                }
            }
            let error = match self.udp.send((next..end).map(|at| item(at).outgoing)) {
                Ok(sent) if sent > 0 => {
                    let sent = (next + sent).min(end);
                    for at in next..sent {
                        self.passed(&item(at));
                    }
                    next = sent;
                    continue;
                }
                Ok(_) => io::Error::from(io::ErrorKind::WriteZero),
                Err(error) => error,
            };
            let first = item(next);
            match Remedy::of(&error, &first.outgoing) {
                Remedy::Again if self.interruptions > 0 => {
                    self.interruptions -= 1;
                    continue;
                }
                Remedy::Wait if self.may_wait => {
                    self.may_wait = false;
                    self.udp.wait_writable(WAIT_FOR_ROOM);
                    continue;
                }
                Remedy::Again | Remedy::Wait => self.dropped(DropReason::SendQueueFull, &first),
                Remedy::Apart => {
                    let passed = self.with.counters.tx.passed;
                    self.send_apart(&first);
                    // If it takes none of the datagrams alone either, the train was not what it minds.
                    if self.with.counters.tx.passed != passed {
                        self.refused(&first.outgoing, error.raw_os_error().unwrap_or(libc::EIO));
                        // The next message to this peer is not offered in vain.
                        end = 0;
                    }
                }
                Remedy::Drop(why) => {
                    self.dropped(DropReason::SendRefused, &first);
                    if let Some(why) = why {
                        let Sending { forwarder, table, now_ns, replies, counters, .. } = &mut self.with;
                        forwarder.unsent(table, *now_ns, first.inner(), why, replies, counters);
                    }
                }
            }
            next += 1;
        }
    }

    /// Where the first train begins that its destination does not take.
    fn run<'i>(&self, items: std::ops::Range<usize>, item: &dyn Fn(usize) -> Item<'i>) -> usize {
        let Sending { paths, now_ns, .. } = &self.with;
        let refused = |at: &usize| {
            let message = item(*at).outgoing;
            message.is_train() && !paths.take_train(message.to, message.stride, *now_ns)
        };
        let end = items.end;
        items.into_iter().find(refused).unwrap_or(end)
    }

    fn send_apart(&mut self, train: &Item<'_>) {
        self.send_all(train.packets as usize, &|at| train.datagram(at));
    }

    fn passed(&mut self, item: &Item<'_>) {
        let Sending { paths, counters, events, .. } = &mut self.with;
        counters.tx.pass(item.packets, item.inner_bytes);
        if !paths.is_quiet() && item.outgoing.is_train() {
            let Outgoing { to, stride, .. } = item.outgoing;
            if paths.pass(to, stride).is_some() {
                events.say(EngineEvent::TrainsTaken { to });
            }
        }
    }

    fn dropped(&mut self, reason: DropReason, item: &Item<'_>) {
        self.with.counters.tx.drop(reason, item.packets);
    }

    fn refused(&mut self, train: &Outgoing<'_>, errno: i32) {
        let Sending { offload, paths, events, now_ns, .. } = &mut self.with;
        match paths.refuse(train.to, train.stride, errno, *now_ns) {
            Refused::Quietly => {}
            Refused::Destination => events.say(EngineEvent::TrainsRefused { to: train.to, errno }),
            Refused::Socket => {
                if let Some(demotion) = offload.demote(Feature::UdpGso, errno) {
                    events.say(EngineEvent::Demoted(demotion));
                }
            }
        }
    }
}
