//! The `loopback` plugin: sets a container's loopback device up.

use hostnet::Errno;
use hostnet::kernel::{Kernel, LinkSettings};
use hostnet::state::LinkAddress;

use crate::plugin::Plugin;
use crate::protocol::{AddResult, CniError, Interface, IpConfig, Request};
use crate::sandbox::{enter, open, run};

/// The device, whatever the runtime calls it: there is one in every namespace.
const DEVICE: &str = "lo";

/// The plugin.
#[derive(Clone, Copy, Debug)]
pub struct Loopback;

impl Plugin for Loopback {
    const NAME: &'static str = "loopback";

    fn add(&self, request: &Request) -> Result<AddResult, CniError> {
        let previous = request.previous()?;
        let addresses = enter(&open(&request.netns)?, async {
            let kernel = Kernel::connect().await?;
            kernel.set_link(DEVICE, &LinkSettings { up: Some(true), ..LinkSettings::default() }).await?;
            Ok(kernel.addresses().await?)
        })?;
        // Behind another plugin its result is the container's.
        Ok(previous.unwrap_or_else(|| result(request, &addresses)))
    }

    fn del(&self, request: &Request) -> Result<(), CniError> {
        // A namespace that is gone took its devices along.
        let Ok(namespace) = open(&request.netns) else { return Ok(()) };
        enter(&namespace, async {
            let kernel = Kernel::connect().await?;
            match kernel.set_link(DEVICE, &LinkSettings { up: Some(false), ..LinkSettings::default() }).await
            {
                Err(error) if error.errno != Errno::ENODEV => Err(error.into()),
                _ => Ok(()),
            }
        })
    }

    fn check(&self, request: &Request) -> Result<(), CniError> {
        let found =
            enter(&open(&request.netns)?, async { Ok(Kernel::connect().await?.link(DEVICE).await?) })?;
        match found {
            Some(link) if link.up => Ok(()),
            _ => Err(CniError::check(format!("the device {DEVICE} of the container is down"))),
        }
    }

    fn gc(&self, _request: &Request) -> Result<(), CniError> {
        Ok(())
    }

    fn status(&self, _request: &Request) -> Result<(), CniError> {
        run(async { Ok(Kernel::connect().await.map(drop)?) })
    }
}

fn result(request: &Request, addresses: &[LinkAddress]) -> AddResult {
    let own = addresses.iter().filter(|address| address.device == DEVICE);
    AddResult {
        interfaces: vec![Interface {
            name: DEVICE.to_owned(),
            mac: "00:00:00:00:00:00".to_owned(),
            sandbox: request.netns.clone(),
            ..Interface::default()
        }],
        ips: own
            .map(|address| IpConfig { interface: Some(0), address: address.net, gateway: None })
            .collect(),
        ..AddResult::default()
    }
}
