//! A bad datagram is counted under its reason, and nothing else happens: 100 in, 100 counted, 0 delivered.
//!
//! Node a is the victim, b and c hold leases, d is a stranger. No engine runs on b, c and d: plain sockets send what no
//! engine would.

use std::net::{SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use dataplane_core::{Counters, DropReason, Encap, Family, IpNet, MacAddr, SourceCheck};
use hostnet::kernel::Kernel;
use hostnet::state::Route;
use lab::cluster::vxlan::VxlanEnd;
use lab::traffic::ping::Ping;
use lab::{Cluster, Plan, PodNetwork, Scene, Underlay};
use promises::bad::{self, Bad};
use promises::engine::{EngineNode, Spec, end_of, pair, port_of, vxlan};
use promises::{counts, harness, netlink, reach};
use socket2::{Domain, Protocol, Socket, Type};

/// Of each kind.
const COUNT: u64 = 100;
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    harness::of_engines(
        "promise-bad",
        lab::cases![
            bad_datagrams_in_flannels_raw_format,
            bad_datagrams_in_vxlan,
            foreign_sources_pass_and_are_counted_in_loose_mode,
            trailing_bytes_are_cut_off,
            harmless_oddities_pass,
            a_pod_cannot_borrow_a_source,
            own_datagrams_routed_into_the_tunnel_do_not_loop,
            garbage_from_a_stranger_does_not_stop_a_transfer,
        ],
    )
}

/// The victim and its neighbours.
struct Siege {
    victim: EngineNode,
    port: u16,
    encap: Encap,
    ends: Vec<VxlanEnd>,
    /// In the victim's pod, where right packets of [`bad::good`] go, by family.
    receivers: [UdpSocket; 2],
    cluster: Cluster,
}

