//! One worker: a TUN queue, a UDP port, and the turns in which it empties both. Run to completion, no hand-over.
//!
//! A turn reads from the TUN until it is empty or the budget is spent, sends, receives one round from the socket,
//! writes that to the TUN, and posts the counters. Nothing in a turn allocates, locks, logs or waits, except for the
//! millisecond that a full socket may take once a batch, and for the socket's filter, which during a flood is made once a
//! second and for each new peer table.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::{ArcSwap, Cache};
use dataplane_core::{
    Counters, DropReason, Family, Forwarder, ForwarderConfig, MergeConfig, Merger, PeerTable, Received,
    ReplyQueue, TxBatch, TxLimits,
};

use super::deliver::Delivery;
use super::paths::Paths;
use super::send::Sending;
use super::shared::Shared;
use super::vigil::{Order, Vigil};
use crate::buffers::{ReceiveBuffers, TUN_READ_LEN};
use crate::event::{EngineEvent, Events};
use crate::io::guard::Guard;
use crate::io::{Ready, TunQueue, UdpPort};
use crate::offload::Offload;
use crate::probe::Feature;

/// Most TUN reads a turn, so that the other direction gets its turn.
const READS: usize = 64;
/// Most bytes a turn gathers: one superpacket or many small packets. More saves no work, for a superpacket pays for its own
/// system calls, and a packet behind it waits: 256 KiB cost no throughput and doubled the round trip under load.
const BATCH_BYTES: usize = 64 << 10;
/// Superpackets that a batch has room for beyond the largest one.
const BATCH_READS: usize = 4;
/// Receive slots where several datagrams share one.
const COALESCED_SLOTS: u16 = 8;
/// Receive slots where each datagram has its own.
const SINGLE_SLOTS: u16 = 64;
/// Receives a turn where each takes one slot.
const SINGLE_RECEIVES: usize = 8;
/// Turns in a row after which a worker looks at a side of which it has heard nothing.
const LOOK_AGAIN: u32 = 4;
/// Failed receives in a row after which the socket is given up.
const RECEIVE_FAILURES: u32 = 64;

/// What a guard refuses too.
const GARBAGE: [DropReason; 5] = [
    DropReason::UnknownPeer,
    DropReason::TooShort,
    DropReason::BadVxlanFlags,
    DropReason::BadVni,
    DropReason::BadMac,
];

/// How a worker forwards.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// How packets are judged and encapsulated.
    pub forwarder: ForwarderConfig,
    /// The family of the addresses that datagrams go to.
    pub underlay: Family,
    /// The features in use.
    pub offload: Offload,
    /// Source ports of the UDP port, at least one.
    pub lanes: u8,
    /// What it reads. A worker of one side writes to the other all the same: packets and ICMP replies.
    pub side: Ready,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Both sides were emptied: wait for readiness.
    Idle,
    /// There may be more: take another turn.
    Busy,
    /// The device or the socket is gone for good.
    Ended,
}

/// A worker over any TUN queue and UDP port.
pub struct Worker<T, U> {
    tun: T,
    udp: U,
    config: WorkerConfig,
    offload: Offload,
    shared: Arc<Shared>,
    table: Cache<Arc<ArcSwap<PeerTable>>, Arc<PeerTable>>,
    events: Events,
    counters: Counters,
    state: State,
    delivery: Delivery,
    paths: Paths,
    ready: Ready,
    overflow: u32,
    receive_failures: u32,
    vigil: Vigil,
    /// The peers whose datagrams the socket's guard lets through, while it has one.
    guarded_for: Option<Arc<PeerTable>>,
    /// This worker is one of those that `Shared::guarded` counts.
    is_counted: bool,
    /// Turns since the last one that emptied both sides.
    busy_turns: u32,
}

/// All that a failure in the middle of a turn may leave half done; made again after one.
struct State {
    forwarder: Forwarder,
    batch: TxBatch,
    merger: Merger,
    replies: ReplyQueue,
    read: Box<[u8]>,
    buffers: ReceiveBuffers,
}

