//! The engine: opens the device and the socket, runs the workers, and hands out their numbers.

use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};

use crossbeam_channel::Receiver;
use dataplane_core::checksum::Adder;
use dataplane_core::{Counters, Encap, Family, ForwarderConfig, OverlayMtu, PeerTable, SourceCheck};

use crate::error::{EngineError, OpenError};
use crate::event::{EngineEvent, Events};
use crate::io::readiness::{Readiness, Waker};
use crate::io::ring::RingDrops;
use crate::io::udp::SocketDrops;
use crate::io::{KernelTun, KernelUdp, Ready};
use crate::offload::Offload;
use crate::probe::{self, Capabilities, Features};

mod board;
mod deliver;
mod paths;
mod send;
mod serve;
mod shared;
mod spin;
mod tuning;
mod vigil;
mod worker;

use serve::serve;
pub use shared::Shared;
use spin::Patience;
pub use spin::Spin;
pub use tuning::{Duplex, SourcePorts, Tuning};
pub use worker::{Turn, Worker, WorkerConfig};

/// What an engine is made of.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Name of the TUN device to make, as in `flannel0`.
    pub device: String,
    /// Format on the wire.
    pub encap: Encap,
    /// MTU of the overlay device.
    pub mtu: OverlayMtu,
    /// Address and port to bind; the address may be unspecified.
    pub bind: SocketAddr,
    /// Features that shall not be used even where the kernel has them.
    pub off: Features,
    /// What to do with inner sources outside the cluster.
    pub source_check: SourceCheck,
    /// How many threads, how they wait, and where they send from.
    pub tuning: Tuning,
}

/// An engine that is open and does not run yet. Dropped, it takes its device with it.
pub struct Engine {
    config: EngineConfig,
    device: String,
    local: SocketAddr,
    /// A TUN queue and a socket for each worker.
    ends: Vec<(KernelTun, KernelUdp)>,
    lanes: u8,
    ring: RingDrops,
    capabilities: Capabilities,
    adder: Adder,
}

impl Engine {
    /// Makes the TUN device (down, without address) and binds the socket, both in the network namespace of the
    /// calling thread, and asks the kernel what it offers.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing is left behind.
    pub fn open(config: &EngineConfig) -> Result<Self, OpenError> {
        let (tun, tun_found) = KernelTun::open(&config.device, config.off)?;
        let workers = config.tuning.worker_count(usable_cpus());
        let lanes = config.tuning.lanes(&config.encap, workers);
        let (group, udp_found) = KernelUdp::open_group(config.bind, config.off, workers, lanes)?;
        let [vnet, tso, uso] = tun_found.0;
        let [gso, gro, mmsg] = udp_found.findings;
        let (adder, simd) = probe::adder(config.off);
        let findings = [vnet, tso, uso, gso, gro, mmsg, simd];
        let capabilities = Capabilities::new(findings, udp_found.max_segments, udp_found.buffers);
        let device = tun.name().map_err(|source| OpenError::Tun { device: config.device.clone(), source })?;
        let mut local = config.bind;
        let mut queues = vec![tun];
        for _ in 1..workers {
            let queue = queues[0].another_queue().map_err(|source| OpenError::tun(&device, source))?;
            queues.push(queue);
        }
        if let Some(udp) = group.first() {
            local = udp.local().map_err(|source| OpenError::Udp { addr: config.bind, source })?;
        }
        let ends = queues.into_iter().zip(group).collect();
        let ring = RingDrops::of(&device);
        Ok(Self { config: config.clone(), device, local, ends, lanes, ring, capabilities, adder })
    }