impl Siege {
    fn lay(encap: Encap, source_check: SourceCheck) -> anyhow::Result<Self> {
        let mut cluster = Cluster::build(&Plan { underlay: Underlay::V4, ..Plan::nodes(4) })?;
        let mut ends = Vec::new();
        for family in [Family::V4, Family::V6] {
            for (index, node) in cluster.nodes().iter().enumerate().take(3) {
                ends.push(end_of(node, index, family, Family::V4)?);
            }
        }
        let is_victims = |end: &&VxlanEnd| end.public == ends[0].public;
        let own: Vec<VxlanEnd> = ends.iter().filter(is_victims).copied().collect();
        let peers: Vec<VxlanEnd> = ends.iter().filter(|end| !is_victims(end)).copied().collect();
        let spec = Spec { source_check, ..Spec::new(encap) };
        let victim = EngineNode::start(&cluster.nodes()[0], &spec, &own, &peers)?;
        let subnets = own.iter().map(|end| end.subnet).collect();
        let mtu = spec.mtu(Family::V4)?.get().into();
        let pod = cluster.nodes_mut()[0].add_pod(&PodNetwork { subnets, mtu })?;
        let bind = |address: &str| -> anyhow::Result<UdpSocket> {
            let socket = pod.namespace().run("bind", || UdpSocket::bind((address, 5201)))??;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let receivers = [bind("10.5.1.2")?, bind("fd00:5:0:1::2")?];
        let port = port_of(&encap);
        Ok(Self { victim, port, encap, ends, receivers, cluster })
    }

    /// A socket of node `index`, bound as an engine's would be, connected to the victim.
    fn sender(&self, index: usize) -> anyhow::Result<UdpSocket> {
        let node = &self.cluster.nodes()[index];
        let own = SocketAddr::from((node.v4().context("an address")?, self.port));
        let socket = node.namespace().run("bind", || UdpSocket::bind(own))??;
        socket.connect((self.ends[0].public, self.port))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    }

    fn mac(&self, index: usize) -> MacAddr {
        MacAddr(self.ends[index].mac)
    }

    fn sent_by_b(&self, family: Family, packet: &[u8]) -> Vec<u8> {
        bad::wrap(&self.encap, self.mac(1), self.mac(0), family, packet)
    }

    /// Waits until the engine has taken `packets` more from the wire than in `before`.
    fn taken(&self, before: &Counters, packets: u64) -> anyhow::Result<Counters> {
        let all = |counters: &Counters| counters.since(before).rx.packets >= packets;
        Ok(self.victim.counted(all)?.since(before))
    }

    /// UDP datagrams and headers in error that have reached the pod so far. All IP packets would be too many: the
    /// kernel itself sends IGMP there.
    fn reached_pod(&self) -> anyhow::Result<u64> {
        let pod = self.cluster.nodes()[0].pods()[0].namespace();
        let v4 = [
            ("Udp", "InDatagrams"),
            ("Udp", "NoPorts"),
            ("Udp", "InErrors"),
            ("Ip", "InHdrErrors"),
            ("Ip", "InAddrErrors"),
        ];
        let v6 = ["Udp6InDatagrams", "Udp6NoPorts", "Udp6InErrors", "Ip6InHdrErrors", "Ip6InAddrErrors"];
        let mut sum = 0;
        for (protocol, name) in v4 {
            sum += counts::snmp(pod, protocol, name)?;
        }
        for name in v6 {
            sum += counts::snmp6(pod, name)?;
        }
        Ok(sum)
    }

    fn delivered(&self) -> usize {
        let mut buffer = [0; 2048];
        self.receivers.iter().map(|socket| std::iter::from_fn(|| socket.recv(&mut buffer).ok()).count()).sum()
    }

    /// Sends 100 of `bad` by `socket`: all are counted under `reason`, none gets further.
    fn refuses(&self, socket: &UdpSocket, bad: &Bad, reason: DropReason) -> anyhow::Result<()> {
        let before = self.victim.counters();
        let reached = self.reached_pod()?;
        for _ in 0..COUNT {
            socket.send(&bad.datagram)?;
        }
        let since = self.taken(&before, COUNT)?;
        ensure!(
            since.rx.packets == COUNT
                && since.rx.dropped(reason) == COUNT
                && since.rx.passed == 0
                && since.rx.is_balanced(),
            "{COUNT} {reason} expected: {since:?}"
        );
        ensure!(self.delivered() == 0 && self.reached_pod()? == reached, "some reached the pod");
        // Whatever it was, it was not sent on. Only who sends what is too late or too long hears of it, and not each time.
        // (A kernel's own multicast may come to the device at any time.)
        let went_out = since.tx.packets - since.tx.dropped(DropReason::NotUnicast);
        let answers = since.icmp_replies + since.icmp_limited;
        let (may_go_out, right) = match reason {
            DropReason::TtlExceeded => (20, answers == COUNT),
            DropReason::Oversize => (20, answers == 0 || answers == COUNT),
            _ => (0, answers == 0),
        };
        ensure!(went_out <= may_go_out && right, "{went_out} packets went out: {since:?}");
        Ok(())
    }

    /// Sends one datagram by `socket` that must arrive in the victim's pod; answers what does.
    fn passes(&self, socket: &UdpSocket, family: Family, datagram: &[u8]) -> anyhow::Result<Vec<u8>> {
        let receiver = &self.receivers[usize::from(family == Family::V6)];
        let before = self.victim.counters();
        socket.send(datagram)?;
        receiver.set_nonblocking(false)?;
        receiver.set_read_timeout(Some(PATIENCE))?;
        let mut buffer = vec![0; 65_536];
        let length = receiver.recv(&mut buffer).context("it does not arrive in the pod")?;
        receiver.set_nonblocking(true)?;
        // The numbers are published after the packet is written.
        self.taken(&before, 1)?;
        buffer.truncate(length);
        Ok(buffer)
    }
}

fn bad_datagrams_in_flannels_raw_format(_: &Scene) -> anyhow::Result<()> {
    every_bad_datagram_is_counted(Encap::Raw)
}

fn bad_datagrams_in_vxlan(_: &Scene) -> anyhow::Result<()> {
    every_bad_datagram_is_counted(vxlan())
}

fn every_bad_datagram_is_counted(encap: Encap) -> anyhow::Result<()> {
    let siege = Siege::lay(encap, SourceCheck::Strict)?;
    let (peer, stranger) = (siege.sender(1)?, siege.sender(3)?);
    // The way is open: what is refused below is refused for what it is.
    for family in [Family::V4, Family::V6] {
        siege.passes(&peer, family, &siege.sent_by_b(family, &bad::good(family).packet()))?;
    }
    let mtu = Spec::new(encap).mtu(Family::V4)?;
    let all = bad::all(&encap, siege.mac(1), siege.mac(0), mtu);
    ensure!(all.len() > 50, "only {} kinds", all.len());
    for bad in &all {
        siege.refuses(&peer, bad, bad.reason).with_context(|| format!("from a peer, {}", bad.name))?;
        siege
            .refuses(&stranger, bad, DropReason::UnknownPeer)
            .with_context(|| format!("from a stranger, {}", bad.name))?;
    }
    for family in [Family::V4, Family::V6] {
        let datagram = siege.sent_by_b(family, &bad::good(family).packet());
        let right =
            Bad { name: "right but for its sender".to_owned(), datagram, reason: DropReason::UnknownPeer };
        siege.refuses(&stranger, &right, right.reason).with_context(|| right.name.clone())?;
    }
    siege.victim.stop().map(drop)
}

fn foreign_sources_pass_and_are_counted_in_loose_mode(_: &Scene) -> anyhow::Result<()> {
    for encap in [Encap::Raw, vxlan()] {
        let siege = Siege::lay(encap, SourceCheck::Loose)?;
        let peer = siege.sender(1)?;
        for (family, source) in [(Family::V4, "8.8.8.8"), (Family::V6, "2001:4860::8888")] {
            siege.passes(
                &peer,
                family,
                &siege.sent_by_b(family, &bad::good(family).from(source).packet()),
            )?;
        }
        // What is never right is refused in this mode too.
        for bad in bad::all(&encap, siege.mac(1), siege.mac(0), Spec::new(encap).mtu(Family::V4)?) {
            let address = [DropReason::Martian, DropReason::BadInnerSource, DropReason::OwnSource];
            if address.contains(&bad.reason) {
                siege.refuses(&peer, &bad, bad.reason).with_context(|| bad.name.clone())?;
            }
        }
        let counters = siege.victim.stop()?;
        assert_eq!(counters.foreign_sources, 2);
    }
    Ok(())
}

fn trailing_bytes_are_cut_off(_: &Scene) -> anyhow::Result<()> {
    for encap in [Encap::Raw, vxlan()] {
        let siege = Siege::lay(encap, SourceCheck::Strict)?;
        let peer = siege.sender(1)?;
        for family in [Family::V4, Family::V6] {
            let mut packet = bad::good(family).payload(b"inside").packet();
            packet.extend(b" and behind");
            let arrived = siege.passes(&peer, family, &siege.sent_by_b(family, &packet))?;
            assert_eq!(arrived, b"inside");
        }
        siege.victim.stop()?;
    }
    Ok(())
}

/// What looks strange and is allowed: IPv4 options, IPv6 extension headers, a last hop that VXLAN does not count.
fn harmless_oddities_pass(_: &Scene) -> anyhow::Result<()> {
    let siege = Siege::lay(vxlan(), SourceCheck::Strict)?;
    let peer = siege.sender(1)?;
    for options in [4, 40] {
        let packet = bad::good(Family::V4).ip_options(options).packet();
        siege.passes(&peer, Family::V4, &siege.sent_by_b(Family::V4, &packet))?;
    }
    let mut packet = bad::good(Family::V6).packet();
    // A hop-by-hop header that holds nothing but padding.
    packet.splice(40..40, [17, 0, 1, 4, 0, 0, 0, 0]);
    packet[6] = 0;
    packet[5] += 8;
    siege.passes(&peer, Family::V6, &siege.sent_by_b(Family::V6, &packet))?;
    for family in [Family::V4, Family::V6] {
        // The node itself still forwards to the pod, which takes one.
        siege.passes(&peer, family, &siege.sent_by_b(family, &bad::good(family).ttl(2).packet()))?;
    }
    siege.victim.stop().map(drop)
}

/// Packets that leave a pod with somebody else's address do not leave the node.
fn a_pod_cannot_borrow_a_source(_: &Scene) -> anyhow::Result<()> {
    let siege = Siege::lay(vxlan(), SourceCheck::Strict)?;
    let pod = &siege.cluster.nodes()[0].pods()[0];
    let raw =
        pod.namespace().run("raw", || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))))??;
    for source in ["10.5.2.2", "10.5.99.9", "8.8.8.8"] {
        let before = siege.victim.counters();
        let packet = bad::good(Family::V4).from(source).to("10.5.2.2").packet();
        let to = SocketAddr::from(([10, 5, 2, 2], 0));
        for _ in 0..COUNT {
            raw.send_to(&packet, &to.into())?;
        }
        let all = |counters: &Counters| counters.since(&before).tx.dropped(DropReason::BadSource) >= COUNT;
        let since = siege.victim.counted(all)?.since(&before);
        ensure!(
            since.tx.dropped(DropReason::BadSource) == COUNT && since.tx.passed == 0,
            "from {source}: {since:?}"
        );
    }
    siege.victim.stop().map(drop)
}

