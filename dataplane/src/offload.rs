//! What is on right now: the usable features minus those that the kernel has refused since.

use crate::probe::{Capabilities, Feature, Features};

/// The features in use, owned by one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offload {
    on: Features,
    max_segments: usize,
}

/// A feature that the kernel refused while packets flowed, and the error it gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demotion {
    /// The feature that is off from here on, or until [`EngineEvent::Restored`](crate::EngineEvent::Restored).
    pub feature: Feature,
    /// The kernel's `errno`.
    pub errno: i32,
}

impl Offload {
    /// All that the probes found usable.
    #[must_use]
    pub fn new(capabilities: &Capabilities) -> Self {
        Self { on: capabilities.usable(), max_segments: capabilities.max_segments() }
    }

    /// `on` with at most `max_segments` datagrams a send: for workers on a wire of their own.
    #[must_use]
    pub fn with(on: Features, max_segments: usize) -> Self {
        Self { on, max_segments }
    }

    /// True while `feature` is in use.
    #[must_use]
    pub fn has(&self, feature: Feature) -> bool {
        self.on.contains(feature)
    }

    /// The features in use.
    #[must_use]
    pub fn features(&self) -> Features {
        self.on
    }

    /// Most datagrams that one message may carry: 1 without `udp-gso`.
    #[must_use]
    pub fn max_segments(&self) -> usize {
        if self.has(Feature::UdpGso) { self.max_segments } else { 1 }
    }

    /// Takes `feature` out of use. `Some` the first time, so that it is said once.
    pub fn demote(&mut self, feature: Feature, errno: i32) -> Option<Demotion> {
        let had = self.has(feature);
        self.on = self.on.without(feature);
        had.then_some(Demotion { feature, errno })
    }

    /// Takes `feature` into use again after a demotion.
    pub(crate) fn restore(&mut self, feature: Feature) {
        self.on = self.on.with(feature);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demotion_is_said_once() {
        let mut offload = Offload::with(Features::ALL, 128);
        assert_eq!(offload.max_segments(), 128);
        let said = offload.demote(Feature::UdpGso, libc::EIO);
        assert_eq!(said, Some(Demotion { feature: Feature::UdpGso, errno: libc::EIO }));
        assert_eq!(offload.demote(Feature::UdpGso, libc::EINVAL), None);
        assert_eq!(offload.max_segments(), 1);
        assert_eq!(offload.features(), Features::ALL.without(Feature::UdpGso));
        offload.restore(Feature::UdpGso);
        assert_eq!(offload, Offload::with(Features::ALL, 128));
    }
}
