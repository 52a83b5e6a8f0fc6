//! What carries a tunnel: an engine in this process, or the kernel's device. `host-gw` and `alloc` have neither.
//!
//! The two can have the same name, and then one takes the place of the other: the kernel's device stays when its daemon
//! stops, and goes when an engine needs its name or its port; an engine's device goes with its process.

use anyhow::{Context, bail};
use dataplane::{Engine, EngineConfig, EngineHandle};
use hostnet::kernel::{Ensured, Kernel, LinkSettings, Vxlan};
use hostnet::state::Link;

use super::earlier;
use crate::backend::{ALIAS, Backend, Tunnel};
use crate::plan::Peers;
use crate::settings::Settings;

/// A tunnel and the engine that carries it.
pub(super) struct Carrier {
    pub(super) tunnel: Tunnel,
    pub(super) engine: State,
    pub(super) published: Option<Peers>,
}

/// What the engine is doing.
pub(super) enum State {
    /// The device is there and has yet to get its address.
    Open(Engine),
    Running(EngineHandle),
    /// It ended, or has yet to be made; the next look opens it.
    Ended,
}

impl Carrier {
    /// Opens the engine of each tunnel that has one, except where the kernel's device of an earlier run is in the way:
    /// that one carries packets until this node has its lease, and only then makes room.
    pub(super) async fn open_all(
        settings: &Settings,
        kernel: &Kernel,
        backend: &Backend,
    ) -> anyhow::Result<Vec<Self>> {
        let mut carriers = Vec::new();
        let mut told = false;
        for tunnel in backend.engine_tunnels() {
            let engine = if in_the_way(kernel, backend, tunnel).await?.is_empty() {
                let engine = open_engine(settings, kernel, tunnel).await?;
                if !told {
                    tell_capabilities(&engine);
                    told = true;
                }
                State::Open(engine)
            } else {
                State::Ended
            };
            carriers.push(Self { tunnel: tunnel.clone(), engine, published: None });
        }
        Ok(carriers)
    }

    /// Opens an engine that ended or could not be opened yet; false if there was nothing to do.
    pub(super) async fn reopen(
        &mut self,
        settings: &Settings,
        kernel: &Kernel,
        backend: &Backend,
    ) -> anyhow::Result<bool> {
        if !matches!(self.engine, State::Ended) {
            return Ok(false);
        }
        for link in in_the_way(kernel, backend, &self.tunnel).await? {
            tracing::info!(device = link.name, "the kernel's VXLAN device makes room for the engine");
            earlier::delete(kernel, &link.name).await?;
        }
        let engine = open_engine(settings, kernel, &self.tunnel).await?;
        tell_capabilities(&engine);
        self.engine = State::Open(engine);
        Ok(true)
    }

    /// Starts the engine if its device is ready, or gives it the new peers.
    pub(super) fn provide(&mut self, peers: &Peers) -> anyhow::Result<()> {
        if self.published.as_ref() == Some(peers) {
            return Ok(());
        }
        let table = peers.table()?;
        match std::mem::replace(&mut self.engine, State::Ended) {
            State::Open(engine) => self.engine = State::Running(engine.start(table)?),
            State::Running(handle) => {
                handle.publish(table);
                self.engine = State::Running(handle);
            }
            State::Ended => return Ok(()),
        }
        self.published = Some(peers.clone());
        Ok(())
    }
}

fn tell_capabilities(engine: &Engine) {
    for line in engine.capabilities().to_string().lines() {
        tracing::info!("engine {line}");
    }
}

/// VXLAN devices of the kernel that hold an engine's name, or its port.
pub(super) async fn in_the_way(
    kernel: &Kernel,
    backend: &Backend,
    tunnel: &Tunnel,
) -> anyhow::Result<Vec<Link>> {
    let mut links = earlier::devices(kernel, backend).await?;
    links.retain(|link| match &link.vxlan {
        Some(info) => link.name == tunnel.device || info.port == tunnel.bind.port(),
        None => false,
    });
    Ok(links)
}

/// Opens the engine of a tunnel, and explains a device of our name that is none of ours.
async fn open_engine(settings: &Settings, kernel: &Kernel, tunnel: &Tunnel) -> anyhow::Result<Engine> {
    if let Some(link) = kernel.link(&tunnel.device).await? {
        match link.kind.as_deref() {
            // One of our own that outlives its process, or one that a running process holds: opening it tells.
            Some("tun") => {}
            kind => bail!(
                "there is a device named {device} already, of kind {kind}, and this node needs the name for its own TUN \
                 device: stop what made it, then remove it with: ip link delete {device}",
                device = tunnel.device,
                kind = kind.unwrap_or("physical"),
            ),
        }
    }
    let config = EngineConfig {
        device: tunnel.device.clone(),
        encap: tunnel.encap,
        mtu: tunnel.mtu,
        bind: tunnel.bind,
        off: settings.engine_off,
        source_check: settings.source_check,
        tuning: settings.tuning.clone(),
    };
    Ok(Engine::open(&config)?)
}

/// Takes a device of ours out of a bridge or bond: what comes by it would go there. Answers whether it was in one.
pub(super) async fn detach(kernel: &Kernel, link: &Link) -> anyhow::Result<bool> {
    if link.master.is_none() {
        return Ok(false);
    }
    let alone = LinkSettings { master: Some(String::new()), ..LinkSettings::default() };
    kernel.set_link(&link.name, &alone).await?;
    tracing::warn!(device = link.name, "somebody had made it a port of a bridge, put right");
    Ok(true)
}

/// Makes the kernel's device, unless one that serves is there; answers whether something changed. An engine's device of
/// the name makes room, if no process holds it.
pub(super) async fn ensure(kernel: &Kernel, vxlan: &Vxlan) -> anyhow::Result<bool> {
    let device = &vxlan.name;
    if let Some(link) = kernel.link(device).await?
        && link.kind.as_deref() == Some("tun")
    {
        if link.carrier {
            bail!(
                "a running process holds the TUN device {device}, and this node needs the name for its VXLAN device: \
                 stop that process (`ss -lunp` shows who listens on port {})",
                vxlan.port
            );
        }
        tracing::info!(device, "the engine's device of an earlier run makes room for the kernel's");
        earlier::delete(kernel, device).await?;
    }
    if kernel.link(device).await?.is_none()
        && let Some(twin) = kernel.twin_of(vxlan).await?
        && twin.alias.as_deref() == Some(ALIAS)
    {
        tracing::warn!(device, "somebody had renamed it to {}, made again", twin.name);
        earlier::delete(kernel, &twin.name).await?;
    }
    let (link, ensured) =
        kernel.ensure_vxlan(vxlan).await.with_context(|| format!("make the device {device}"))?;
    let detached = detach(kernel, &link).await?;
    match &ensured {
        Ensured::Kept => return Ok(detached),
        Ensured::Made => tracing::info!(device, "made the kernel's VXLAN device"),
        Ensured::Remade(reason) => tracing::warn!(device, reason, "made the kernel's VXLAN device again"),
    }
    Ok(true)
}
