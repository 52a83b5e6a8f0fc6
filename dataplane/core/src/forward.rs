//! The decisions: what happens to each packet, in both directions.

use core::net::SocketAddr;

use crate::batch::{MAX_BYTES_PER_READ, MAX_DATAGRAMS_PER_READ, TxBatch};
use crate::checksum::Adder;
use crate::counters::{Counters, DropReason};
use crate::encap::Encap;
use crate::flow::FlowKey;
use crate::icmp::{self, Complaint, Limiter, ReplyQueue};
use crate::merge::Merger;
use crate::mtu::{self, LinkMtu, OverlayMtu};
use crate::peers::{Owner, PeerTable, Vtep};
use crate::split::Segmenter;
use crate::train::Train;
use crate::wire::edit::{
    complete_checksum, decrement_ttl, ipv4_header_is_valid, l4_checksum_offset, l4_is_unfinished, put,
    set_ecn,
};
use crate::wire::vnet::{Gso, VnetHdr};
use crate::wire::{Family, Fragment, Ip, Length, Malformed, TCP, UDP, UDP_HEADER_LEN, tcp_header_len};

/// What to do with inner sources outside the cluster networks.
///
/// Loose is the default, because clusters that keep client addresses (direct server return, load balancers
/// without masquerade) send them on purpose, and a kernel VXLAN passes them. In both modes a source inside the
/// cluster must belong to the node that sends it, and martians are dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceCheck {
    /// Drop them.
    Strict,
    /// Pass and count them.
    #[default]
    Loose,
}

/// What every link behind a node takes: the least MTU of IPv6 (RFC 8200, section 5), and less than IPv4 links have.
const NARROWEST: usize = 1280;

/// What a forwarder is told once.
#[derive(Clone, Copy, Debug)]
pub struct ForwarderConfig {
    /// The format on the wire.
    pub encap: Encap,
    /// MTU of the overlay device.
    pub mtu: OverlayMtu,
    /// Inner sources outside the cluster.
    pub source_check: SourceCheck,
    /// How payloads are summed.
    pub adder: Adder,
}

/// What became of a TUN read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Appended to the batch as this many datagrams.
    Queued(usize),
    /// Dropped and counted.
    Dropped(DropReason),
}

/// Why the kernel did not send a datagram, as far as its inner sender should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsent {
    /// There is no way to the peer: no route, or a rule against it.
    Unreachable,
    /// It is too long for the path over this family, and must not be fragmented.
    TooLong(Family),
}

/// What the socket says of a receive buffer.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Outer source.
    pub from: SocketAddr,
    /// Distance between datagrams (`UDP_GRO`), or the length if there is one.
    pub stride: usize,
    /// Outer TOS or traffic class.
    pub tos: u8,
    /// The datagram was longer than the buffer (`MSG_TRUNC`).
    pub truncated: bool,
}

/// Decides. Holds configuration and the ICMP rate limit, nothing per packet.
#[derive(Debug)]
pub struct Forwarder {
    config: ForwarderConfig,
    limiter: Limiter,
}

/// A dropped packet, and what to tell its sender.
struct Refusal {
    reason: DropReason,
    complaint: Option<Complaint>,
}

impl From<DropReason> for Refusal {
    fn from(reason: DropReason) -> Self {
        Self { reason, complaint: None }
    }
}

impl From<Malformed> for DropReason {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::TooShort => Self::TooShort,
            Malformed::BadVersion => Self::BadVersion,
            Malformed::BadLength => Self::BadLength,
            Malformed::BadOption => Self::BadOption,
            Malformed::BadExtensionHeader => Self::BadExtensionHeader,
        }
    }
}

const ECN_MASK: u8 = 3;
const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;

impl Forwarder {
    /// A forwarder with an unused rate limit.
    #[must_use]
    pub fn new(config: ForwarderConfig) -> Self {
        Self { config, limiter: Limiter::default() }
    }

