//! The kernel's notifications about some devices, summed up until somebody asks: [`Watch`].
//!
//! ```text
//!   netlink groups ─► folding task ─► Noticed (one, growing) ─► Watch::next takes it
//! ```
//!
//! A notification says only that something changed; what to do about it is found by reading the state again. So they
//! are folded into sets of device names, and a thousand of them while nobody asks cost no more than one. The kernel
//! does not tell everything: IPv4 routes that go with a device's up state go silently, and the device's own
//! notification is the sign of it.
use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{Stream, StreamExt};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::AsyncSocket;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::Kernel;
use super::link::link_of;
use crate::host::HostError;
use crate::state::{Link, RouteProtocol};

/// What changed since the last time: names of devices, by what changed about them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Noticed {
    /// A device came, changed, went up or down, got or lost its carrier, or has a new name.
    pub links: BTreeSet<String>,
    /// A device went away; it may be back under the same name.
    pub gone: BTreeSet<String>,
    /// An address came or went.
    pub addresses: BTreeSet<String>,
    /// A route of the main table by this device came or went. One that bears this project's protocol is noticed on any
    /// device, and under an empty name where it has none.
    pub routes: BTreeSet<String>,
    /// A neighbour or a forwarding entry came, changed or went.
    pub neighbours: BTreeSet<String>,
    /// The kernel had more to tell than the socket could hold: anything may have changed.
    pub lost: bool,
}

impl Noticed {
    /// Nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Listens to the network namespace of the thread that opened it. Ends, and frees the socket, when dropped.
#[derive(Debug)]
pub struct Watch {
    board: Arc<Board>,
    tasks: [JoinHandle<()>; 2],
}

/// Where the folding task leaves what it noticed.
#[derive(Debug, Default)]
struct Board {
    noticed: Mutex<Noticed>,
    closed: Mutex<bool>,
    news: Notify,
}

/// Room for about a thousand notifications between two turns of the runtime.
const RECEIVE_BUFFER: u32 = 1 << 20;

impl Watch {
    /// Begins to listen for changes of these devices, there or not; with no names given, of all devices. What changes
    /// after this call is noticed. Must be called inside a tokio runtime with I/O enabled.
    pub async fn open(devices: impl IntoIterator<Item = String>) -> Result<Self, HostError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (mut connection, _requests, messages) = rtnetlink::new_multicast_connection(&groups)
            .map_err(|error| HostError::from_io("listen to the kernel's network notifications", &error))?;
        // A smaller buffer works too; it overflows sooner, and an overflow is noticed.
        connection.socket_mut().socket_mut().set_rx_buf_sz(RECEIVE_BUFFER).ok();
        // Listening before listing: a device that comes in between is in both.
        let links = Kernel::connect().await?.links().await?;
        let board = Arc::<Board>::default();
        let folding = Folding::new(devices, &links);
        let fold = fold(messages.map(|(message, _from)| message), folding, Arc::clone(&board));
        Ok(Self { board, tasks: [tokio::spawn(connection), tokio::spawn(fold)] })
    }

    /// Waits until something changed and returns everything that did since the last call. `None` when the socket is
    /// closed. May be dropped while it waits: nothing is lost.
    pub async fn next(&mut self) -> Option<Noticed> {
        loop {
            let closed = *lock(&self.board.closed);
            let noticed = mem::take(&mut *lock(&self.board.noticed));
            if !noticed.is_empty() {
                return Some(noticed);
            }
            if closed {
                return None;
            }
            self.board.news.notified().await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn fold(
    mut messages: impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Unpin,
    mut folding: Folding,
    board: Arc<Board>,
) {
    while let Some(message) = messages.next().await {
        let mut noticed = lock(&board.noticed);
        folding.take(message.payload, &mut noticed);
        let news = !noticed.is_empty();
        drop(noticed);
        if news {
            board.news.notify_one();
        }
    }
    *lock(&board.closed) = true;
    board.news.notify_one();
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which devices are listened for, and the names of those that exist: notifications carry an index only.
struct Folding {
    wanted: BTreeSet<String>,
    names: BTreeMap<u32, String>,
}

impl Folding {
    fn new(devices: impl IntoIterator<Item = String>, links: &[Link]) -> Self {
        let names = links.iter().map(|link| (link.index, link.name.clone())).collect();
        Self { wanted: devices.into_iter().collect(), names }
    }

    fn take(&mut self, payload: NetlinkPayload<RouteNetlinkMessage>, noticed: &mut Noticed) {
        let message = match payload {
            NetlinkPayload::InnerMessage(message) => message,
            NetlinkPayload::Overrun(_) => {
                noticed.lost = true;
                return;
            }
            _ => return,
        };
        match message {
            // A port that leaves its bridge is told as the deletion of a link of the bridge family.
            RouteNetlinkMessage::DelLink(message)
                if message.header.interface_family != AddressFamily::Bridge =>
            {
                let name = self.names.remove(&message.header.index).unwrap_or_else(|| link_of(message).name);
                self.note(Some(name), &mut noticed.gone);
            }
            RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message) => {
                let link = link_of(message);
                if !link.name.is_empty() {
                    let before = self.names.insert(link.index, link.name.clone());
                    self.note(before.filter(|before| *before != link.name), &mut noticed.links);
                }
                self.note(self.names.get(&link.index).cloned(), &mut noticed.links);
            }
            RouteNetlinkMessage::NewAddress(message) | RouteNetlinkMessage::DelAddress(message) => {
                self.note(self.names.get(&message.header.index).cloned(), &mut noticed.addresses);
            }
            RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message) => {
                match device_of(&message).and_then(|index| self.names.get(&index)).cloned() {
                    // The kernel tells of our routes without a device too, or with the loopback for one.
                    device if u8::from(message.header.protocol) == RouteProtocol::FLANNEL_RS.0 => {
                        noticed.routes.insert(device.unwrap_or_default());
                    }
                    device => self.note(device, &mut noticed.routes),
                }
            }
            RouteNetlinkMessage::NewNeighbour(message) | RouteNetlinkMessage::DelNeighbour(message) => {
                self.note(self.names.get(&message.header.ifindex).cloned(), &mut noticed.neighbours);
            }
            _ => {}
        }
    }

    fn note(&self, name: Option<String>, into: &mut BTreeSet<String>) {
        into.extend(name.filter(|name| self.wanted.is_empty() || self.wanted.contains(name)));
    }
}

/// The index of the device that a route of the main table leaves by.
fn device_of(message: &RouteMessage) -> Option<u32> {
    if message.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}
