//! The choice itself: candidates in flannel's order, the first that fits wins.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane_core::IpNet;
use hostnet::state::{Link, Route};
use regex::Regex;

use super::{End, Families, HostView, Underlay, UnderlayError, link_mtu, on_link, usable_addresses};
use crate::settings::InterfaceChoice;

/// An interface, and the addresses of it that the choice itself fixed.
#[derive(Debug, Clone, Copy)]
struct Pick<'a> {
    link: &'a Link,
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
}

impl<'a> Pick<'a> {
    fn link(link: &'a Link) -> Self {
        Self { link, v4: None, v6: None }
    }

    fn fixed(link: &'a Link, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self { v4: Some(v4), ..Self::link(link) },
            IpAddr::V6(v6) => Self { v6: Some(v6), ..Self::link(link) },
        }
    }
}

pub(super) fn choose(
    choice: &InterfaceChoice,
    families: Families,
    host: &HostView,
) -> Result<Underlay, UnderlayError> {
    let mut tried = Vec::new();
    for (what, pick) in candidates(choice, families, host) {
        match pick.and_then(|pick| settle(&pick, choice, families, host)) {
            Ok(underlay) => return Ok(underlay),
            Err(why) => tried.push((what, why)),
        }
    }
    Err(UnderlayError { tried, present: present(host) })
}

type Candidate<'a> = (String, Result<Pick<'a>, String>);

fn candidates<'a>(
    choice: &'a InterfaceChoice,
    families: Families,
    host: &'a HostView,
) -> impl Iterator<Item = Candidate<'a>> {
    let by_flag = choice
        .interfaces
        .iter()
        .map(move |text| (format!("--iface {text}"), by_name_or_address(text, host)))
        .chain(
            choice.patterns.iter().map(move |pattern| {
                (format!("--iface-regex {pattern}"), by_pattern(pattern, families, host))
            }),
        )
        .chain(
            choice.can_reach.iter().map(move |ip| (format!("--iface-can-reach {ip}"), by_reach(*ip, host))),
        );
    let by_default = choice.names_none().then(|| {
        let public = choice.public_ip.map(IpAddr::V4).or_else(|| choice.public_ipv6.map(IpAddr::V6));
        match public {
            Some(ip) => {
                let flag = if ip.is_ipv4() { "--public-ip" } else { "--public-ipv6" };
                let pick = by_address(ip, host)
                    .map_err(|why| format!("{why}; for an address outside a NAT give --iface as well"));
                (format!("{flag} {ip}"), pick)
            }
            None => ("the default route".to_owned(), by_default_route(families, host)),
        }
    });
    let by_node = host
        .known_as
        .iter()
        .filter(move |ip| {
            choice.names_none()
                && choice.public_ip.is_none()
                && choice.public_ipv6.is_none()
                && families.has(**ip)
        })
        .map(move |ip| (format!("{ip}, this node's address in the store"), by_address(*ip, host)));
    by_flag.chain(by_default).chain(by_node)
}

fn by_name_or_address<'a>(text: &str, host: &'a HostView) -> Result<Pick<'a>, String> {
    match text.parse() {
        Ok(ip) => by_address(ip, host),
        Err(_) => host
            .links
            .iter()
            .find(|link| link.name == text)
            .map(Pick::link)
            .ok_or_else(|| "there is no such interface".to_owned()),
    }
}

fn by_address(ip: IpAddr, host: &HostView) -> Result<Pick<'_>, String> {
    host.addresses
        .iter()
        .find(|address| address.net.addr() == ip)
        .and_then(|address| host.links.iter().find(|link| link.index == address.index))
        .map(|link| Pick::fixed(link, ip))
        .ok_or_else(|| "no interface has this address".to_owned())
}

/// First by address, over the interfaces by index, then by name. With both families both addresses must match.
fn by_pattern<'a>(pattern: &Regex, families: Families, host: &'a HostView) -> Result<Pick<'a>, String> {
    let by_address = host.links.iter().find_map(|link| {
        let matching: Vec<IpAddr> = usable_addresses(host, link)
            .into_iter()
            .map(|address| address.net.addr())
            .filter(|address| pattern.is_match(&address.to_string()))
            .collect();
        let v4 = matching.iter().find_map(|ip| if let IpAddr::V4(v4) = ip { Some(*v4) } else { None });
        let v6 = matching.iter().find_map(|ip| if let IpAddr::V6(v6) = ip { Some(*v6) } else { None });
        let fits = (!families.v4 || v4.is_some()) && (!families.v6 || v6.is_some());
        fits.then_some(Pick { link, v4, v6 })
    });
    by_address
        .or_else(|| host.links.iter().find(|link| pattern.is_match(&link.name)).map(Pick::link))
        .ok_or_else(|| "it matches no address and no name".to_owned())
}

