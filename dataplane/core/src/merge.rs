//! Datagrams to superpackets, by the rules of the kernel's own GRO and stricter where it guesses.
//!
//! A packet joins the newest aggregate of its flow only if cutting the result again gives back the
//! same packets: same headers but for length, id, sequence number, PSH and checksum, sequence numbers in
//! line, equal sizes with a shorter one last, and a transport checksum that is right. Whatever may not join
//! ends its flow's aggregate, so order within a flow is kept.
//!
//! Payload is never copied: an aggregate is a rebuilt head and a list of places in the receive buffers.

use alloc::vec;
use alloc::vec::Vec;

use crate::MAX_PACKET;
use crate::checksum::Adder;
use crate::flow::FlowKey;
use crate::split::Segmenter;
use crate::wire::edit::{fill_ipv4_checksum, l4_checksum_offset, l4_is_valid, pseudo_header, put, put16};
use crate::wire::vnet::{Gso, VNET_HDR_LEN, VnetHdr};
use crate::wire::{Family, Fragment, Ip, Length, TCP, UDP, UDP_HEADER_LEN, get16, get32, tcp_header_len};

/// Longest head: virtio-net header, fixed IPv6 header, TCP header with all its options.
const MAX_HEAD: usize = VNET_HDR_LEN + 40 + 60;
/// Segments of a UDP superpacket: what every kernel since 6.2 takes (`UDP_MAX_SEGMENTS`, raised to 128 in 6.9).
const MAX_UDP_SEGMENTS: u16 = 64;
/// Pieces of one write, well under `UIO_MAXIOV` (1024).
pub const MAX_PIECES: usize = 256;
/// Packets that one round of receives may hold.
const MAX_PACKETS: usize = 2048;
/// Room for superpackets that must be cut because the device takes none.
const SCRATCH: usize = 512 * 1024;
/// The slot number of pieces that lie in [`Merger::scratch`].
pub const SCRATCH_SLOT: u16 = u16::MAX;

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// What the device takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeConfig {
    /// A virtio-net header at all: without one, checksums are finished here and nothing merges.
    pub vnet: bool,
    /// TCP superpackets.
    pub tcp: bool,
    /// UDP superpackets (USO).
    pub udp: bool,
}

impl MergeConfig {
    /// A device that takes everything.
    pub const ALL: Self = Self { vnet: true, tcp: true, udp: true };
    /// A device that takes single finished packets.
    pub const NONE: Self = Self { vnet: false, tcp: false, udp: false };
}

/// Bytes in a receive buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which buffer, or [`SCRATCH_SLOT`].
    pub slot: u16,
    /// First byte.
    pub start: usize,
    /// How many.
    pub len: usize,
}

/// One packet of an aggregate.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// The packet, headers included.
    packet: Piece,
    /// Bytes of headers.
    headers: u16,
    /// The checksum is the kernel's to finish.
    unfinished: bool,
    next: u32,
}

#[derive(Clone, Copy, Debug)]
struct Aggregate {
    first: u32,
    last: u32,
    packets: u16,
    /// Merging may go on.
    open: bool,
    family: Family,
    protocol: u8,
    l3_len: u16,
    /// IP and transport header of the first packet.
    headers: [u8; MAX_HEAD - VNET_HDR_LEN],
    headers_len: u8,
    gso_size: u16,
    payload: u32,
    next_sequence: u32,
    next_id: u16,
    /// A single packet that is itself a superpacket.
    giant: bool,
    bytes: usize,
}

/// The fields of a packet that merging looks at.
struct Candidate<'a> {
    headers: &'a [u8],
    payload: usize,
    sequence: u32,
    id: u16,
    push: bool,
}

/// Packets of one round of receives, in the order of their first packet; allocated once.
#[derive(Debug)]
pub struct Merger {
    config: MergeConfig,
    adder: Adder,
    aggregates: Vec<Aggregate>,
    parts: Vec<Part>,
    /// By flow hash: newest aggregate, plus one.
    newest: [u16; 256],
    scratch: Vec<u8>,
    scratch_used: usize,
}

impl Merger {
    /// An empty merger.
    #[must_use]
    pub fn new(config: MergeConfig) -> Self {
        Self {
            config,
            adder: Adder::SCALAR,
            aggregates: Vec::with_capacity(MAX_PACKETS),
            parts: Vec::with_capacity(MAX_PACKETS),
            newest: [0; 256],
            // Untouched pages cost nothing, and a capable device never touches them.
            scratch: vec![0; SCRATCH],
            scratch_used: 0,
        }
    }

