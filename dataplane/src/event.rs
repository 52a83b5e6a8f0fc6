//! What a worker tells the control plane, besides numbers.

use std::fmt;
use std::io;

use crossbeam_channel::{Receiver, Sender};

use crate::offload::Demotion;

/// Something that happened in a worker. Events are said once and are never in a worker's way: when nobody reads
/// them, they are lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineEvent {
    /// The kernel refused a feature; the engine goes on without it, and nothing was lost.
    Demoted(Demotion),
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

impl fmt::Display for EngineEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = |errno: &i32| io::Error::from_raw_os_error(*errno);
        match self {
            Self::Demoted(Demotion { feature, errno }) => {
                write!(f, "the kernel refused {feature} ({}); going on without it", said(errno))
            }
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
