//! The promises of a lab, each kept in private namespaces.

use std::process::ExitCode;
use std::time::Duration;

use lab::cluster::vxlan::{KernelVxlan, subnets};
use lab::traffic::{Path, echo, tcp, udp};
use lab::{Cluster, LinkModel, Plan, Pod, Scene};

fn main() -> ExitCode {
    lab::harness("lab-tests", lab::cases![three_nodes_with_host_routes_reach_each_other,])
}

fn add_pods(cluster: &mut Cluster, networks: &[lab::PodNetwork]) -> anyhow::Result<()> {
    for (node, network) in cluster.nodes_mut().iter_mut().zip(networks) {
        node.add_pod(network)?;
    }
    Ok(())
}

fn three_nodes_with_host_routes_reach_each_other(_: &Scene) -> anyhow::Result<()> {
    let mut cluster = Cluster::build(&Plan::nodes(3))?;
    let networks = cluster.host_routes(&subnets(3, true, true))?;
    add_pods(&mut cluster, &networks)?;
    let matrix = cluster.matrix(Duration::from_secs(2))?;
    assert_eq!(matrix.len(), 3 * 2 * 2);
    for cell in matrix {
        println!("{cell:?}");
        assert!(cell.answer.microseconds().is_some(), "{cell:?}");
    }
    Ok(())
}
