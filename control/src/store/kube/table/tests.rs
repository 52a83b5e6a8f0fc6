//! The table of nodes: late events, podCIDRs that two nodes want, nodes that say nonsense.

use super::*;
use crate::store::kube::testing::{families, keys, node};

fn table(nodes: &[NodeObject]) -> Table {
    let mut table = Table::new(keys(), families());
    let seen = nodes.iter().map(|node| table.look_at(node)).collect();
    table.replace(seen);
    table
}

fn held(table: &Table) -> Vec<(String, String)> {
    table.leases.iter().map(|(subnet, holder)| (subnet.to_string(), holder.node.clone())).collect()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(subnet, node)| ((*subnet).to_owned(), (*node).to_owned())).collect()
}

fn told(updates: &[LeaseUpdate]) -> Vec<String> {
    updates
        .iter()
        .map(|update| match update {
            LeaseUpdate::Snapshot(all) => format!("= {}", all.len()),
            LeaseUpdate::Rewound(_) => panic!("no server of Kubernetes does that"),
            LeaseUpdate::Upsert(lease) => format!("+ {}", lease.subnet),
            LeaseUpdate::Remove(subnet) => format!("- {subnet}"),
        })
        .collect()
}

#[test]
fn the_older_node_keeps_a_pod_cidr_that_two_want() {
    let young = node("a", 20, 1).cidr("10.244.1.0/24").address("192.0.2.2");
    let old = node("b", 10, 2).cidr("10.244.1.0/24");
    let mut table = table(&[young.build(), old.build()]);
    assert_eq!(held(&table), pairs(&[("10.244.1.0/24", "b")]));
    let conflict = Conflict { holder: "b".into(), loser: "a".into(), subnet: old.lease().subnet };
    assert_eq!(table.conflicts(), [conflict]);
    let updates = table.remove(&old.clone().version(3).build());
    assert_eq!(told(&updates), ["+ 10.244.1.0/24"]);
    assert_eq!((held(&table), table.conflicts()), (pairs(&[("10.244.1.0/24", "a")]), vec![]));
    let updates = table.put(&old.uid("again").version(4).build());
    assert_eq!(told(&updates), ["+ 10.244.1.0/24"], "it is older by its time, whoever came first here");
}

#[test]
fn a_network_inside_another_is_a_conflict_too() {
    let wide = node("wide", 5, 1).cidr("10.244.0.0/20");
    let narrow = node("narrow", 9, 2).cidr("10.244.3.0/24");
    let mut table = table(&[narrow.build()]);
    assert_eq!(told(&table.put(&wide.build())), ["- 10.244.3.0/24", "+ 10.244.0.0/20"]);
    assert_eq!(table.conflicts().len(), 1);
    let elsewhere = wide.cidr("10.245.0.0/20").version(5);
    assert_eq!(
        told(&table.put(&elsewhere.build())),
        ["- 10.244.0.0/20", "+ 10.244.3.0/24", "+ 10.245.0.0/20"]
    );
    assert!(table.conflicts().is_empty());
}

#[test]
fn an_event_that_comes_late_changes_nothing() {
    let first = node("a", 1, 5).cidr("10.244.1.0/24");
    let second = first.clone().address("192.0.2.99").version(6);
    let mut table = table(&[first.build()]);
    assert_eq!(told(&table.put(&second.build())), ["+ 10.244.1.0/24"]);
    assert!(table.put(&first.build()).is_empty());
    assert!(table.put(&second.build()).is_empty(), "a duplicate");
    assert_eq!(told(&table.remove(&second.clone().version(7).build())), ["- 10.244.1.0/24"]);
    assert!(table.put(&second.build()).is_empty(), "it was deleted after that");
    assert_eq!(told(&table.put(&second.uid("again").version(9).build())), ["+ 10.244.1.0/24"]);
}

#[test]
fn a_pod_cidr_that_changes_is_told_as_one_gone_and_one_come() {
    let node = node("a", 1, 1).cidr("10.244.1.0/24");
    let mut table = table(&[node.build()]);
    let updates = table.put(&node.cidr("10.244.9.0/24").version(2).build());
    assert_eq!(told(&updates), ["- 10.244.1.0/24", "+ 10.244.9.0/24"]);
}

#[test]
fn a_node_that_is_flannels_no_more_is_gone() {
    let node = node("a", 1, 1).cidr("10.244.1.0/24");
    let mut table = table(&[node.build()]);
    let updates = table.put(&node.unmanaged().version(2).build());
    assert_eq!(told(&updates), ["- 10.244.1.0/24"]);
}

#[test]
fn what_was_known_of_a_spoiled_node_stays_and_the_node_is_named() {
    let good = node("a", 1, 1).cidr("10.244.1.0/24");
    let bad = good.clone().address("nowhere").version(2);
    let mut table = table(&[good.build(), node("b", 1, 1).cidr("10.244.2.0/24").address("here").build()]);
    assert_eq!(held(&table), pairs(&[("10.244.1.0/24", "a")]), "b never was good");
    assert!(table.put(&bad.build()).is_empty());
    assert_eq!(held(&table), pairs(&[("10.244.1.0/24", "a")]));
    let mut named: Vec<_> = table.spoiled().map(|(name, _)| name.to_owned()).collect();
    named.sort();
    assert_eq!(named, ["a", "b"]);
    let seen = vec![table.look_at(&bad.build())];
    assert_eq!(told(&[table.replace(seen)]), ["= 1"], "a new list keeps it too");
    let seen = vec![table.look_at(&bad.uid("again").version(3).build())];
    assert_eq!(told(&[table.replace(seen)]), ["= 0"], "another node of that name does not");
}

#[test]
fn thousands_of_nodes_are_settled_without_a_conflict() {
    let nodes: Vec<_> = (0..5000u32)
        .map(|n| {
            node(&format!("n{n}"), n.into(), n.into())
                .cidr(&format!("10.{}.{}.0/24", n / 256, n % 256))
                .build()
        })
        .collect();
    let table = table(&nodes);
    assert_eq!((table.len(), table.leases.len(), table.ranges.len()), (5000, 5000, 5000));
    assert!(table.conflicts().is_empty());
}