impl State {
    fn new(config: &WorkerConfig, offload: &Offload) -> Self {
        let slots = match (offload.has(Feature::Mmsg), offload.has(Feature::UdpGro)) {
            (false, _) => 1,
            (true, true) => COALESCED_SLOTS,
            (true, false) => SINGLE_SLOTS,
        };
        Self {
            forwarder: Forwarder::new(config.forwarder),
            batch: TxBatch::new(limits(config, offload), BATCH_READS).with_lanes(config.lanes),
            merger: Merger::new(merging(offload)).with_adder(config.forwarder.adder),
            replies: ReplyQueue::default(),
            read: vec![0; TUN_READ_LEN].into(),
            buffers: ReceiveBuffers::new(slots),
        }
    }
}

fn limits(config: &WorkerConfig, offload: &Offload) -> TxLimits {
    let max_bytes = match config.underlay {
        Family::V4 => TxLimits::MAX_BYTES_V4,
        Family::V6 => TxLimits::MAX_BYTES_V6,
    };
    TxLimits { max_segments: offload.max_segments(), max_bytes }
}

fn merging(offload: &Offload) -> MergeConfig {
    MergeConfig {
        tcp: offload.has(Feature::TunTso),
        udp: offload.has(Feature::TunUso),
        vnet: offload.has(Feature::TunVnetHdr),
    }
}

impl<T: TunQueue, U: UdpPort> Worker<T, U> {
    /// A worker that has not taken a turn yet. All its memory is allocated here.
    #[must_use]
    pub fn new(tun: T, udp: U, config: WorkerConfig, shared: Arc<Shared>, events: Events) -> Self {
        let (offload, ready) = (config.offload, config.side);
        Self {
            tun,
            udp,
            state: State::new(&config, &offload),
            config,
            offload,
            table: Cache::new(shared.table.clone()),
            shared,
            events,
            counters: Counters::default(),
            delivery: Delivery::default(),
            paths: Paths::default(),
            ready,
            overflow: 0,
            receive_failures: 0,
            vigil: Vigil::default(),
            guarded_for: None,
            is_counted: false,
            busy_turns: 0,
        }
    }

    /// What it reads at all.
    pub(super) fn side(&self) -> Ready {
        self.config.side
    }

    /// Tells it what may be read.
    pub fn set_ready(&mut self, ready: Ready) {
        let Ready { tun, udp } = self.config.side;
        self.ready = Ready { tun: ready.tun && tun, udp: ready.udp && udp };
    }

    /// Its TUN queue, for tests that feed it.
    pub fn tun_mut(&mut self) -> &mut T {
        &mut self.tun
    }

    /// Its UDP port, for tests that feed it.
    pub fn udp_mut(&mut self) -> &mut U {
        &mut self.udp
    }

    /// Packets that it has taken in, both ways.
    pub(super) fn packets(&self) -> u64 {
        self.counters.rx.packets.wrapping_add(self.counters.tx.packets)
    }

    /// The features in use right now.
    #[must_use]
    pub fn offload(&self) -> &Offload {
        &self.offload
    }

    /// Takes one turn at `now_ns`, nanoseconds on a clock that never goes back.
    ///
    /// A panic inside costs the packets that were held; they are counted, and the next turn goes on.
    pub fn turn(&mut self, now_ns: u64) -> Turn {
        let turn = match catch_unwind(AssertUnwindSafe(|| self.work(now_ns))) {
            Ok(turn) => turn,
            Err(panic) => {
                self.recover(&*panic);
                Turn::Busy
            }
        };
        self.shared.board.post(&self.counters);
        turn
    }

