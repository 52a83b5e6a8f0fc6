//! What stands in a node's way to one address: a route that is narrower than the device, a firewall rule.
//!
//! Both are asked of the kernel over netlink, in the calling thread's namespace, without `ip` and `nft`. Numbers are from
//! `linux/rtnetlink.h` and `linux/netfilter/nf_tables.h`.

use std::net::IpAddr;

use anyhow::{Context, bail};
use netlink_packet_core::{DefaultNla, Emitable};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};

use super::Node;
use super::node::DEVICE;

const NLMSG_ERROR: u16 = 2;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const REPLACE: u16 = 0x100;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
/// Tells the kernel that an attribute holds attributes (`NLA_F_NESTED`).
const NESTED: u16 = 0x8000;
/// Bytes of a netlink header.
const HEADER: usize = 16;

impl Node {
    /// Makes the route to `to`, an address on the underlay, narrower than the underlay: packets there have at most `mtu`
    /// bytes.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub fn narrow_route(&self, to: IpAddr, mtu: u32) -> anyhow::Result<()> {
        self.namespace()
            .run("lab-route", || narrow_route(to, mtu))?
            .with_context(|| format!("set the MTU of the route to {to} on {} to {mtu}", self.name()))
    }

    /// Drops whatever the node itself sends to `to`, as `nft add rule ip filter output ip daddr ADDRESS drop` would.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it, as one without nf_tables does.
    pub fn drop_output_to(&self, to: IpAddr) -> anyhow::Result<()> {
        self.namespace()
            .run("lab-nft", || drop_output_to(to))?
            .with_context(|| format!("drop what {} sends to {to}", self.name()))
    }
}

fn narrow_route(to: IpAddr, mtu: u32) -> anyhow::Result<()> {
    const NEW_ROUTE: u16 = 24;
    const MAIN: u8 = 254;
    const STATIC: u8 = 4;
    const UNICAST: u8 = 1;
    const LINK: u8 = 253;
    let (family, bits, scope) = match to {
        IpAddr::V4(_) => (2, 32, LINK),
        IpAddr::V6(_) => (10, 128, 0),
    };
    let index = nix::net::if_::if_nametoindex(DEVICE)?;
    let mut body = vec![family, bits, 0, 0, MAIN, STATIC, scope, UNICAST, 0, 0, 0, 0];
    body.extend(emit(&[
        attribute(1, address(to)),
        attribute(4, index.to_ne_bytes()),
        nest(8, &[attribute(2, mtu.to_ne_bytes())]),
    ]));
    ask(NETLINK_ROUTE, &message(NEW_ROUTE, REQUEST | ACK | CREATE | REPLACE, &body))
}

/// A table with one chain at the output hook, with one rule: the destination's bytes equal `to`, so drop.
fn drop_output_to(to: IpAddr) -> anyhow::Result<()> {
    const NFTABLES: u16 = 10;
    const NEW_TABLE: u16 = NFTABLES << 8;
    const NEW_CHAIN: u16 = NFTABLES << 8 | 3;
    const NEW_RULE: u16 = NFTABLES << 8 | 6;
    const BATCH_BEGIN: u16 = 0x10;
    const BATCH_END: u16 = 0x11;
    const OUTPUT: u32 = 3;
    const NETWORK_HEADER: u32 = 1;
    const REGISTER: u32 = 1;
    const VERDICT: u32 = 0;
    const EQUAL: u32 = 0;
    const DROP: u32 = 0;
    let (family, offset) = match to {
        IpAddr::V4(_) => (2, 16),
        IpAddr::V6(_) => (10, 24),
    };
    let bytes = address(to);
    let number = |kind, value: u32| attribute(kind, value.to_be_bytes());
    let name = |kind| attribute(kind, *b"lab\0");
    let expression = |kind: &[u8], data: &[DefaultNla]| nest(1, &[attribute(1, kind), nest(2, data)]);
    let load = [
        number(1, REGISTER),
        number(2, NETWORK_HEADER),
        number(3, offset),
        number(4, u32::try_from(bytes.len())?),
    ];
    let compare = [number(1, REGISTER), number(2, EQUAL), nest(3, &[attribute(1, bytes)])];
    let verdict = [number(1, VERDICT), nest(2, &[nest(2, &[number(1, DROP)])])];
    let rule = [
        expression(b"payload\0", &load),
        expression(b"cmp\0", &compare),
        expression(b"immediate\0", &verdict),
    ];
    let hook = [number(1, OUTPUT), number(2, 0)];
    let chain = [name(1), name(3), nest(4, &hook), attribute(7, *b"filter\0")];
    let edge = |kind| message(kind, REQUEST, &[0, 0, 0, NFTABLES as u8]);
    let body = |attributes: &[DefaultNla]| [&[family, 0, 0, 0][..], &emit(attributes)].concat();
    let batch = [
        edge(BATCH_BEGIN),
        message(NEW_TABLE, REQUEST | CREATE, &body(&[name(1)])),
        message(NEW_CHAIN, REQUEST | CREATE, &body(&chain)),
        message(NEW_RULE, REQUEST | ACK | CREATE | APPEND, &body(&[name(1), name(2), nest(4, &rule)])),
        edge(BATCH_END),
    ];
    ask(NETLINK_NETFILTER, &batch.concat())
}

/// Sends a request of which one message asks for an answer, and waits for it.
fn ask(protocol: isize, request: &[u8]) -> anyhow::Result<()> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(request, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let kind = answer.get(4..6).and_then(<[u8]>::first_chunk).map(|kind| u16::from_ne_bytes(*kind));
    let code = answer.get(HEADER..).and_then(<[u8]>::first_chunk).map(|code| i32::from_ne_bytes(*code));
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(std::io::Error::from_raw_os_error(-code).into()),
        _ => bail!("the kernel answered something else: {answer:?}"),
    }
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // The sequence number and the sender's port, which nothing here needs.
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

fn attribute(kind: u16, value: impl AsRef<[u8]>) -> DefaultNla {
    DefaultNla::new(kind, value.as_ref().to_vec())
}

fn nest(kind: u16, inner: &[DefaultNla]) -> DefaultNla {
    DefaultNla::new(kind | NESTED, emit(inner))
}

fn emit(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

fn address(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
