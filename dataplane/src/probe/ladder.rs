//! The steps down from the best kernel to the worst: each asks for a feature, and says what became of it.
//!
//! A step is a function of the kernel's answers, so every answer can be given to it in a test.

use std::io;

use nix::errno::Errno;

use super::{Feature, Features, Finding, KernelVersion};

/// The offload masks of TCP superpackets on a TUN device.
const TSO: u32 = libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
/// Of UDP superpackets: a kernel takes both or neither.
const USO: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// Makes a device with or without a virtio header, as `build` is told.
///
/// # Errors
/// When it cannot be made either way: what was said about the first one.
pub(crate) fn vnet_header<D>(
    off: Features,
    build: impl Fn(bool) -> io::Result<D>,
) -> io::Result<(D, Finding)> {
    if off.contains(Feature::TunVnetHdr) {
        return Ok((build(false)?, Finding::forced()));
    }
    match build(true) {
        Ok(device) => Ok((device, Finding::on(""))),
        Err(error) => match build(false) {
            Ok(device) => Ok((device, Finding::off(format!("refused: {error}")))),
            Err(_) => Err(error),
        },
    }
}

/// Sets the richest offload mask that the kernel takes and that is not forced off: the mask, and findings for TSO and
/// USO. Tried from the best to none, because the kernel says no more than that it does not know some bit.
pub(crate) fn tun_offloads(
    off: Features,
    version: Option<KernelVersion>,
    set: impl Fn(u32) -> io::Result<()>,
) -> (u32, [Finding; 2]) {
    let forced = |feature| off.contains(feature).then(Finding::forced);
    let old = version.filter(|version| version.damages_tunnelled_uso());
    let no_tso = forced(Feature::TunTso);
    let no_uso = forced(Feature::TunUso).or_else(|| {
        old.map(|version| Finding::off(format!("{version} damages UDP superpackets routed into a tunnel")))
    });
    let want_tso = if no_tso.is_none() { TSO } else { 0 };
    let want_uso = if no_uso.is_none() { USO } else { 0 };
    let csum = libc::TUN_F_CSUM;
    let mut refused = String::new();
    let mut taken = 0;
    for mask in [csum | want_tso | want_uso, csum | want_tso, csum | want_uso, csum, 0] {
        match set(mask) {
            Ok(()) => {
                taken = mask;
                break;
            }
            Err(error) if refused.is_empty() => refused = format!("mask {mask:#04x} refused: {error}"),
            Err(_) => {}
        }
    }
    let answer = |bits: u32| {
        if taken & bits == bits {
            Finding::on(format!("offload mask {taken:#04x}"))
        } else {
            Finding::off(refused.clone())
        }
    };
    (taken, [no_tso.unwrap_or_else(|| answer(TSO)), no_uso.unwrap_or_else(|| answer(USO))])
}

/// Asks for trains on sending: `set` is `UDP_SEGMENT`, `segments` says how many datagrams a train may have (64 or 128).
/// The finding, and the longest train.
pub(crate) fn udp_gso(
    off: Features,
    version: Option<KernelVersion>,
    set: impl Fn(i32) -> Result<(), Errno>,
    segments: impl FnOnce() -> io::Result<usize>,
) -> (Finding, usize) {
    if off.contains(Feature::UdpGso) {
        return (Finding::forced(), 1);
    }
    if let Some(version) = version.filter(|version| version.damages_equal_trains()) {
        return (Finding::off(format!("{version} can damage segmented sends; 7.1.5 repaired it")), 1);
    }
    // A default segment size is set and taken back: each message brings its own.
    if let Err(errno) = set(1400).and_then(|()| set(0)) {
        return (Finding::off(format!("UDP_SEGMENT refused: {errno}")), 1);
    }
    match segments() {
        Ok(segments) => (Finding::on(format!("{segments} datagrams a send")), segments),
        // Where nothing could be asked, what every kernel takes.
        Err(error) => {
            (Finding::on(format!("64 datagrams a send; not asked of the kernel, loopback says: {error}")), 64)
        }
    }
}

/// Asks for trains on receiving: `set` is `UDP_GRO`.
pub(crate) fn udp_gro(off: Features, set: impl FnOnce() -> Result<(), Errno>) -> Finding {
    if off.contains(Feature::UdpGro) {
        return Finding::forced();
    }
    match set() {
        Ok(()) => Finding::on(""),
        Err(errno) => Finding::off(format!("UDP_GRO refused: {errno}")),
    }
}