    fn work(&mut self, now_ns: u64) -> Turn {
        // Readiness is told to a worker that sleeps: one that a flood on one side keeps awake would never hear of the
        // other.
        if self.busy_turns >= LOOK_AGAIN {
            self.busy_turns = 0;
            self.ready = self.config.side;
        }
        let table = Arc::clone(self.table.load());
        self.watch_for_floods(&table, now_ns);
        if self.ready.tun && !self.drain_tun(&table, now_ns) {
            return Turn::Ended;
        }
        if self.ready.udp && !self.drain_udp(&table, now_ns) {
            return Turn::Ended;
        }
        if self.ready.tun || self.ready.udp {
            self.busy_turns += 1;
            return Turn::Busy;
        }
        self.busy_turns = 0;
        Turn::Idle
    }

    /// Lets the socket refuse garbage while there is a flood of it.
    fn watch_for_floods(&mut self, table: &Arc<PeerTable>, now_ns: u64) {
        let rx = &self.counters.rx;
        let garbage = GARBAGE.iter().map(|reason| rx.dropped(*reason)).sum();
        match self.vigil.look(now_ns, garbage) {
            Order::Raise { first } => {
                if first {
                    self.events.say(EngineEvent::Flooded);
                }
                self.raise_guard();
            }
            Order::Lower => {
                // A socket that keeps its guard keeps out nothing but garbage.
                self.udp.set_guard(None).ok();
                self.lower_guard();
            }
            Order::Stay
                if self.vigil.is_raised()
                    && self.guarded_for.as_ref().is_none_or(|of| !Arc::ptr_eq(of, table)) =>
            {
                self.raise_guard();
            }
            Order::Stay => {}
        }
    }

    fn raise_guard(&mut self) {
        // First the count, then the peers: whoever changes them after this look wakes the worker.
        if !std::mem::replace(&mut self.is_counted, true) {
            self.shared.guarded.fetch_add(1, Ordering::SeqCst);
        }
        let table = self.shared.table.load_full();
        let WorkerConfig { forwarder, underlay, .. } = &self.config;
        match self.udp.set_guard(Some(&Guard::new(&table, &forwarder.encap, *underlay))) {
            Ok(()) => self.guarded_for = Some(table),
            Err(_) => {
                // One for other peers must not stay.
                self.udp.set_guard(None).ok();
                self.lower_guard();
                self.vigil.give_up();
            }
        }
    }

