//! Promises about namespaces and the threads in them.
use std::process::Command;

use hostnet::Errno;
use hostnet::netns::NetNs;
use hostnet::sysctl;

use super::{in_private_namespace, private_namespace};

#[test]
fn a_new_namespace_holds_a_loopback_and_nothing_else() {
    in_private_namespace(async |_ns, kernel| {
        let links = kernel.links().await.unwrap();
        assert_eq!(links.iter().map(|link| link.name.as_str()).collect::<Vec<_>>(), ["lo"]);
        assert!(links[0].loopback && !links[0].up);
        assert_eq!(kernel.addresses().await.unwrap(), []);
        assert_eq!(kernel.routes().await.unwrap(), []);
        assert_eq!(kernel.link("nothing").await.unwrap(), None);
    });
}

#[test]
fn a_thread_in_a_namespace_has_its_name_and_its_children_are_there_too() {
    let Some(ns) = private_namespace() else { return };
    let file_of = |path: &str| std::fs::read_link(path).unwrap();
    let outside = file_of("/proc/thread-self/ns/net");
    let (name, inside, child) = ns
        .run("pod-a", || {
            let name = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
            let inside = file_of("/proc/thread-self/ns/net");
            let child = Command::new("readlink").arg("/proc/self/ns/net").output().unwrap().stdout;
            (name, inside, String::from_utf8(child).unwrap())
        })
        .unwrap();
    assert_eq!(name, "pod-a\n");
    assert_ne!(inside, outside);
    assert_eq!(child.trim_end(), inside.to_str().unwrap());
    let spawned = ns.spawn("pod-b", move || file_of("/proc/thread-self/ns/net")).unwrap();
    assert_eq!(spawned.join().unwrap(), inside);
    assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), outside);
}

#[test]
fn a_panic_inside_a_namespace_reaches_the_caller() {
    let Some(ns) = private_namespace() else { return };
    let caught = std::panic::catch_unwind(|| ns.run("panics", || panic!("expected by the test")));
    assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"expected by the test"));
}

#[test]
fn a_setting_changes_in_this_namespace_only() {
    in_private_namespace(async |_ns, kernel| {
        kernel.add_bridge("flannel.1").await.unwrap();
        let name = "net/ipv6/conf/flannel.1/accept_ra";
        for value in ["0", "1"] {
            sysctl::set(name, value).unwrap();
            assert_eq!(sysctl::read(name).unwrap(), value);
        }
        assert_eq!(sysctl::set(name, "not a number").unwrap_err().errno, Errno::EINVAL);
        let other = NetNs::new().unwrap();
        let there = other.run("test", || sysctl::read(name)).unwrap();
        assert_eq!(there.unwrap_err().errno, Errno::ENOENT);
    });
}