/// Asks for batches of messages: `receive` is a `recvmmsg` on a socket that nobody sends to, so that a kernel with the
/// call says that nothing is there.
pub(crate) fn mmsg(off: Features, receive: impl FnOnce() -> io::Result<usize>) -> Finding {
    if off.contains(Feature::Mmsg) {
        return Finding::forced();
    }
    match receive() {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
            Finding::off(format!("recvmmsg refused: {error}"))
        }
        _ => Finding::on(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::Offload;
    use crate::probe::Capabilities;

    const CSUM: u32 = libc::TUN_F_CSUM;

    /// A kernel by what it takes.
    #[derive(Clone, Copy)]
    struct Kernel {
        version: KernelVersion,
        vnet: bool,
        /// Offload bits it knows.
        mask: u32,
        gso: Option<usize>,
        gro: bool,
        mmsg: bool,
    }

    const NEW: Kernel = Kernel {
        version: KernelVersion(6, 18, 44),
        vnet: true,
        mask: CSUM | TSO | USO,
        gso: Some(128),
        gro: true,
        mmsg: true,
    };

    impl Kernel {
        /// All the questions, as the engine asks them.
        fn ask(&self, off: Features) -> Capabilities {
            let refuse = |ok: bool| if ok { Ok(()) } else { Err(Errno::ENOPROTOOPT) };
            let version = Some(self.version);
            let build = |vnet: bool| {
                if vnet && !self.vnet { Err(io::Error::from_raw_os_error(libc::EINVAL)) } else { Ok(vnet) }
            };
            let (has_header, vnet) = vnet_header(off, build).unwrap();
            assert_eq!(has_header, vnet.on);
            let [tso, uso] = if has_header {
                let set = |mask: u32| {
                    let known = mask & !self.mask == 0 && (mask == 0 || mask & CSUM != 0);
                    if known { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
                };
                let (mask, findings) = tun_offloads(off, version, set);
                assert!(set(mask).is_ok());
                findings
            } else {
                [(); 2].map(|()| Finding::off("needs tun-vnet-hdr"))
            };
            let segments = || self.gso.ok_or_else(|| io::ErrorKind::NetworkDown.into());
            let (gso, most) = udp_gso(off, version, |_| refuse(self.gso.is_some()), segments);
            let gro = udp_gro(off, || refuse(self.gro));
            let mmsg = mmsg(off, || {
                Err(io::Error::from_raw_os_error(if self.mmsg { libc::EAGAIN } else { libc::ENOSYS }))
            });
            // The CPU's part, on which no kernel has a say.
            let simd = if off.contains(Feature::Simd) { Finding::forced() } else { Finding::on("avx2") };
            Capabilities::new([vnet, tso, uso, gso, gro, mmsg, simd], most, (8 << 20, 4 << 20))
        }
    }

    /// One step down for each kernel, and what it is called in the log.
    #[test]
    fn every_step_down_costs_one_feature_and_says_why() {
        use Feature::{Mmsg, TunTso, TunUso, TunVnetHdr, UdpGro, UdpGso};
        let all = Features::ALL;
        let tun = |text: &str| vec![text.to_owned()];
        let cases: Vec<(Kernel, Features, Vec<String>)> = vec![
            (NEW, all, tun("tun-uso: on (offload mask 0x67)")),
            (
                Kernel { mask: CSUM | TSO, ..NEW },
                all.without(TunUso),
                vec![
                    "tun-tso: on (offload mask 0x07)".into(),
                    "tun-uso: off (mask 0x67 refused: Invalid argument (os error 22))".into(),
                ],
            ),
            (
                Kernel { mask: CSUM | USO, ..NEW },
                all.without(TunTso),
                vec!["tun-tso: off (mask 0x67 refused".into(), "tun-uso: on (offload mask 0x61)".into()],
            ),
            (
                Kernel { mask: CSUM, ..NEW },
                all.without(TunTso).without(TunUso),
                vec!["tun-tso: off (mask 0x67 refused".into(), "tun-uso: off (mask 0x67 refused".into()],
            ),
            (
                Kernel { mask: 0, ..NEW },
                all.without(TunTso).without(TunUso),
                tun("tun-tso: off (mask 0x67 refused"),
            ),
            (
                Kernel { vnet: false, ..NEW },
                all.without(TunVnetHdr).without(TunTso).without(TunUso),
                vec![
                    "tun-vnet-hdr: off (refused: Invalid argument (os error 22))".into(),
                    "tun-tso: off (needs tun-vnet-hdr)".into(),
                ],
            ),
            (Kernel { gso: Some(64), ..NEW }, all, tun("udp-gso: on (64 datagrams a send)")),
            (
                Kernel { gso: None, ..NEW },
                all.without(UdpGso),
                tun("udp-gso: off (UDP_SEGMENT refused: ENOPROTOOPT: Protocol not available)"),
            ),
            (
                Kernel { gro: false, ..NEW },
                all.without(UdpGro),
                tun("udp-gro: off (UDP_GRO refused: ENOPROTOOPT: Protocol not available)"),
            ),
            (
                Kernel { mmsg: false, ..NEW },
                all.without(Mmsg),
                tun("mmsg: off (recvmmsg refused: Function not implemented (os error 38))"),
            ),
            (
                Kernel { version: KernelVersion(6, 8, 12), ..NEW },
                all.without(TunUso),
                tun("tun-uso: off (Linux 6.8.12 damages UDP superpackets routed into a tunnel)"),
            ),
            (
                Kernel { vnet: false, mask: 0, gso: None, gro: false, mmsg: false, ..NEW },
                Features::NONE.with(Feature::Simd),
                tun("udp-gro: off"),
            ),
        ];
        for (kernel, usable, said) in cases {
            let found = kernel.ask(Features::NONE);
            assert_eq!(found.usable(), usable, "{found}");
            for line in said {
                assert!(
                    found.to_string().lines().any(|known| known.starts_with(&line)),
                    "{line:?} in\n{found}"
                );
            }
            let most = if usable.contains(UdpGso) { kernel.gso.unwrap() } else { 1 };
            assert_eq!(Offload::new(&found).max_segments(), most);
        }
    }

    #[test]
    fn kernels_that_damage_equal_trains_send_none() {
        let broken = [(7, 0, 0), (7, 0, 12), (7, 1, 0), (7, 1, 4)];
        let sound = [(6, 18, 44), (6, 19, 14), (7, 1, 5), (7, 2, 0), (8, 0, 0)];
        for (versions, usable) in
            [(&broken[..], Features::ALL.without(Feature::UdpGso)), (&sound, Features::ALL)]
        {
            for &(major, minor, patch) in versions {
                let version = KernelVersion(major, minor, patch);
                let found = Kernel { version, ..NEW }.ask(Features::NONE);
                assert_eq!(found.usable(), usable, "{version}");
                let line =
                    format!("udp-gso: off ({version} can damage segmented sends; 7.1.5 repaired it)\n");
                assert_eq!(found.to_string().contains(&line), usable != Features::ALL, "{found}");
            }
        }
        assert_eq!(KernelVersion::parse("7.0.0-15-generic"), Some(KernelVersion(7, 0, 0)), "Ubuntu 26.04");
        // A kernel that does not say its version is asked and believed.
        assert!(udp_gso(Features::NONE, None, |_| Ok(()), || Ok(128)).0.on);
    }

    #[test]
    fn what_is_forced_off_is_not_asked_for() {
        for feature in Feature::ALL {
            let found = NEW.ask(Features::NONE.with(feature));
            assert_eq!(found.finding(feature), &Finding::forced());
            assert!(found.to_string().contains(&format!("{feature}: off (forced by --engine-off)")));
            let lost = if feature == Feature::TunVnetHdr {
                Features::ALL.without(feature).without(Feature::TunTso).without(Feature::TunUso)
            } else {
                Features::ALL.without(feature)
            };
            assert_eq!(found.usable(), lost);
        }
    }

    #[test]
    fn a_device_that_cannot_be_made_either_way_says_why_at_first() {
        let build = |vnet: bool| -> io::Result<()> {
            Err(io::Error::from_raw_os_error(if vnet { libc::EPERM } else { libc::EINVAL }))
        };
        assert_eq!(vnet_header(Features::NONE, build).unwrap_err().raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn a_loopback_that_is_down_leaves_trains_of_64() {
        let (finding, most) =
            udp_gso(Features::NONE, None, |_| Ok(()), || Err(io::ErrorKind::NetworkUnreachable.into()));
        assert_eq!((finding.on, most), (true, 64));
        assert!(finding.why.starts_with("64 datagrams a send; not asked of the kernel"), "{}", finding.why);
    }
}
