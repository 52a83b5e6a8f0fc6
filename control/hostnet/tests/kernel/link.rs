//! Promises about devices.
use hostnet::Errno;
use hostnet::kernel::{Ensured, LinkSettings, Vxlan, Watch};
use hostnet::netns::NetNs;

use super::{in_namespace, in_private_namespace, ip, made_vxlan, net, soon, up};

#[test]
fn a_veth_pair_joins_two_namespaces_even_under_one_name() {
    in_private_namespace(async |_ns, kernel| {
        let far = NetNs::new().unwrap();
        kernel.add_veth("eth0", "eth0", &far).await.unwrap();
        up(&kernel, "eth0").await;
        let there = in_namespace(&far, async |kernel| {
            up(&kernel, "eth0").await;
            kernel.link("eth0").await.unwrap().unwrap()
        });
        let here = kernel.link("eth0").await.unwrap().unwrap();
        assert_eq!(here.kind.as_deref(), Some("veth"));
        assert_ne!(here.mac, there.mac);
        assert!(here.up && here.carrier && there.carrier);

        let taken = kernel.add_veth("eth0", "other", &far).await.unwrap_err();
        assert_eq!(taken.errno, Errno::EEXIST);
        assert!(taken.to_string().starts_with("add veth eth0 with peer other: EEXIST"), "{taken}");

        kernel.delete_link("eth0").await.unwrap();
        assert!(kernel.link("eth0").await.unwrap().is_none());
        assert_eq!(kernel.delete_link("eth0").await.unwrap_err().errno, Errno::ENODEV);
    });
}

#[test]
fn link_settings_are_all_applied() {
    in_private_namespace(async |_ns, kernel| {
        kernel.add_bridge("br0").await.unwrap();
        let far = NetNs::new().unwrap();
        kernel.add_veth("port", "eth0", &far).await.unwrap();
        let settings = LinkSettings {
            up: Some(true),
            mtu: Some(1400),
            mac: Some([2, 0, 0, 0, 0, 7]),
            master: Some("br0".to_owned()),
            tx_queue_len: Some(77),
            alias: Some("whose it is".to_owned()),
            addr_gen_none: true,
        };
        kernel.set_link("port", &settings).await.unwrap();
        let port = kernel.link("port").await.unwrap().unwrap();
        assert_eq!((port.mtu, port.mac, port.tx_queue_len), (1400, settings.mac, 77));
        assert_eq!(port.master, Some(kernel.link("br0").await.unwrap().unwrap().index));
        assert!(port.up);
        up(&kernel, "br0").await;
        let made_by_the_kernel = kernel.addresses().await.unwrap();
        assert!(!made_by_the_kernel.iter().any(|address| address.device == "port"), "{made_by_the_kernel:?}");

        let nomaster = LinkSettings { master: Some(String::new()), ..LinkSettings::default() };
        kernel.set_link("port", &nomaster).await.unwrap();
        assert_eq!(kernel.link("port").await.unwrap().unwrap().master, None);
    });
}

#[test]
fn a_bridge_port_forwards_without_delay() {
    in_private_namespace(async |_ns, kernel| {
        kernel.add_bridge("br0").await.unwrap();
        up(&kernel, "br0").await;
        let far = NetNs::new().unwrap();
        kernel.add_veth("port", "eth0", &far).await.unwrap();
        in_namespace(&far, async |kernel| up(&kernel, "eth0").await);
        let mut watch = Watch::open(["br0".to_owned()]).await.unwrap();
        let join = LinkSettings { up: Some(true), master: Some("br0".to_owned()), ..LinkSettings::default() };
        kernel.set_link("port", &join).await.unwrap();
        // A bridge has a carrier as soon as a port forwards. With the usual delay that is 15 seconds off.
        soon(async {
            while !kernel.link("br0").await.unwrap().unwrap().carrier {
                watch.next().await.unwrap();
            }
        })
        .await;
    });
}