fn by_reach(ip: IpAddr, host: &HostView) -> Result<Pick<'_>, String> {
    let reach = host.reach.as_ref().ok_or("the kernel has no route there")?;
    if reach.local {
        return Err("it is an address of this host".to_owned());
    }
    let link = host
        .links
        .iter()
        .find(|link| link.name == reach.device)
        .ok_or_else(|| format!("interface {} of the route is gone", reach.device))?;
    match reach.source {
        Some(source) if source.is_ipv4() == ip.is_ipv4() => Ok(Pick::fixed(link, source)),
        _ => Ok(Pick::link(link)),
    }
}

fn by_default_route(families: Families, host: &HostView) -> Result<Pick<'_>, String> {
    let default = |v4: bool| {
        host.routes
            .iter()
            .filter(|route| route.dest.prefix_len() == 0 && route.dest.addr().is_ipv4() == v4)
            .min_by_key(|route| route.metric)
    };
    let (v4, v6) = (default(true), default(false));
    let route: &Route = if families.v4 { v4 } else { v6 }.ok_or("there is none")?;
    if families.v4
        && families.v6
        && let Some(v6) = v6
        && v6.device != route.device
    {
        return Err(format!("IPv4 goes by {} and IPv6 by {}; one must carry both", route.device, v6.device));
    }
    host.links
        .iter()
        .find(|link| link.name == route.device)
        .map(Pick::link)
        .ok_or_else(|| format!("interface {} is gone", route.device))
}

fn settle(
    pick: &Pick<'_>,
    choice: &InterfaceChoice,
    families: Families,
    host: &HostView,
) -> Result<Underlay, String> {
    let link = pick.link;
    let usable = usable_addresses(host, link);
    let v4: Vec<Ipv4Addr> = usable
        .iter()
        .filter_map(|address| if let IpNet::V4(net) = address.net { Some(net.addr()) } else { None })
        .collect();
    let v6: Vec<Ipv6Addr> = usable
        .iter()
        .filter_map(|address| if let IpNet::V6(net) = address.net { Some(net.addr()) } else { None })
        .collect();
    let none = |family| format!("{} has no usable {family} address", link.name);
    let v4 = match families.v4 {
        true => Some(end(pick.v4, choice.public_ip, &v4).ok_or_else(|| none("IPv4"))?),
        false => None,
    };
    let v6 = match families.v6 {
        true => Some(end(pick.v6, choice.public_ipv6, &v6).ok_or_else(|| none("IPv6"))?),
        false => None,
    };
    if link.mtu == 0 {
        return Err(format!("{} has MTU 0", link.name));
    }
    let on_link = on_link(&usable);
    Ok(Underlay { device: link.name.clone(), index: link.index, mtu: link_mtu(link), on_link, v4, v6 })
}

/// Sends from the address that chose the interface, else from the public one if it is here, else from the best.
fn end<A: Copy + Eq>(picked: Option<A>, public: Option<A>, usable: &[A]) -> Option<End<A>> {
    let public_here = || public.filter(|public| usable.contains(public));
    let local = picked.or_else(public_here).or_else(|| usable.first().copied())?;
    Some(End { local, public: public.unwrap_or(local) })
}

