//! Promises about neighbours and forwarding entries.
use std::net::Ipv4Addr;

use hostnet::Errno;
use hostnet::kernel::Vxlan;
use hostnet::state::{FdbEntry, Neighbour};

use super::{in_private_namespace, ip, made_vxlan, up};

#[test]
fn permanent_neighbours_and_forwarding_entries_read_back() {
    in_private_namespace(async |_ns, kernel| {
        let v4 =
            Vxlan { local: Some(Ipv4Addr::new(192, 0, 2, 1).into()), ..Vxlan::new("flannel.1", 1, 8472) };
        let v6 = Vxlan { local: Some(ip("2001:db8::1")), ..Vxlan::new("flannel-v6.1", 1, 8472) };
        for (vxlan, neighbour, dst) in [(v4, "10.5.34.0", "192.0.2.2"), (v6, "fd00:5:34::", "2001:db8::2")] {
            if !made_vxlan(&kernel, &vxlan).await {
                return;
            }
            let device = vxlan.name.clone();
            up(&kernel, &device).await;
            let mac = [0x0a, 0, 0, 0, 0, 2];
            let near = Neighbour { device: device.clone(), ip: ip(neighbour), mac };
            let entry = FdbEntry { device: device.clone(), mac, dst: ip(dst) };
            kernel.replace_neighbour(&Neighbour { mac: [2; 6], ..near.clone() }).await.unwrap();
            kernel.replace_neighbour(&near).await.unwrap();
            assert_eq!(kernel.neighbours(&device).await.unwrap(), std::slice::from_ref(&near));
            kernel.replace_fdb(&entry).await.unwrap();
            kernel.replace_fdb(&entry).await.unwrap();
            assert_eq!(kernel.fdb(&device).await.unwrap(), std::slice::from_ref(&entry));

            kernel.delete_fdb(&entry).await.unwrap();
            kernel.delete_neighbour(&near).await.unwrap();
            assert_eq!(kernel.neighbours(&device).await.unwrap(), []);
            assert_eq!(kernel.fdb(&device).await.unwrap(), []);
            assert_eq!(kernel.delete_fdb(&entry).await.unwrap_err().errno, Errno::ENOENT);
            assert_eq!(kernel.delete_neighbour(&near).await.unwrap_err().errno, Errno::ENOENT);
        }
    });
}

#[test]
fn a_forwarding_entry_moves_to_another_node() {
    in_private_namespace(async |_ns, kernel| {
        let vxlan = Vxlan { local: Some(ip("192.0.2.1")), ..Vxlan::new("flannel.1", 1, 8472) };
        if !made_vxlan(&kernel, &vxlan).await {
            return;
        }
        let entry = FdbEntry { device: vxlan.name.clone(), mac: [2; 6], dst: ip("192.0.2.2") };
        kernel.replace_fdb(&entry).await.unwrap();
        let moved = FdbEntry { dst: ip("192.0.2.3"), ..entry };
        kernel.replace_fdb(&moved).await.unwrap();
        assert_eq!(kernel.fdb("flannel.1").await.unwrap(), [moved]);
    });
}
