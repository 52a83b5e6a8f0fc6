//! Two nodes in private network namespaces, joined by a veth pair, each with a running engine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::OnceLock;

use dataplane::core::{
    Encap, Family, IpNet, LinkMtu, Local, MacAddr, OverlayMtu, Peer, PeerTable, SourceCheck, Vni,
};
use dataplane::{Engine, EngineConfig, EngineHandle, Features};
use hostnet::kernel::{Kernel, LinkSettings};
use hostnet::netns::NetNs;

/// MTU of the veth pair.
const LINK_MTU: u16 = 1500;

/// One node: its namespace and its engine.
pub(crate) struct Node {
    pub(crate) ns: NetNs,
    pub(crate) number: u8,
    pub(crate) engine: EngineHandle,
}

/// How the pair is made.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) encap: Encap,
    pub(crate) underlay: Family,
    /// Forced off on both nodes.
    pub(crate) off: Features,
}

impl Shape {
    pub(crate) fn raw() -> Self {
        Self { encap: Encap::Raw, underlay: Family::V4, off: Features::NONE }
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

fn table(own: u8, other: u8, endpoint: SocketAddr) -> PeerTable {
    let local = Local {
        subnets: subnets(own),
        networks: vec!["10.244.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()],
        mac: MacAddr([2, 0, 0, 0, 0, own]),
        addresses: vec![overlay(own, Family::V4), overlay(own, Family::V6)],
    };
    let peer = Peer { endpoint, mac: MacAddr([2, 0, 0, 0, 0, other]), subnets: subnets(other) };
    PeerTable::build(local, vec![peer]).unwrap()
}

/// Runs netlink calls in a namespace.
pub(crate) fn netlink<F: Future<Output = ()>>(ns: &NetNs, calls: impl FnOnce(Kernel) -> F + Send) {
    ns.run("netlink", || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { calls(Kernel::connect().await.unwrap()).await });
    })
    .unwrap();
}

/// Makes the pair and starts both engines.
pub(crate) fn pair(shape: &Shape) -> [Node; 2] {
    let spaces = [NetNs::new().unwrap(), NetNs::new().unwrap()];
    netlink(&spaces[0], |kernel| async move { up(&kernel, "lo").await });
    netlink(&spaces[1], |kernel| async move { up(&kernel, "lo").await });
    let far = spaces[1].clone();
    netlink(&spaces[0], |kernel| async move { kernel.add_veth("eth0", "eth0", &far).await.unwrap() });
    let port = 8472;
    let mut number = 0;
    spaces.map(|ns| {
        number += 1;
        let (own, other, family) = (number, 3 - number, shape.underlay);
        netlink(&ns, |kernel| async move {
            let bits = if family == Family::V4 { 24 } else { 64 };
            let net = IpNet::new(underlay(own, family), bits).unwrap();
            kernel.add_address("eth0", net).await.unwrap();
            up(&kernel, "eth0").await;
        });
        let bind = SocketAddr::from((underlay(own, family), port));
        let config = config("flannel.1", shape, bind);
        let engine = ns.run("open", || Engine::open(&config)).unwrap().unwrap();
        let mtu = u32::from(config.mtu.get());
        netlink(&ns, |kernel| async move {
            let settings = LinkSettings {
                mtu: Some(mtu),
                tx_queue_len: Some(1000),
                addr_gen_none: true,
                ..LinkSettings::default()
            };
            kernel.set_link("flannel.1", &settings).await.unwrap();
            for (family, bits) in [(Family::V4, 16), (Family::V6, 48)] {
                let net = IpNet::new(overlay(own, family), bits).unwrap();
                kernel.add_address("flannel.1", net).await.unwrap();
            }
            up(&kernel, "flannel.1").await;
        });
        let endpoint = SocketAddr::from((underlay(other, family), port));
        let engine = engine.start(table(own, other, endpoint)).unwrap();
        Node { ns, number: own, engine }
    })
}

async fn up(kernel: &Kernel, name: &str) {
    let settings = LinkSettings { up: Some(true), ..LinkSettings::default() };
    kernel.set_link(name, &settings).await.unwrap();
}

impl Node {
    /// The address of its TUN device.
    pub(crate) fn address(&self, family: Family) -> IpAddr {
        overlay(self.number, family)
    }
}
