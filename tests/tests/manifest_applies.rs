//! A real API server takes the manifest, the engine's patch, and the steps of the README on the way from flannel and back.

use std::process::ExitCode;

use anyhow::{Context, ensure};
use kube::Client;
use kube::api::{GetParams, Patch, PatchParams};
use kube::core::Request;
use lab::{Cluster, Node, Plan, Scene};
use promises::apiserver::ApiServer;
use promises::harness;
use promises::manifests::{container, deploy, find, flannels_sources, read, texts};
use serde_json::{Value, json};

/// Whoever types the commands of the README.
const HAND: &str = "kubectl";

fn main() -> ExitCode {
    harness::of_kubernetes(
        "promise-manifest",
        lab::cases![
            the_manifest_and_the_engines_patch_are_taken_without_a_remark,
            flannels_installation_becomes_ours_and_flannels_again,
        ],
    )
}

/// Where the API keeps objects of this kind.
fn place(object: &Value) -> anyhow::Result<Request> {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str);
    let version = text("/apiVersion").context("apiVersion")?;
    let api = if version.contains('/') { "apis" } else { "api" };
    let namespace = text("/metadata/namespace").map(|name| format!("namespaces/{name}/")).unwrap_or_default();
    let plural = text("/kind").context("kind")?.to_lowercase() + "s";
    Ok(Request::new(format!("/{api}/{version}/{namespace}{plural}")))
}

struct Installation {
    cluster: Cluster,
    server: ApiServer,
}

impl Installation {
    fn start(scene: &Scene) -> anyhow::Result<Self> {
        let cluster = Cluster::build(&Plan::nodes(1))?;
        let server = ApiServer::start(&cluster.nodes()[0], &scene.dir().join("api"))?;
        Ok(Self { cluster, server })
    }

    fn node(&self) -> &Node {
        &self.cluster.nodes()[0]
    }

    /// Changes an object, and gives it as it is then. A field that the server does not know is an error.
    fn patch(&self, object: &Value, patch: &Patch<Value>) -> anyhow::Result<Value> {
        let params = PatchParams { field_manager: Some(HAND.to_owned()), ..PatchParams::default() };
        let params = if matches!(patch, Patch::Apply(_)) { params.force() } else { params };
        let name = object["metadata"]["name"].as_str().context("a name")?;
        let request = place(object)?.patch(name, &params.validation_strict(), patch)?;
        let answer =
            self.server.admin(self.node(), async |client: Client| Ok(client.request(request).await?));
        answer.with_context(|| format!("{} {name}", object["kind"]))
    }

    /// `kubectl apply --server-side -f FILE`.
    fn apply(&self, objects: &[Value]) -> anyhow::Result<Vec<Value>> {
        objects.iter().map(|object| self.patch(object, &Patch::Apply(object.clone()))).collect()
    }

    fn get(&self, object: &Value) -> anyhow::Result<Value> {
        let name = object["metadata"]["name"].as_str().context("a name")?;
        let request = place(object)?.get(name, &GetParams::default())?;
        self.server.admin(self.node(), async |client: Client| Ok(client.request(request).await?))
    }
}

fn names(list: &Value) -> Vec<String> {
    let names: Vec<Value> =
        list.as_array().into_iter().flatten().map(|entry| entry["name"].clone()).collect();
    texts(&json!(names))
}

fn images(daemon_set: &Value) -> anyhow::Result<[String; 3]> {
    let image = |name: &str| -> anyhow::Result<String> {
        Ok(container(daemon_set, name)?["image"].as_str().context("an image")?.to_owned())
    };
    Ok([image("install-cni-plugin")?, image("install-cni")?, image("kube-flannel")?])
}

