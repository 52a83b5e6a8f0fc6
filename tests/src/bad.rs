//! Datagrams that a node must refuse, each with the reason under which it is counted.
//!
//! The victim is node a of the lab (10.5.1.0/24, fd00:5:0:1::/64, MAC of its underlay IPv4 end), the sender node b.

use dataplane_core::testing::{Builder, Transport};
use dataplane_core::wire::edit::fill_ipv4_checksum;
use dataplane_core::{DropReason, Encap, Family, MacAddr, OverlayMtu};

/// One kind of bad datagram.
#[derive(Clone, Debug)]
pub struct Bad {
    /// What is wrong with it.
    pub name: String,
    /// All of it, encapsulation first.
    pub datagram: Vec<u8>,
    /// The reason that counts it.
    pub reason: DropReason,
}

/// A right packet from node b's first pod to node a's.
#[must_use]
pub fn good(family: Family) -> Builder {
    let (from, to) = match family {
        Family::V4 => ("10.5.2.2", "10.5.1.2"),
        Family::V6 => ("fd00:5:0:2::2", "fd00:5:0:1::2"),
    };
    Builder::new(family, Transport::Udp).from(from).to(to).payload(b"a payload of some length")
}

/// Puts `packet` into a datagram for the victim with the given MAC, from the sender with the other.
#[must_use]
pub fn wrap(encap: &Encap, from: MacAddr, to: MacAddr, family: Family, packet: &[u8]) -> Vec<u8> {
    let mut datagram = encap.header(from, to, family).as_slice().to_vec();
    datagram.extend(packet);
    datagram
}

/// Every kind of bad datagram that the format can carry.
#[must_use]
pub fn all(encap: &Encap, from: MacAddr, to: MacAddr, mtu: OverlayMtu) -> Vec<Bad> {
    let mut list = Vec::new();
    let mut add = |name: String, family: Family, packet: Vec<u8>, reason: DropReason| {
        list.push(Bad { name, datagram: wrap(encap, from, to, family, &packet), reason });
    };
    for family in [Family::V4, Family::V6] {
        inner(family, mtu, |name, packet, reason| add(format!("{family:?}: {name}"), family, packet, reason));
    }
    for ttl in if encap.is_hop() { vec![0, 1] } else { vec![0] } {
        for family in [Family::V4, Family::V6] {
            add(
                format!("{family:?}: TTL {ttl}"),
                family,
                good(family).ttl(ttl).packet(),
                DropReason::TtlExceeded,
            );
        }
    }
    if !encap.is_hop() {
        list.extend(frames(encap, from, to));
    }
    list
}

/// What can be wrong with the packet itself.
fn inner(family: Family, mtu: OverlayMtu, mut add: impl FnMut(String, Vec<u8>, DropReason)) {
    use DropReason as R;
    let right = good(family).packet();
    let edited = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = right.clone();
        edit(&mut packet);
        packet
    };
    let cuts: &[usize] = if family == Family::V4 { &[0, 1, 7, 19] } else { &[39] };
    for &cut in cuts {
        add(format!("cut after {cut} bytes"), right[..cut].to_vec(), R::TooShort);
    }
    for nibble in [0, 5, 7, 15] {
        add(format!("version {nibble}"), edited(&|p| p[0] = nibble << 4 | p[0] & 15), R::BadVersion);
    }
    let largest = usize::from(mtu.get());
    for size in [largest + 1, 3000, 60_000] {
        let headers = right.len() - b"a payload of some length".len();
        add(format!("{size} bytes"), good(family).payload(&vec![7; size - headers]).packet(), R::Oversize);
    }
    for (source, reason) in sources(family) {
        add(format!("from {source}"), good(family).from(source).packet(), *reason);
    }
    for destination in destinations(family) {
        add(format!("to {destination}"), good(family).to(destination).packet(), R::NotForUs);
    }
    match family {
        Family::V4 => {
            let with_checksum = |edit: &dyn Fn(&mut Vec<u8>)| {
                edited(&|p| {
                    edit(p);
                    fill_ipv4_checksum(p, 20);
                })
            };
            add("header of 16 bytes".to_owned(), edited(&|p| p[0] = 0x44), R::BadLength);
            add(
                "header beyond the packet".to_owned(),
                edited(&|p| {
                    p[0] = 0x4f;
                    p.truncate(40)
                }),
                R::BadLength,
            );
            add(
                "length below the header".to_owned(),
                with_checksum(&|p| p[2..4].copy_from_slice(&[0, 19])),
                R::BadLength,
            );
            add("length beyond the datagram".to_owned(), with_checksum(&|p| p[3] += 1), R::BadLength);
            add("header checksum".to_owned(), edited(&|p| p[10] ^= 0x10), R::BadChecksum);
            for (name, option) in [("loose", 131), ("strict", 137)] {
                let mut packet = good(family).ip_options(4).packet();
                packet[20..24].copy_from_slice(&[option, 3, 4, 0]);
                fill_ipv4_checksum(&mut packet, 24);
                add(format!("{name} source route"), packet, R::BadOption);
            }
        }
        Family::V6 => {
            add("length beyond the datagram".to_owned(), edited(&|p| p[5] += 1), R::BadLength);
            add(
                "routing header type 0".to_owned(),
                behind(&right, 43, &[17, 0, 0, 0, 0, 0, 0, 0]),
                R::BadExtensionHeader,
            );
            let chain = (0..9).fold(right.clone(), |packet, at| {
                let next = if at == 0 { 17 } else { 60 };
                behind(&packet, 60, &[next, 0, 1, 4, 0, 0, 0, 0])
            });
            add("nine extension headers".to_owned(), chain, R::BadExtensionHeader);
            add(
                "extension beyond the packet".to_owned(),
                behind(&right, 60, &[17, 255, 1, 4, 0, 0, 0, 0]),
                R::BadExtensionHeader,
            );
        }
    }
}

