//! Pod subnets by plain routes to the nodes' addresses: no tunnel, the ceiling that every overlay is measured against.

use anyhow::Context;
use hostnet::kernel::Kernel;
use hostnet::state::Route;
use ipnet::IpNet;

use super::netlink::in_namespace;
use super::node::DEVICE;
use super::{Cluster, PodNetwork};

impl Cluster {
    /// Gives every node a route to every other node's subnets by that node's address. `subnets` are those of the first
    /// node, of the second, ... Answers what each node's pods are to be made from.
    ///
    /// # Errors
    ///
    /// When a subnet's family is not the underlay's, or the kernel refuses a route.
    pub fn host_routes(&self, subnets: &[Vec<IpNet>]) -> anyhow::Result<Vec<PodNetwork>> {
        self.check_subnets(subnets)?;
        for (here, node) in self.nodes().iter().enumerate() {
            let mut routes = Vec::new();
            for (there, subnets) in subnets.iter().enumerate().filter(|(there, _)| *there != here) {
                let peer = &self.nodes()[there];
                for subnet in subnets {
                    let via = peer.address_for(subnet)?;
                    routes.push(Route { via: Some(via), ..Route::new(*subnet, DEVICE) });
                }
            }
            in_namespace(node.namespace(), async |kernel: Kernel| {
                for route in &routes {
                    kernel.replace_route(route).await?;
                }
                Ok(())
            })
            .with_context(|| format!("set host routes on {}", node.name()))?;
        }
        let mtu = self.plan().mtu;
        Ok(subnets.iter().map(|subnets| PodNetwork { subnets: subnets.clone(), mtu }).collect())
    }
}
