//! `flanneld explain`: what a daemon with the same flags would decide and do here, and why. Nothing is changed: the VXLAN
//! probe happens in a network namespace that is made for it and gone with it.

use std::fmt::Write;
use std::time::Duration;

use anyhow::Context;
use dataplane_core::MacAddr;
use hostnet::HostError;
use hostnet::kernel::Kernel;
use hostnet::netns::NetNs;

use super::start::{Macs, View, choose_underlay, existing_vxlan, settle_backend};
use super::{carrier, earlier};
use crate::backend::Backend;
use crate::choose::{self, KernelVxlan, Wish};
use crate::lease::{Lease, LeaseSet, LeaseUpdate};
use crate::network::NetworkConfig;
use crate::plan::Plan;
use crate::settings::{Settings, StoreChoice};
use crate::store::{FileStore, KubeStore, LeaseStore, LeaseWatch, SystemClock};

/// How long to wait for a store's leases.
const PATIENCE: Duration = Duration::from_secs(10);

/// Says what the daemon would decide and do.
pub async fn explain(settings: &Settings) -> anyhow::Result<String> {
    match &settings.store {
        StoreChoice::File { dir } => {
            explain_with(settings, &FileStore::at(dir, &settings.net_config_path, SystemClock)).await
        }
        StoreChoice::Kube(kube) => {
            explain_with(settings, &KubeStore::open(kube, &settings.net_config_path)?).await
        }
        #[cfg(feature = "etcd")]
        StoreChoice::Etcd(etcd) => explain_with(settings, &crate::store::EtcdStore::open(etcd)?).await,
        #[cfg(not(feature = "etcd"))]
        StoreChoice::Etcd(_) => anyhow::bail!(super::WITHOUT_ETCD),
    }
}

async fn explain_with(settings: &Settings, store: &impl LeaseStore) -> anyhow::Result<String> {
    let mut text = String::new();
    let network = store.network().await?;
    let networks: Vec<String> = network.pools().map(|pool| pool.network().to_string()).collect();
    writeln!(text, "network    {}, backend {}", networks.join(" and "), network.backend.name())?;
    for notice in &network.notices {
        writeln!(text, "           {notice}")?;
    }
    let kernel = Kernel::connect().await?;
    let known_as = store.node_addresses().await?;
    let view = View::new(settings, &network, store.public_addresses().await?, known_as);
    let underlay = choose_underlay(&view, &kernel).await?;
    writeln!(text, "interface  {underlay}")?;

    let wish = Wish::of(settings.engine, &network);
    let found = match choose::wants_probe(&network, wish) {
        true => probed_elsewhere(existing_vxlan(&network, &kernel).await?.as_deref()).await,
        false => KernelVxlan::Impossible("it was not asked for".to_owned()),
    };
    let choice = choose::choose(&network, wish, &found)?;
    for (at, line) in choice.to_string().lines().enumerate() {
        writeln!(text, "{:10} {line}", if at == 0 { "carrier" } else { "" })?;
    }

    let leases = tokio::time::timeout(PATIENCE, async { anyhow::Ok(store.watch().await?.next().await) })
        .await
        .context("the store does not tell its leases")??;
    let all = leases.all().unwrap_or_default();
    let anonymous = Backend::new(&network, choice.method, &underlay, |_| MacAddr::default())?;
    let held = match anonymous.attrs().owner() {
        Some(owner) => store.held_by(owner).await?,
        None => None,
    };
    let backend =
        settle_backend(settings, (&network, &underlay), anonymous, held.as_ref(), all, Macs::Forget)?;
    match &held {
        Some(own) => writeln!(text, "lease      {}, this node's already", own.subnet)?,
        None => writeln!(text, "lease      none yet: one of {} would be taken", networks.join(" and "))?,
    }
    writeln!(text, "pods       mtu {}", backend.mtu())?;
    write_plan(&mut text, settings, &kernel, &network, &backend, held.as_ref(), leases).await?;
    Ok(text)
}

/// What would be changed on this host, in the order of doing.
async fn write_plan(
    text: &mut String,
    settings: &Settings,
    kernel: &Kernel,
    network: &NetworkConfig,
    backend: &Backend,
    own: Option<&Lease>,
    update: LeaseUpdate,
) -> anyhow::Result<()> {
    let Some(own) = own else {
        let all = update.all().unwrap_or_default().len();
        writeln!(text, "plan       depends on the lease; other nodes have {all}")?;
        return Ok(());
    };
    let mut leases = LeaseSet::new(own.subnet);
    leases.apply(update);
    let mut plan = backend.plan(own, &leases);
    if settings.blackhole {
        plan.drop_strays(own);
    }
    let mut steps = Vec::new();
    for tunnel in backend.engine_tunnels() {
        for link in carrier::in_the_way(kernel, backend, tunnel).await? {
            steps.push(format!("delete the kernel's VXLAN device {}", link.name));
        }
        steps.push(format!(
            "run an engine on {}, {} port {}",
            tunnel.device,
            network.backend.name(),
            tunnel.bind.port()
        ));
    }
    for device in &plan.devices {
        let there = kernel.link(&device.name).await?;
        let index = Some(backend.underlay().index);
        match there.map(|link| device.differs_from(&link, index)) {
            Some(None) => {}
            Some(Some(reason)) => steps.push(format!("make the device {} again: {reason}", device.name)),
            None => steps.push(format!(
                "make the VXLAN device {} id {} port {}",
                device.name, device.vni, device.port
            )),
        }
    }
    let mut scope = Plan::scope(backend);
    scope.gateway_routes = true;
    let have = kernel.read(&scope).await?;
    steps.extend(have.changes_to(&plan.host).iter().map(ToString::to_string));
    let unused = earlier::devices(kernel, backend).await?;
    let unused =
        unused.iter().filter(|link| !backend.tunnels().iter().any(|tunnel| tunnel.device == link.name));
    steps.extend(unused.map(|link| format!("delete the device {} of an earlier run", link.name)));
    if steps.is_empty() {
        steps.push("nothing: devices, addresses, neighbours and routes are as they should be".to_owned());
    }
    for (at, step) in steps.iter().enumerate() {
        writeln!(text, "{:10} {step}", if at == 0 { "plan" } else { "" })?;
    }
    writeln!(
        text,
        "           not looked at: rules of the packet filter, the guard, {}",
        settings.subnet_file.display()
    )?;
    for (subnet, why) in &plan.refused {
        writeln!(text, "not used   the lease of {subnet}: {why}")?;
    }
    Ok(())
}

/// Makes the probe device where nobody sees it. Who may not make a namespace for it, as in a container, is told what a
/// daemon would find out by trying.
async fn probed_elsewhere(there: Option<&str>) -> KernelVxlan {
    let attempt = tokio::task::spawn_blocking(|| {
        let elsewhere = NetNs::new()?;
        elsewhere.run("probe", || -> std::io::Result<Result<(), HostError>> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(async { Kernel::connect().await?.probe_vxlan().await }))
        })?
    });
    match (attempt.await, there) {
        (Ok(Ok(attempt)), _) => KernelVxlan::probed(attempt, there),
        (_, Some(device)) => KernelVxlan::Possible(format!("{device} is there")),
        (Ok(Err(error)), None) => KernelVxlan::Possible(format!(
            "assumed, because this process cannot make a network namespace to try it in ({error}); a daemon tries it \
             where it runs"
        )),
        (Err(error), None) => KernelVxlan::Impossible(format!("the attempt ended: {error}")),
    }
}