    /// The same, with packets summed by `adder`.
    #[must_use]
    pub fn with_adder(mut self, adder: Adder) -> Self {
        self.adder = adder;
        self
    }

    /// Changes what the device takes, as when an offload is demoted. Takes effect with the next packet.
    pub fn set_config(&mut self, config: MergeConfig) {
        self.config = config;
    }

    /// What the device takes.
    #[must_use]
    pub fn config(&self) -> MergeConfig {
        self.config
    }

    /// Whether a buffer of the usual 128 datagrams fits, all of them large; if not, write and
    /// [`Merger::clear`] first.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.parts.capacity() - self.parts.len() >= 128 && SCRATCH - self.scratch_used >= SCRATCH / 2
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.aggregates.is_empty()
    }

    /// Forgets what was written.
    pub fn clear(&mut self) {
        self.aggregates.clear();
        self.parts.clear();
        self.newest.fill(0);
        self.scratch_used = 0;
    }

    /// Bytes that [`SCRATCH_SLOT`] refers to.
    #[must_use]
    pub fn scratch(&self) -> &[u8] {
        &self.scratch
    }

    /// What to write to the device, in order.
    pub fn writes(&self) -> impl Iterator<Item = TunWrite<'_>> {
        self.aggregates.iter().map(|aggregate| TunWrite::new(self, aggregate))
    }

    /// Takes one checked packet of `ip.len` bytes that starts at `start` of buffer `slot`; false if there is
    /// no room. `unfinished` says that its transport checksum holds just the pseudo-header's sum.
    #[inline]
    pub fn push(&mut self, packet: &[u8], ip: &Ip, slot: u16, start: usize, unfinished: bool) -> bool {
        let piece = Piece { slot, start, len: ip.len };
        let Some(flow) = flow(packet, ip) else {
            if ip.fragment != Fragment::Whole {
                // A fragment need not show its ports, so it ends the aggregates of all flows.
                self.newest.fill(0);
            }
            return self.begin(piece, ip, None, unfinished).is_some();
        };
        let place = flow.hash() as usize % self.newest.len();
        let candidate = self.candidate(packet, ip, unfinished);
        let newest = self.newest.get(place).copied().unwrap_or(0);
        if let (Some(candidate), Some(at)) = (&candidate, usize::from(newest).checked_sub(1))
            && self.join(at, candidate, piece, ip, unfinished)
        {
            return true;
        }
        let begun = self.begin(piece, ip, candidate.as_ref(), unfinished);
        if let Some(slot) = self.newest.get_mut(place) {
            *slot = match (begun, &candidate) {
                (Some(at), Some(_)) => at as u16 + 1,
                _ => 0,
            };
        }
        begun.is_some()
    }

    /// Takes a packet that a kernel peer handed over unsegmented, to be cut every `gso_size` bytes of payload.
    /// False if it cannot be cut or there is no room.
    pub fn push_giant(&mut self, packet: &[u8], ip: &Ip, slot: u16, start: usize, gso_size: usize) -> bool {
        let Some(cut) = Segmenter::cut(packet, ip, gso_size) else { return false };
        let cut = cut.summed_by(self.adder);
        let takes = match ip.protocol {
            TCP => self.config.tcp,
            _ => self.config.udp && cut.count() <= usize::from(MAX_UDP_SEGMENTS),
        };
        if let Some(flow) = flow(packet, ip) {
            let place = flow.hash() as usize % self.newest.len();
            if let Some(slot) = self.newest.get_mut(place) {
                *slot = 0;
            }
        }
        if self.config.vnet && takes && cut.count() > 1 {
            let Some(at) = self.begin(Piece { slot, start, len: ip.len }, ip, None, true) else {
                return false;
            };
            if let Some(aggregate) = self.aggregates.get_mut(at) {
                aggregate.giant = true;
                aggregate.gso_size = gso_size as u16;
                aggregate.headers_len = (cut.first_len() - gso_size.min(ip.len)) as u8;
            }
            return true;
        }
        let needed: usize = cut.count() * cut.first_len();
        if needed > self.scratch.len() - self.scratch_used
            || cut.count() > self.parts.capacity() - self.parts.len()
        {
            return false;
        }
        for i in 0..cut.count() {
            let (start, len) = (self.scratch_used, cut.len_of(i));
            if let Some(out) = self.scratch.get_mut(start..start + len) {
                cut.write(i, out);
            }
            self.scratch_used += len;
            let segment = Ip { len, ..*ip };
            self.begin(Piece { slot: SCRATCH_SLOT, start, len }, &segment, None, false);
            // All segments are one datagram to the counters.
            if let (true, Some(last)) = (i > 0, self.aggregates.last_mut()) {
                last.packets = 0;
            }
        }
        true
    }

    /// The packet as merging sees it, if it may be merged at all.
    fn candidate<'a>(&self, packet: &'a [u8], ip: &Ip, unfinished: bool) -> Option<Candidate<'a>> {
        if ip.has_options || ip.fragment != Fragment::Whole {
            return None;
        }
        let (headers_len, sequence, push) = match ip.protocol {
            TCP if self.config.vnet && self.config.tcp => {
                let headers_len = ip.l3_len + tcp_header_len(packet, ip.l3_len)?;
                let flags = packet.get(ip.l3_len + 13).copied()?;
                if flags & !PSH != ACK {
                    return None;
                }
                (headers_len, get32(packet, ip.l3_len + 4)?, flags & PSH != 0)
            }
            UDP if self.config.vnet && self.config.udp => {
                let exact = usize::from(get16(packet, ip.l3_len + 4)?) == ip.len - ip.l3_len;
                // Zero says "not computed": a superpacket could not give that back.
                if !exact || get16(packet, ip.l3_len + 6)? == 0 {
                    return None;
                }
                (ip.l3_len + UDP_HEADER_LEN, 0, false)
            }
            _ => return None,
        };
        let payload = ip.len.checked_sub(headers_len).filter(|payload| *payload > 0)?;
        // A superpacket is "right by construction" to the kernel: a damaged segment must not slip into one.
        if !unfinished && !l4_is_valid(packet, ip, self.adder) {
            return None;
        }
        Some(Candidate {
            headers: packet.get(..headers_len)?,
            payload,
            sequence,
            id: if ip.family() == Family::V4 { get16(packet, 4)? } else { 0 },
            push,
        })
    }

    fn join(&mut self, at: usize, packet: &Candidate<'_>, piece: Piece, ip: &Ip, unfinished: bool) -> bool {
        let Some(aggregate) = self.aggregates.get_mut(at) else { return false };
        let limit = if ip.protocol == UDP { MAX_UDP_SEGMENTS } else { MAX_PIECES as u16 - 1 };
        let fits = aggregate.open
            && aggregate.packets < limit
            && packet.payload <= usize::from(aggregate.gso_size)
            && usize::from(aggregate.headers_len) + aggregate.payload as usize + packet.payload <= MAX_PACKET
            && same_headers(aggregate, packet.headers, ip)
            && (ip.protocol == UDP || packet.sequence == aggregate.next_sequence)
            && (ip.dont_fragment || packet.id == aggregate.next_id);
        let index = self.parts.len();
        if !fits || index == self.parts.capacity() {
            return false;
        }
        aggregate.packets += 1;
        aggregate.payload += packet.payload as u32;
        aggregate.bytes += ip.len;
        aggregate.next_sequence = packet.sequence.wrapping_add(packet.payload as u32);
        aggregate.next_id = packet.id.wrapping_add(1);
        aggregate.open = !packet.push && packet.payload == usize::from(aggregate.gso_size);
        if packet.push
            && let Some(flags) = aggregate.headers.get_mut(ip.l3_len + 13)
        {
            *flags |= PSH;
        }
        let previous = core::mem::replace(&mut aggregate.last, index as u32);
        let headers = packet.headers.len() as u16;
        self.parts.push(Part { packet: piece, headers, unfinished, next: u32::MAX });
        if let Some(previous) = self.parts.get_mut(previous as usize) {
            previous.next = index as u32;
        }
        true
    }

    /// Starts an aggregate of one packet; `None` if there is no room.
    fn begin(
        &mut self,
        piece: Piece,
        ip: &Ip,
        packet: Option<&Candidate<'_>>,
        unfinished: bool,
    ) -> Option<usize> {
        if self.parts.len() == self.parts.capacity() {
            return None;
        }
        let part = self.parts.len() as u32;
        let headers_len = packet.map_or(0, |packet| packet.headers.len());
        self.parts.push(Part { packet: piece, headers: headers_len as u16, unfinished, next: u32::MAX });
        let mut aggregate = Aggregate {
            first: part,
            last: part,
            packets: 1,
            open: false,
            family: ip.family(),
            protocol: ip.protocol,
            l3_len: ip.l3_len as u16,
            headers: [0; MAX_HEAD - VNET_HDR_LEN],
            headers_len: headers_len as u8,
            gso_size: 0,
            payload: 0,
            next_sequence: 0,
            next_id: 0,
            giant: false,
            bytes: ip.len,
        };
        if let Some(packet) = packet {
            put(&mut aggregate.headers, 0, packet.headers);
            aggregate.gso_size = packet.payload as u16;
            aggregate.payload = packet.payload as u32;
            aggregate.next_sequence = packet.sequence.wrapping_add(packet.payload as u32);
            aggregate.next_id = packet.id.wrapping_add(1);
            aggregate.open = !packet.push;
        }
        self.aggregates.push(aggregate);
        Some(self.aggregates.len() - 1)
    }
}

