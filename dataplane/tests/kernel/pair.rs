//! Two nodes in private network namespaces, joined by a veth pair, each with a running engine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::OnceLock;

use dataplane::core::{
    Encap, Family, IpNet, Ipv4Net, LinkMtu, Local, MacAddr, OverlayMtu, Peer, PeerTable, SourceCheck, Vni,
};
use dataplane::{Engine, EngineConfig, EngineHandle, Features, Tuning};
use hostnet::kernel::{Kernel, LinkSettings, Vxlan};
use hostnet::netns::NetNs;
use hostnet::state::{FdbEntry, Neighbour, Route};

/// MTU of the veth pair.
const LINK_MTU: u16 = 1500;
/// The overlay device on each node.
pub(crate) const DEVICE: &str = "flannel.1";
/// The port of every tunnel.
const PORT: u16 = 8472;

/// One node: its namespace, and its engine unless the kernel does the work.
pub(crate) struct Node {
    pub(crate) ns: NetNs,
    pub(crate) number: u8,
    pub(crate) engine: Option<EngineHandle>,
}

/// How the pair is made.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) encap: Encap,
    pub(crate) underlay: Family,
    /// Forced off on both nodes.
    pub(crate) off: Features,
    /// Node 2 is a kernel VXLAN device; `Some(true)` if it sends UDP checksums over IPv4.
    pub(crate) kernel: Option<bool>,
    pub(crate) tuning: Tuning,
    /// Further peers, in the engines' tables only.
    pub(crate) crowd: u32,
}

impl Shape {
    pub(crate) fn raw() -> Self {
        Self {
            encap: Encap::Raw,
            underlay: Family::V4,
            off: Features::NONE,
            kernel: None,
            tuning: Tuning::default(),
            crowd: 0,
        }
    }

    pub(crate) fn vxlan() -> Self {
        Self { encap: Encap::Vxlan { vni: Vni::new(1).unwrap() }, ..Self::raw() }
    }
}

/// True if this machine lets the test make namespaces and TUN devices; else says aloud why the test is skipped.
pub(crate) fn possible() -> bool {
    static ANSWER: OnceLock<Result<(), String>> = OnceLock::new();
    let answer = ANSWER.get_or_init(|| {
        let ns = NetNs::new().map_err(|error| format!("no network namespace: {error}"))?;
        let config = config("probe0", &Shape::raw(), SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
        let opened = ns.run("probe", || Engine::open(&config)).map_err(|error| error.to_string())?;
        opened.map(drop).map_err(|error| error.to_string())
    });
    if let Err(why) = answer {
        eprintln!("SKIPPED: {why}");
    }
    answer.is_ok()
}

pub(crate) fn config(device: &str, shape: &Shape, bind: SocketAddr) -> EngineConfig {
    let mtu = OverlayMtu::over(LinkMtu(LINK_MTU), &shape.encap, shape.underlay).unwrap();
    EngineConfig {
        device: device.to_owned(),
        encap: shape.encap,
        mtu,
        bind,
        off: shape.off,
        source_check: SourceCheck::Strict,
        tuning: shape.tuning.clone(),
    }
}

/// The underlay address of node `n`.
pub(crate) fn underlay(n: u8, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2, n).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()).into(),
    }
}

/// The overlay address of node `n`, on its TUN device.
pub(crate) fn overlay(n: u8, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 244, n, 1).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0, 0, n.into(), 0, 0, 0, 1).into(),
    }
}

fn subnets(n: u8) -> Vec<IpNet> {
    vec![format!("10.244.{n}.0/24").parse().unwrap(), format!("fd00:0:0:{n}::/64").parse().unwrap()]
}

/// The VTEP MAC of node `n`.
fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

/// The table of node `own` of a pair, with the shape's crowd.
pub(crate) fn table(own: u8, shape: &Shape) -> PeerTable {
    let other = 3 - own;
    let local = Local {
        subnets: subnets(own),
        networks: vec!["10.244.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()],
        mac: mac(own),
        addresses: vec![overlay(own, Family::V4), overlay(own, Family::V6)],
    };
    let endpoint = SocketAddr::from((underlay(other, shape.underlay), PORT));
    let crowd = (0..shape.crowd).map(|n| {
        let ip = Ipv4Addr::from(0xac10_0000 + n);
        let subnet = Ipv4Net::new(Ipv4Addr::from(0x0b00_0000 + (n << 8)), 24).unwrap();
        Peer { endpoint: (ip, PORT).into(), mac: MacAddr::default(), subnets: vec![subnet.into()] }
    });
    let peers: Vec<Peer> =
        crowd.chain([Peer { endpoint, mac: mac(other), subnets: subnets(other) }]).collect();
    PeerTable::build(local, &peers).unwrap()
}

/// Runs netlink calls in a namespace.
pub(crate) fn netlink<F: Future<Output = ()>>(ns: &NetNs, calls: impl FnOnce(Kernel) -> F + Send) {
    ns.run("netlink", || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { calls(Kernel::connect().await.unwrap()).await });
    })
    .unwrap();
}

