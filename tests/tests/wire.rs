//! Facts of the two formats on the wire, byte by byte, as a peer sees them.
//!
//! Node a runs the engine. Node b holds a lease and has no engine: a plain socket takes and sends what an engine would.
//! Checksums and segments are finished in software, so that the wire shows what a card would send.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use dataplane_core::testing::Builder;
use dataplane_core::wire::{ICMP, ICMPV6};
use dataplane_core::{DropReason, Encap, Family, MacAddr, SourceCheck};
use hostnet::kernel::Kernel;
use hostnet::state::Route;
use lab::cluster::vxlan::VxlanEnd;
use lab::traffic::ping::{Answer, Ping};
use lab::{Cluster, LinkModel, Plan, Pod, PodNetwork, Scene, Underlay};
use promises::bad;
use promises::capture::{Capture, Captured, goes};
use promises::engine::{EngineNode, Spec, end_of, port_of, vxlan};
use promises::{harness, netlink};
use socket2::SockRef;

fn main() -> ExitCode {
    harness::of_engines(
        "promise-wire",
        lab::cases![
            raw_v4_is_the_bare_packet,
            raw_v6_is_the_bare_packet,
            raw_takes_one_hop_at_each_end,
            raw_time_is_up_is_answered_and_never_wraps,
            raw_peers_may_send_from_any_port,
            vxlan_v4_header_is_exact,
            vxlan_v6_header_is_exact,
            vxlan_leaves_the_time_to_live_alone,
            congestion_marks_cross_the_tunnel,
            nobody_there_is_answered_at_a_limited_rate,
            a_node_with_a_larger_mtu_hears_how_much_fits,
        ],
    )
}

/// Two nodes, one engine.
struct Wire {
    engine: EngineNode,
    encap: Encap,
    family: Family,
    ends: [VxlanEnd; 2],
    /// Node b's end of the tunnel.
    peer: UdpSocket,
    /// What crosses node b's devices.
    seen: Capture,
    cluster: Cluster,
}

impl Wire {
    fn string(encap: Encap, family: Family) -> anyhow::Result<Self> {
        let mut cluster = Cluster::build(&Plan {
            underlay: if family == Family::V4 { Underlay::V4 } else { Underlay::V6 },
            model: LinkModel::Nic,
            tx_checksum: false,
            ..Plan::pair()
        })?;
        let [a, b] = cluster.nodes() else { anyhow::bail!("two nodes") };
        let ends = [end_of(a, 0, family, family)?, end_of(b, 1, family, family)?];
        let spec = Spec { source_check: SourceCheck::Strict, ..Spec::new(encap) };
        let engine = EngineNode::start(a, &spec, &ends[..1], &ends[1..])?;
        let address = SocketAddr::new(ends[1].public, port_of(&encap));
        let peer = b.namespace().run("bind", || UdpSocket::bind(address))??;
        peer.set_read_timeout(Some(Duration::from_secs(5)))?;
        let seen = Capture::start(b.namespace())?;
        let mtu = spec.mtu(family)?.get().into();
        cluster.nodes_mut()[0].add_pod(&PodNetwork { subnets: vec![ends[0].subnet], mtu })?;
        Ok(Self { engine, encap, family, ends, peer, seen, cluster })
    }

    fn pod(&self) -> &Pod {
        &self.cluster.nodes()[0].pods()[0]
    }

    fn victim(&self) -> SocketAddr {
        SocketAddr::new(self.ends[0].public, port_of(&self.encap))
    }

    /// Sends `payload` from the pod to port 7 of a pod that node b could have, and answers the outer packet.
    fn sent(
        &self,
        payload: &[u8],
        shape: impl FnOnce(&UdpSocket) -> std::io::Result<()>,
    ) -> anyhow::Result<Captured> {
        let own = self.pod().addresses().next().context("the pod's address")?;
        let socket = self.pod().namespace().run("bind", || UdpSocket::bind((own, 4000)))??;
        shape(&socket)?;
        socket.send_to(payload, (far_pod(self.family), 7))?;
        let (from, to) = (self.ends[0].public, self.ends[1].public);
        self.seen.wait_for(|packet| goes(packet, from, to) && packet.payload().ends_with(payload))
    }