    /// Takes one TUN read, virtio-net header first. `out` must have room ([`TxBatch::has_room`]).
    ///
    /// The packet may be edited in place (TTL, checksum). ICMP replies go to `replies`, for the device.
    #[inline]
    pub fn outbound(
        &mut self,
        table: &PeerTable,
        now_ns: u64,
        read: &mut [u8],
        out: &mut TxBatch,
        replies: &mut ReplyQueue,
        counters: &mut Counters,
    ) -> Verdict {
        let read_len = read.len();
        let Some((vnet, packet)) = VnetHdr::take(read) else {
            counters.tx.take(1, read_len);
            counters.tx.drop(DropReason::BadVnetHeader, 1);
            return Verdict::Dropped(DropReason::BadVnetHeader);
        };
        let length = if vnet.gso == Gso::None { Length::Claimed } else { Length::Buffer };
        let ip = match Ip::parse(packet, length) {
            Ok(ip) => ip,
            Err(malformed) => {
                counters.tx.take(1, packet.len());
                counters.tx.drop(malformed.into(), 1);
                return Verdict::Dropped(malformed.into());
            }
        };
        match self.route(table, packet, &ip, counters) {
            Ok(peer) => self.send(table, peer, vnet, packet, &ip, out, counters),
            Err(refusal) => Err(refusal),
        }
        .map_or_else(
            |refusal| {
                let packets = segments_of(packet, &ip, &vnet);
                counters.tx.take(packets, ip.len);
                counters.tx.drop(refusal.reason, packets);
                if let Some(complaint) = refusal.complaint {
                    self.answer(table, now_ns, packet, &ip, complaint, replies, counters);
                }
                Verdict::Dropped(refusal.reason)
            },
            Verdict::Queued,
        )
    }

    /// Tells the sender of `packet`, which went through [`Forwarder::outbound`], that the kernel did not send it. The
    /// packet itself is counted by whoever sends.
    pub fn unsent(
        &mut self,
        table: &PeerTable,
        now_ns: u64,
        packet: &[u8],
        why: Unsent,
        replies: &mut ReplyQueue,
        counters: &mut Counters,
    ) {
        let Ok(ip) = Ip::parse(packet, Length::Claimed) else { return };
        let complaint = match why {
            Unsent::Unreachable => Complaint::Unreachable,
            Unsent::TooLong(underlay) => match self.narrower(&ip, underlay) {
                Some(mtu) => Complaint::TooBig { mtu },
                None => return,
            },
        };
        self.answer(table, now_ns, packet, &ip, complaint, replies, counters);
    }

    /// The overlay MTU to name for a packet that the path refused: the kernel does not say how wide it is. `None` where
    /// the packet may be fragmented, or where its family allows nothing narrower.
    fn narrower(&self, ip: &Ip, underlay: Family) -> Option<u16> {
        let outer = ip.len + usize::from(mtu::overhead(&self.config.encap, underlay));
        let mtu = OverlayMtu::over(LinkMtu::below(outer)?, &self.config.encap, underlay)?.get();
        let least = match ip.family() {
            Family::V4 => mtu::MIN_OVERLAY_MTU,
            Family::V6 => mtu::MIN_MTU_V6,
        };
        (ip.dont_fragment && mtu >= least).then_some(mtu)
    }

    #[allow(clippy::too_many_arguments, reason = "the packet's parts and where the answer goes")]
    fn answer(
        &mut self,
        table: &PeerTable,
        now_ns: u64,
        packet: &[u8],
        ip: &Ip,
        complaint: Complaint,
        replies: &mut ReplyQueue,
        counters: &mut Counters,
    ) {
        if !icmp::may_answer(packet, ip) {
            return;
        }
        if !self.limiter.allows(&ip.source, now_ns) {
            counters.icmp_limited += 1;
        } else if let Some(from) = table.local().address(ip.family()) {
            counters.icmp_replies += u64::from(replies.push(packet, ip, complaint, from));
        }
    }

