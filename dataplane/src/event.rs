//! What a worker tells the control plane, besides numbers.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use crossbeam_channel::{Receiver, Sender};

use crate::offload::Demotion;
use crate::probe::Feature;

/// Something that happened in a worker. Events are said once and are never in a worker's way: when nobody reads
/// them, they are lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineEvent {
    /// The kernel refused a feature; the engine goes on without it, and nothing was lost.
    Demoted(Demotion),
    /// A feature that the kernel refused is tried again.
    Restored(Feature),
    /// The kernel refuses trains to one peer, whose datagrams go one by one; nothing was lost. Every worker that sends
    /// to the peer says so.
    TrainsRefused {
        /// The peer.
        to: SocketAddr,
        /// The kernel's `errno`; with `EMSGSIZE`, shorter datagrams still go in trains.
        errno: i32,
    },
    /// The kernel takes trains to this peer again.
    TrainsTaken {
        /// The peer.
        to: SocketAddr,
    },
    /// So much garbage comes that the socket refuses it for now.
    Flooded,
    /// A worker failed, was made again, and goes on.
    WorkerPanicked {
        /// What the failure said.
        message: String,
        /// Packets that it held; they are counted as `worker_failed`.
        lost: u64,
    },
    /// The TUN device is gone; the worker has ended.
    DeviceGone {
        /// The kernel's `errno`.
        errno: i32,
    },
    /// The UDP socket does not receive any more; the worker has ended.
    SocketFailed {
        /// The kernel's `errno`.
        errno: i32,
    },
}

impl EngineEvent {
    /// True when something works again: nobody has to do anything about it.
    #[must_use]
    pub fn is_good_news(&self) -> bool {
        matches!(self, Self::Restored(_) | Self::TrainsTaken { .. })
    }
}

impl fmt::Display for EngineEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = |errno: &i32| io::Error::from_raw_os_error(*errno);
        match self {
            Self::Demoted(Demotion { feature, errno }) => {
                write!(f, "the kernel refused {feature} ({}); going on without it", said(errno))
            }
            Self::Restored(feature) => write!(f, "trying {feature} again, which the kernel had refused"),
            Self::TrainsRefused { to, errno: libc::EMSGSIZE } => write!(
                f,
                "the path to {to} is narrower than the MTU says; datagrams as long as that go there one by one, and may \
                 be fragmented. If it stays so, set a smaller MTU"
            ),
            Self::TrainsRefused { to, errno } => {
                write!(
                    f,
                    "the kernel refused {} to {to} ({}); going on without it there",
                    Feature::UdpGso,
                    said(errno)
                )
            }
            Self::TrainsTaken { to } => write!(f, "the kernel takes {} to {to} again", Feature::UdpGso),
            Self::Flooded => f.write_str(
                "a flood of datagrams that are no peer's or not for this tunnel; while it lasts the socket refuses \
                 them, and they count with those that found its buffer full",
            ),
            Self::WorkerPanicked { message, lost } => {
                write!(f, "a worker failed and was restarted, {lost} packets were lost: {message}")
            }
            Self::DeviceGone { errno } => {
                write!(f, "the TUN device is gone ({}); it was removed by someone else", said(errno))
            }
            Self::SocketFailed { errno } => write!(f, "the UDP socket failed ({})", said(errno)),
        }
    }
}

/// A worker's end of the event channel.
#[derive(Clone, Debug)]
pub struct Events(Sender<EngineEvent>);

impl Events {
    /// A channel of 256 events.
    #[must_use]
    pub fn channel() -> (Self, Receiver<EngineEvent>) {
        let (sender, receiver) = crossbeam_channel::bounded(256);
        (Self(sender), receiver)
    }

    /// Says it if there is room; a worker never waits for a reader.
    pub(crate) fn say(&self, event: EngineEvent) {
        drop(self.0.try_send(event));
    }
}