/// A route that sends the peer's own address into the tunnel: each packet comes back once, is refused, and that is all.
fn own_datagrams_routed_into_the_tunnel_do_not_loop(_: &Scene) -> anyhow::Result<()> {
    let siege = Siege::lay(Encap::Raw, SourceCheck::Loose)?;
    let node = &siege.cluster.nodes()[0];
    let device = siege.victim.handle().device().to_owned();
    netlink::inside(node.namespace(), async |kernel: Kernel| {
        Ok(kernel.replace_route(&Route::new(IpNet::from(siege.ends[1].public), device)).await?)
    })?;
    let pod = &node.pods()[0];
    for _ in 0..5 {
        let ping = Ping { timeout: Duration::from_millis(100), ..Ping::new("10.5.2.2".parse()?) };
        let answer = ping.send_from(pod.namespace())?;
        ensure!(answer.microseconds().is_none(), "{answer:?}");
    }
    let counters = siege.victim.stop()?;
    // Five pings in, five datagrams that came back, and answers to those.
    ensure!(counters.tx.packets <= 20, "{counters:?}");
    Ok(())
}

/// A stranger sends as fast as it can while a peer transfers: the transfer goes on, and every datagram is counted.
fn garbage_from_a_stranger_does_not_stop_a_transfer(_: &Scene) -> anyhow::Result<()> {
    let plan = Plan { underlay: Underlay::V4, ..Plan::nodes(3) };
    let mut cluster = Cluster::build(&plan)?;
    let (ends, engines) = pair(&mut cluster, &Spec::new(vxlan()))?;
    let nodes = cluster.nodes();
    let stranger = nodes[2].namespace().run("bind", || UdpSocket::bind(("192.0.2.3", 8472)))??;
    let path = reach::path(&nodes[1].pods()[0], &nodes[0].pods()[0], Family::V4)?;
    let done = std::sync::atomic::AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                // A full queue on the way is the flood's own loss.
                stranger.send_to(&[0x5a; 64], (ends[0].public, 8472)).ok();
            }
        });
        let outcome = reach::transfer(path, 20_000_000);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        outcome
    });
    outcome?;
    let counters = engines.map(EngineNode::stop);
    let [victim, _] = counters;
    let victim = victim?;
    ensure!(victim.rx.dropped(DropReason::UnknownPeer) > 1000, "there was no flood: {victim:?}");
    Ok(())
}
