//! The engine: opens the device and the socket, runs the workers, and hands out their numbers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};

use crossbeam_channel::Receiver;
use dataplane_core::{Counters, Encap, ForwarderConfig, OverlayMtu, PeerTable, SourceCheck, TxLimits};
use mio::Waker;

use crate::error::{EngineError, OpenError};
use crate::event::{EngineEvent, Events};
use crate::io::{KernelTun, KernelUdp};
use crate::offload::Offload;
use crate::probe::{Capabilities, Features};

mod board;
mod deliver;
mod send;
mod serve;
mod shared;
mod worker;

use serve::{Readiness, serve};
pub use shared::Shared;
pub use worker::{Ready, Turn, Worker, WorkerConfig};

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
}

/// An engine that is open and does not run yet. Dropped, it takes its device with it.
pub struct Engine {
    config: EngineConfig,
    device: String,
    local: SocketAddr,
    tun: KernelTun,
    udp: KernelUdp,
    capabilities: Capabilities,
}

impl Engine {
    /// Makes the TUN device (down, without address) and binds the socket, both in the network namespace of the
    /// calling thread, and asks the kernel what it offers.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing is left behind.
    pub fn open(config: &EngineConfig) -> Result<Self, OpenError> {
        let (tun, tun_found) = KernelTun::open(&config.device, config.off)?;
        let (udp, udp_found) = KernelUdp::open(config.bind, config.off)?;
        let [vnet, tso, uso] = tun_found.0;
        let [gso, gro, mmsg] = udp_found.findings;
        let capabilities =
            Capabilities::new([vnet, tso, uso, gso, gro, mmsg], udp_found.max_segments, udp_found.buffers);
        let device = tun.name().map_err(|source| OpenError::Tun { device: config.device.clone(), source })?;
        let local = udp.local().map_err(|source| OpenError::Udp { addr: config.bind, source })?;
        Ok(Self { config: config.clone(), device, local, tun, udp, capabilities })
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
        let Self { config, device, tun, udp, capabilities, .. } = self;
        let failed = |source| OpenError::Worker { source };
        let offload = Offload::new(&capabilities);
        let max_bytes = if config.bind.is_ipv4() { TxLimits::MAX_BYTES_V4 } else { TxLimits::MAX_BYTES_V6 };
        let worker_config = WorkerConfig {
            forwarder: ForwarderConfig {
                encap: config.encap,
                mtu: config.mtu,
                source_check: config.source_check,
            },
            max_bytes,
            offload,
        };
        let (events, received) = Events::channel();
        let shared = Shared::new(table);
        let mut readiness = Readiness::new(tun.raw_fd(), udp.raw_fd()).map_err(failed)?;
        let waker = readiness.waker();
        let mut worker = Worker::new(tun, udp, worker_config, shared.clone(), events);
        let for_thread = shared.clone();
        let thread = thread::Builder::new()
            .name("engine-0".to_owned())
            .spawn(move || serve(&mut worker, &mut readiness, &for_thread))
            .map_err(failed)?;
        Ok(EngineHandle { device, capabilities, shared, waker, events: received, thread: Some(thread) })
    }
}

/// A running engine. Dropped, it stops, and the device goes.
pub struct EngineHandle {
    device: String,
    capabilities: Capabilities,
    shared: Arc<Shared>,
    waker: Arc<Waker>,
    events: Receiver<EngineEvent>,
    thread: Option<JoinHandle<bool>>,
}

impl EngineHandle {
    /// Replaces the peer table, whole, from the next batch on. No packet waits for it.
    pub fn publish(&self, table: PeerTable) {
        self.shared.publish(table);
    }

    /// The counters since the start, as of the last batch: they balance.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.shared.counters()
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

    /// Stops the worker, closes the socket, removes the device, and returns the final counters.
    ///
    /// # Errors
    /// [`EngineError`] when the worker had ended by itself.
    pub fn stop(mut self) -> Result<Counters, EngineError> {
        self.end().unwrap_or(Ok(()))?;
        Ok(self.shared.counters())
    }

    /// Makes the worker fail while it holds the next packet: for tests of what happens then.
    #[doc(hidden)]
    pub fn fail_once(&self) {
        self.shared.fail_once();
    }

    fn end(&mut self) -> Option<Result<(), EngineError>> {
        let thread = self.thread.take()?;
        self.shared.stop.store(true, Ordering::Release);
        // The eventfd of the waker cannot be full for a sleeping worker; one that is awake sees the flag.
        self.waker.wake().ok();
        Some(match thread.join() {
            Ok(true) => Ok(()),
            Ok(false) => Err(EngineError::Ended { device: self.device.clone() }),
            Err(_) => Err(EngineError::Failed),
        })
    }
}

impl Drop for EngineHandle {
    fn drop(&mut self) {
        self.end();
    }
}
