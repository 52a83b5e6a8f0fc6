//! The kernel as the judge: what it cuts from a superpacket is what we would have cut, and whatever we merge it accepts
//! and takes apart again into what came in.
//!
//! Packets go into one TUN device with virtio headers and out of another without any, through the forwarding of an
//! otherwise empty namespace. The second device can segment nothing, so the kernel does it in software and finishes
//! every checksum.

use std::collections::BTreeMap;
use std::io::{ErrorKind, IoSlice};
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use dataplane_core::testing::{Builder, Transport, gather, kernel_accepts, kernel_cuts, normal, tun_read};
use dataplane_core::wire::edit::{decrement_ttl, fill_ipv4_checksum};
use dataplane_core::wire::vnet::Gso;
use dataplane_core::wire::{Ip, Length, TCP, UDP, get16};
use dataplane_core::{Family, MergeConfig, Merger, VNET_HDR_LEN, VnetHdr};
use fastrand::Rng;
use hostnet::kernel::{Kernel, LinkSettings};
use hostnet::netns::NetNs;
use hostnet::state::Route;
use lab::Scene;
use promises::netlink;
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

/// Superpackets to cut, and bursts to merge.
const SHAPES: usize = 2500;
const BURSTS: usize = 1200;

fn main() -> ExitCode {
    lab::harness(
        "promise-oracle",
        lab::cases![
            the_kernel_cuts_superpackets_as_we_do,
            the_kernel_takes_every_merged_write_and_gives_the_packets_back,
            the_kernel_refuses_what_our_rules_refuse,
        ],
    )
}

/// Two TUN devices and the route from one to the other.
struct Court {
    enter: SyncDevice,
    leave: SyncDevice,
}

impl Court {
    /// In the namespace of the calling thread, which is empty.
    fn open() -> anyhow::Result<Self> {
        let device = |name: &str, offload| {
            let device = DeviceBuilder::new()
                .name(name)
                .layer(Layer::L3)
                .offload(offload)
                .packet_information(false)
                .inherit_enable_state()
                .build_sync()
                .map_err(|error| lab::skip(format!("no TUN device: {error}")))?;
            device.set_nonblocking(true)?;
            anyhow::Ok(device)
        };
        let court = Self { enter: device("enter0", true)?, leave: device("leave0", false)? };
        for (setting, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/enter0/rp_filter", "0"),
        ] {
            hostnet::sysctl::set(setting, value)?;
        }
        netlink::inside(&NetNs::current()?, async |kernel: Kernel| {
            for name in ["enter0", "leave0"] {
                let quiet = LinkSettings {
                    mtu: Some(65_535),
                    tx_queue_len: Some(20_000),
                    addr_gen_none: true,
                    ..LinkSettings::default()
                };
                kernel.set_link(name, &quiet).await?;
                kernel.set_link(name, &LinkSettings { up: Some(true), ..LinkSettings::default() }).await?;
            }
            for (dest, device) in [
                ("10.244.1.0/24", "enter0"),
                ("fd00:0:0:1::/64", "enter0"),
                ("10.244.2.0/24", "leave0"),
                ("fd00:0:0:2::/64", "leave0"),
            ] {
                kernel.replace_route(&Route::new(dest.parse()?, device)).await?;
            }
            Ok(())
        })?;
        Ok(court)
    }

    /// Gives the kernel one write as the engine would.
    fn write(&self, bytes: &[u8]) -> anyhow::Result<()> {
        match nix::sys::uio::writev(&self.enter, &[IoSlice::new(bytes)]) {
            Ok(written) if written == bytes.len() => Ok(()),
            answer => bail!("the kernel answers {answer:?}"),
        }
    }

    /// The next `count` packets of our own addresses that come out, and any that come at once behind them.
    fn read(&self, count: usize) -> anyhow::Result<Vec<Vec<u8>>> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut buffer = vec![0; 65_536];
        let mut packets = Vec::new();
        loop {
            match self.leave.recv(&mut buffer) {
                Ok(length) if is_ours(&buffer[..length]) => packets.push(buffer[..length].to_vec()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if packets.len() >= count || Instant::now() >= deadline {
                        return Ok(packets);
                    }
                    std::thread::yield_now();
                }
                Err(error) => return Err(error).context("read from leave0"),
            }
        }
    }
}

