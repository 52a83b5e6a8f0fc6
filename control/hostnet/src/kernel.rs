//! The kernel's network state over one netlink socket: [`Kernel`].
//!
//! The socket belongs to the network namespace of the thread that called [`Kernel::connect`] and stays there, whichever
//! thread polls it later. Requests are answered in order; dumps are made one at a time, because the kernel keeps the
//! state of a dump in the socket and refuses a second one (`EBUSY`). A dump that the kernel marks as torn by a
//! concurrent change is made again.
use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt;
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use rtnetlink::packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
    NlasIterator,
};
use rtnetlink::sys::AsyncSocket;
use tokio::sync::Mutex;

use crate::host::HostError;

mod address;
mod apply;
mod bridge;
mod link;
mod neighbour;
mod pod;
mod route;
mod vxlan;
mod watch;

pub use bridge::{PortSettings, Vlans};
pub use link::LinkSettings;
pub use pod::{PodRoute, Veth};
pub use route::Reach;
pub use vxlan::{Ensured, PROBE, Vxlan};
pub use watch::{Noticed, Watch};

/// One connection to the kernel's network state. Clones share it. Futures are to be polled on the runtime that was
/// entered at [`Kernel::connect`].
#[derive(Clone, Debug)]
pub struct Kernel {
    handle: rtnetlink::Handle,
    dumping: Arc<Mutex<()>>,
}

/// How often a dump that was torn by concurrent changes is made before the caller hears of it.
const DUMP_ATTEMPTS: usize = 10;

impl Kernel {
    /// Opens the netlink socket in the calling thread's namespace. Needs no rights; changing something does. Must be
    /// called inside a tokio runtime with I/O enabled, which also runs the socket's task.
    pub async fn connect() -> Result<Self, HostError> {
        let (mut connection, handle, _unsolicited) = rtnetlink::new_connection()
            .map_err(|error| HostError::from_io("open a netlink socket", &error))?;
        let socket = connection.socket_mut().socket_mut();
        // Each of the three makes answers better and none is needed: what an old kernel does not filter is filtered
        // here again (strict checks are of Linux 4.20, the others of 4.12 and 4.3).
        socket.set_netlink_get_strict_chk(true).ok();
        socket.set_ext_ack(true).ok();
        socket.set_cap_ack(true).ok();
        // With acknowledgements passed on, a stream that just ends means that the socket died, not success.
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        tokio::spawn(connection);
        Ok(Self { handle, dumping: Arc::default() })
    }

    /// Sends a request that changes something and waits for the kernel's word on it.
    async fn change(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        action: impl FnOnce() -> String,
    ) -> Result<(), HostError> {
        self.ask(message, flags, action).await.map(drop)
    }

    /// Sends a request about one object and returns what came before the acknowledgement.
    async fn ask(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        action: impl FnOnce() -> String,
    ) -> Result<Option<RouteNetlinkMessage>, HostError> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let Ok(mut replies) = self.handle.clone().request(request) else {
            return Err(closed(action()));
        };
        let mut answer = None;
        while let Some(reply) = replies.next().await {
            match reply.payload {
                NetlinkPayload::InnerMessage(message) => answer = Some(message),
                NetlinkPayload::Error(error) => {
                    return match error.code {
                        None => Ok(answer),
                        Some(_) => Err(refused(action(), &error)),
                    };
                }
                _ => {}
            }
        }
        Err(closed(action()))
    }

    /// Asks for all objects of a kind; `action` says which, as in `list routes`.
    async fn dump(
        &self,
        message: RouteNetlinkMessage,
        action: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, HostError> {
        let _one_at_a_time = self.dumping.lock().await;
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(found) = self.dump_once(message.clone(), action).await? {
                return Ok(found);
            }
        }
        Err(HostError::new(action, Errno::EINTR))
    }

    /// One attempt; `None` if something changed meanwhile and the answer cannot be trusted.
    async fn dump_once(
        &self,
        message: RouteNetlinkMessage,
        action: &str,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>, HostError> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut replies = self.handle.clone().request(request).map_err(|_closed| closed(action))?;
        let mut found = Vec::new();
        let mut torn = false;
        while let Some(reply) = replies.next().await {
            torn |= reply.header.flags & NLM_F_DUMP_INTR != 0;
            match reply.payload {
                NetlinkPayload::InnerMessage(message) => found.push(message),
                NetlinkPayload::Done(done) if done.code == 0 => return Ok((!torn).then_some(found)),
                NetlinkPayload::Done(done) => return Err(HostError::new(action, errno_of(done.code))),
                NetlinkPayload::Error(error) => return Err(refused(action, &error)),
                NetlinkPayload::Overrun(_) => return Ok(None),
                _ => {}
            }
        }
        Err(closed(action))
    }

    /// The names of all devices by index.
    async fn device_names(&self) -> Result<BTreeMap<u32, String>, HostError> {
        Ok(self.links().await?.into_iter().map(|link| (link.index, link.name)).collect())
    }

    /// The index of a device; `ENODEV` if there is none of that name.
    async fn device_index(&self, name: &str, action: impl FnOnce() -> String) -> Result<u32, HostError> {
        match self.link(name).await? {
            Some(link) => Ok(link.index),
            None => Err(HostError::new(action(), Errno::ENODEV)),
        }
    }
}

fn closed(action: impl Into<String>) -> HostError {
    HostError {
        action: action.into(),
        errno: Errno::ENOTCONN,
        detail: Some("the netlink socket is closed, or its runtime has ended".to_owned()),
    }
}

fn refused(action: impl Into<String>, error: &ErrorMessage) -> HostError {
    let code = error.code.map_or(0, std::num::NonZeroI32::get);
    HostError { action: action.into(), errno: errno_of(code), detail: kernel_sentence(&error.header) }
}

fn errno_of(code: i32) -> Errno {
    Errno::from_raw(code.saturating_abs())
}

/// The text of an extended acknowledgement: behind the 16 bytes of the request's header that come back come attributes,
/// of which number 1 (`NLMSGERR_ATTR_MSG`) is a sentence with a zero byte at its end.
fn kernel_sentence(echo: &[u8]) -> Option<String> {
    const HEADER: usize = 16;
    const SENTENCE: u16 = 1;
    let attributes = echo.get(HEADER..)?;
    let sentence = NlasIterator::new(attributes).flatten().find(|attribute| attribute.kind() == SENTENCE)?;
    let text = String::from_utf8_lossy(sentence.value());
    Some(text.trim_end_matches('\0').to_owned())
}
