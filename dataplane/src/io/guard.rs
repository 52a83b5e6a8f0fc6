//! A socket filter that refuses garbage before the kernel queues it: for the time of a flood.
//!
//! To receive a datagram and throw it away costs the engine about a microsecond; to refuse it costs the kernel far less, on
//! the CPU that brought it. What the filter refuses is what the engine would refuse first, or less: a source
//! that is no peer's (IPv4), a VXLAN header that is not ours, a frame for another MAC address. Classic BPF needs no
//! privilege.

use dataplane_core::{Encap, Family, PeerTable};

/// Ranges of peers' addresses that the filter tells apart. A jump of classic BPF is at most 255 instructions long.
const RANGES: usize = 64;

/// One instruction of classic BPF: code, the jumps if true and if false, and a constant.
pub(crate) type Instruction = (u16, u8, u8, u32);

const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const IF_ABOVE: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// `SKF_NET_OFF`: offsets from here on count from the IP header. Others count from the UDP header.
const IP_HEADER: u32 = libc::SKF_NET_OFF.cast_unsigned();
/// Where the source address stands in an IPv4 header.
const IPV4_SOURCE: u32 = 12;
/// Bytes of a UDP header.
const PAYLOAD: u32 = 8;
/// Bytes of the shortest IP packet.
const SHORTEST: u32 = 20;
/// A load beyond the end of the datagram does the same.
const REFUSE: Instruction = (RETURN, 0, 0, 0);
/// All of the datagram.
const PASS: Instruction = (RETURN, 0, 0, u32::MAX);

/// A filter for the sockets of one engine and one peer table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    pub(crate) program: Vec<Instruction>,
}