    fn lower_guard(&mut self) {
        self.guarded_for = None;
        if std::mem::take(&mut self.is_counted) {
            self.shared.guarded.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// TUN to socket. False when the device is gone.
    fn drain_tun(&mut self, table: &PeerTable, now_ns: u64) -> bool {
        let together = if self.offload.has(Feature::Mmsg) { READS } else { 1 };
        let mut held = 0;
        for _ in 0..READS {
            let len = match self.tun.read(&mut self.state.read) {
                Ok(len) => len,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => continue,
                    // One packet that fits no virtio header (`tun_put_user`); the kernel has thrown it away.
                    Some(libc::EINVAL) => {
                        self.counters.tx.take(1, 0);
                        self.counters.tx.drop(DropReason::BadVnetHeader, 1);
                        continue;
                    }
                    Some(errno) if errno != libc::EAGAIN => {
                        self.flush(table, now_ns);
                        self.events.say(EngineEvent::DeviceGone { errno });
                        return false;
                    }
                    _ => {
                        self.ready.tun = false;
                        break;
                    }
                },
            };
            let State { forwarder, batch, replies, read, .. } = &mut self.state;
            forwarder.outbound(table, now_ns, &mut read[..len], batch, replies, &mut self.counters);
            if self.shared.fault.load(Ordering::Relaxed) && self.shared.fault.swap(false, Ordering::Relaxed) {
                injected_fault();
            }
            held += 1;
            if self.state.batch.bytes() >= BATCH_BYTES {
                break;
            }
            if held >= together || !self.state.batch.has_room() {
                self.flush(table, now_ns);
                held = 0;
            }
        }
        self.flush(table, now_ns);
        true
    }

    /// Socket to TUN. False when the socket has failed for good.
    fn drain_udp(&mut self, table: &PeerTable, now_ns: u64) -> bool {
        let rounds = if self.offload.has(Feature::Mmsg) { 1 } else { SINGLE_RECEIVES };
        for _ in 0..rounds {
            let filled = match self.udp.receive(&mut self.state.buffers) {
                Ok(filled) => filled,
                Err(error) => match error.raw_os_error() {
                    Some(errno) if errno != libc::EAGAIN => {
                        // An error here concerns an earlier datagram, not the socket; but it must not go on for ever.
                        self.receive_failures += 1;
                        if self.receive_failures < RECEIVE_FAILURES {
                            continue;
                        }
                        self.events.say(EngineEvent::SocketFailed { errno });
                        return false;
                    }
                    _ => {
                        // It works: nothing is waiting.
                        self.receive_failures = 0;
                        self.ready.udp = false;
                        break;
                    }
                },
            };
            self.receive_failures = 0;
            for slot in 0..filled {
                let State { forwarder, batch, merger, buffers, .. } = &mut self.state;
                let Some((arrival, bytes)) = buffers.filled_mut(slot) else { break };
                let received = Received {
                    from: arrival.from,
                    stride: arrival.stride,
                    tos: arrival.tos,
                    truncated: arrival.truncated,
                };
                forwarder.inbound(
                    table,
                    now_ns,
                    slot as u16,
                    bytes,
                    &received,
                    merger,
                    batch,
                    &mut self.counters,
                );
                if !self.state.batch.has_room() {
                    self.flush(table, now_ns);
                }
                if !self.state.merger.has_room() {
                    self.deliver();
                }
            }
            self.deliver();
            self.flush(table, now_ns);
        }
        let overflow = self.udp.overflow();
        self.counters.socket_overflows += u64::from(overflow.wrapping_sub(self.overflow));
        self.overflow = overflow;
        true
    }

    /// Sends what was gathered, and writes the ICMP replies that came of it.
    fn flush(&mut self, table: &PeerTable, now_ns: u64) {
        if !self.state.batch.is_empty() {
            let Self { udp, state, offload, paths, counters, events, .. } = self;
            let State { forwarder, batch, replies, .. } = state;
            let segments = offload.max_segments();
            batch.sort();
            Sending { offload, paths, forwarder, table, replies, counters, events, now_ns }.send(udp, batch);
            batch.clear();
            if offload.max_segments() != segments {
                batch.set_limits(limits(&self.config, offload));
            }
        }
        if !self.state.replies.is_empty() {
            self.delivery.write_replies(&mut self.tun, &self.state.replies);
            self.state.replies.clear();
        }
    }

    /// Writes what was merged to the TUN.
    fn deliver(&mut self) {
        let Self { tun, state, offload, counters, events, delivery, .. } = self;
        let before = merging(offload);
        delivery.write_all(tun, &state.merger, &state.buffers, offload, &mut counters.rx, events);
        state.merger.clear();
        let after = merging(offload);
        if after != before {
            state.merger.set_config(after);
        }
    }

    /// After a panic: counts what was held, and starts with fresh memory.
    fn recover(&mut self, panic: &(dyn Any + Send)) {
        let Counters { rx, tx, .. } = &mut self.counters;
        let mut lost = 0;
        for direction in [rx, tx] {
            let ended = direction.passed + direction.dropped_in_all();
            let held = direction.packets.saturating_sub(ended);
            direction.drop(DropReason::WorkerFailed, held);
            lost += held;
        }
        self.state = State::new(&self.config, &self.offload);
        let message = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned());
        self.events.say(EngineEvent::WorkerPanicked { message, lost });
    }
}

/// The failure that [`Shared::fail_once`] orders.
#[cold]
fn injected_fault() {
    std::panic::panic_any("a fault was injected for a test");
}
