//! Batches of UDP messages in one system call, each message with control data of its own.
//!
//! [`SendBatch`] and [`ReceiveBatch`] own the arrays that `sendmmsg(2)` and `recvmmsg(2)` want. They are made once
//! and filled again for each call, so nothing allocates per packet. Every pointer in them is written immediately
//! before the call that uses it, from a borrow that outlives the call.

mod address;
mod control;
mod receive;
mod send;

pub use receive::Arrival;
pub(crate) use receive::ReceiveBatch;
pub use send::Outgoing;
pub(crate) use send::SendBatch;
