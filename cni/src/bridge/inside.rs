//! In the container: addresses, routes and settings of its device.

use std::net::IpAddr;
use std::time::Duration;

use hostnet::Errno;
use hostnet::kernel::{Kernel, LinkSettings, PodRoute};
use hostnet::state::RouteScope;

use super::config::Config;
use super::links::set_if_there;
use crate::protocol::{AddResult, CniError, Route};

/// How long an IPv6 address may take until it can be used.
const SETTLE: Duration = Duration::from_secs(10);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Gives the container's device what the result says, and sets it up. Runs in the container.
pub(super) async fn configure(
    kernel: &Kernel,
    config: &Config,
    ifname: &str,
    result: &AddResult,
) -> Result<(), CniError> {
    let has_v6 = result.ips.iter().any(|ip| ip.address.addr().is_ipv6());
    let (detection, enhanced) = if config.duplicate_detection { ("1", "1") } else { ("0", "0") };
    set_if_there(&format!("net/ipv6/conf/{ifname}/accept_dad"), detection)?;
    set_if_there(&format!("net/ipv6/conf/{ifname}/enhanced_dad"), enhanced)?;
    // Neighbours learn the address at once where another container had it.
    set_if_there(&format!("net/ipv4/conf/{ifname}/arp_notify"), "1")?;
    if has_v6 {
        for device in ["lo", ifname] {
            set_if_there(&format!("net/ipv6/conf/{device}/disable_ipv6"), "0")?;
        }
        set_if_there(&format!("net/ipv6/conf/{ifname}/keep_addr_on_down"), "1")?;
    }
    for ip in &result.ips {
        kernel.add_address(ifname, ip.address).await?;
    }
    kernel.set_link(ifname, &LinkSettings { up: Some(true), ..LinkSettings::default() }).await?;
    if has_v6 {
        settle(kernel, ifname).await?;
    }
    for route in &result.routes {
        kernel.replace_pod_route(ifname, &as_pod_route(route, result)).await?;
    }
    Ok(())
}

/// Deletes the container's device. Runs in the container.
pub(super) async fn remove(ifname: &str) -> Result<(), CniError> {
    match Kernel::connect().await?.delete_link(ifname).await {
        Err(error) if error.errno != Errno::ENODEV => Err(error.into()),
        _ => Ok(()),
    }
}

/// A route as the kernel takes it: by its own gateway, or by the first one of its family.
pub(super) fn as_pod_route(route: &Route, result: &AddResult) -> PodRoute {
    let is_v4 = route.dst.addr().is_ipv4();
    let of_family = |gateway: &IpAddr| gateway.is_ipv4() == is_v4;
    let default = || result.ips.iter().filter_map(|ip| ip.gateway).find(of_family);
    PodRoute {
        dest: route.dst,
        via: route.gateway.or_else(default),
        mtu: route.mtu,
        adv_mss: route.adv_mss,
        priority: route.priority,
        table: route.table,
        scope: route.scope.map(RouteScope),
    }
}

async fn settle(kernel: &Kernel, ifname: &str) -> Result<(), CniError> {
    let look = async {
        loop {
            let found = kernel.addresses().await?;
            if !found.iter().any(|address| address.device == ifname && address.tentative && address.permanent)
            {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(SETTLE, look).await.unwrap_or_else(|_elapsed| {
        Err(CniError::internal(format!("the IPv6 addresses of {ifname} cannot be used after {SETTLE:?}"))
            .with_details(
                "another container may have one of them: duplicate address detection looks for that",
            ))
    })
}
