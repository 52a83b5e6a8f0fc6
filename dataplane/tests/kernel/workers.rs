//! Promises of an engine with several workers: nothing is lost to the split. (`order.rs`: no flow is out of order.)

use std::net::SocketAddr;
use std::num::NonZeroU8;

use dataplane::core::Family;
use dataplane::{Duplex, Engine, EngineEvent, OpenError, SourcePorts, Tuning};

use super::pair::{Shape, config, netlink, pair, possible, underlay};
use super::{PATIENCE, everything_flows, stop};

fn with_workers(source_ports: SourcePorts, shape: Shape) -> Shape {
    Shape { tuning: Tuning { workers: NonZeroU8::new(2), source_ports, ..Tuning::default() }, ..shape }
}

#[test]
fn everything_flows_through_two_workers() {
    everything_flows(&with_workers(SourcePorts::Auto, Shape::vxlan()));
    everything_flows(&with_workers(SourcePorts::Spread, Shape { underlay: Family::V6, ..Shape::raw() }));
}

/// A thread for each direction, whatever this machine's CPUs are.
fn both_ways_at_once(workers: u8, shape: Shape) -> Shape {
    let workers = NonZeroU8::new(workers);
    Shape { tuning: Tuning { workers, duplex: Duplex::Full, ..Tuning::default() }, ..shape }
}

#[test]
fn everything_flows_through_a_thread_for_each_direction() {
    everything_flows(&both_ways_at_once(1, Shape::vxlan()));
    everything_flows(&both_ways_at_once(2, Shape { underlay: Family::V6, ..Shape::raw() }));
}

#[test]
fn two_workers_and_a_kernel_vxlan_node_reach_each_other() {
    everything_flows(&with_workers(SourcePorts::Auto, Shape { kernel: Some(true), ..Shape::vxlan() }));
}

#[test]
fn workers_share_their_port_with_nobody_else() {
    if !possible() {
        return;
    }
    let shape = with_workers(SourcePorts::Auto, Shape::vxlan());
    let nodes = pair(&shape);
    let bind = SocketAddr::from((underlay(1, Family::V4), 8472));
    let error =
        nodes[0].ns.run("open", || Engine::open(&config("other0", &shape, bind)).err().unwrap()).unwrap();
    assert!(matches!(error, OpenError::PortTaken { .. }), "{error}");
    stop(nodes);
}

#[test]
fn workers_end_together() {
    if !possible() {
        return;
    }
    for shape in [with_workers(SourcePorts::Auto, Shape::vxlan()), both_ways_at_once(2, Shape::vxlan())] {
        let [near, _far] = pair(&shape);
        netlink(&near.ns, |kernel| async move { kernel.delete_link("flannel.1").await.unwrap() });
        let said = near.engine().events().recv_timeout(PATIENCE).unwrap();
        assert!(matches!(said, EngineEvent::DeviceGone { .. }), "{said}");
        assert!(near.engine.unwrap().stop().is_err());
    }
}