#[test]
fn a_vxlan_device_is_made_as_flannel_makes_it() {
    in_private_namespace(async |_ns, kernel| {
        kernel.add_bridge("under").await.unwrap();
        for address in ["192.0.2.1/24", "2001:db8::1/64"] {
            kernel.add_address("under", net(address)).await.unwrap();
        }
        up(&kernel, "under").await;
        for (name, local, vni) in [("flannel.1", "192.0.2.1", 1), ("flannel-v6.1", "2001:db8::1", 1)] {
            let wanted = Vxlan {
                local: Some(ip(local)),
                device: Some("under".to_owned()),
                mtu: Some(1400),
                mac: Some([0x0a, 1, 2, 3, 4, 5]),
                ..Vxlan::new(name, vni, 8472)
            };
            if !made_vxlan(&kernel, &wanted).await {
                return;
            }
            let link = kernel.link(name).await.unwrap().unwrap();
            assert_eq!((link.mtu, link.mac, link.tx_queue_len), (1400, wanted.mac, 0));
            let info = link.vxlan.unwrap();
            assert_eq!((info.vni, info.port, info.local), (1, 8472, Some(ip(local))));
            assert_eq!(info.device, Some(kernel.link("under").await.unwrap().unwrap().index));
            assert!(!info.learning && !info.l2miss && !info.gbp && info.group.is_none());
            assert!(!info.zero_checksum6_tx && !info.zero_checksum6_rx);
            assert!(info.udp_checksum, "the kernel's default for both families");
        }
        let absent = Vxlan { device: Some("nowhere".to_owned()), ..Vxlan::new("x", 2, 8472) };
        let error = kernel.add_vxlan(&absent).await.unwrap_err();
        assert_eq!(error.errno, Errno::ENODEV);
        assert!(error.to_string().contains("add vxlan x id 2 dstport 8472 dev nowhere: ENODEV"), "{error}");
    });
}

#[test]
fn a_vxlan_device_can_send_and_take_zero_checksums() {
    in_private_namespace(async |_ns, kernel| {
        let wanted = Vxlan {
            local: Some(ip("2001:db8::1")),
            udp_checksum: false,
            zero_checksum6_tx: true,
            zero_checksum6_rx: true,
            ..Vxlan::new("v", 7, 8472)
        };
        if !made_vxlan(&kernel, &wanted).await {
            return;
        }
        let info = kernel.link("v").await.unwrap().unwrap().vxlan.unwrap();
        assert!(!info.udp_checksum && info.zero_checksum6_tx && info.zero_checksum6_rx);
    });
}

#[test]
fn a_vxlan_device_that_serves_is_kept_with_its_mac_and_another_is_made_anew() {
    in_private_namespace(async |_ns, kernel| {
        let wanted =
            Vxlan { local: Some(ip("192.0.2.1")), mac: Some([0x0a; 6]), ..Vxlan::new("flannel.1", 1, 8472) };
        if !made_vxlan(&kernel, &wanted).await {
            return;
        }
        let again = Vxlan { mac: None, mtu: Some(1400), ..wanted.clone() };
        let (link, ensured) = kernel.ensure_vxlan(&again).await.unwrap();
        assert_eq!((link.mac, ensured), (wanted.mac, Ensured::Kept));

        for (changed, reason) in [
            (Vxlan { vni: 2, ..wanted.clone() }, "its VNI is 1, wanted 2"),
            (
                Vxlan { local: Some(ip("192.0.2.2")), vni: 2, ..wanted.clone() },
                "its local address is 192.0.2.1, wanted 192.0.2.2",
            ),
            (Vxlan { port: 4789, ..wanted.clone() }, "its VNI is 2, wanted 1"),
            (wanted.clone(), "its port is 4789, wanted 8472"),
            (Vxlan { gbp: true, ..wanted.clone() }, "the group policy extension (gbp) differs"),
        ] {
            let (link, ensured) = kernel.ensure_vxlan(&changed).await.unwrap();
            assert_eq!(ensured, Ensured::Remade(reason.to_owned()));
            assert_eq!(changed.differs_from(&link, None), None);
        }
        kernel.delete_link("flannel.1").await.unwrap();
        assert_eq!(kernel.ensure_vxlan(&wanted).await.unwrap().1, Ensured::Made);
        kernel.delete_link("flannel.1").await.unwrap();
        kernel.add_bridge("flannel.1").await.unwrap();
        let foreign = kernel.ensure_vxlan(&wanted).await.unwrap_err();
        assert_eq!(
            foreign.to_string(),
            "make the VXLAN device flannel.1: EEXIST: File exists (the one of that name is of the kind bridge); \
             something of that name or address is there already: remove it, or choose another"
        );
        assert!(kernel.link("flannel.1").await.unwrap().is_some(), "it was not ours to delete");
    });
}