    /// Sends a packet to the engine as node b's engine would.
    fn send(&self, packet: &[u8]) -> anyhow::Result<()> {
        let datagram =
            bad::wrap(&self.encap, MacAddr(self.ends[1].mac), MacAddr(self.ends[0].mac), self.family, packet);
        self.peer.send_to(&datagram, self.victim())?;
        Ok(())
    }

    /// The inner packet of a datagram that the engine sent.
    fn inner(&self, outer: &Captured) -> anyhow::Result<Captured> {
        let packet = outer.payload().get(self.encap.headroom()..).unwrap_or_default();
        let inner = Captured::read(packet).context("the payload is no IP packet")?;
        ensure!(
            inner.bytes.len() == packet.len(),
            "{} bytes behind the packet",
            packet.len() - inner.bytes.len()
        );
        let has_ports = inner.ports().is_some();
        ensure!(!has_ports || inner.checksum_is_right(), "the inner checksum is wrong: {inner:?}");
        Ok(inner)
    }

    /// What every datagram of either format has in common.
    fn outer_is_plain(&self, outer: &Captured) -> anyhow::Result<()> {
        let port = port_of(&self.encap);
        ensure!(outer.from() == Some(self.victim()), "from {:?}", outer.from());
        ensure!(outer.ports() == Some((port, port)), "ports {:?}", outer.ports());
        ensure!(outer.udp_checksum().is_some_and(|sum| sum != 0), "the outer checksum is zero");
        ensure!(outer.checksum_is_right(), "the outer checksum is wrong: {outer:?}");
        ensure!(outer.ip.ttl == 64 && outer.ip.tos == 0 && !outer.ip.has_options, "{:?}", outer.ip);
        // IPv6 has no such bit: its routers never cut.
        ensure!(self.family == Family::V6 || !outer.ip.dont_fragment, "DF is set: {:?}", outer.ip);
        Ok(())
    }
}

fn with_tos(mut builder: Builder, tos: u8) -> Builder {
    builder.tos = tos;
    builder
}

fn far_pod(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 5, 2, 2]),
        Family::V6 => IpAddr::from([0xfd00, 5, 0, 2, 0, 0, 0, 2]),
    }
}

fn raw_v4_is_the_bare_packet(_: &Scene) -> anyhow::Result<()> {
    raw_is_the_bare_packet(Family::V4)
}

fn raw_v6_is_the_bare_packet(_: &Scene) -> anyhow::Result<()> {
    raw_is_the_bare_packet(Family::V6)
}

fn raw_is_the_bare_packet(family: Family) -> anyhow::Result<()> {
    let wire = Wire::string(Encap::Raw, family)?;
    for size in [0, 1, 700, 1400] {
        let payload: Vec<u8> = (0..size).map(|at| (at * 5 + size) as u8).collect();
        let outer = wire.sent(&payload, |_| Ok(()))?;
        wire.outer_is_plain(&outer)?;
        let inner = wire.inner(&outer)?;
        assert_eq!(inner.ip.destination, far_pod(family));
        assert_eq!(Some(inner.ip.source), wire.pod().addresses().next());
        assert_eq!(inner.ports(), Some((4000, 7)));
        assert_eq!(inner.payload(), payload);
    }
    wire.engine.stop().map(drop)
}

/// As flannel's: the node's kernel takes one as any router does, then the engine of each end takes one.
fn raw_takes_one_hop_at_each_end(_: &Scene) -> anyhow::Result<()> {
    for family in [Family::V4, Family::V6] {
        let wire = Wire::string(Encap::Raw, family)?;
        let outer = wire.sent(b"there", |_| Ok(()))?;
        assert_eq!(wire.inner(&outer)?.ip.ttl, 64 - 2);

        let arriving = Capture::start(wire.pod().namespace())?;
        wire.send(&bad::good(family).payload(b"and back").packet())?;
        let packet = arriving.wait_for(|packet| packet.payload() == b"and back")?;
        assert_eq!(packet.ip.ttl, 64 - 2);
        assert!(packet.checksum_is_right());
        wire.engine.stop()?;
    }
    Ok(())
}