fn the_manifest_and_the_engines_patch_are_taken_without_a_remark(scene: &Scene) -> anyhow::Result<()> {
    let there = Installation::start(scene)?;
    let objects = read(&deploy().join("kube-flannel.yml"))?;
    let first = there.apply(&objects)?;
    let second = there.apply(&objects)?;
    for (first, second) in first.iter().zip(&second) {
        let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
        ensure!(version(first) == version(second), "applied again, it changes: {second}");
    }
    let before = find(&first, "DaemonSet", "kube-flannel-ds")?;
    let patch = read(&deploy().join("kube-flannel-engine.yml"))?;
    let patch = find(&patch, "DaemonSet", "kube-flannel-ds")?;
    // As `kubectl patch` sends it.
    let after = there.patch(before, &Patch::Strategic(patch.clone()))?;
    let pod = "/spec/template/spec";
    let lists = |object: &Value| -> anyhow::Result<[Vec<String>; 4]> {
        let flanneld = container(object, "kube-flannel")?;
        let volumes = object.pointer(pod).context("a pod")?["volumes"].clone();
        let containers = object.pointer(pod).context("a pod")?["containers"].clone();
        Ok([names(&volumes), names(&flanneld["volumeMounts"]), names(&flanneld["env"]), names(&containers)])
    };
    let added = [vec!["tun", "leases"], vec!["tun", "leases"], vec!["FLANNELD_LEASE_CACHE"], vec![]];
    for ((before, after), added) in lists(before)?.into_iter().zip(lists(&after)?).zip(added) {
        let mut wanted: Vec<String> =
            before.into_iter().chain(added.into_iter().map(str::to_owned)).collect();
        let mut after = after;
        wanted.sort();
        after.sort();
        ensure!(after == wanted, "{after:?}, expected {wanted:?}");
    }
    ensure!(
        container(&after, "kube-flannel")?["args"] == container(before, "kube-flannel")?["args"],
        "{after}"
    );
    Ok(())
}

/// The README's way: only what a hand changes there is sent.
fn flannels_installation_becomes_ours_and_flannels_again(scene: &Scene) -> anyhow::Result<()> {
    let sources = match flannels_sources()? {
        Ok(sources) => sources,
        Err(reason) => return Err(lab::skip(reason)),
    };
    let there = Installation::start(scene)?;
    let flannels = there.apply(&read(&sources.join("Documentation/kube-flannel.yml"))?)?;
    let before = find(&flannels, "DaemonSet", "kube-flannel-ds")?;
    let [cni, flannel, _] = images(before)?;

    let on_delete = json!({"spec": {"updateStrategy": {"type": "OnDelete"}}});
    let waiting = there.patch(before, &Patch::Strategic(on_delete))?;
    ensure!(waiting["spec"]["updateStrategy"]["type"] == "OnDelete", "{waiting}");
    // `kubectl set image daemonset kube-flannel-ds kube-flannel=...` sends this.
    let image = |name: &str| json!({"spec": {"template": {"spec": {"containers": [{"name": "kube-flannel", "image": name}]}}}});
    let swapped = there.patch(before, &Patch::Strategic(image("registry.example/flannel-rs:v0.1.0")))?;
    ensure!(images(&swapped)? == [cni, flannel, "registry.example/flannel-rs:v0.1.0".into()]);
    let rolling = json!({"spec": {"updateStrategy": {"type": "RollingUpdate"}}});
    there.patch(before, &Patch::Strategic(rolling))?;

    // The manifest as a whole says the same as the one line, but for our name of the image.
    let ours = there.apply(&read(&deploy().join("kube-flannel.yml"))?)?;
    let ours = find(&ours, "DaemonSet", "kube-flannel-ds")?;
    let with_one_image = |object: &Value| -> anyhow::Result<String> {
        let mut spec = object["spec"].to_string();
        for image in images(object)? {
            spec = spec.replace(&image, "image");
        }
        Ok(spec)
    };
    ensure!(with_one_image(ours)? == with_one_image(before)?, "{}\n{}", ours["spec"], before["spec"]);

    // And back: flannel's manifest over ours.
    there.apply(&read(&sources.join("Documentation/kube-flannel.yml"))?)?;
    let again = there.get(before)?;
    ensure!(again["spec"] == before["spec"], "{}\n{}", again["spec"], before["spec"]);
    Ok(())
}
