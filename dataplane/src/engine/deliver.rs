//! From merged datagrams to the TUN: one `writev` a superpacket, and single packets where the device refuses it.

use std::io::{self, IoSlice};

use dataplane_core::merge::{MAX_PIECES, SCRATCH_SLOT};
use dataplane_core::split::Segmenter;
use dataplane_core::{
    Direction, DropReason, MAX_PACKET, Merger, Piece, ReplyQueue, TunWrite, VNET_HDR_LEN, VnetHdr,
};

use crate::buffers::ReceiveBuffers;
use crate::event::{EngineEvent, Events};
use crate::io::TunQueue;
use crate::offload::Offload;
use crate::probe::Feature;

/// Superpackets of one transport refused in a row until no more are made. Kernels 6.1.x and 6.6.44 refuse good ones
/// (e269d79, repaired by 89add40); a single refusal may be the packet's own fault.
const REFUSALS: u32 = 3;

/// What the device has refused lately.
pub(super) struct Delivery {
    refused_tcp: u32,
    refused_udp: u32,
    /// Room for one segment of a superpacket that is cut here, behind the header of an ordinary packet.
    segment: Box<[u8]>,
}

impl Default for Delivery {
    fn default() -> Self {
        let mut segment = vec![0; VNET_HDR_LEN + MAX_PACKET];
        segment[..VNET_HDR_LEN].copy_from_slice(&VnetHdr::PLAIN.to_bytes());
        Self { refused_tcp: 0, refused_udp: 0, segment: segment.into() }
    }
}

impl Delivery {
    /// Writes all that `merger` holds. Each datagram ends in `rx` as passed or under one reason.
    pub(super) fn write_all<T: TunQueue>(
        &mut self,
        tun: &mut T,
        merger: &Merger,
        buffers: &ReceiveBuffers,
        offload: &mut Offload,
        rx: &mut Direction,
        events: &Events,
    ) {
        for write in merger.writes() {
            let superpacket = write.is_superpacket();
            let (refused, feature) = if write.is_udp() {
                (&mut self.refused_udp, Feature::TunUso)
            } else {
                (&mut self.refused_tcp, Feature::TunTso)
            };
            let result = if superpacket && !offload.has(feature) {
                Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
            } else {
                write_one(tun, merger, buffers, &write)
            };
            let error = match result {
                Ok(()) => {
                    if superpacket {
                        *refused = 0;
                    }
                    rx.pass(write.packets(), write.bytes());
                    continue;
                }
                Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
            };
            match error {
                libc::EINVAL | libc::EOPNOTSUPP | libc::ENOMEM | libc::ENOBUFS if superpacket => {
                    match write.whole(|piece| bytes_of(merger, buffers, piece)) {
                        Some(cut) => write_segments(tun, &cut, &mut self.segment, &write, rx),
                        None => write_singles(tun, merger, buffers, &write, rx),
                    }
                    if error == libc::EINVAL {
                        *refused += 1;
                        if *refused >= REFUSALS
                            && let Some(demotion) = offload.demote(feature, error)
                        {
                            events.say(EngineEvent::Demoted(demotion));
                        }
                    }
                }
                _ => rx.drop(DropReason::TunWriteFailed, write.packets()),
            }
        }
    }

    /// Writes ICMP replies. One that the device refuses is lost, as ICMP may be.
    pub(super) fn write_replies<T: TunQueue>(&self, tun: &mut T, replies: &ReplyQueue) {
        for reply in replies.iter() {
            tun.write(&mut [IoSlice::new(reply)]).ok();
        }
    }
}

fn bytes_of<'a>(merger: &'a Merger, buffers: &'a ReceiveBuffers, piece: &Piece) -> &'a [u8] {
    let range = piece.start..piece.start + piece.len;
    match piece.slot {
        SCRATCH_SLOT => merger.scratch().get(range).unwrap_or(&[]),
        slot => buffers.piece(slot, range),
    }
}

fn write_one<T: TunQueue>(
    tun: &mut T,
    merger: &Merger,
    buffers: &ReceiveBuffers,
    write: &TunWrite<'_>,
) -> io::Result<()> {
    // Setting up an array of the longest kind costs as much as a small packet.
    match write.packets() {
        0..4 => write_parts::<T, 4>(tun, merger, buffers, write),
        4..64 => write_parts::<T, 64>(tun, merger, buffers, write),
        _ => write_parts::<T, MAX_PIECES>(tun, merger, buffers, write),
    }
}

fn write_parts<T: TunQueue, const N: usize>(
    tun: &mut T,
    merger: &Merger,
    buffers: &ReceiveBuffers,
    write: &TunWrite<'_>,
) -> io::Result<()> {
    let mut parts = [IoSlice::new(&[]); N];
    parts[0] = IoSlice::new(write.head());
    let mut count = 1;
    for (part, piece) in parts[1..].iter_mut().zip(write.pieces()) {
        *part = IoSlice::new(bytes_of(merger, buffers, &piece));
        count += 1;
    }
    tun.write(&mut parts[..count])
}

fn write_singles<T: TunQueue>(
    tun: &mut T,
    merger: &Merger,
    buffers: &ReceiveBuffers,
    write: &TunWrite<'_>,
    rx: &mut Direction,
) {
    for (header, piece) in write.singles() {
        let packet = bytes_of(merger, buffers, &piece);
        match tun.write(&mut [IoSlice::new(&header), IoSlice::new(packet)]) {
            Ok(()) => rx.pass(1, piece.len),
            Err(_) => rx.drop(DropReason::TunWriteFailed, 1),
        }
    }
}

/// Cuts a superpacket that came whole: it is one packet to the counters, delivered when all of it is.
fn write_segments<T: TunQueue>(
    tun: &mut T,
    cut: &Segmenter<'_>,
    segment: &mut [u8],
    write: &TunWrite<'_>,
    rx: &mut Direction,
) {
    let mut refused = false;
    for at in 0..cut.count() {
        cut.write(at, &mut segment[VNET_HDR_LEN..]);
        refused |= tun.write(&mut [IoSlice::new(&segment[..VNET_HDR_LEN + cut.len_of(at)])]).is_err();
    }
    if refused {
        rx.drop(DropReason::TunWriteFailed, write.packets());
    } else {
        rx.pass(write.packets(), write.bytes());
    }
}
