//! The interface that carries the overlay changes its address, its MTU, its name, or is made again: the node follows.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use dataplane_core::IpNet;
use hostnet::kernel::{Kernel, LinkSettings};
use hostnet::netns::NetNs;
use hostnet::subnet_env::SubnetEnv;
use lab::{Plan, Scene, Underlay};
use promises::cluster::{Inner, Ours, net_conf};
use promises::daemon::PATIENCE;
use promises::host::until;
use promises::{harness, netlink};

fn main() -> ExitCode {
    harness::of_daemons(
        "promise-underlay",
        lab::cases![
            a_changed_address_is_published_and_the_lease_is_kept,
            an_interface_that_is_made_again_is_taken_up,
            an_interface_that_flaps_leaves_everything_as_it_was,
            a_renamed_interface_is_followed,
            a_changed_mtu_reaches_the_device_and_the_file,
            an_mtu_that_leaves_nothing_for_pods_changes_nothing,
            the_kernels_vxlan_follows_too,
        ],
    )
}

fn v4_plan() -> Plan {
    Plan { underlay: Underlay::V4, ..Plan::pair() }
}

fn started(scene: &Scene) -> anyhow::Result<Ours> {
    let ours = Ours::start(&v4_plan(), scene.dir(), &net_conf("vxlan", Inner::V4))?;
    ours.all_reach_each_other()?;
    Ok(ours)
}

/// The value of the lease of a node's subnet.
fn lease(dir: &Path, env: &SubnetEnv) -> anyhow::Result<serde_json::Value> {
    let key = env.subnets.first().context("a subnet")?.to_string().replace('/', "-");
    Ok(serde_json::from_slice(&fs::read(dir.join("store/subnets").join(key))?)?)
}

fn set(node: &NetNs, device: &str, settings: LinkSettings) -> anyhow::Result<()> {
    netlink::inside(node, async |kernel: Kernel| Ok(kernel.set_link(device, &settings).await?))
}

fn index_of(node: &NetNs, device: &str) -> anyhow::Result<Option<u32>> {
    netlink::inside(node, async |kernel: Kernel| Ok(kernel.link(device).await?.map(|link| link.index)))
}

/// As DHCP does it: the old one goes, a new one comes.
fn a_changed_address_is_published_and_the_lease_is_kept(scene: &Scene) -> anyhow::Result<()> {
    let ours = started(scene)?;
    let before = lease(scene.dir(), &ours.envs[1])?;
    let node = ours.cluster.nodes()[1].namespace();
    for (old, new) in [("192.0.2.2/24", "192.0.2.77/24"), ("192.0.2.77/24", "192.0.2.78/24")] {
        let (old, new): (IpNet, IpNet) = (old.parse()?, new.parse()?);
        netlink::inside(node, async |kernel: Kernel| {
            kernel.delete_address("eth0", old).await?;
            Ok(kernel.add_address("eth0", new).await?)
        })?;
        until("the new address is in the same lease", || {
            Ok(lease(scene.dir(), &ours.envs[1])?["PublicIP"] == new.addr().to_string())
        })
        .with_context(|| ours.daemons[1].log())?;
        ours.all_reach_each_other()?;
    }
    let after = lease(scene.dir(), &ours.envs[1])?;
    ensure!(after["BackendData"] == before["BackendData"], "another MAC: {after}");
    ensure!(fs::read_dir(scene.dir().join("store/subnets"))?.count() == 2, "a lease more");
    let said = ours.daemons[1].wait_for_line("the underlay changed, following it")?;
    ensure!(said.contains("192.0.2.77 in place of 192.0.2.2"), "{said}");
    ours.stop().map(drop)
}

/// Both ends of a virtual cable, as when a hypervisor replaces a network card.
fn an_interface_that_is_made_again_is_taken_up(scene: &Scene) -> anyhow::Result<()> {
    let ours = started(scene)?;
    let [one, two] = ours.cluster.nodes() else { anyhow::bail!("two nodes") };
    let before = index_of(one.namespace(), "eth0")?;
    netlink::inside(one.namespace(), async |kernel: Kernel| Ok(kernel.delete_link("eth0").await?))?;
    for daemon in &ours.daemons {
        let said = daemon.wait_for_line("is gone or has lost its address")?;
        ensure!(said.contains("--iface eth0: there is no such interface"), "{said}");
    }
    netlink::inside(one.namespace(), async |kernel: Kernel| {
        // The index of another device in between, so that the new one has another.
        kernel.add_bridge("between").await?;
        Ok(kernel.add_veth("eth0", "eth0", two.namespace()).await?)
    })?;
    for (node, net) in [(one, "192.0.2.1/24"), (two, "192.0.2.2/24")] {
        let net: IpNet = net.parse()?;
        let up = LinkSettings { up: Some(true), ..LinkSettings::default() };
        netlink::inside(node.namespace(), async |kernel: Kernel| {
            kernel.set_link("eth0", &up).await?;
            Ok(kernel.add_address("eth0", net).await?)
        })?;
    }
    ensure!(index_of(one.namespace(), "eth0")? != before);
    ours.all_reach_each_other()?;
    for daemon in &ours.daemons {
        daemon.wait_for_line("eth0 is another device than before")?;
    }
    ours.stop().map(drop)
}