fn flow(packet: &[u8], ip: &Ip) -> Option<FlowKey> {
    if ip.fragment != Fragment::Whole || !matches!(ip.protocol, TCP | UDP) {
        return None;
    }
    let ports = get32(packet, ip.l3_len)?;
    Some(FlowKey { source: ip.source, destination: ip.destination, ports, protocol: ip.protocol })
}

/// Whether two packets' headers differ only where cutting would make them differ.
fn same_headers(aggregate: &Aggregate, headers: &[u8], ip: &Ip) -> bool {
    let Some(first) = aggregate.headers.get(..usize::from(aggregate.headers_len)) else { return false };
    if first.len() != headers.len() || aggregate.family != ip.family() || aggregate.protocol != ip.protocol {
        return false;
    }
    let same = |range: core::ops::Range<usize>| first.get(range.clone()) == headers.get(range);
    let l4 = ip.l3_len;
    let l3_same = match aggregate.family {
        // Version, IHL and TOS; flags, TTL and protocol; addresses. Not length, id, checksum.
        Family::V4 => same(0..2) && same(6..10) && same(12..20),
        // Version, traffic class and flow label; next header, hop limit, addresses. Not length.
        Family::V6 => same(0..4) && same(6..40),
    };
    let l4_same = match aggregate.protocol {
        // Ports; acknowledgement and data offset; window; urgent pointer and options. The flags are ACK
        // and perhaps PSH in every candidate. Not sequence number, checksum.
        TCP => {
            same(l4..l4 + 4)
                && same(l4 + 8..l4 + 13)
                && same(l4 + 14..l4 + 16)
                && same(l4 + 18..headers.len())
        }
        _ => same(l4..l4 + 4),
    };
    l3_same && l4_same
}