    /// Which peer a packet from the device goes to.
    fn route<'t>(
        &self,
        table: &'t PeerTable,
        packet: &mut [u8],
        ip: &Ip,
        counters: &mut Counters,
    ) -> Result<&'t Vtep, Refusal> {
        if !is_unicast(&ip.destination) {
            return Err(DropReason::NotUnicast.into());
        }
        // The source first: whoever forges one is not answered, for the answer would go to somebody else.
        let foreign = match table.owner(ip.source) {
            Owner::Own => false,
            Owner::Foreign if is_unicast(&ip.source) && self.config.source_check == SourceCheck::Loose => {
                true
            }
            Owner::Peer(_) | Owner::Cluster | Owner::Foreign => return Err(DropReason::BadSource.into()),
        };
        let peer = match table.owner(ip.destination) {
            Owner::Peer(peer) => peer,
            // The pod or its bridge is gone; to send it out would make a loop.
            Owner::Own => return Err(DropReason::OwnDestination.into()),
            Owner::Cluster | Owner::Foreign => {
                return Err(Refusal { reason: DropReason::NoRoute, complaint: Some(Complaint::Unreachable) });
            }
        };
        if self.config.encap.uses_up(ip.ttl) {
            return Err(Refusal {
                reason: DropReason::TtlExceeded,
                complaint: Some(Complaint::TimeExceeded),
            });
        }
        if self.config.encap.is_hop() {
            decrement_ttl(packet, ip.family());
        }
        counters.foreign_sources += u64::from(foreign);
        Ok(peer)
    }

    /// Cuts and encapsulates into the batch.
    #[allow(clippy::too_many_arguments, reason = "the packet's parts and where they go")]
    fn send(
        &self,
        table: &PeerTable,
        peer: &Vtep,
        vnet: VnetHdr,
        packet: &mut [u8],
        ip: &Ip,
        out: &mut TxBatch,
        counters: &mut Counters,
    ) -> Result<usize, Refusal> {
        let header = self.config.encap.header(table.local().mac, peer.mac, ip.family());
        let header = header.as_slice();
        let tos = ip.tos & ECN_MASK;
        let flow = FlowKey::of(packet, ip).hash();
        if vnet.gso == Gso::None {
            self.check_size(ip.len, ip)?;
            let (start, offset) = (usize::from(vnet.csum_start), usize::from(vnet.csum_offset));
            let Some(packet) = packet.get_mut(..ip.len) else { return Err(DropReason::BadLength.into()) };
            let adder = self.config.adder;
            if vnet.needs_checksum && (start < ip.l3_len || !complete_checksum(packet, start, offset, adder))
            {
                return Err(DropReason::BadVnetHeader.into());
            }
            let len = header.len() + packet.len();
            let Some(room) = out.push(peer.endpoint, tos, flow, len, ip.len) else {
                return Err(DropReason::BatchFull.into());
            };
            put(room, 0, header);
            put(room, header.len(), packet);
            counters.tx.take(1, ip.len);
            return Ok(1);
        }
        let Some(cut) = Segmenter::new(packet, ip, &vnet) else {
            return Err(DropReason::BadVnetHeader.into());
        };
        let cut = cut.summed_by(self.config.adder);
        self.check_size(cut.first_len(), ip)?;
        let count = cut.count();
        if count > MAX_DATAGRAMS_PER_READ || count * (header.len() + cut.first_len()) > MAX_BYTES_PER_READ {
            return Err(DropReason::TooManySegments.into());
        }
        for i in 0..count {
            let inner = cut.len_of(i);
            counters.tx.take(1, inner);
            let Some(room) = out.push(peer.endpoint, tos, flow, header.len() + inner, inner) else {
                counters.tx.drop(DropReason::BatchFull, 1);
                continue;
            };
            put(room, 0, header);
            if let Some(room) = room.get_mut(header.len()..) {
                cut.write(i, room);
            }
        }
        Ok(count)
    }

    fn check_size(&self, len: usize, ip: &Ip) -> Result<(), Refusal> {
        let mtu = self.config.mtu.get();
        // Without DF the outer packet may be fragmented on its way.
        if len > usize::from(mtu) && ip.dont_fragment {
            return Err(Refusal { reason: DropReason::TooBig, complaint: Some(Complaint::TooBig { mtu }) });
        }
        Ok(())
    }

    /// Takes one receive buffer. `merge` must have room ([`Merger::has_room`]).
    ///
    /// Packets may be edited in place (TTL, ECN, checksum) and stay where they are: `merge` remembers places in
    /// buffer `slot`. ICMP replies to a peer go to `out`.
    #[allow(clippy::too_many_arguments, reason = "a buffer, what is known of it, and where its packets go")]
    #[inline]
    pub fn inbound(
        &mut self,
        table: &PeerTable,
        now_ns: u64,
        slot: u16,
        buffer: &mut [u8],
        meta: &Received,
        merge: &mut Merger,
        out: &mut TxBatch,
        counters: &mut Counters,
    ) {
        let train = Train { len: buffer.len(), stride: meta.stride };
        let all = |counters: &mut Counters, reason| {
            counters.rx.take(train.count() as u64, buffer.len());
            counters.rx.drop(reason, train.count() as u64);
        };
        if meta.truncated {
            return all(counters, DropReason::Oversize);
        }
        if !table.knows(meta.from.ip()) {
            return all(counters, DropReason::UnknownPeer);
        }
        let mut inbound = Inbound { config: &self.config, table, meta, merge, counters, trusted: None };
        if let Some(gso_size) = inbound.udp_giant(buffer, &train) {
            let whole = 0..buffer.len();
            return inbound.datagram(buffer, whole, slot, gso_size, &mut self.limiter, now_ns, out);
        }
        for datagram in train.segments() {
            inbound.datagram(buffer, datagram, slot, 0, &mut self.limiter, now_ns, out);
        }
    }
}