fn raw_time_is_up_is_answered_and_never_wraps(_: &Scene) -> anyhow::Result<()> {
    for family in [Family::V4, Family::V6] {
        let wire = Wire::string(Encap::Raw, family)?;
        let base = wire.ends[0].subnet.network();
        // Out: 1 ends at the node's kernel, 2 at the engine, 3 gets through with 1 left.
        let ping =
            |ttl| Ping { ttl: Some(ttl), ..Ping::new(far_pod(family)) }.send_from(wire.pod().namespace());
        assert!(matches!(ping(1)?, Answer::TimeExceeded { .. }), "{family:?}");
        assert_eq!(ping(2)?, Answer::TimeExceeded { from: base });
        assert_eq!(ping(3)?, Answer::Nothing);
        let (from, to) = (wire.ends[0].public, wire.ends[1].public);
        let tunnelled = wire.seen.wait_for(|packet| goes(packet, from, to))?;
        assert_eq!(wire.inner(&tunnelled)?.ip.ttl, 1, "the first that got through");

        // In: 0 and 1 end at the engine, which says so to the sender, by the tunnel.
        let arriving = Capture::start(wire.pod().namespace())?;
        wire.send(&bad::good(family).ttl(1).payload(b"too late").packet())?;
        wire.send(&bad::good(family).ttl(0).payload(b"too late").packet())?;
        let mut buffer = [0; 2000];
        let (length, _) = loop {
            let (length, from) = wire.peer.recv_from(&mut buffer)?;
            // The ping that got through is in the queue before it.
            if Captured::read(&buffer[..length]).is_some_and(|packet| packet.ip.source == base) {
                break (length, from);
            }
        };
        let reply = Captured::read(&buffer[..length]).context("a reply")?;
        let (protocol, kind) = if family == Family::V4 { (ICMP, 11) } else { (ICMPV6, 3) };
        assert_eq!((reply.ip.protocol, reply.bytes[reply.ip.l3_len]), (protocol, kind));
        assert_eq!(reply.ip.destination, bad::good(family).source);
        let late = arriving.drain(Duration::from_millis(200))?;
        assert!(late.iter().all(|packet| packet.payload() != b"too late"), "{late:?}");
        wire.engine.stop()?;
    }
    Ok(())
}

fn raw_peers_may_send_from_any_port(_: &Scene) -> anyhow::Result<()> {
    let wire = Wire::string(Encap::Raw, Family::V4)?;
    let node = &wire.cluster.nodes()[1];
    let other = node.namespace().run("bind", || UdpSocket::bind((wire.ends[1].public, 0)))??;
    let arriving = Capture::start(wire.pod().namespace())?;
    other.send_to(&bad::good(Family::V4).payload(b"behind a NAT").packet(), wire.victim())?;
    arriving.wait_for(|packet| packet.payload() == b"behind a NAT")?;
    wire.engine.stop().map(drop)
}

fn vxlan_v4_header_is_exact(_: &Scene) -> anyhow::Result<()> {
    vxlan_header_is_exact(Family::V4, [0x08, 0x00])
}

fn vxlan_v6_header_is_exact(_: &Scene) -> anyhow::Result<()> {
    vxlan_header_is_exact(Family::V6, [0x86, 0xdd])
}

fn vxlan_header_is_exact(family: Family, ethertype: [u8; 2]) -> anyhow::Result<()> {
    let wire = Wire::string(vxlan(), family)?;
    let outer = wire.sent(b"framed", |_| Ok(()))?;
    wire.outer_is_plain(&outer)?;
    let header = [0x08, 0, 0, 0, 0, 0, 1, 0];
    let expected = [&header[..], &wire.ends[1].mac, &wire.ends[0].mac, &ethertype].concat();
    assert_eq!(outer.payload()[..22], expected);
    let inner = wire.inner(&outer)?;
    assert_eq!((inner.payload(), inner.ip.destination), (&b"framed"[..], far_pod(family)));
    wire.engine.stop().map(drop)
}

fn vxlan_leaves_the_time_to_live_alone(_: &Scene) -> anyhow::Result<()> {
    for family in [Family::V4, Family::V6] {
        let wire = Wire::string(vxlan(), family)?;
        let outer = wire.sent(b"there", |_| Ok(()))?;
        assert_eq!(wire.inner(&outer)?.ip.ttl, 64 - 1);
        let arriving = Capture::start(wire.pod().namespace())?;
        wire.send(&bad::good(family).payload(b"and back").packet())?;
        assert_eq!(arriving.wait_for(|packet| packet.payload() == b"and back")?.ip.ttl, 64 - 1);
        wire.engine.stop()?;
    }
    Ok(())
}