impl Guard {
    /// The filter for sockets over `underlay` that receive `encap` from the peers of `table`.
    #[must_use]
    pub fn new(table: &PeerTable, encap: &Encap, underlay: Family) -> Self {
        let mut program = Vec::new();
        if underlay == Family::V4 {
            let ranges = table.sender_ranges(RANGES);
            program.push((LOAD_WORD, 0, 0, IP_HEADER.wrapping_add(IPV4_SOURCE)));
            // Two instructions a range, then the refusal. Ranges ascend: below one is in none that follows.
            let refusal = 2 * ranges.len();
            for (at, (first, last)) in ranges.into_iter().enumerate() {
                let to_refusal = |from: usize| (refusal - from - 1) as u8;
                program.push((IF_AT_LEAST, 0, to_refusal(2 * at), first));
                program.push((IF_ABOVE, 0, to_refusal(2 * at + 1) + 1, last));
            }
            program.push(REFUSE);
        }
        if *encap == Encap::Raw {
            program.push((LOAD_BYTE, 0, 0, PAYLOAD + SHORTEST - 1));
        }
        if let Encap::Vxlan { vni } = encap {
            let [a, b, c, d, e, f] = table.local().mac.0;
            for (load, at, wanted) in [
                (LOAD_WORD, 0, 0x0800_0000),
                (LOAD_WORD, 4, vni.get() << 8),
                (LOAD_WORD, 8, u32::from_be_bytes([a, b, c, d])),
                (LOAD_HALF, 12, u32::from(u16::from_be_bytes([e, f]))),
            ] {
                program.extend([(load, 0, 0, PAYLOAD + at), (IF_EQUAL, 1, 0, wanted), REFUSE]);
            }
        }
        program.push(PASS);
        Self { program }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use dataplane_core::{Local, MacAddr, Peer, Vni};
    use hostnet::kernel::{Kernel, LinkSettings};
    use hostnet::netns::NetNs;
    use socket2::{SockFilter, SockRef};

    use super::*;

    const OWN: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn encap(vni: u32) -> Encap {
        Encap::Vxlan { vni: Vni::new(vni).unwrap() }
    }

    /// Peers at every third address of 127.0.0.0/8 from .1.0 on, so many, and one at the end.
    fn table(peers: u32) -> PeerTable {
        let peer = |n: u32| Peer {
            endpoint: (std::net::Ipv4Addr::from(0x7f00_0100 + 3 * n), 1).into(),
            mac: MacAddr::default(),
            subnets: Vec::new(),
        };
        let peers: Vec<Peer> = (0..peers).chain([500_000]).map(peer).collect();
        PeerTable::build(Local { mac: OWN, ..Local::default() }, &peers).unwrap()
    }

    /// Sends `datagram` from `source` to a guarded socket; whether it arrives.
    fn passes(guard: &Guard, source: &str, datagram: &[u8]) -> bool {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let filters: Vec<_> =
            guard.program.iter().map(|&(code, yes, no, k)| SockFilter::new(code, yes, no, k)).collect();
        SockRef::from(&receiver).attach_filter(&filters).unwrap();
        let sender = UdpSocket::bind((source, 0)).unwrap();
        sender.send_to(datagram, receiver.local_addr().unwrap()).unwrap();
        // Over loopback it is there, or refused, when the send returns.
        receiver.set_nonblocking(true).unwrap();
        let arrived = receiver.recv(&mut [0; 2048]);
        receiver.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        if let Ok(len) = &arrived {
            assert_eq!(*len, datagram.len(), "nothing is cut off");
        }
        arrived.is_ok()
    }

    #[test]
    #[allow(clippy::print_stderr, reason = "a skipped test says so")]
    fn the_kernel_refuses_what_the_engine_would_and_nothing_else() {
        let ns = match NetNs::new() {
            Ok(ns) => ns,
            Err(error) => return eprintln!("SKIPPED: no network namespace: {error}"),
        };
        ns.run("guard", || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let up = LinkSettings { up: Some(true), ..LinkSettings::default() };
                Kernel::connect().await.unwrap().set_link("lo", &up).await.unwrap();
            });
            let frame = |vni: u32, to: MacAddr| {
                let mut datagram =
                    encap(vni).header(MacAddr([2, 0, 0, 0, 0, 2]), to, Family::V4).as_slice().to_vec();
                datagram.extend([0x45; 40]);
                datagram
            };
            let right = frame(7, OWN);
            for peers in [1, 2, 63, 64, 65, 300] {
                let guard = Guard::new(&table(peers), &encap(7), Family::V4);
                assert!(guard.program.len() <= 2 * RANGES + 15, "{} instructions", guard.program.len());
                for known in [0, 1, peers / 2, peers - 1] {
                    let from = std::net::Ipv4Addr::from(0x7f00_0100 + 3 * known.min(peers - 1)).to_string();
                    assert!(passes(&guard, &from, &right), "peer {from} of {peers}");
                }
                assert!(passes(
                    &guard,
                    &std::net::Ipv4Addr::from(0x7f00_0100 + 1_500_000).to_string(),
                    &right
                ));
                for stranger in ["127.0.0.255", "127.0.200.1", "127.250.0.1"] {
                    assert!(!passes(&guard, stranger, &right), "{stranger}, {peers} peers");
                }
            }
            let guard = Guard::new(&table(1), &encap(7), Family::V4);
            let mut reserved = right.clone();
            reserved[7] = 1;
            for bad in [&b""[..], b"runt", &frame(8, OWN), &frame(7, MacAddr([2, 0, 0, 0, 0, 3])), &reserved]
            {
                assert!(!passes(&guard, "127.0.1.0", bad), "{bad:?}");
            }
            let raw = Guard::new(&table(1), &Encap::Raw, Family::V4);
            assert!(passes(&raw, "127.0.1.0", b"anything of 20 bytes"));
            assert!(!passes(&raw, "127.0.1.0", b"less than 20 bytes."));
            assert!(!passes(&raw, "127.0.0.9", b"anything of 20 bytes"));
            let anyone = Guard::new(&table(1), &encap(7), Family::V6);
            assert!(passes(&anyone, "127.0.0.9", &right), "sources of IPv6 are left to the engine");
        })
        .unwrap();
    }
}