/// The kernel's own multicast comes out too.
fn is_ours(packet: &[u8]) -> bool {
    let Ok(ip) = Ip::parse(packet, Length::Claimed) else { return true };
    match ip.destination {
        IpAddr::V4(v4) => !v4.is_multicast(),
        IpAddr::V6(v6) => !v6.is_multicast(),
    }
}

/// What forwarding does to a packet.
fn forwarded(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let family = if packet[0] >> 4 == 4 { Family::V4 } else { Family::V6 };
    decrement_ttl(&mut packet, family);
    packet
}

fn random_builder(random: &mut Rng) -> Builder {
    let family = if random.bool() { Family::V4 } else { Family::V6 };
    let transport = if random.bool() {
        Transport::Udp
    } else {
        // Every flag but SYN, RST and URG, which no sender puts on a superpacket.
        let flags = 0x10 | pick(random, &[0, 0x08, 0x01, 0x09, 0x40, 0x80, 0xc8]) as u8;
        Transport::Tcp {
            sequence: random.u32(..u32::MAX),
            ack: random.u32(..u32::MAX),
            flags,
            options: 4 * random.u32(..11) as usize,
        }
    };
    let mut builder = Builder::new(family, transport).id(random.u32(..65_536) as u16);
    builder = builder.ip_options(if random.u32(..4) == 0 { 4 * random.u32(..11) as usize } else { 0 });
    builder.tos = random.u32(..256) as u8 & !3;
    builder.ttl = 2 + random.u32(..254) as u8;
    builder.dont_fragment = random.bool();
    builder
}

fn the_kernel_cuts_superpackets_as_we_do(_: &Scene) -> anyhow::Result<()> {
    let court = Court::open()?;
    let mut random = Rng::with_seed(0x6f72_6163_6c65);
    let mut segments = 0;
    for shape in 0..SHAPES {
        let builder = random_builder(&mut random);
        // Headers take at most 60 + 60 bytes.
        let gso_size = 1 + pick(&mut random, &[0, 7, 500, 1000, 1388, 1448, 1400, 8000]) + random.u32(..60);
        let most = if builder.clone().superpacket(1).0.gso == Gso::Udp { 128 } else { 900 };
        // More than one segment: with TCP options the kernel drops a superpacket that is a single one, and the merger
        // makes none.
        let payload = (gso_size + 1 + random.u32(..gso_size * (most - 1))).min(65_000) as usize;
        let payload: Vec<u8> = (0..payload).map(|_| random.u32(..256) as u8).collect();
        let (vnet, packet) = builder.payload(&payload).superpacket(gso_size as u16);
        let write = tun_read(vnet, &packet);
        let told = || format!("shape {shape}: {vnet:?}, {:?}", Ip::parse(&packet, Length::Buffer));
        kernel_accepts(&write).map_err(anyhow::Error::msg).with_context(told)?;
        court.write(&write).with_context(told)?;
        let ours: Vec<Vec<u8>> = kernel_cuts(&write).iter().map(|segment| forwarded(segment)).collect();
        let kernels = court.read(ours.len()).with_context(told)?;
        segments += ours.len();
        ensure!(
            kernels.len() == ours.len(),
            "{} of {} segments came out, {}",
            kernels.len(),
            ours.len(),
            told()
        );
        for (at, (ours, kernels)) in ours.iter().zip(&kernels).enumerate() {
            ensure!(
                ours == kernels,
                "segment {at} of {}: ours\n{ours:02x?}\nkernel's\n{kernels:02x?}",
                told()
            );
        }
    }
    ensure!(segments > 10 * SHAPES, "only {segments} segments");
    Ok(())
}

/// A packet of a burst, and a way to tell its flow.
type Flow = (IpAddr, IpAddr, u8, u32);