/// Makes the pair and starts both ends.
pub(crate) fn pair(shape: &Shape) -> [Node; 2] {
    let spaces = [NetNs::new().unwrap(), NetNs::new().unwrap()];
    for ns in &spaces {
        netlink(ns, |kernel| async move { up(&kernel, "lo").await });
    }
    let far = spaces[1].clone();
    netlink(&spaces[0], |kernel| async move { kernel.add_veth("eth0", "eth0", &far).await.unwrap() });
    let mut number = 0;
    spaces.map(|ns| {
        number += 1;
        let (own, family) = (number, shape.underlay);
        netlink(&ns, |kernel| async move {
            let bits = if family == Family::V4 { 24 } else { 64 };
            let net = IpNet::new(underlay(own, family), bits).unwrap();
            kernel.add_address("eth0", net).await.unwrap();
            up(&kernel, "eth0").await;
        });
        let engine = match shape.kernel {
            Some(checksum) if own == 2 => {
                kernel_vxlan(&ns, family, checksum);
                None
            }
            _ => Some(engine(&ns, own, shape)),
        };
        Node { ns, number: own, engine }
    })
}

fn engine(ns: &NetNs, own: u8, shape: &Shape) -> EngineHandle {
    let bind = SocketAddr::from((underlay(own, shape.underlay), PORT));
    let config = config(DEVICE, shape, bind);
    let engine = ns.run("open", || Engine::open(&config)).unwrap().unwrap();
    let mtu = Some(u32::from(config.mtu.get()));
    netlink(ns, |kernel| async move {
        let settings =
            LinkSettings { mtu, tx_queue_len: Some(1000), addr_gen_none: true, ..LinkSettings::default() };
        kernel.set_link(DEVICE, &settings).await.unwrap();
        for (family, bits) in [(Family::V4, 16), (Family::V6, 48)] {
            let net = IpNet::new(overlay(own, family), bits).unwrap();
            kernel.add_address(DEVICE, net).await.unwrap();
        }
        up(&kernel, DEVICE).await;
    });
    engine.start(table(own, shape)).unwrap()
}

/// Node 2 as flannel programs the kernel: a static neighbour, FDB entry and onlink route for node 1.
fn kernel_vxlan(ns: &NetNs, underlay_family: Family, udp_checksum: bool) {
    let vxlan = Vxlan {
        local: Some(underlay(2, underlay_family)),
        device: Some("eth0".to_owned()),
        mac: Some(mac(2).0),
        udp_checksum,
        ..Vxlan::new(DEVICE, 1, PORT)
    };
    netlink(ns, |kernel| async move {
        kernel.add_vxlan(&vxlan).await.unwrap();
        let settings = LinkSettings { addr_gen_none: true, ..LinkSettings::default() };
        kernel.set_link(DEVICE, &settings).await.unwrap();
        for (family, bits) in [(Family::V4, 32), (Family::V6, 128)] {
            let net = IpNet::new(overlay(2, family), bits).unwrap();
            kernel.add_address(DEVICE, net).await.unwrap();
        }
        up(&kernel, DEVICE).await;
        let device = DEVICE.to_owned();
        let fdb = FdbEntry { device, mac: mac(1).0, dst: underlay(1, underlay_family) };
        kernel.replace_fdb(&fdb).await.unwrap();
        for (subnet, family) in subnets(1).into_iter().zip([Family::V4, Family::V6]) {
            let via = overlay(1, family);
            let neighbour = Neighbour { device: DEVICE.to_owned(), ip: via, mac: mac(1).0 };
            kernel.replace_neighbour(&neighbour).await.unwrap();
            let route = Route { via: Some(via), onlink: true, ..Route::new(subnet, DEVICE) };
            kernel.replace_route(&route).await.unwrap();
        }
    });
}

async fn up(kernel: &Kernel, name: &str) {
    let settings = LinkSettings { up: Some(true), ..LinkSettings::default() };
    kernel.set_link(name, &settings).await.unwrap();
}

impl Node {
    /// Its engine.
    pub(crate) fn engine(&self) -> &EngineHandle {
        self.engine.as_ref().unwrap()
    }

    /// The address of its overlay device.
    pub(crate) fn address(&self, family: Family) -> IpAddr {
        overlay(self.number, family)
    }
}
