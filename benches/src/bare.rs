//! An engine without its daemon, as a way of the race: the same engine with one lease and with a hundred thousand.
//!
//! A daemon with a hundred thousand lease files has work of its own (it reads them all every few seconds), which would be
//! measured with the look-ups. Here each node runs this program's hidden command, which opens an engine, tells it the
//! peers once, and does nothing more.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use dataplane::{Engine, EngineConfig, Features, Tuning};
use dataplane_core::{Encap, Family, LinkMtu, Local, MacAddr, OverlayMtu, SourceCheck, Vni};
use hostnet::kernel::{Kernel, LinkSettings};
use hostnet::state::Route;
use ipnet::IpNet;
use lab::cluster::vxlan::{VxlanEnd, subnets};
use lab::race::Scenario;
use lab::race::way::{Role, Started, Starter};
use lab::{Cluster, PodNetwork, leases};

use crate::lookup;

/// flannel's VXLAN port.
const PORT: u16 = 8472;
const LINK_MTU: u16 = 1500;
const DEVICE: &str = "flannel.1";
/// What the command says when packets flow.
const READY: &str = "ready";
/// How long a table of a hundred thousand peers may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A pair of engines that know so many nodes beside each other.
#[derive(Clone, Copy, Debug)]
pub struct BareEngine {
    /// Leases of nodes that are not there.
    pub crowd: usize,
}

impl Starter for BareEngine {
    fn name(&self) -> String {
        match self.crowd {
            0 => "bare engine (1 lease)".to_owned(),
            crowd => format!("bare engine ({crowd} leases)"),
        }
    }

    fn role(&self) -> Role {
        Role::Ablation
    }

    fn takes(&self, scenario: Scenario) -> bool {
        matches!(scenario, Scenario::Tcp1 | Scenario::Udp64)
    }

    fn crowd(&self) -> usize {
        self.crowd
    }

    fn start(&self, cluster: &Cluster, _: &Path) -> anyhow::Result<Started> {
        let program = std::env::current_exe().context("find this program")?;
        let mut processes = Vec::new();
        for (number, node) in cluster.nodes().iter().enumerate() {
            let mut command = Command::new(&program);
            command.arg("bare-engine").arg(number.to_string()).arg(self.crowd.to_string());
            processes.push(node.spawn(command)?);
        }
        for process in &processes {
            process.wait_for_line(READY, PATIENCE)?;
        }
        let mtu = u32::from(mtu()?.get());
        let networks = subnets(2, true, false).into_iter().map(|subnets| PodNetwork { subnets, mtu });
        Ok(Started { networks: networks.collect(), processes })
    }
}

fn mtu() -> anyhow::Result<OverlayMtu> {
    OverlayMtu::over(LinkMtu(LINK_MTU), &encap()?, Family::V4).context("1500 bytes are enough")
}

fn encap() -> anyhow::Result<Encap> {
    Ok(Encap::Vxlan { vni: Vni::new(1).context("1 is a VNI")? })
}

/// The ends of the two nodes as the lab addresses them.
fn ends() -> anyhow::Result<Vec<VxlanEnd>> {
    let end = |(number, subnet): (u8, IpNet)| VxlanEnd {
        subnet,
        mac: [0x02, 0, 0, 0, 4, number],
        public: IpAddr::from([192, 0, 2, number]),
    };
    Ok((1..).zip(subnets(2, true, false).into_iter().flatten()).map(end).collect())
}

/// The hidden command: runs the engine of the first node (0) or the second (1) in this network namespace until killed.
///
/// # Errors
///
/// When the engine cannot be opened or the kernel refuses a step.
pub fn run(number: usize, crowd: usize) -> anyhow::Result<()> {
    let ends = ends()?;
    let (Some(own), Some(peer)) = (ends.get(number), ends.get(1 - number.min(1))) else {
        bail!("a pair has nodes 0 and 1, not {number}");
    };
    let config = EngineConfig {
        device: DEVICE.to_owned(),
        encap: encap()?,
        mtu: mtu()?,
        bind: SocketAddr::new(own.public, PORT),
        off: Features::NONE,
        source_check: SourceCheck::Loose,
        tuning: Tuning::default(),
    };
    let engine = Engine::open(&config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(set_up(own, peer))?;
    // Its threads are no threads of the engine.
    drop(runtime);
    let (network, _) = leases::CROWD_NETWORK;
    let local = Local {
        subnets: vec![own.subnet],
        networks: vec![network.into()],
        mac: MacAddr(own.mac),
        addresses: vec![own.subnet.network()],
    };
    let _engine = engine.start(lookup::table(local, PORT, crowd, &[*peer])?)?;
    writeln!(std::io::stdout(), "{READY}").context("say that the engine runs")?;
    loop {
        thread::park();
    }
}

/// The device as the daemon sets it up, and a route to the peer that is there.
async fn set_up(own: &VxlanEnd, peer: &VxlanEnd) -> anyhow::Result<()> {
    let kernel = Kernel::connect().await?;
    let settings = LinkSettings {
        mtu: Some(mtu()?.get().into()),
        tx_queue_len: Some(1000),
        addr_gen_none: true,
        ..LinkSettings::default()
    };
    kernel.set_link(DEVICE, &settings).await?;
    kernel.add_address(DEVICE, IpNet::from(own.subnet.network())).await?;
    kernel.set_link(DEVICE, &LinkSettings { up: Some(true), ..LinkSettings::default() }).await?;
    kernel.replace_route(&Route::new(peer.subnet, DEVICE)).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_nodes_are_each_others_peers_and_no_others() {
        let ends = ends().unwrap();
        assert_eq!(ends.len(), 2);
        assert_ne!(ends[0], ends[1]);
        let crowd = leases::of_crowd(0).unwrap();
        assert!(ends.iter().all(|end| !crowd.subnet.contains(&end.subnet)));
    }
}
