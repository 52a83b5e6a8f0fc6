//! Offload features of a device: read and set over ethtool netlink (Linux 5.7), in the calling thread's namespace.
//!
//! The same features as `ethtool -k` shows, without the tool. Numbers are from `linux/ethtool_netlink.h`.

use std::collections::BTreeSet;
use std::io;

use anyhow::{Context, bail};
use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, Nla,
    NlasIterator, Parseable, ParseableParametrized,
};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};

const FEATURES_GET: u8 = 11;
const FEATURES_SET: u8 = 12;
/// `ETHTOOL_A_FEATURES_*`
const HEADER: u16 = 1;
const WANTED: u16 = 3;
const ACTIVE: u16 = 4;
/// `ETHTOOL_A_HEADER_*`
const DEVICE_NAME: u16 = 2;
const FLAGS: u16 = 3;
const FLAG_OMIT_REPLY: u32 = 2;
/// `ETHTOOL_A_BITSET_*`, `_BITS_*` and `_BIT_*`
const BITS: u16 = 3;
const BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;
/// Tells the kernel that an attribute holds attributes (`NLA_F_NESTED`).
const NESTED: u16 = 0x8000;

/// The names of the features that are on, as `ethtool -k` calls them: `tx-tcp-segmentation`, `rx-gro`, ...
///
/// # Errors
///
/// When there is no such device, or the kernel has no ethtool netlink.
pub fn active(device: &str) -> anyhow::Result<BTreeSet<String>> {
    let request = Request { command: FEATURES_GET, attributes: vec![header(device, 0)] };
    let reply =
        Ethtool::open()?.ask(request).with_context(|| format!("read the offload features of {device}"))?;
    let Some(reply) = reply else { bail!("the kernel sent no features of {device}") };
    let Some(active) = attribute(&reply.attributes, ACTIVE) else { return Ok(BTreeSet::new()) };
    names(active).with_context(|| format!("read the offload features of {device}"))
}

/// Switches features on or off and reads back that every one took.
///
/// # Errors
///
/// When the kernel refuses, knows no such feature, or the device keeps one as it was (named in the error).
pub fn set(device: &str, changes: &[(&str, bool)]) -> anyhow::Result<()> {
    let bits = changes.iter().map(|&(name, on)| {
        let mut bit = vec![DefaultNla::new(BIT_NAME, zero_ended(name))];
        if on {
            bit.push(DefaultNla::new(BIT_VALUE, Vec::new()));
        }
        nest(BIT, &bit)
    });
    let bits: Vec<DefaultNla> = bits.collect();
    let wanted = nest(WANTED, &[nest(BITS, &bits)]);
    let request =
        Request { command: FEATURES_SET, attributes: vec![header(device, FLAG_OMIT_REPLY), wanted] };
    Ethtool::open()?
        .ask(request)
        .with_context(|| format!("set the offload features of {device} ({changes:?})"))?;
    let active = active(device)?;
    let kept: Vec<&str> =
        changes.iter().filter(|(name, on)| active.contains(*name) != *on).map(|&(name, _)| name).collect();
    if !kept.is_empty() {
        bail!("{device} did not take the change of {}: the driver fixes it", kept.join(", "));
    }
    Ok(())
}

/// One generic netlink socket and the number that this kernel gave the ethtool family.
struct Ethtool {
    socket: Socket,
    family: u16,
}

impl Ethtool {
    fn open() -> anyhow::Result<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC).context("open a generic netlink socket")?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let who = GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName("ethtool".to_owned())],
        };
        let answer = exchange(&socket, NetlinkMessage::from(GenlMessage::from_payload(who)), NLM_F_REQUEST)
            .context("ask for the generic netlink family `ethtool` (Linux 5.6 or later)")?;
        let ids = answer.into_iter().flat_map(|answer| answer.payload.nlas);
        let family = ids.into_iter().find_map(|attribute| match attribute {
            GenlCtrlAttrs::FamilyId(id) => Some(id),
            _ => None,
        });
        Ok(Self { socket, family: family.context("the kernel named no id for the family `ethtool`")? })
    }

    fn ask(&self, request: Request) -> io::Result<Option<Request>> {
        // A get is answered by its reply, a set by the acknowledgement alone.
        let flags = if request.command == FEATURES_SET { NLM_F_REQUEST | NLM_F_ACK } else { NLM_F_REQUEST };
        let mut message = GenlMessage::from_payload(request);
        message.set_resolved_family_id(self.family);
        Ok(exchange(&self.socket, NetlinkMessage::from(message), flags)?.map(|answer| answer.payload))
    }
}

/// Sends one request and reads the one message that answers it; `None` for a bare acknowledgement.
fn exchange<F>(
    socket: &Socket,
    mut message: NetlinkMessage<GenlMessage<F>>,
    flags: u16,
) -> io::Result<Option<GenlMessage<F>>>
where
    F: GenlFamily + Emitable + ParseableParametrized<[u8], GenlHeader> + std::fmt::Debug,
{
    message.header.flags = flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<GenlMessage<F>>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        _ => Ok(None),
    }
}

/// A message of the ethtool family, to the kernel or from it.
#[derive(Clone, Debug)]
struct Request {
    command: u8,
    attributes: Vec<DefaultNla>,
}

impl GenlFamily for Request {
    fn family_name() -> &'static str {
        "ethtool"
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Request {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Request {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        Ok(Self { command: header.cmd, attributes: attributes(bytes)? })
    }
}

fn header(device: &str, flags: u32) -> DefaultNla {
    let name = DefaultNla::new(DEVICE_NAME, zero_ended(device));
    nest(HEADER, &[name, DefaultNla::new(FLAGS, flags.to_ne_bytes().to_vec())])
}

fn nest(kind: u16, inner: &[DefaultNla]) -> DefaultNla {
    let mut bytes = vec![0; inner.buffer_len()];
    inner.emit(&mut bytes);
    DefaultNla::new(kind | NESTED, bytes)
}

fn zero_ended(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

fn attributes(bytes: &[u8]) -> Result<Vec<DefaultNla>, DecodeError> {
    NlasIterator::new(bytes).map(|attribute| DefaultNla::parse(&attribute?)).collect()
}

/// The value of the first attribute of a kind.
fn attribute(all: &[DefaultNla], kind: u16) -> Option<Vec<u8>> {
    let found = all.iter().find(|attribute| attribute.kind() & !NESTED == kind)?;
    let mut value = vec![0; found.value_len()];
    found.emit_value(&mut value);
    Some(value)
}

/// The names in a bitset that lists its set bits.
fn names(bitset: Vec<u8>) -> Result<BTreeSet<String>, DecodeError> {
    let mut names = BTreeSet::new();
    let Some(bits) = attribute(&attributes(&bitset)?, BITS) else { return Ok(names) };
    for bit in NlasIterator::new(bits.as_slice()) {
        if let Some(name) = attribute(&attributes(bit?.value())?, BIT_NAME) {
            let text = String::from_utf8_lossy(&name);
            names.insert(text.trim_end_matches('\0').to_owned());
        }
    }
    Ok(names)
}