/// One receive buffer on its way in.
struct Inbound<'a> {
    config: &'a ForwarderConfig,
    table: &'a PeerTable,
    meta: &'a Received,
    merge: &'a mut Merger,
    counters: &'a mut Counters,
    /// Source and destination that passed the checks last, and whether the source is foreign.
    trusted: Option<(core::net::IpAddr, core::net::IpAddr, bool)>,
}

impl Inbound<'_> {
    #[allow(clippy::too_many_arguments, reason = "where the datagram lies, and where a reply goes")]
    fn datagram(
        &mut self,
        buffer: &mut [u8],
        at: core::ops::Range<usize>,
        slot: u16,
        gso_size: usize,
        limiter: &mut Limiter,
        now_ns: u64,
        out: &mut TxBatch,
    ) {
        let start = at.start;
        let Some(datagram) = buffer.get_mut(at) else { return };
        let headroom = self.config.encap.headroom();
        self.counters.rx.take(1, datagram.len().saturating_sub(headroom));
        match self.accept(datagram, slot, start, gso_size) {
            Ok(()) => {}
            Err((reason, complaint)) => {
                self.counters.rx.drop(reason, 1);
                if let (Some((complaint, ip)), Some(packet)) = (complaint, datagram.get(headroom..)) {
                    self.complain(complaint, packet, &ip, limiter, now_ns, out);
                }
            }
        }
    }

    /// Checks one datagram and hands its packet to the merger.
    fn accept(
        &mut self,
        datagram: &mut [u8],
        slot: u16,
        start: usize,
        gso_size: usize,
    ) -> Result<(), (DropReason, Option<(Complaint, Ip)>)> {
        let bare = |reason: DropReason| (reason, None);
        let family = self.config.encap.strip(datagram, self.table.local().mac).map_err(bare)?;
        let headroom = self.config.encap.headroom();
        let packet = datagram.get_mut(headroom..).unwrap_or_default();
        let ip = Ip::parse(packet, Length::Claimed).map_err(|malformed| bare(malformed.into()))?;
        if family.is_some_and(|family| family != ip.family()) {
            return Err(bare(DropReason::BadVersion));
        }
        if ip.family() == Family::V4 && !ipv4_header_is_valid(packet, ip.l3_len) {
            return Err(bare(DropReason::BadChecksum));
        }
        self.check_addresses(&ip).map_err(bare)?;
        if self.config.encap.uses_up(ip.ttl) {
            return Err((DropReason::TtlExceeded, Some((Complaint::TimeExceeded, ip))));
        }
        let unfinished = ip.fragment == Fragment::Whole && l4_is_unfinished(packet, &ip);
        let mtu = self.config.mtu.get();
        let gso_size = self.giant_size(packet, &ip, unfinished, gso_size).map_err(|reason| {
            // The sender's link may be wider than ours: a kernel would route its packet into our MTU and say so.
            (reason, ip.dont_fragment.then_some((Complaint::TooBig { mtu }, ip)))
        })?;
        let ecn = decapsulated_ecn(self.meta.tos & ECN_MASK, ip.tos & ECN_MASK).map_err(bare)?;
        if ecn != ip.tos & ECN_MASK {
            set_ecn(packet, ip.family(), ecn);
        }
        if self.config.encap.is_hop() {
            decrement_ttl(packet, ip.family());
        }
        self.counters.unfinished_checksums += u64::from(unfinished);
        let start = start + headroom;
        let taken = match gso_size {
            Some(gso_size) => self.merge.push_giant(packet, &ip, slot, start, gso_size),
            None => {
                let finish = unfinished && !self.merge.config().vnet;
                if let (true, Some(packet), Some(offset)) =
                    (finish, packet.get_mut(..ip.len), l4_checksum_offset(ip.protocol))
                {
                    complete_checksum(packet, ip.l3_len, offset, self.config.adder);
                }
                self.merge.push(packet, &ip, slot, start, unfinished && !finish)
            }
        };
        if taken { Ok(()) } else { Err(bare(DropReason::BatchFull)) }
    }

    /// The payload size at which a packet must be cut, if it is one that a kernel peer left whole: longer than the MTU, or
    /// of datagrams so small (`gso_size` is not 0) that all of them fit it.
    ///
    /// Nothing says where the sender of a TCP superpacket would have cut it. Segments longer than its own could be too
    /// long for a link behind this node that it knows of and we do not; a router there would refuse every superpacket for
    /// ever, and the sender could not do more about it. Shorter ones cost next to nothing: they stay one packet up to
    /// the receiver's TCP.
    fn giant_size(
        &self,
        packet: &[u8],
        ip: &Ip,
        unfinished: bool,
        gso_size: usize,
    ) -> Result<Option<usize>, DropReason> {
        let mtu = usize::from(self.config.mtu.get());
        if ip.len <= mtu && gso_size == 0 {
            return Ok(None);
        }
        let room = |mtu: usize, l4_len: usize| mtu.checked_sub(ip.l3_len + l4_len);
        let size = match ip.protocol {
            _ if !unfinished || ip.has_options => None,
            TCP => tcp_header_len(packet, ip.l3_len).and_then(|l4_len| room(mtu.min(NARROWEST), l4_len)),
            _ => room(mtu, UDP_HEADER_LEN).filter(|room| gso_size <= *room).and(Some(gso_size)),
        };
        size.filter(|size| *size > 0).map(Some).ok_or(DropReason::Oversize)
    }

    /// A kernel VXLAN peer over a veth hands an inner UDP superpacket over whole, and the socket then reports the
    /// *inner* segment size as its stride. The inner IP length gives it away.
    fn udp_giant(&self, buffer: &[u8], train: &Train) -> Option<usize> {
        if train.count() < 2 || self.config.encap == Encap::Raw {
            return None;
        }
        let packet = buffer.get(self.config.encap.headroom()..)?;
        let ip = Ip::parse(packet, Length::Claimed).ok()?;
        (ip.len == packet.len() && ip.protocol == UDP && !ip.has_options && l4_is_unfinished(packet, &ip))
            .then_some(train.stride)
    }

    /// The destination is ours; the source belongs to the sender, or to nobody in the cluster.
    fn check_addresses(&mut self, ip: &Ip) -> Result<(), DropReason> {
        let foreign = match self.trusted {
            Some((source, destination, foreign)) if source == ip.source && destination == ip.destination => {
                foreign
            }
            _ => {
                if self.table.owner(ip.destination) != Owner::Own {
                    return Err(DropReason::NotForUs);
                }
                let foreign = match self.table.owner(ip.source) {
                    Owner::Peer(peer) if peer.endpoint.ip() == self.meta.from.ip() => false,
                    Owner::Peer(_) | Owner::Cluster => return Err(DropReason::BadInnerSource),
                    Owner::Own => return Err(DropReason::OwnSource),
                    Owner::Foreign if !is_unicast(&ip.source) => return Err(DropReason::Martian),
                    Owner::Foreign if self.config.source_check == SourceCheck::Strict => {
                        return Err(DropReason::ForeignSource);
                    }
                    Owner::Foreign => true,
                };
                self.trusted = Some((ip.source, ip.destination, foreign));
                foreign
            }
        };
        self.counters.foreign_sources += u64::from(foreign);
        Ok(())
    }

    /// Tells the inner sender, through the peer that owns it, what became of its packet.
    fn complain(
        &mut self,
        complaint: Complaint,
        packet: &[u8],
        ip: &Ip,
        limiter: &mut Limiter,
        now_ns: u64,
        out: &mut TxBatch,
    ) {
        let Owner::Peer(peer) = self.table.owner(ip.source) else { return };
        let Some(from) = self.table.local().address(ip.family()) else { return };
        if !icmp::may_answer(packet, ip) {
            return;
        }
        if !limiter.allows(&ip.source, now_ns) {
            self.counters.icmp_limited += 1;
            return;
        }
        let mut reply = [0; icmp::MAX_REPLY];
        let Some(len) = icmp::build(packet, ip, complaint, from, &mut reply) else { return };
        let header = self.config.encap.header(self.table.local().mac, peer.mac, ip.family());
        let header = header.as_slice();
        let Some(room) = out.push(peer.endpoint, 0, 0, header.len() + len, len) else { return };
        put(room, 0, header);
        put(room, header.len(), reply.get(..len).unwrap_or_default());
        self.counters.tx.take(1, len);
        self.counters.icmp_replies += 1;
    }
}

/// How many packets a refused read stands for.
fn segments_of(packet: &[u8], ip: &Ip, vnet: &VnetHdr) -> u64 {
    Segmenter::new(packet, ip, vnet).map_or(1, |cut| cut.count() as u64)
}

/// Whether an address can be one end of a conversation across the overlay.
fn is_unicast(address: &core::net::IpAddr) -> bool {
    use core::net::IpAddr::{V4, V6};
    match address {
        V4(v4) => {
            let [first, ..] = v4.octets();
            !(first == 0 || v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || v4.is_broadcast())
        }
        V6(v6) => {
            !(v6.is_unspecified() || v6.is_loopback() || v6.is_unicast_link_local() || v6.is_multicast())
        }
    }
}

/// The inner ECN field after decapsulation (RFC 6040, figure 4).
fn decapsulated_ecn(outer: u8, inner: u8) -> Result<u8, DropReason> {
    match (inner, outer) {
        (NOT_ECT, CE) => Err(DropReason::Congested),
        (ECT_0 | ECT_1, CE) => Ok(CE),
        (ECT_0, ECT_1) => Ok(ECT_1),
        _ => Ok(inner),
    }
}

#[cfg(test)]
mod tests;