/// The packet with an extension header between its IPv6 header and the rest.
fn behind(packet: &[u8], kind: u8, header: &[u8]) -> Vec<u8> {
    let mut longer = packet[..40].to_vec();
    longer[6] = kind;
    longer.extend_from_slice(header);
    longer.extend_from_slice(&packet[40..]);
    let payload = u16::try_from(longer.len() - 40).unwrap_or(u16::MAX);
    longer[4..6].copy_from_slice(&payload.to_be_bytes());
    longer
}

/// Inner sources that node b may not use.
fn sources(family: Family) -> &'static [(&'static str, DropReason)] {
    use DropReason as R;
    match family {
        Family::V4 => &[
            ("10.5.3.2", R::BadInnerSource),
            ("10.5.99.2", R::BadInnerSource),
            ("10.5.1.7", R::OwnSource),
            ("127.0.0.1", R::Martian),
            ("0.0.0.0", R::Martian),
            ("169.254.1.1", R::Martian),
            ("224.0.0.1", R::Martian),
            ("255.255.255.255", R::Martian),
            ("8.8.8.8", R::ForeignSource),
        ],
        Family::V6 => &[
            ("fd00:5:0:3::2", R::BadInnerSource),
            ("fd00:5:0:99::2", R::BadInnerSource),
            ("fd00:5:0:1::7", R::OwnSource),
            ("::1", R::Martian),
            ("::", R::Martian),
            ("fe80::1", R::Martian),
            ("ff02::1", R::Martian),
            ("2001:4860::8888", R::ForeignSource),
        ],
    }
}

/// Inner destinations that are not node a's.
fn destinations(family: Family) -> &'static [&'static str] {
    match family {
        Family::V4 => &["10.5.2.2", "10.5.99.9", "8.8.8.8", "127.0.0.1", "224.0.0.1", "255.255.255.255"],
        Family::V6 => &["fd00:5:0:2::2", "fd00:5:0:99::9", "2001:4860::8888", "::1", "ff02::1", "fe80::1"],
    }
}

/// What can be wrong with the VXLAN header and the frame.
fn frames(encap: &Encap, from: MacAddr, to: MacAddr) -> Vec<Bad> {
    use DropReason as R;
    let packet = good(Family::V4).packet();
    let right = wrap(encap, from, to, Family::V4, &packet);
    let mut list = Vec::new();
    let mut add = |name: String, reason: DropReason, edit: &dyn Fn(&mut Vec<u8>)| {
        let mut datagram = right.clone();
        edit(&mut datagram);
        list.push(Bad { name, datagram, reason });
    };
    for cut in [0, 1, 7, 8, 21] {
        add(format!("frame cut after {cut} bytes"), R::TooShort, &|d| d.truncate(cut));
    }
    for vni in [0, 2, 0x0001_0001, 0x00ff_ffff] {
        add(format!("VNI {vni}"), R::BadVni, &|d| d[4..7].copy_from_slice(&u32::to_be_bytes(vni)[1..]));
    }
    for flags in [0x00, 0x09, 0x0c, 0x88, 0xff] {
        add(format!("flags {flags:#04x}"), R::BadVxlanFlags, &|d| d[0] = flags);
    }
    for at in [1, 2, 3, 7] {
        add(format!("reserved byte {at}"), R::BadVxlanFlags, &|d| d[at] = 1);
    }
    for ethertype in [0x0806_u16, 0x88cc, 0x8100, 0x8902, 0x0000] {
        add(format!("EtherType {ethertype:#06x}"), R::BadEthertype, &|d| {
            d[20..22].copy_from_slice(&ethertype.to_be_bytes());
        });
    }
    add("IPv6 said, IPv4 carried".to_owned(), R::BadVersion, &|d| d[20..22].copy_from_slice(&[0x86, 0xdd]));
    let six = wrap(encap, from, to, Family::V4, &good(Family::V6).packet());
    add("IPv4 said, IPv6 carried".to_owned(), R::BadVersion, &|d| d.clone_from(&six));
    add("another node's MAC".to_owned(), R::BadMac, &|d| d[13] ^= 0x40);
    add("broadcast MAC".to_owned(), R::BadMac, &|d| d[8..14].fill(0xff));
    add("our own frame".to_owned(), R::Reflected, &|d| d[14..20].copy_from_slice(&to.0));
    list
}
