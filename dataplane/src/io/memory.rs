//! A network in memory: ports that lose, double and reorder datagrams by a seed, and refuse what they are told to.
//!
//! It behaves like the kernel's sockets where that matters to a worker: messages are cut at their stride, received
//! datagrams of one sender and one length share a buffer, an error concerns the first message of a call and leaves
//! the others untouched. All handles of one object share it, so a test keeps one and gives one to the worker.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::{Arrival, Outgoing, UdpPort};
use crate::buffers::{ReceiveBuffers, SLOT_LEN};

mod tun;

pub use tun::MemoryTun;

/// What the wire does to datagrams.
#[derive(Clone, Debug)]
pub struct WireFaults {
    /// The same seed gives the same faults.
    pub seed: u64,
    /// Share of datagrams that vanish, 0 to 1.
    pub loss: f64,
    /// Share of datagrams that arrive twice.
    pub duplicate: f64,
    /// Share of datagrams that are overtaken by all that wait before them.
    pub reorder: f64,
    /// Largest UDP payload, in bytes: a datagram beyond it is refused with `EMSGSIZE`.
    pub max_datagram: usize,
    /// Most datagrams a message may carry, sent or received: beyond it `EINVAL`.
    pub max_segments: usize,
    /// Received datagrams share buffers.
    pub coalesce: bool,
}

impl WireFaults {
    /// A wire without faults.
    pub const NONE: Self = Self {
        seed: 0,
        loss: 0.0,
        duplicate: 0.0,
        reorder: 0.0,
        max_datagram: 65_507,
        max_segments: 128,
        coalesce: true,
    };
}

/// What has happened on a wire, in datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WireStats {
    /// Taken from senders.
    pub sent: u64,
    /// Taken, and then lost on purpose.
    pub lost: u64,
    /// Delivered once more on purpose.
    pub duplicated: u64,
    /// Taken, but nobody has the address.
    pub unroutable: u64,
}

struct Datagram {
    from: SocketAddr,
    tos: u8,
    bytes: Bytes,
}

struct Wire {
    faults: WireFaults,
    random: fastrand::Rng,
    queues: HashMap<SocketAddr, VecDeque<Datagram>>,
    stats: WireStats,
}

impl Wire {
    fn carry(&mut self, to: SocketAddr, datagram: &Datagram) {
        self.stats.sent += 1;
        let Some(queue) = self.queues.get_mut(&to) else {
            self.stats.unroutable += 1;
            return;
        };
        if self.random.f64() < self.faults.loss {
            self.stats.lost += 1;
            return;
        }
        let copies = if self.random.f64() < self.faults.duplicate { 2 } else { 1 };
        self.stats.duplicated += copies - 1;
        for _ in 0..copies {
            let at = if self.random.f64() < self.faults.reorder {
                self.random.usize(0..=queue.len())
            } else {
                queue.len()
            };
            let copy = Datagram { bytes: datagram.bytes.clone(), ..*datagram };
            queue.insert(at, copy);
        }
    }
}

/// A network in memory. Clones are the same wire.
#[derive(Clone)]
pub struct MemoryWire(Arc<Mutex<Wire>>);

impl MemoryWire {
    /// A wire with these faults and nobody on it.
    #[must_use]
    pub fn new(faults: WireFaults) -> Self {
        let random = fastrand::Rng::with_seed(faults.seed);
        Self(Arc::new(Mutex::new(Wire {
            faults,
            random,
            queues: HashMap::new(),
            stats: WireStats::default(),
        })))
    }

    /// A port at `address`, whose datagrams wait until it receives them.
    #[must_use]
    pub fn port(&self, address: SocketAddr) -> MemoryUdp {
        lock(&self.0).queues.entry(address).or_default();
        MemoryUdp { wire: self.0.clone(), address, script: Arc::new(Mutex::new(Script::default())) }
    }

    /// What has happened so far.
    #[must_use]
    pub fn stats(&self) -> WireStats {
        lock(&self.0).stats
    }

    /// Replaces the faults; the sequence of random numbers goes on.
    pub fn set_faults(&self, faults: WireFaults) {
        lock(&self.0).faults = faults;
    }
}

/// What a port refuses.
#[derive(Default)]
struct Script {
    /// Messages offered so far, refused ones included.
    offered: u64,
    refuse: HashMap<u64, i32>,
    refuse_trains: Option<i32>,
    refuse_trains_to: HashMap<SocketAddr, (i32, usize)>,
    call_limit: Option<usize>,
    /// Receives that fail, and how.
    refuse_receives: (usize, i32),
}

/// A port of a [`MemoryWire`]. Clones are the same port.
#[derive(Clone)]
pub struct MemoryUdp {
    wire: Arc<Mutex<Wire>>,
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
}

impl MemoryUdp {
    /// Refuses the `position`th message that is offered from here on, counting every attempt from 0, with `errno`.
    pub fn refuse_at(&self, position: u64, errno: i32) {
        let mut script = lock(&self.script);
        let position = script.offered + position;
        script.refuse.insert(position, errno);
    }

    /// Refuses every message of more than one datagram with `errno`, or takes them again.
    pub fn refuse_trains(&self, errno: Option<i32>) {
        lock(&self.script).refuse_trains = errno;
    }

    /// Refuses every train to `to` whose datagrams have at least so many bytes with an errno, or takes them again.
    pub fn refuse_trains_to(&self, to: SocketAddr, refusal: Option<(i32, usize)>) {
        let mut script = lock(&self.script);
        match refusal {
            Some(refusal) => script.refuse_trains_to.insert(to, refusal),
            None => script.refuse_trains_to.remove(&to),
        };
    }