fn flow_of(packet: &[u8]) -> anyhow::Result<Flow> {
    let ip = Ip::parse(packet, Length::Claimed).map_err(|malformed| anyhow::anyhow!("{malformed:?}"))?;
    let ports = if matches!(ip.protocol, TCP | UDP) { get16(packet, ip.l3_len + 2).unwrap_or(0) } else { 0 };
    Ok((ip.source, ip.destination, ip.protocol, ports.into()))
}

/// Packets of a few flows as a wire brings them: mostly in order and of one size, and now and then one that differs in
/// one thing.
fn burst(random: &mut Rng) -> Vec<(Vec<u8>, bool)> {
    let mut sequences = [7_u32, 1 << 31, u32::MAX - 3000, 0];
    let mut ids = [1_u16, 100, 65_530, 9];
    let mss = pick(random, &[1, 100, 1200, 1400]) as usize;
    let dont_fragment = random.u32(..4) > 0;
    let mut packets = Vec::new();
    for _ in 0..1 + random.u32(..60) {
        let flow = random.usize(..4);
        let family = if flow.is_multiple_of(2) { Family::V4 } else { Family::V6 };
        let oddity = random.u32(..60);
        let size = match oddity {
            0..3 => 1 + random.usize(..mss),
            3 => 1 + random.usize(..1400),
            _ => mss,
        };
        let payload: Vec<u8> = (0..size).map(|_| random.u8(..)).collect();
        let transport = if flow < 2 {
            Transport::Tcp {
                sequence: sequences[flow].wrapping_add(u32::from(oddity == 4)),
                ack: if oddity == 5 { 2 } else { 1 },
                flags: match oddity {
                    6..9 => 0x18,
                    9 => pick(random, &[0x11, 0x14, 0x30, 0x50, 0x90]) as u8,
                    _ => 0x10,
                },
                options: if oddity == 10 { 24 } else { 12 },
            }
        } else {
            Transport::Udp
        };
        let id = ids[flow].wrapping_add(u16::from(oddity == 11));
        let mut builder = Builder::new(family, transport).id(id).payload(&payload);
        builder.ports.1 = 5000 + flow as u16;
        builder.dont_fragment = dont_fragment != (oddity == 12);
        match oddity {
            13 => builder.ttl = 2 + random.u8(..60),
            14 => builder.tos = pick(random, &[0x10, 0xb8]) as u8,
            15 => builder = builder.ip_options(4),
            _ => {}
        }
        sequences[flow] = sequences[flow].wrapping_add(size as u32);
        ids[flow] = ids[flow].wrapping_add(1);
        let unfinished = random.u32(..10) == 0;
        let mut packet = if unfinished { builder.unfinished() } else { builder.packet() };
        if oddity == 16 && !unfinished {
            // Damage on the way: to be passed on as it is, for the receiver to find.
            let last = packet.len() - 1;
            packet[last] ^= 0x10;
        }
        packets.push((packet, unfinished));
    }
    packets
}

