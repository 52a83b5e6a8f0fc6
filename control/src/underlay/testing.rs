//! An underlay for tests.

use dataplane_core::LinkMtu;

use super::{End, Underlay};

/// 192.0.2.1/24 on `eth0`, the device with index 2.
pub(crate) fn on_eth0() -> Underlay {
    let local = [192, 0, 2, 1].into();
    Underlay {
        device: "eth0".to_owned(),
        index: 2,
        mtu: LinkMtu(1500),
        on_link: vec!["192.0.2.0/24".parse().unwrap()],
        v4: Some(End { local, public: local }),
        v6: None,
    }
}
