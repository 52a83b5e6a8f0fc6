//! The chart takes the values of flannel's chart and makes the objects that flannel's makes of them, with our image.
//! Needs helm: `.ci/helm target/tools` builds it, `.ci/run` does so, and without it the promises skip aloud.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may stop at what it did not expect")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use control::flags::RawFlags;
use control::network::NetworkConfig;
use control::settings::Settings;
use promises::manifests::{
    self, assert_same, comparable, container, deploy, find, flannels_sources, texts, words,
};
use serde_json::{Value, json};

/// What people set, each as `--set` takes it, and what it is for.
const VALUES: &[&[&str]] = &[
    &[],
    &["podCidrv6=fd00:10:244::/56"],
    &["podCidr=", "podCidrv6=fd00:10:244::/56", "flannel.enableNFTables=true"],
    &["flannel.backendPort=4789", "flannel.vni=4096", "flannel.directRouting=true", "flannel.mtu=1400"],
    &["flannel.GBP=true", "flannel.macPrefix=0E-2A"],
    &["flannel.backend=host-gw", "flannel.skipCNIConfigInstallation=true"],
    &["flannel.backend=udp", "flannel.backendPort=8286"],
    &["flannel.healthz.port=0", "flannel.nodeSelector.zone=a", "global.imagePullSecrets[0].name=secret"],
    &["flannel.cniBinDir=/usr/lib/cni", "flannel.cniConfDir=/etc/net.d", "flannel.healthz.port=9000"],
    &["flannel.args={--kube-subnet-mgr,--iface=eth1}", "flannel.resources.limits.cpu=1"],
    &["netpol.enabled=true"],
];

/// helm, or why there is none.
fn helm() -> Result<PathBuf, String> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/helm");
    let in_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|dir| dir.join("helm")).find(|program| program.is_file())
    };
    Some(built)
        .filter(|program| program.is_file())
        .or_else(in_path)
        .ok_or_else(|| "no helm: `.ci/helm target/tools` builds it".to_owned())
}

fn template(helm: &Path, chart: &Path, values: &[&str]) -> Output {
    let mut command = Command::new(helm);
    command.args(["template", "flannel"]).arg(chart).args(["--namespace", "kube-flannel"]);
    for value in values {
        command.args(["--set", value]);
    }
    command.output().unwrap()
}

fn rendered(helm: &Path, chart: &Path, values: &[&str]) -> Vec<Value> {
    let output = template(helm, chart, values);
    assert!(output.status.success(), "{values:?}: {}", String::from_utf8_lossy(&output.stderr));
    manifests::parse(&String::from_utf8(output.stdout).unwrap()).unwrap()
}

fn ours() -> PathBuf {
    deploy().join("helm/flannel-rs")
}

/// The objects without what the two charts differ in on purpose: the image, the role, and that ours always says whether
/// nftables are used.
fn alike(objects: Vec<Value>) -> Vec<Value> {
    let mut objects = comparable(objects);
    objects.retain(|object| object["kind"] != "ClusterRole");
    for object in &mut objects {
        if let Some(net) = object.pointer_mut("/data/net-conf.json").and_then(Value::as_object_mut) {
            net.entry("EnableNFTables").or_insert(json!(false));
            net.sort_keys();
        }
        for list in ["containers", "initContainers"] {
            let path = format!("/spec/template/spec/{list}");
            for container in object.pointer_mut(&path).and_then(Value::as_array_mut).into_iter().flatten() {
                let name = container["image"].as_str().unwrap().split(':').next().unwrap().to_owned();
                if ["flannel-rs", "ghcr.io/flannel-io/flannel"].contains(&name.as_str()) {
                    container["image"] = json!("the daemon's image");
                }
            }
        }
        // The order of volumes means nothing.
        if let Some(volumes) = object.pointer_mut("/spec/template/spec/volumes").and_then(Value::as_array_mut)
        {
            volumes.sort_by_key(|volume| volume["name"].to_string());
        }
    }
    objects
}