fn the_kernel_takes_every_merged_write_and_gives_the_packets_back(_: &Scene) -> anyhow::Result<()> {
    let court = Court::open()?;
    let mut random = Rng::with_seed(0x6d65_7267_6564);
    let (mut written, mut merged) = (0, 0);
    for at in 0..BURSTS {
        let burst = burst(&mut random);
        let mut merger = Merger::new(MergeConfig::ALL);
        let buffers: Vec<Vec<u8>> = burst.iter().map(|(packet, _)| packet.clone()).collect();
        for (slot, (packet, unfinished)) in burst.iter().enumerate() {
            let ip =
                Ip::parse(packet, Length::Claimed).map_err(|malformed| anyhow::anyhow!("{malformed:?}"))?;
            ensure!(merger.push(packet, &ip, slot as u16, 0, *unfinished), "no room for packet {slot}");
        }
        let mut finished = BTreeMap::<Flow, Vec<Vec<u8>>>::new();
        for (packet, unfinished) in &burst {
            let whole = if *unfinished {
                kernel_cuts(&tun_read(completing(packet)?, packet)).concat()
            } else {
                packet.clone()
            };
            finished.entry(flow_of(&whole)?).or_default().push(normal(&forwarded(&whole)));
        }
        for write in merger.writes() {
            let bytes = gather(&write, &merger, &buffers);
            let head = VnetHdr::from_bytes(bytes.first_chunk::<VNET_HDR_LEN>().context("a header")?);
            kernel_accepts(&bytes)
                .map_err(anyhow::Error::msg)
                .with_context(|| format!("burst {at}: {head:?}"))?;
            court.write(&bytes).with_context(|| format!("burst {at}: {head:?}"))?;
            written += 1;
            merged += usize::from(write.packets() > 1);
        }
        let mut arrived = BTreeMap::<Flow, Vec<Vec<u8>>>::new();
        for packet in court.read(burst.len())? {
            arrived.entry(flow_of(&packet)?).or_default().push(normal(&packet));
        }
        for (flow, sent) in &finished {
            let got = arrived.get(flow).map(Vec::as_slice).unwrap_or_default();
            ensure!(
                got == sent,
                "burst {at}, flow {flow:?}: {} packets in, {} out, first difference at {:?}",
                sent.len(),
                got.len(),
                sent.iter().zip(got).position(|(sent, got)| sent != got)
            );
        }
        ensure!(arrived.len() == finished.len(), "flows were invented: {:?}", arrived.keys());
    }
    ensure!(merged > BURSTS && written > merged, "{merged} of {written} writes were merged");
    Ok(())
}

/// The virtio header that asks the kernel to finish the transport checksum of one packet.
fn completing(packet: &[u8]) -> anyhow::Result<VnetHdr> {
    let ip = Ip::parse(packet, Length::Claimed).map_err(|malformed| anyhow::anyhow!("{malformed:?}"))?;
    let csum_offset = if ip.protocol == TCP { 16 } else { 6 };
    Ok(VnetHdr { needs_checksum: true, csum_start: ip.l3_len as u16, csum_offset, ..VnetHdr::PLAIN })
}

/// Our transcription of the kernel's checks, held against the kernel: where it refuses a write, so do our rules. (The
/// reverse need not hold: our rules may be stricter.)
fn the_kernel_refuses_what_our_rules_refuse(_: &Scene) -> anyhow::Result<()> {
    let court = Court::open()?;
    let mut random = Rng::with_seed(0x6c69_6573);
    let mut refused = 0;
    for _ in 0..SHAPES {
        let builder = random_builder(&mut random).payload(&vec![1; 1 + random.u32(..4000) as usize]);
        let (mut vnet, mut packet) = builder.superpacket(1 + random.u32(..1500) as u16);
        match random.u32(..7) {
            0 => vnet.gso_size = 0,
            1 => vnet.hdr_len = random.u32(..65_536) as u16,
            2 => vnet.csum_start = random.u32(..65_536) as u16,
            3 => vnet.csum_offset = random.u32(..64) as u16,
            4 => vnet.needs_checksum = false,
            5 => {
                vnet.gso = [Gso::None, Gso::Udp, Gso::Tcp(Family::V4), Gso::Tcp(Family::V6)]
                    [random.u32(..4) as usize]
            }
            _ => {
                packet[0] = (random.u32(..16) as u8) << 4 | packet[0] & 15;
                if packet[0] >> 4 == 4 && packet.len() >= 20 {
                    let header = (usize::from(packet[0] & 15) * 4).clamp(20, packet.len());
                    fill_ipv4_checksum(&mut packet, header);
                }
            }
        }
        let write = tun_read(vnet, &packet);
        if court.write(&write).is_err() {
            refused += 1;
            ensure!(kernel_accepts(&write).is_err(), "the kernel refuses what our rules accept: {vnet:?}");
        }
    }
    ensure!(refused > SHAPES / 20, "only {refused} lies were refused");
    Ok(())
}

fn pick(random: &mut Rng, from: &[u32]) -> u32 {
    from[random.usize(..from.len())]
}