/// One write to the device.
#[derive(Debug)]
pub struct TunWrite<'a> {
    head: [u8; MAX_HEAD],
    head_len: usize,
    merger: &'a Merger,
    aggregate: &'a Aggregate,
}

impl<'a> TunWrite<'a> {
    fn new(merger: &'a Merger, aggregate: &'a Aggregate) -> Self {
        let mut head = [0; MAX_HEAD];
        let mut head_len = VNET_HDR_LEN;
        let first = merger.parts.get(aggregate.first as usize);
        let offset = l4_checksum_offset(aggregate.protocol).unwrap_or(0);
        let superpacket = VnetHdr {
            needs_checksum: true,
            gso: if aggregate.protocol == TCP { Gso::Tcp(aggregate.family) } else { Gso::Udp },
            hdr_len: u16::from(aggregate.headers_len),
            gso_size: aggregate.gso_size,
            csum_start: aggregate.l3_len,
            csum_offset: offset as u16,
        };
        let vnet = if aggregate.packets > 1 || aggregate.giant {
            superpacket
        } else if first.is_some_and(|part| part.unfinished) {
            VnetHdr { gso: Gso::None, gso_size: 0, ..superpacket }
        } else {
            VnetHdr::PLAIN
        };
        put(&mut head, 0, &vnet.to_bytes());
        if aggregate.packets > 1 {
            let headers_len = usize::from(aggregate.headers_len);
            let headers = aggregate.headers.get(..headers_len).unwrap_or_default();
            put(&mut head, VNET_HDR_LEN, headers);
            head_len += headers_len;
            if let Some(rebuilt) = head.get_mut(VNET_HDR_LEN..head_len) {
                rebuild(rebuilt, aggregate, headers_len + aggregate.payload as usize);
            }
        }
        Self { head, head_len, merger, aggregate }
    }

