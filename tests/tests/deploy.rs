//! What lies in `deploy/` fits the daemon and the clusters that flannel runs in.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may stop at what it did not expect")]

use std::collections::BTreeSet;
use std::fs;

use control::flags::RawFlags;
use control::network::NetworkConfig;
use control::settings::{Settings, StoreChoice};
use promises::manifests::{
    assert_same, comparable, container, deploy, find, flannels_sources, read, texts, words,
};
use serde_json::{Value, json};

/// Ours and flannel's, without what stands behind the name.
const IMAGES: [&str; 2] = ["flannel-rs:", "ghcr.io/flannel-io/flannel:"];

fn manifest() -> Vec<Value> {
    read(&deploy().join("kube-flannel.yml")).unwrap()
}

fn daemon_set(objects: &[Value]) -> &Value {
    find(objects, "DaemonSet", "kube-flannel-ds").unwrap()
}

/// The daemon's settings as a pod of this DaemonSet would have them.
fn settings(daemon_set: &Value) -> Settings {
    let flanneld = container(daemon_set, "kube-flannel").unwrap();
    let words = words(flanneld);
    assert_eq!(words[0], "/opt/bin/flanneld");
    let environment = flanneld["env"].as_array().unwrap().iter().map(|variable| {
        // What the kubelet fills in is some text.
        let value = variable["value"].as_str().unwrap_or("filled-in");
        (variable["name"].as_str().unwrap().to_owned(), value.to_owned())
    });
    let flags = RawFlags::parse(words.into_iter().skip(1), environment).unwrap();
    assert!(flags.words.is_empty(), "words that no flag takes: {:?}", flags.words);
    Settings::settle(&flags).unwrap()
}

/// The objects with one name for both images.
fn without_images(objects: Vec<Value>) -> Vec<Value> {
    let mut objects = comparable(objects);
    for object in &mut objects {
        for list in ["containers", "initContainers"] {
            let path = format!("/spec/template/spec/{list}");
            for container in object.pointer_mut(&path).and_then(Value::as_array_mut).into_iter().flatten() {
                let image = container["image"].as_str().unwrap();
                if IMAGES.iter().any(|name| image.starts_with(name)) {
                    container["image"] = json!("the daemon's image");
                }
            }
        }
    }
    objects
}

#[test]
fn from_flannels_manifest_only_the_image_changes() {
    let sources = match flannels_sources().unwrap() {
        Ok(sources) => sources,
        Err(reason) => return println!("skipped: from_flannels_manifest_only_the_image_changes: {reason}"),
    };
    let flannels = without_images(read(&sources.join("Documentation/kube-flannel.yml")).unwrap());
    assert_same(&without_images(manifest()), &flannels, "ours and flannel's manifest");
}

#[test]
fn the_daemon_takes_every_flag_and_variable_of_the_manifest() {
    let objects = manifest();
    let settings = settings(daemon_set(&objects));
    assert!(matches!(&settings.store, StoreChoice::Kube(kube) if kube.pod.is_some()), "{:?}", settings.store);
    assert!(settings.rules.masquerade);
    let flanneld = container(daemon_set(&objects), "kube-flannel").unwrap();
    let port = &flanneld["ports"][0];
    assert_eq!(settings.health.unwrap().port(), port["containerPort"].as_u64().unwrap() as u16);
    for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        assert_eq!(flanneld[probe]["httpGet"], json!({ "path": path, "port": port["name"] }));
    }
    assert_eq!(settings.subnet_file, std::path::Path::new("/run/flannel/subnet.env"));
}

#[test]
fn the_daemon_takes_the_network_configuration_of_the_manifest() {
    let objects = manifest();
    let data = &find(&objects, "ConfigMap", "kube-flannel-cfg").unwrap()["data"];
    let network = NetworkConfig::parse(data["net-conf.json"].as_str().unwrap().as_bytes()).unwrap();
    assert_eq!(network.notices, [], "nothing to remark");
    assert_eq!(network.backend.name(), "vxlan");
    let cni: Value = serde_json::from_str(data["cni-conf.json"].as_str().unwrap()).unwrap();
    let plugins = cni["plugins"].as_array().unwrap();
    assert_eq!(plugins.iter().map(|plugin| &plugin["type"]).collect::<Vec<_>>(), ["flannel", "portmap"]);
}