#[test]
fn the_values_of_flannels_chart_make_the_objects_of_flannels_chart() {
    let name = "the_values_of_flannels_chart_make_the_objects_of_flannels_chart";
    let (helm, sources) = match (helm(), flannels_sources().unwrap()) {
        (Ok(helm), Ok(sources)) => (helm, sources),
        (Err(reason), _) | (_, Err(reason)) => return println!("skipped: {name}: {reason}"),
    };
    for values in VALUES {
        let flannels = alike(rendered(&helm, &sources.join("chart/kube-flannel"), values));
        let ours = alike(rendered(&helm, &ours(), values));
        assert_same(&ours, &flannels, &format!("{values:?}"));
    }
}

#[test]
fn the_daemon_takes_what_the_chart_makes() {
    let helm = match helm() {
        Ok(helm) => helm,
        Err(reason) => return println!("skipped: the_daemon_takes_what_the_chart_makes: {reason}"),
    };
    let own = ["flannel.tunDevice=true", "flannel.leaseCacheDir=/var/lib/flannel-rs"];
    for values in VALUES.iter().copied().chain([own.as_slice()]) {
        let objects = rendered(&helm, &ours(), values);
        let data = &find(&objects, "ConfigMap", "kube-flannel-cfg").unwrap()["data"];
        NetworkConfig::parse(data["net-conf.json"].as_str().unwrap().as_bytes())
            .unwrap_or_else(|remark| panic!("{values:?}: {remark}"));
        let daemon_set = find(&objects, "DaemonSet", "kube-flannel-ds").unwrap();
        let flanneld = container(daemon_set, "kube-flannel").unwrap();
        let environment = flanneld["env"].as_array().unwrap().iter().map(|variable| {
            let value = variable["value"].as_str().unwrap_or("filled-in").to_owned();
            (variable["name"].as_str().unwrap().to_owned(), value)
        });
        let flags = RawFlags::parse(words(flanneld).into_iter().skip(1), environment).unwrap();
        let settings = Settings::settle(&flags).unwrap();
        let port = flanneld["ports"][0]["containerPort"].as_u64();
        assert_eq!(settings.health.map(|address| u64::from(address.port())), port, "{values:?}");
        let role = &find(&objects, "ClusterRole", "flannel").unwrap()["rules"];
        let rules = role.as_array().unwrap().len();
        assert_eq!(rules, if values.contains(&"netpol.enabled=true") { 6 } else { 3 }, "{values:?}");
        assert_eq!(texts(&role[2]["verbs"]), ["patch"]);
    }
}

#[test]
fn the_chart_and_the_manifest_are_one_installation() {
    let helm = match helm() {
        Ok(helm) => helm,
        Err(reason) => return println!("skipped: the_chart_and_the_manifest_are_one_installation: {reason}"),
    };
    let mut manifest = alike(manifests::read(&deploy().join("kube-flannel.yml")).unwrap());
    manifest.retain(|object| object["kind"] != "Namespace");
    let mut chart = alike(rendered(&helm, &ours(), &[]));
    for object in manifest.iter_mut().chain(&mut chart) {
        // flannel's chart tolerates one taint more, and leaves a label out.
        let metadata = object["metadata"].as_object_mut().unwrap();
        if let Some(labels) = metadata.get_mut("labels").and_then(Value::as_object_mut) {
            labels.remove("k8s-app");
            if labels.is_empty() {
                metadata.remove("labels");
            }
        }
        metadata.sort_keys();
        if let Some(pod) = object.pointer_mut("/spec/template/spec").and_then(Value::as_object_mut) {
            pod.remove("tolerations");
        }
    }
    assert_same(&chart, &manifest, "chart and manifest");
}

#[test]
fn values_that_no_daemon_takes_are_refused_before_anything_is_installed() {
    let name = "values_that_no_daemon_takes_are_refused_before_anything_is_installed";
    let helm = match helm() {
        Ok(helm) => helm,
        Err(reason) => return println!("skipped: {name}: {reason}"),
    };
    for (values, expected) in [
        (["flannel.backend=wireguard", "podCidrv6="], "this version has vxlan, host-gw, udp, alloc"),
        (["podCidr=", "podCidrv6="], "give the cluster's pod network"),
    ] {
        let output = template(&helm, &ours(), &values);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(expected), "{said}");
    }
}