fn present(host: &HostView) -> String {
    let one = |link: &Link| {
        let addresses = host.addresses.iter().filter(|address| address.index == link.index);
        let text: Vec<_> = addresses.map(|address| address.net.addr().to_string()).collect();
        if text.is_empty() { link.name.clone() } else { format!("{} ({})", link.name, text.join(", ")) }
    };
    match host.links.len() {
        0 => "none".to_owned(),
        _ => host.links.iter().map(one).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::RawFlags;
    use crate::settings::Settings;
    use hostnet::kernel::Reach;
    use hostnet::state::LinkAddress;

    const V4: Families = Families { v4: true, v6: false };
    const V6: Families = Families { v4: false, v6: true };
    const DUAL: Families = Families { v4: true, v6: true };

    fn link(index: u32, name: &str, mtu: u32) -> Link {
        let loopback = name == "lo";
        Link { index, name: name.to_owned(), mtu, up: true, carrier: true, loopback, ..Link::default() }
    }

    fn address(index: u32, device: &str, net: &str) -> LinkAddress {
        LinkAddress::new(index, device, net.parse().unwrap())
    }

    fn host() -> HostView {
        HostView {
            links: vec![
                link(1, "lo", 65536),
                link(2, "eth0", 1500),
                link(3, "eth1", 9000),
                link(4, "bare", 1500),
            ],
            addresses: vec![
                address(1, "lo", "127.0.0.1/8"),
                address(2, "eth0", "10.0.2.15/24"),
                address(2, "eth0", "fd00:2::15/64"),
                address(3, "eth1", "192.0.2.1/24"),
                address(3, "eth1", "192.0.2.7/24"),
                address(3, "eth1", "fd00:3::1/64"),
                address(3, "eth1", "fe80::1/64"),
            ],
            routes: vec![
                Route {
                    via: Some("10.0.2.2".parse().unwrap()),
                    metric: 100,
                    ..Route::new("0.0.0.0/0".parse().unwrap(), "eth0")
                },
                Route { metric: 200, ..Route::new("0.0.0.0/0".parse().unwrap(), "eth1") },
                Route::new("::/0".parse().unwrap(), "eth0"),
            ],
            reach: None,
            known_as: Vec::new(),
        }
    }

    fn choice(words: &[&str]) -> InterfaceChoice {
        let words = std::iter::once("-file-subnet-mgr=/x").chain(words.iter().copied()).map(str::to_owned);
        Settings::settle(&RawFlags::parse(words, []).unwrap()).unwrap().interface
    }

    /// The choice in one line: interface, local and public addresses.
    fn chosen(words: &[&str], families: Families, host: &HostView) -> String {
        match Underlay::choose(&choice(words), families, host) {
            Ok(underlay) => underlay.to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn flags_choose_in_flannels_order() {
        let host = HostView {
            reach: Some(Reach {
                device: "eth1".to_owned(),
                via: None,
                source: Some("192.0.2.7".parse().unwrap()),
                local: false,
            }),
            ..host()
        };
        for (words, families, expected) in [
            (vec![], V4, "eth0 (10.0.2.15, mtu 1500)"),
            (vec![], V6, "eth0 (fd00:2::15, mtu 1500)"),
            (vec![], DUAL, "eth0 (10.0.2.15, fd00:2::15, mtu 1500)"),
            (vec!["-iface=eth1"], V4, "eth1 (192.0.2.1, mtu 9000)"),
            (vec!["-iface=eth1"], DUAL, "eth1 (192.0.2.1, fd00:3::1, mtu 9000)"),
            (vec!["-iface=192.0.2.7"], V4, "eth1 (192.0.2.7, mtu 9000)"),
            (vec!["-iface=fd00:3::1"], V6, "eth1 (fd00:3::1, mtu 9000)"),
            (vec!["-iface=eth9", "-iface=eth1"], V4, "eth1 (192.0.2.1, mtu 9000)"),
            (vec!["-iface=bare", "-iface-regex=eth0"], V4, "eth0 (10.0.2.15, mtu 1500)"),
            (vec!["-iface-regex=eth0", "-iface=eth1"], V4, "eth1 (192.0.2.1, mtu 9000)"),
            (vec!["-iface-regex=0[.]2[.]7$"], V4, "eth1 (192.0.2.7, mtu 9000)"),
            (vec!["-iface-regex=^fd00:3|^192"], DUAL, "eth1 (192.0.2.1, fd00:3::1, mtu 9000)"),
            (vec!["-iface-regex=^h1$|h1"], V4, "eth1 (192.0.2.1, mtu 9000)"),
            (vec!["-iface-can-reach=192.0.2.99"], V4, "eth1 (192.0.2.7, mtu 9000)"),
            (vec!["-public-ip=192.0.2.7"], V4, "eth1 (192.0.2.7, mtu 9000)"),
            (vec!["-public-ipv6=fd00:3::1"], V6, "eth1 (fd00:3::1, mtu 9000)"),
            (vec!["-iface=eth1", "-public-ip=192.0.2.7"], V4, "eth1 (192.0.2.7, mtu 9000)"),
            (
                vec!["-iface=eth0", "-public-ip=198.51.100.1"],
                V4,
                "eth0 (10.0.2.15 known as 198.51.100.1, mtu 1500)",
            ),
            (
                vec!["-iface=lo"],
                V4,
                "no interface for the traffic between nodes: --iface lo: lo has no usable IPv4 address. \
              Interfaces here: lo (127.0.0.1), eth0 (10.0.2.15, fd00:2::15), eth1 (192.0.2.1, 192.0.2.7, fd00:3::1, fe80::1), bare. \
              Name one with --iface",
            ),
        ] {
            assert_eq!(chosen(&words, families, &host), expected, "{words:?}");
        }
    }

    #[test]
    fn everything_that_was_tried_is_told() {
        let text = chosen(
            &["-iface=eth9", "-iface=10.9.9.9", "-iface-regex=^x", "-iface-can-reach=1.1.1.1"],
            V4,
            &host(),
        );
        assert!(
            text.contains(
                "--iface eth9: there is no such interface; --iface 10.9.9.9: no interface has this address; \
                 --iface-regex ^x: it matches no address and no name; --iface-can-reach 1.1.1.1: the kernel has no route there. \
                 Interfaces here: lo (127.0.0.1), eth0 "
            ),
            "{text}"
        );
        let text = chosen(&["-public-ip=198.51.100.1"], V4, &host());
        assert!(text.contains("for an address outside a NAT give --iface as well"), "{text}");
    }

    #[test]
    fn a_host_without_a_default_route_is_told_so() {
        let host = HostView { routes: vec![], ..host() };
        assert!(chosen(&[], V4, &host).contains("the default route: there is none"));
    }

    #[test]
    fn the_stores_word_for_this_node_is_the_last_hint() {
        let known_as =
            vec!["fd00:3::1".parse().unwrap(), "203.0.113.1".parse().unwrap(), "192.0.2.7".parse().unwrap()];
        let with_route = HostView { known_as, ..host() };
        assert_eq!(chosen(&[], V4, &with_route), "eth0 (10.0.2.15, mtu 1500)");
        let mut without = HostView { routes: vec![], ..with_route };
        assert_eq!(chosen(&[], V4, &without), "eth1 (192.0.2.7, mtu 9000)");
        assert!(
            chosen(&["-iface=eth9"], V4, &without).contains("--iface eth9: there is no such interface. ")
        );
        without.known_as.truncate(2);
        let text = chosen(&[], V4, &without);
        assert!(
            text.contains("203.0.113.1, this node's address in the store: no interface has this address"),
            "{text}"
        );
    }

    #[test]
    fn split_default_routes_are_refused_for_both_families() {
        let mut host = host();
        host.routes[2].device = "eth1".to_owned();
        assert!(chosen(&[], DUAL, &host).contains("IPv4 goes by eth0 and IPv6 by eth1"));
    }

    #[test]
    fn better_addresses_come_first_and_vanishing_ones_never() {
        let mut host = host();
        host.addresses = vec![
            LinkAddress { deprecated: true, ..address(2, "eth0", "10.0.2.1/24") },
            address(2, "eth0", "169.254.0.1/16"),
            LinkAddress { secondary: true, ..address(2, "eth0", "10.0.2.2/24") },
            LinkAddress { permanent: false, ..address(2, "eth0", "10.0.2.3/24") },
        ];
        assert_eq!(chosen(&["-iface=eth0"], V4, &host), "eth0 (10.0.2.2, mtu 1500)");
        host.addresses.push(address(2, "eth0", "10.0.2.4/24"));
        assert_eq!(chosen(&["-iface=eth0"], V4, &host), "eth0 (10.0.2.4, mtu 1500)");
        host.addresses.truncate(2);
        assert_eq!(chosen(&["-iface=eth0"], V4, &host), "eth0 (169.254.0.1, mtu 1500)");
    }

    #[test]
    fn an_mtu_of_zero_is_refused() {
        let mut host = host();
        host.links[1].mtu = 0;
        assert!(chosen(&["-iface=eth0"], V4, &host).contains("eth0 has MTU 0"));
    }
}