#[test]
fn the_daemon_may_do_what_it_does_and_nothing_else() {
    let objects = manifest();
    let rules: Vec<(Vec<String>, Vec<String>)> = find(&objects, "ClusterRole", "flannel").unwrap()["rules"]
        .as_array()
        .unwrap()
        .iter()
        .inspect(|rule| assert_eq!(rule["apiGroups"], json!([""])))
        .map(|rule| (texts(&rule["resources"]), texts(&rule["verbs"])))
        .collect();
    let rule = |resource: &str, verbs: &[&str]| {
        (vec![resource.to_owned()], verbs.iter().map(|verb| (*verb).to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(
        rules,
        [rule("pods", &["get"]), rule("nodes", &["get", "list", "watch"]), rule("nodes/status", &["patch"])]
    );
    let flanneld = container(daemon_set(&objects), "kube-flannel").unwrap();
    assert_eq!(flanneld["securityContext"]["privileged"], false);
}

/// Names of volumes, and of what the containers mount.
fn volumes_and_mounts(daemon_set: &Value) -> (BTreeSet<String>, BTreeSet<String>) {
    let pod = &daemon_set["spec"]["template"]["spec"];
    let names = |list: &Value| -> Vec<String> {
        list.as_array()
            .into_iter()
            .flatten()
            .map(|entry| entry["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let containers = ["containers", "initContainers"];
    let containers = containers.iter().filter_map(|list| pod[*list].as_array()).flatten();
    (
        names(&pod["volumes"]).into_iter().collect(),
        containers.flat_map(|container| names(&container["volumeMounts"])).collect(),
    )
}

#[test]
fn every_mount_has_its_volume() {
    for file in ["kube-flannel.yml", "kube-flannel-engine.yml"] {
        let objects = read(&deploy().join(file)).unwrap();
        let (volumes, mounts) = volumes_and_mounts(daemon_set(&objects));
        assert_eq!(volumes, mounts, "{file}");
    }
}

#[test]
fn the_engines_patch_fits_the_manifest() {
    let patch = read(&deploy().join("kube-flannel-engine.yml")).unwrap();
    let objects = manifest();
    let (patch, whole) = (daemon_set(&patch), daemon_set(&objects));
    assert_eq!(patch["metadata"]["namespace"], whole["metadata"]["namespace"]);
    let added = container(patch, "kube-flannel").unwrap();
    let mut flanneld = container(whole, "kube-flannel").unwrap().clone();
    // Lists whose elements have a name of their own are merged by it.
    for list in ["env", "volumeMounts"] {
        let added = added[list].as_array().unwrap().clone();
        flanneld[list].as_array_mut().unwrap().extend(added);
    }
    let patched = json!({ "spec": { "template": { "spec": { "containers": [flanneld] } } } });
    let cache = settings(&patched).lease_cache.unwrap();
    let mounted = texts(&json!(
        added["volumeMounts"].as_array().unwrap().iter().map(|mount| &mount["mountPath"]).collect::<Vec<_>>()
    ));
    assert_eq!(mounted, ["/dev/net/tun", cache.parent().unwrap().to_str().unwrap()]);
    let (new, _) = volumes_and_mounts(patch);
    let (old, _) = volumes_and_mounts(whole);
    assert!(new.is_disjoint(&old), "the patch replaces a volume");
}

#[test]
fn the_daemon_takes_every_variable_of_the_units_example() {
    let text = fs::read_to_string(deploy().join("systemd/flanneld.env")).unwrap();
    let variables = |chosen: &dyn Fn(&str) -> Option<String>| -> Vec<(String, String)> {
        text.lines()
            .filter_map(chosen)
            .map(|line| {
                let (name, value) = line.split_once('=').unwrap();
                (name.to_owned(), value.to_owned())
            })
            .collect()
    };
    let set = variables(&|line| line.starts_with("FLANNELD_").then(|| line.to_owned()));
    let commented = variables(&|line| {
        line.strip_prefix('#').filter(|rest| rest.starts_with("FLANNELD_")).map(str::to_owned)
    });
    assert!(set.len() > 5 && commented.len() > 2);
    let settled = |environment: Vec<(String, String)>| {
        let flags = RawFlags::parse([], environment).unwrap();
        assert!(flags.unknown_variables.is_empty(), "{:?}", flags.unknown_variables);
        Settings::settle(&flags).unwrap()
    };
    assert!(matches!(settled(set.clone()).store, StoreChoice::Etcd(_)));
    let directory = commented.iter().filter(|(name, _)| name == "FLANNELD_FILE_SUBNET_MGR").cloned();
    let without_etcd = set.iter().filter(|(name, _)| !name.starts_with("FLANNELD_ETCD")).cloned();
    assert!(matches!(settled(without_etcd.chain(directory).collect()).store, StoreChoice::File { .. }));
    let others = commented.into_iter().filter(|(name, _)| name != "FLANNELD_FILE_SUBNET_MGR");
    settled(set.into_iter().chain(others).collect());
}

#[test]
fn the_image_has_what_the_manifest_calls_and_copies_what_there_is() {
    let objects = manifest();
    let text = fs::read_to_string(deploy().join("Dockerfile")).unwrap();
    for name in ["kube-flannel", "install-cni"] {
        let program = words(container(daemon_set(&objects), name).unwrap()).remove(0);
        assert!(text.contains(&program), "the image has no {program}");
    }
    let mut copied = 0;
    for line in text.lines().filter(|line| line.starts_with("COPY ") && !line.contains("--from=")) {
        let mut sources: Vec<&str> = line.split_whitespace().skip(1).collect();
        sources.pop();
        for source in sources {
            copied += 1;
            assert!(deploy().join("..").join(source).exists(), "{line}: {source} is not there");
        }
    }
    assert!(copied > 3, "{copied} sources");
}