    /// The name of the TUN device.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The address and port that the socket is bound to.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// How many workers it will have, each with a thread, a TUN queue and a socket of its own.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.ends.len()
    }

    /// What the kernel offers. Printed, it is one line a probe.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Starts to move packets. The device should have its address, MTU and queue length and be up before.
    ///
    /// # Errors
    /// [`OpenError::Worker`] when there is no thread or descriptor left.
    pub fn start(self, table: PeerTable) -> Result<EngineHandle, OpenError> {
        let Self { config, device, ends, lanes, ring, capabilities, adder, .. } = self;
        let failed = |source| OpenError::Worker { source };
        let offload = Offload::new(&capabilities);
        let worker_config = WorkerConfig {
            forwarder: ForwarderConfig {
                encap: config.encap,
                mtu: config.mtu,
                source_check: config.source_check,
                adder,
            },
            underlay: Family::of(&config.bind.ip()),
            offload,
            lanes,
            side: Ready::BOTH,
        };
        let (events, received) = Events::channel();
        let sides: &[Ready] = if config.tuning.duplex.is_split(usable_cpus(), ends.len()) {
            &[Ready::TUN, Ready::UDP]
        } else {
            &[Ready::BOTH]
        };
        let bound = config.tuning.spin.bound(usable_cpus(), ends.len() * sides.len());
        let first = Shared::new(table);
        let sockets = ends.iter().map(|(_, udp)| udp.drops()).collect();
        let (mut wakers, mut shares, mut workers) = (Vec::new(), Vec::new(), Vec::new());
        for (number, (tun, udp)) in ends.into_iter().enumerate() {
            for &side in sides {
                let readiness = Readiness::new(side, tun.as_fd(), udp.as_fd()).map_err(failed)?;
                let shared = if shares.is_empty() { first.clone() } else { first.sibling() };
                wakers.push(readiness.waker());
                let config = WorkerConfig { side, ..worker_config.clone() };
                let worker = Worker::new(tun.share(), udp.share(), config, shared.clone(), events.clone());
                workers.push((format!("engine-{}{number}", side.prefix()), worker, readiness));
                shares.push(shared);
            }
        }
        let wakers: Arc<[Waker]> = wakers.into();
        let mut handle = EngineHandle {
            device,
            capabilities,
            ring,
            sockets,
            shares,
            threads_a_worker: sides.len(),
            wakers,
            events: received,
            threads: Vec::new(),
        };
        for ((name, mut worker, readiness), shared) in workers.into_iter().zip(handle.shares.clone()) {
            let wakers = handle.wakers.clone();
            let thread = thread::Builder::new()
                .name(name)
                .spawn(move || {
                    let told = serve(&mut worker, &readiness, &shared, Patience::new(bound));
                    // One that ends by itself takes the others with it: half an engine would lose half of the flows.
                    halt(&shared, &wakers);
                    told
                })
                .map_err(failed)?;
            handle.threads.push(thread);
        }
        Ok(handle)
    }
}

/// CPUs that this process may use, by its affinity mask and its cgroup's quota.
fn usable_cpus() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

fn halt(shared: &Shared, wakers: &[Waker]) {
    shared.stop.store(true, Ordering::Release);
    wakers.iter().for_each(Waker::wake);
}

/// A running engine. Dropped, it stops, and the device goes.
pub struct EngineHandle {
    device: String,
    capabilities: Capabilities,
    ring: RingDrops,
    /// One a worker.
    sockets: Vec<SocketDrops>,
    /// One a thread, and there is one at least.
    shares: Vec<Arc<Shared>>,
    threads_a_worker: usize,
    wakers: Arc<[Waker]>,
    events: Receiver<EngineEvent>,
    threads: Vec<JoinHandle<bool>>,
}

impl EngineHandle {
    /// Replaces the peer table, whole, from the next batch on. No packet waits for it.
    pub fn publish(&self, table: PeerTable) {
        // All workers read the same table.
        if let Some(shared) = self.shares.first() {
            shared.publish(table);
            if shared.guarded.load(Ordering::SeqCst) > 0 {
                self.wakers.iter().for_each(Waker::wake);
            }
        }
    }

    /// The counters since the start, as of the last batch: they balance. What the device's ring and the sockets lost is
    /// asked of the kernel, which costs some system calls.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let sum = self.workers().iter().fold(Counters::default(), |sum, worker| sum.plus(worker));
        Counters { ring_overflows: self.ring.read(), ..sum }
    }

    /// The same for each worker.
    #[must_use]
    pub fn workers(&self) -> Vec<Counters> {
        let sum = |(threads, socket): (&[Arc<Shared>], &SocketDrops)| {
            let heard = threads.iter().fold(Counters::default(), |sum, shared| sum.plus(&shared.counters()));
            Counters { socket_overflows: socket.since(heard.socket_overflows), ..heard }
        };
        self.shares.chunks(self.threads_a_worker).zip(&self.sockets).map(sum).collect()
    }

    /// What happened. Read it: a full channel (256 events) loses the newest.
    #[must_use]
    pub fn events(&self) -> &Receiver<EngineEvent> {
        &self.events
    }

    /// The name of the TUN device.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.device
    }

    /// What the kernel offered when the engine was opened.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Stops the workers, closes the sockets, removes the device, and returns the final counters.
    ///
    /// # Errors
    /// [`EngineError`] when a worker had ended by itself.
    pub fn stop(mut self) -> Result<Counters, EngineError> {
        self.end().unwrap_or(Ok(()))?;
        Ok(self.counters())
    }

    /// Makes the worker that reads the next packet fail while it holds it: for tests of what happens then.
    #[doc(hidden)]
    pub fn fail_once(&self) {
        if let Some(shared) = self.shares.first() {
            shared.fail_once();
        }
    }

    fn end(&mut self) -> Option<Result<(), EngineError>> {
        let threads = std::mem::take(&mut self.threads);
        // The device goes with the last worker, and its account with it.
        self.ring.read();
        halt(self.shares.first()?, &self.wakers);
        threads
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(true) => Ok(()),
                Ok(false) => Err(EngineError::Ended { device: self.device.clone() }),
                Err(_) => Err(EngineError::Failed),
            })
            .reduce(Result::and)
    }
}

impl Drop for EngineHandle {
    fn drop(&mut self) {
        self.end();
    }
}