/// RFC 6040: the mark goes into the outer header on the way out; DSCP stays inside.
fn congestion_marks_cross_the_tunnel(_: &Scene) -> anyhow::Result<()> {
    for encap in [Encap::Raw, vxlan()] {
        let wire = Wire::string(encap, Family::V4)?;
        for (inner, outer) in [(0xb8, 0), (0xb8 | 2, 2), (1, 1), (3, 3)] {
            let packet = wire.sent(b"marked", |socket| SockRef::from(socket).set_tos_v4(inner.into()))?;
            assert_eq!((packet.ip.tos, wire.inner(&packet)?.ip.tos), (outer, inner));
        }
        // In: the underlay's "congestion" on a packet that can bear it.
        let arriving = Capture::start(wire.pod().namespace())?;
        SockRef::from(&wire.peer).set_tos_v4(3)?;
        let marked = with_tos(bad::good(Family::V4).payload(b"congested"), 2);
        wire.send(&marked.packet())?;
        let packet = arriving.wait_for(|packet| packet.payload() == b"congested")?;
        assert_eq!(packet.ip.tos, 3);
        assert!(packet.checksum_is_right());
        wire.engine.stop()?;
    }
    Ok(())
}

/// The whole network is routed into the tunnel, as flannel's `udp` does; nobody leases 10.5.99.0/24.
fn nobody_there_is_answered_at_a_limited_rate(_: &Scene) -> anyhow::Result<()> {
    let wire = Wire::string(Encap::Raw, Family::V4)?;
    let device = wire.engine.handle().device().to_owned();
    netlink::inside(wire.cluster.nodes()[0].namespace(), async |kernel: Kernel| {
        Ok(kernel.replace_route(&Route::new("10.5.0.0/16".parse()?, device)).await?)
    })?;
    let ping = Ping::new("10.5.99.9".parse()?);
    let answer = ping.send_from(wire.pod().namespace())?;
    assert_eq!(answer, Answer::Unreachable { from: wire.ends[0].subnet.network(), code: 0 });
    let pod = wire.pod().addresses().next().context("the pod's address")?;
    let socket = wire.pod().namespace().run("bind", || UdpSocket::bind((pod, 0)))??;
    for _ in 0..200 {
        // An ICMP error of an earlier datagram may be reported here.
        socket.send_to(b"anybody?", ("10.5.99.9", 9)).ok();
    }
    wire.engine.counted(|counters| counters.tx.dropped(DropReason::NoRoute) > 200)?;
    let counters = wire.engine.stop()?;
    assert!(counters.icmp_limited > 100, "{counters:?}");
    assert!(counters.icmp_replies < 50, "{counters:?}");
    Ok(())
}

/// The nodes of a cluster may differ in their underlay's MTU; the wider one learns what the narrower one takes.
fn a_node_with_a_larger_mtu_hears_how_much_fits(_: &Scene) -> anyhow::Result<()> {
    for (encap, family) in
        [Encap::Raw, vxlan()].into_iter().flat_map(|encap| [(encap, Family::V4), (encap, Family::V6)])
    {
        let wire = Wire::string(encap, family)?;
        let mtu = Spec::new(encap).mtu(family)?.get();
        let empty = bad::good(family).payload(b"").packet().len();
        wire.send(&bad::good(family).payload(&vec![1; usize::from(mtu) + 1 - empty]).packet())?;
        let mut buffer = [0; 2000];
        let (length, _) = wire.peer.recv_from(&mut buffer)?;
        let reply = Captured::read(&buffer[encap.headroom()..length]).context("a reply")?;
        let said = &reply.bytes[reply.ip.l3_len..];
        let (kind, code) = if family == Family::V4 { (3, 4) } else { (2, 0) };
        let [.., high, low] = said[..8] else { anyhow::bail!("{said:?}") };
        assert_eq!(
            (said[0], said[1], u16::from_be_bytes([high, low])),
            (kind, code, mtu),
            "{encap:?} {family:?}"
        );
        assert_eq!(reply.ip.source, wire.ends[0].subnet.network());
        assert_eq!(reply.ip.destination, bad::good(family).source);
        wire.engine.stop()?;
    }
    Ok(())
}
