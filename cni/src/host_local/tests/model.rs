//! Any sequence of what runtimes do, beside a model: a map of who has which address.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::small;

/// What a runtime does.
#[derive(Clone, Debug)]
enum Step {
    Add(u8),
    AddAt(u8, u8),
    Del(u8),
    /// With a list of the containers whose bit is set.
    Gc(u16),
    /// The reference plugin was killed between making a file and writing it.
    Leftover(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0_u8..10).prop_map(Step::Add),
        2 => (0_u8..10, 0_u8..10).prop_map(|(id, host)| Step::AddAt(id, host)),
        3 => (0_u8..10).prop_map(Step::Del),
        1 => any::<u16>().prop_map(Step::Gc),
        1 => (1_u8..7).prop_map(Step::Leftover),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// The model: who has which address. No address twice, none lost, never the gateway, and what is asked for is given
    /// exactly if it is free.
    #[test]
    fn any_sequence_leaves_what_the_model_has(steps in steps()) {
        let net = small();
        let mut model: BTreeMap<u8, u8> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Add(id) => {
                    let is_free = |host: &u8| !model.values().any(|other| other == host);
                    let may = !model.contains_key(&id) && (2..=6).any(|host| is_free(&host));
                    let given = net.add(&format!("c{id}"), &[]);
                    prop_assert_eq!(given.is_ok(), may, "{:?}", given);
                    if let Ok(given) = given {
                        let host = host_of(&given);
                        prop_assert!((2..=6).contains(&host) && is_free(&host));
                        model.insert(id, host);
                    }
                }
                Step::AddAt(id, host) => {
                    let is_free = !model.values().any(|other| *other == host);
                    let may = !model.contains_key(&id) && is_free && (2..=6).contains(&host);
                    let given = net.add(&format!("c{id}"), &[&format!("10.0.0.{host}")]);
                    prop_assert_eq!(given.is_ok(), may, "{:?}", given);
                    if let Ok(given) = given {
                        prop_assert_eq!(host_of(&given), host);
                        model.insert(id, host);
                    }
                }
                Step::Del(id) => {
                    net.del(&format!("c{id}")).unwrap();
                    model.remove(&id);
                }
                Step::Gc(valid) => {
                    let is_valid = |id: &u8| valid & (1 << id) != 0;
                    let list: Vec<Value> = (0..10).filter(is_valid)
                        .map(|id| json!({"containerID": format!("c{id}"), "ifname": "eth0"})).collect();
                    net.gc(&json!(list)).unwrap();
                    model.retain(|id, _| is_valid(id));
                }
                Step::Leftover(host) => {
                    fs::create_dir_all(net.path()).unwrap();
                    let path = net.path().join(format!("10.0.0.{host}"));
                    if !path.exists() {
                        fs::write(path, "").unwrap();
                    }
                }
            }
            let expected: BTreeMap<IpAddr, String> = model.iter()
                .map(|(id, host)| (IpAddr::from([10, 0, 0, *host]), format!("c{id}\r\neth0"))).collect();
            let mut found = net.reserved();
            found.retain(|_, content| !content.is_empty());
            prop_assert_eq!(found, expected);
        }
        net.gc(&json!([])).unwrap();
        prop_assert_eq!(files(&net.path()), Vec::<String>::new());
    }
}

fn host_of(given: &[String]) -> u8 {
    given[0].trim_start_matches("10.0.0.").trim_end_matches("/29").parse().unwrap()
}

/// What is left beside the files that are always there.
fn files(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).into_iter().flatten();
    names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with("last_reserved_ip.") && name != "lock" && name != ".boot_id")
        .collect()
}
