//! How many workers, and how many source ports they send from.
//!
//! The kernel gives all datagrams of one outer source address and port to one socket. Between two nodes that each use a
//! single port, that is one worker on either side, however many there are; with several source ports a peer's flows
//! spread over its workers, its receive queues and the links on the way. Each flow keeps to one source port, chosen by
//! its own hash and never by the worker that sends it: the workers' choice follows from the ports, so that a choice of
//! ports by worker could send a flow round in circles.

use std::num::NonZeroU8;

use dataplane_core::Encap;

use super::spin::Spin;

/// Most workers unless told: four move more than most links carry, and a node's CPUs are for its pods.
const USUAL_WORKERS: usize = 4;
/// Source ports for each worker: with so many, a hash seldom leaves one of a peer's workers without any.
const LANES_PER_WORKER: usize = 4;
/// Most source ports: each one's datagrams make trains of their own, which get shorter with every port.
const MAX_LANES: usize = 16;

/// How an engine uses the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    /// How many workers; `None` for half of the CPUs that the process may use, at most four.
    pub workers: Option<NonZeroU8>,
    /// How a worker waits.
    pub spin: Spin,
    /// How many threads a worker has.
    pub duplex: Duplex,
    /// Where datagrams leave from.
    pub source_ports: SourcePorts,
}

/// Whether a worker has a thread for each direction.
///
/// Two threads give one flow two CPUs: a bulk sender's worker is busy with reads, sends and the kernel's segmentation, and
/// on the way back each ACK makes the inner stack send more, in the thread that writes it to the TUN. Where CPUs are
/// scarce they take them from the programs at both ends, and cannot spin: on two, one stream gained 5 %, eight lost 10 %,
/// and a round trip took 110 us for 25.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Duplex {
    /// Two threads a worker where four CPUs for each worker are there, so that programs and spinning have theirs.
    #[default]
    Auto,
    /// One thread that takes turns.
    Half,
    /// Two threads.
    Full,
}

impl Duplex {
    /// Whether `workers` workers on `cpus` CPUs have two threads each.
    pub(super) fn is_split(self, cpus: usize, workers: usize) -> bool {
        match self {
            Self::Auto => cpus >= 4 * workers,
            Self::Half => false,
            Self::Full => true,
        }
    }
}

/// Which source ports an engine's datagrams have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourcePorts {
    /// Several for VXLAN, as RFC 7348 wants and the kernel does; one for the raw format, as flannel has it. With one
    /// worker always one.
    #[default]
    Auto,
    /// The port that the engine listens on, for firewalls that insist on it.
    Fixed,
    /// Several, in either format: receivers do not look at them.
    Spread,
}

impl Tuning {
    /// How many workers where the process may use `cpus` CPUs.
    pub(super) fn worker_count(&self, cpus: usize) -> usize {
        match self.workers {
            Some(workers) => workers.get().into(),
            None => (cpus / 2).clamp(1, USUAL_WORKERS),
        }
    }

    /// How many source ports for `workers` workers.
    pub(super) fn lanes(&self, encap: &Encap, workers: usize) -> u8 {
        let spread = match (self.source_ports, encap) {
            (SourcePorts::Spread, _) => true,
            (SourcePorts::Auto, Encap::Vxlan { .. }) => workers > 1,
            (SourcePorts::Auto, Encap::Raw) | (SourcePorts::Fixed, _) => false,
        };
        if spread { (workers * LANES_PER_WORKER).min(MAX_LANES) as u8 } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataplane_core::Vni;

    #[test]
    fn workers_follow_the_cpus() {
        let tuning = Tuning::default();
        let counts = [1, 2, 4, 8, 64].map(|cpus| tuning.worker_count(cpus));
        assert_eq!(counts, [1, 1, 2, 4, 4]);
        let told = Tuning { workers: NonZeroU8::new(7), ..Tuning::default() };
        assert_eq!(told.worker_count(2), 7);
    }

    #[test]
    fn a_thread_for_each_direction_wants_cpus_to_spare() {
        let auto = |cpus| Duplex::Auto.is_split(cpus, Tuning::default().worker_count(cpus));
        assert_eq!([1, 2, 4, 8, 16, 64].map(auto), [false, false, false, false, true, true]);
        assert!(Duplex::Auto.is_split(4, 1));
        assert!(Duplex::Full.is_split(1, 1) && !Duplex::Half.is_split(64, 1));
    }

    #[test]
    fn the_raw_format_keeps_flannels_source_port_unless_told() {
        let vxlan = Encap::Vxlan { vni: Vni::new(1).unwrap() };
        let lanes = |source_ports, encap: &Encap, workers| {
            Tuning { source_ports, ..Tuning::default() }.lanes(encap, workers)
        };
        assert_eq!(lanes(SourcePorts::Auto, &Encap::Raw, 4), 1);
        assert_eq!(lanes(SourcePorts::Auto, &vxlan, 1), 1);
        assert_eq!(lanes(SourcePorts::Auto, &vxlan, 4), 16);
        assert_eq!(lanes(SourcePorts::Fixed, &vxlan, 4), 1);
        assert_eq!(lanes(SourcePorts::Spread, &Encap::Raw, 1), 4);
        assert_eq!(lanes(SourcePorts::Spread, &vxlan, 200), 16);
    }
}