fn an_interface_that_flaps_leaves_everything_as_it_was(scene: &Scene) -> anyhow::Result<()> {
    let ours = started(scene)?;
    let before = lease(scene.dir(), &ours.envs[0])?;
    let node = &ours.cluster.nodes()[0];
    let index = index_of(node.namespace(), "flannel.1")?;
    let descriptors = || anyhow::Ok(fs::read_dir(format!("/proc/{}/fd", ours.daemons[0].pid()))?.count());
    let open = descriptors()?;
    for _ in 0..50 {
        node.plug(false)?;
        node.plug(true)?;
    }
    ours.all_reach_each_other()?;
    ensure!(index_of(node.namespace(), "flannel.1")? == index, "the overlay's device was made again");
    ensure!(lease(scene.dir(), &ours.envs[0])? == before);
    until("no descriptor is left over", || Ok(descriptors()? <= open))?;
    ours.stop().map(drop)
}

fn a_renamed_interface_is_followed(scene: &Scene) -> anyhow::Result<()> {
    let ours = started(scene)?;
    let node = &ours.cluster.nodes()[0];
    // A device that is up can be renamed since Linux 6.2 only.
    for words in ["link set eth0 down", "link set eth0 name wan0", "link set wan0 up"] {
        let mut ip = Command::new("ip");
        ip.args(words.split(' '));
        let mut ip = node
            .spawn(ip)
            .map_err(|error| lab::skip(format!("no iproute2 to rename a device with: {error:#}")))?;
        let status = ip.wait(PATIENCE)?;
        ensure!(status.success(), "ip {words}: {status}: {:?}", ip.lines());
    }
    let said = ours.daemons[0].wait_for_line("the underlay changed, following it")?;
    ensure!(said.contains("wan0 in place of eth0"), "{said}");
    ours.all_reach_each_other()?;
    // It is followed under its new name.
    set(node.namespace(), "wan0", LinkSettings { mtu: Some(1400), ..LinkSettings::default() })?;
    ours.daemons[0].wait_for_line("MTU 1400 in place of 1500")?;
    ours.all_reach_each_other()?;
    ours.stop().map(drop)
}

fn a_changed_mtu_reaches_the_device_and_the_file(scene: &Scene) -> anyhow::Result<()> {
    let ours = started(scene)?;
    let before = lease(scene.dir(), &ours.envs[0])?;
    let node = ours.cluster.nodes()[0].namespace();
    for mtu in [1400_u32, 9000, 1500] {
        set(node, "eth0", LinkSettings { mtu: Some(mtu), ..LinkSettings::default() })?;
        let line = format!("FLANNEL_MTU={}\n", mtu - 50);
        until("the file says it", || Ok(fs::read_to_string(ours.daemons[0].subnet_file())?.contains(&line)))
            .with_context(|| ours.daemons[0].log())?;
        until("the device has it", || {
            netlink::inside(node, async |kernel: Kernel| {
                Ok(kernel.link("flannel.1").await?.is_some_and(|link| link.mtu == mtu - 50))
            })
        })?;
        ours.all_reach_each_other()?;
    }
    ours.daemons[0].wait_for_line("running ones keep theirs until they are made again")?;
    ensure!(lease(scene.dir(), &ours.envs[0])? == before, "an MTU is not published");
    ours.stop().map(drop)
}

fn an_mtu_that_leaves_nothing_for_pods_changes_nothing(scene: &Scene) -> anyhow::Result<()> {
    let ours = started(scene)?;
    let node = ours.cluster.nodes()[0].namespace();
    let mtu = |mtu| LinkSettings { mtu: Some(mtu), ..LinkSettings::default() };
    set(node, "eth0", mtu(600))?;
    let said = ours.daemons[0].wait_for_line("cannot be followed")?;
    ensure!(said.contains("leaves too little for the overlay"), "{said}");
    ours.all_reach_each_other()?;
    set(node, "eth0", mtu(1500))?;
    ours.daemons[0].wait_for_line("is there again")?;
    ensure!(SubnetEnv::read(ours.daemons[0].subnet_file())? == ours.envs[0]);
    ours.stop().map(drop)
}

fn the_kernels_vxlan_follows_too(scene: &Scene) -> anyhow::Result<()> {
    let config = net_conf("vxlan", Inner::V4);
    let ours = Ours::start_with(&v4_plan(), scene.dir(), &config, &["--engine=never"]).map_err(|error| {
        match format!("{error:#}").contains("EOPNOTSUPP") {
            true => lab::skip("the kernel has no VXLAN"),
            false => error,
        }
    })?;
    ours.all_reach_each_other()?;
    let before = lease(scene.dir(), &ours.envs[1])?;
    let node = ours.cluster.nodes()[1].namespace();
    let (old, new): (IpNet, IpNet) = ("192.0.2.2/24".parse()?, "192.0.2.77/24".parse()?);
    netlink::inside(node, async |kernel: Kernel| {
        kernel.delete_address("eth0", old).await?;
        Ok(kernel.add_address("eth0", new).await?)
    })?;
    until("the new address is in the same lease", || {
        Ok(lease(scene.dir(), &ours.envs[1])?["PublicIP"] == "192.0.2.77")
    })
    .with_context(|| ours.daemons[1].log())?;
    ours.all_reach_each_other()?;
    ensure!(lease(scene.dir(), &ours.envs[1])?["BackendData"] == before["BackendData"], "another MAC");
    set(node, "eth0", LinkSettings { mtu: Some(1400), ..LinkSettings::default() })?;
    until("the file and the device have the MTU", || {
        let file = fs::read_to_string(ours.daemons[1].subnet_file())?;
        let device = netlink::inside(node, async |kernel: Kernel| Ok(kernel.link("flannel.1").await?))?;
        Ok(file.contains("FLANNEL_MTU=1350\n") && device.is_some_and(|link| link.mtu == 1350))
    })
    .with_context(|| ours.daemons[1].log())?;
    ours.all_reach_each_other()
}