    /// Virtio-net header, and the rebuilt headers of a merged packet. A device without virtio-net headers
    /// skips the first ten bytes.
    #[must_use]
    pub fn head(&self) -> &[u8] {
        self.head.get(..self.head_len).unwrap_or_default()
    }

    /// What follows the head: at most [`MAX_PIECES`] less one.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + use<'a> {
        let merged = self.aggregate.packets > 1;
        self.parts().map(move |part| {
            let skip = if merged { usize::from(part.headers) } else { 0 };
            Piece { start: part.packet.start + skip, len: part.packet.len - skip, ..part.packet }
        })
    }

    /// If this is a packet that a kernel peer left whole: how to cut it, for a device that refuses it. `bytes` gives
    /// the bytes of a piece.
    pub fn whole<'b>(&self, bytes: impl FnOnce(&Piece) -> &'b [u8]) -> Option<Segmenter<'b>> {
        let first = self.parts().next().filter(|_| self.aggregate.giant)?;
        let packet = bytes(&first.packet);
        let ip = Ip::parse(packet, Length::Claimed).ok()?;
        let cut = Segmenter::cut(packet, &ip, usize::from(self.aggregate.gso_size))?;
        Some(cut.summed_by(self.merger.adder))
    }

    /// The packets one by one, each with a virtio-net header of its own: for a device that refuses the superpacket
    /// they were merged into.
    pub fn singles(&self) -> impl Iterator<Item = ([u8; VNET_HDR_LEN], Piece)> + use<'a> {
        let aggregate = self.aggregate;
        self.parts().map(move |part| {
            let vnet = VnetHdr {
                needs_checksum: part.unfinished,
                csum_start: if part.unfinished { aggregate.l3_len } else { 0 },
                csum_offset: if part.unfinished {
                    l4_checksum_offset(aggregate.protocol).unwrap_or(0) as u16
                } else {
                    0
                },
                ..VnetHdr::PLAIN
            };
            (vnet.to_bytes(), part.packet)
        })
    }

    fn parts(&self) -> impl Iterator<Item = &'a Part> + use<'a> {
        let merger = self.merger;
        let mut at = self.aggregate.first;
        core::iter::from_fn(move || {
            let part = merger.parts.get(at as usize)?;
            at = part.next;
            Some(part)
        })
    }

    /// Whether the device must cut it: its refusal says something about an offload.
    #[must_use]
    pub fn is_superpacket(&self) -> bool {
        self.aggregate.packets > 1 || self.aggregate.giant
    }

    /// Whether it is UDP: which offload a refusal is about.
    #[must_use]
    pub fn is_udp(&self) -> bool {
        self.aggregate.protocol == UDP
    }

    /// How many datagrams from the wire it stands for.
    #[must_use]
    pub fn packets(&self) -> u64 {
        u64::from(self.aggregate.packets)
    }

    /// Their inner bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.aggregate.bytes
    }
}

/// Makes the first packet's headers those of the superpacket.
fn rebuild(headers: &mut [u8], aggregate: &Aggregate, len: usize) {
    let l3_len = usize::from(aggregate.l3_len);
    match aggregate.family {
        Family::V4 => {
            put16(headers, 2, len as u16);
            fill_ipv4_checksum(headers, l3_len);
        }
        Family::V6 => put16(headers, 4, (len - l3_len) as u16),
    }
    if aggregate.protocol == UDP {
        put16(headers, l3_len + 4, (len - l3_len) as u16);
    }
    let Ok(ip) = Ip::parse(headers, Length::Buffer) else { return };
    let owed = pseudo_header(&ip.source, &ip.destination, aggregate.protocol, len - l3_len).folded();
    put16(headers, l3_len + l4_checksum_offset(aggregate.protocol).unwrap_or(0), owed);
}

#[cfg(test)]
mod tests;
