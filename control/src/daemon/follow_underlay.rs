//! What became of the underlay: still the same, changed, or gone. Pure.
//!
//! An interface that still has our addresses stays the one, whatever routes come and go: a choice that moved with every
//! new default route would move pods' traffic with it. Only where it is gone, or lost an address that peers send to, is
//! chosen anew, by the rules of the start.

use crate::settings::InterfaceChoice;
use crate::underlay::{Families, HostView, Underlay, UnderlayError};

/// What a look at the host found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing that matters changed.
    Same,
    /// Another interface, index, name, address or MTU.
    Changed(Underlay),
    /// It is there as it was, and carries nothing: it was set down, or has no carrier.
    Down(&'static str),
    /// There is none at present.
    Gone(UnderlayError),
}

/// Compares the underlay in use with what the host has.
pub(super) fn look(
    current: &Underlay,
    choice: &InterfaceChoice,
    families: Families,
    host: &HostView,
) -> Found {
    let chosen = match current.still_there(host) {
        Some(kept) => Ok(kept),
        None => Underlay::choose(choice, families, host),
    };
    match chosen {
        Ok(chosen) if chosen == *current => {
            match host.links.iter().find(|link| link.index == current.index) {
                Some(link) if !link.up => Found::Down("it is set down"),
                Some(link) if !link.carrier => Found::Down("it has no carrier: a cable or a peer is missing"),
                _ => Found::Same,
            }
        }
        Ok(chosen) => Found::Changed(chosen),
        Err(error) => Found::Gone(error),
    }
}

/// What is different, in words.
pub(super) fn difference(from: &Underlay, to: &Underlay) -> String {
    let mut parts = Vec::new();
    if from.device != to.device {
        parts.push(format!("{} in place of {}", to.device, from.device));
    } else if from.index != to.index {
        parts.push(format!("{} is another device than before", to.device));
    }
    let mut address = |from: Option<String>, to: Option<String>| {
        if from != to {
            let text = |end: Option<String>| end.unwrap_or_else(|| "none".to_owned());
            parts.push(format!("{} in place of {}", text(to), text(from)));
        }
    };
    let end = |local: String, public: String| match local == public {
        true => local,
        false => format!("{local} known as {public}"),
    };
    address(
        from.v4.map(|v4| end(v4.local.to_string(), v4.public.to_string())),
        to.v4.map(|v4| end(v4.local.to_string(), v4.public.to_string())),
    );
    address(
        from.v6.map(|v6| end(v6.local.to_string(), v6.public.to_string())),
        to.v6.map(|v6| end(v6.local.to_string(), v6.public.to_string())),
    );
    if from.mtu != to.mtu {
        parts.push(format!("MTU {} in place of {}", to.mtu.0, from.mtu.0));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use hostnet::state::{Link, LinkAddress, Route};

    use super::*;
    use crate::underlay::End;
    use crate::underlay::testing::on_eth0;

    const V4: Families = Families { v4: true, v6: false };

    fn link(index: u32, name: &str, mtu: u32) -> Link {
        Link { index, name: name.to_owned(), mtu, up: true, carrier: true, ..Link::default() }
    }

    fn address(link: &Link, net: &str) -> LinkAddress {
        LinkAddress::new(link.index, &link.name, net.parse().unwrap())
    }

    fn host(links: Vec<Link>, addresses: Vec<LinkAddress>, by: &str) -> HostView {
        HostView {
            links,
            addresses,
            routes: vec![Route::new("0.0.0.0/0".parse().unwrap(), by)],
            reach: None,
            known_as: Vec::new(),
        }
    }

    fn changed(host: &HostView) -> Underlay {
        match look(&on_eth0(), &InterfaceChoice::default(), V4, host) {
            Found::Changed(underlay) => underlay,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_default_route_that_moves_moves_nothing() {
        let (eth0, eth1) = (link(2, "eth0", 1500), link(3, "eth1", 9000));
        let addresses = vec![address(&eth0, "192.0.2.1/24"), address(&eth1, "198.51.100.1/24")];
        let host = host(vec![eth0, eth1], addresses, "eth1");
        assert_eq!(look(&on_eth0(), &InterfaceChoice::default(), V4, &host), Found::Same);
    }

    #[test]
    fn another_address_is_published_and_further_ones_are_not() {
        let eth0 = link(2, "eth0", 1500);
        let both = vec![address(&eth0, "192.0.2.9/24"), address(&eth0, "192.0.2.1/24")];
        let more = host(vec![eth0.clone()], both, "eth0");
        assert_eq!(look(&on_eth0(), &InterfaceChoice::default(), V4, &more), Found::Same);
        let other = vec![address(&eth0, "192.0.2.9/24")];
        let moved = changed(&host(vec![eth0], other, "eth0"));
        assert_eq!(moved.v4.map(|end| end.public.to_string()).as_deref(), Some("192.0.2.9"));
        assert_eq!(difference(&on_eth0(), &moved), "192.0.2.9 in place of 192.0.2.1");
    }

    #[test]
    fn an_interface_with_another_index_name_or_mtu_is_followed() {
        for (new, said) in [
            (link(7, "eth0", 1500), "eth0 is another device than before"),
            (link(2, "wan", 1500), "wan in place of eth0"),
            (link(2, "eth0", 1400), "MTU 1400 in place of 1500"),
        ] {
            let addresses = vec![address(&new, "192.0.2.1/24")];
            let name = new.name.clone();
            let found = changed(&host(vec![new], addresses, &name));
            assert_eq!(difference(&on_eth0(), &found), said);
        }
    }

    #[test]
    fn a_published_address_stays_behind_a_nat() {
        let public = [203, 0, 113, 5].into();
        let choice = InterfaceChoice {
            interfaces: vec!["eth0".to_owned()],
            public_ip: Some(public),
            ..InterfaceChoice::default()
        };
        let local = [192, 0, 2, 1].into();
        let current = Underlay { v4: Some(End { local, public }), ..on_eth0() };
        let eth0 = link(2, "eth0", 1500);
        let addresses = vec![address(&eth0, "192.0.2.1/24")];
        let same = host(vec![eth0.clone()], addresses, "eth0");
        assert_eq!(look(&current, &choice, V4, &same), Found::Same);
        let addresses = vec![address(&eth0, "192.0.2.9/24")];
        let Found::Changed(moved) = look(&current, &choice, V4, &host(vec![eth0], addresses, "eth0")) else {
            panic!("not followed")
        };
        assert_eq!(moved.v4, Some(End { local: [192, 0, 2, 9].into(), public }));
    }

    #[test]
    fn an_interface_that_is_down_carries_nothing() {
        let found = |up: bool, carrier: bool| {
            let eth0 = Link { up, carrier, ..link(2, "eth0", 1500) };
            let addresses = vec![address(&eth0, "192.0.2.1/24")];
            look(&on_eth0(), &InterfaceChoice::default(), V4, &host(vec![eth0], addresses, "eth0"))
        };
        assert_eq!(found(true, true), Found::Same);
        assert_eq!(found(false, false), Found::Down("it is set down"));
        assert!(matches!(found(true, false), Found::Down(_)));
    }

    #[test]
    fn what_is_gone_is_gone_with_what_was_tried() {
        let other = link(3, "eth1", 1500);
        let empty = host(vec![link(2, "eth0", 1500), other], Vec::new(), "eth0");
        let Found::Gone(error) = look(&on_eth0(), &InterfaceChoice::default(), V4, &empty) else {
            panic!("there is one")
        };
        assert!(error.to_string().contains("the default route: eth0 has no usable IPv4 address"), "{error}");
    }
}