    /// Takes at most `limit` messages a call.
    pub fn limit_calls(&self, limit: usize) {
        lock(&self.script).call_limit = Some(limit.max(1));
    }

    /// Fails the next `count` receives with `errno`, whatever waits.
    pub fn refuse_receives(&self, count: usize, errno: i32) {
        lock(&self.script).refuse_receives = (count, errno);
    }

    /// Messages offered so far, refused ones included.
    #[must_use]
    pub fn offered(&self) -> u64 {
        lock(&self.script).offered
    }

    /// Takes the datagram that waits longest: its sender and its payload.
    #[must_use]
    pub fn take(&self) -> Option<(SocketAddr, Bytes)> {
        let mut wire = lock(&self.wire);
        let datagram = wire.queues.get_mut(&self.address)?.pop_front()?;
        Some((datagram.from, datagram.bytes))
    }

    fn send_one(&self, message: &Outgoing<'_>) -> io::Result<()> {
        let mut script = lock(&self.script);
        let position = script.offered;
        script.offered += 1;
        let to_all = script.refuse_trains;
        let to_one = script.refuse_trains_to.get(&message.to);
        let to_one = to_one.filter(|(_, len)| message.stride >= *len).map(|(errno, _)| *errno);
        let of_train = to_all.or(to_one).filter(|_| message.is_train());
        let refused = script.refuse.remove(&position).or(of_train);
        drop(script);
        let mut wire = lock(&self.wire);
        let errno = refused.or_else(|| {
            let stride = if message.is_train() { message.stride } else { message.bytes.len() };
            let too_big = stride > wire.faults.max_datagram || message.bytes.len() > 65_507;
            let too_many =
                message.is_train() && message.bytes.len().div_ceil(stride) > wire.faults.max_segments;
            if too_big { Some(libc::EMSGSIZE) } else { too_many.then_some(libc::EINVAL) }
        });
        if let Some(errno) = errno {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let from = self.address;
        let mut carry = |piece: &[u8]| {
            let bytes = Bytes::copy_from_slice(piece);
            wire.carry(message.to, &Datagram { from, tos: message.tos, bytes });
        };
        if message.is_train() {
            message.bytes.chunks(message.stride).for_each(carry);
        } else {
            carry(message.bytes);
        }
        Ok(())
    }
}

impl UdpPort for MemoryUdp {
    fn send<'a>(&mut self, messages: impl Iterator<Item = Outgoing<'a>>) -> io::Result<usize> {
        let limit = lock(&self.script).call_limit.unwrap_or(usize::MAX);
        let mut sent = 0;
        for message in messages.take(limit) {
            match self.send_one(&message) {
                Ok(()) => sent += 1,
                Err(error) if sent == 0 => return Err(error),
                // Like sendmmsg: the call says how many went out, and the error comes with the next call.
                Err(error) => {
                    let mut script = lock(&self.script);
                    script.offered -= 1;
                    let position = script.offered;
                    script.refuse.insert(position, error.raw_os_error().unwrap_or(libc::EIO));
                    break;
                }
            }
        }
        Ok(sent)
    }

    fn receive(&mut self, buffers: &mut ReceiveBuffers) -> io::Result<usize> {
        let (failing, errno) = &mut lock(&self.script).refuse_receives;
        if let Some(left) = failing.checked_sub(1) {
            *failing = left;
            return Err(io::Error::from_raw_os_error(*errno));
        }
        let mut wire = lock(&self.wire);
        let most = if wire.faults.coalesce { wire.faults.max_segments } else { 1 };
        let Some(queue) = wire.queues.get_mut(&self.address).filter(|queue| !queue.is_empty()) else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let (slots, arrivals) = buffers.slots_mut();
        let mut filled = 0;
        for (slot, arrival) in slots.zip(arrivals) {
            let Some(first) = queue.pop_front() else { break };
            *arrival = fill_slot(slot, &first);
            loop {
                let fits = queue.front().is_some_and(|next| shares_slot(arrival, next, most));
                let Some(next) = queue.pop_front_if(|_| fits) else { break };
                slot[arrival.len..arrival.len + next.bytes.len()].copy_from_slice(&next.bytes);
                arrival.len += next.bytes.len();
                if next.bytes.len() < arrival.stride {
                    break;
                }
            }
            filled += 1;
        }
        buffers.set_filled(filled);
        Ok(filled)
    }

    fn wait_writable(&mut self, _limit: Duration) {}

    fn overflow(&self) -> u32 {
        0
    }
}

fn fill_slot(slot: &mut [u8], datagram: &Datagram) -> Arrival {
    let len = datagram.bytes.len().min(SLOT_LEN);
    slot[..len].copy_from_slice(&datagram.bytes[..len]);
    let truncated = len < datagram.bytes.len();
    Arrival { from: datagram.from, len, stride: len, tos: datagram.tos, truncated }
}

/// The kernel's rule: one sender, one TOS, no longer than the first, something in it, and 65 535 bytes in all. A NIC's
/// driver joins at most 64 datagrams; a message that crosses a veth arrives with as many as it was sent with.
fn shares_slot(open: &Arrival, next: &Datagram, most: usize) -> bool {
    let len = next.bytes.len();
    (1..=open.stride).contains(&len)
        && next.from == open.from
        && next.tos == open.tos
        && open.len + len <= 65_535
        && open.len.div_ceil(open.stride.max(1)) < most
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
