//! Kubernetes objects as files hold them: YAML documents, read as a cluster would, and found by kind and name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

/// The repository's `deploy` directory.
#[must_use]
pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// The objects of a file under `deploy`.
///
/// # Errors
/// When it cannot be read or is no YAML.
pub fn read(path: &Path) -> anyhow::Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
}

/// The objects of a text; empty documents are left out.
///
/// # Errors
/// When it is no YAML, or a document is no object with a kind and a name.
pub fn parse(text: &str) -> anyhow::Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    let objects: Vec<Value> = documents.into_iter().filter(|document| !document.is_null()).collect();
    for object in &objects {
        let known = ["/apiVersion", "/kind", "/metadata/name"]
            .iter()
            .all(|path| object.pointer(path).is_some_and(Value::is_string));
        ensure!(known, "no apiVersion, kind and name: {object}");
    }
    Ok(objects)
}

/// The one object of this kind and name.
///
/// # Errors
/// When there is none or more than one.
pub fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> anyhow::Result<&'a Value> {
    let found: Vec<&Value> = objects
        .iter()
        .filter(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        .collect();
    ensure!(found.len() == 1, "{} objects {kind} {name}", found.len());
    Ok(found[0])
}

/// The text of each element of a list; empty for no list.
#[must_use]
pub fn texts(list: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    list.as_array().into_iter().flatten().map(text).collect()
}

/// The container of this name, be it an init container.
///
/// # Errors
/// When the pod has none.
pub fn container<'a>(workload: &'a Value, name: &str) -> anyhow::Result<&'a Value> {
    let pod = &workload["spec"]["template"]["spec"];
    ["containers", "initContainers"]
        .iter()
        .filter_map(|list| pod[*list].as_array())
        .flatten()
        .find(|container| container["name"] == name)
        .with_context(|| format!("no container {name}"))
}

/// What a container runs: its command and its arguments.
#[must_use]
pub fn words(container: &Value) -> Vec<String> {
    [texts(&container["command"]), texts(&container["args"])].concat()
}

/// The same objects in a form in which two that mean the same to Kubernetes are equal: sorted by kind and name, a
/// container's command and arguments in one list, JSON in a ConfigMap as what it says.
#[must_use]
pub fn comparable(mut objects: Vec<Value>) -> Vec<Value> {
    for object in &mut objects {
        let data = object.get_mut("data").and_then(Value::as_object_mut);
        for value in data.into_iter().flat_map(|data| data.values_mut()) {
            if let Some(meaning) = value.as_str().and_then(|text| serde_json::from_str(text).ok()) {
                *value = meaning;
            }
        }
        for list in ["containers", "initContainers"] {
            let path = format!("/spec/template/spec/{list}");
            for container in object.pointer_mut(&path).and_then(Value::as_array_mut).into_iter().flatten() {
                let words = words(container);
                if let Some(fields) = container.as_object_mut() {
                    fields.remove("args");
                    fields.insert("command".to_owned(), json!(words));
                }
            }
        }
        object.sort_all_objects();
    }
    objects.sort_by_key(|object| (object["kind"].to_string(), object["metadata"]["name"].to_string()));
    objects
}

/// Stops at the first object that differs, and prints that one both ways.
///
/// # Panics
/// When the lists differ.
pub fn assert_same(ours: &[Value], theirs: &[Value], what: &str) {
    let pretty = |object: &Value| format!("{object:#}");
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert_eq!(pretty(ours), pretty(theirs), "{what}: {} differs", ours["kind"]);
    }
    assert_eq!(ours.len(), theirs.len(), "{what}: one has objects that the other has not");
}

/// Where the sources of real flannel are, if this machine has Go and the module; else the reason why not.
///
/// # Errors
/// When Go cannot be run although it is there.
pub fn flannels_sources() -> anyhow::Result<Result<PathBuf, String>> {
    let module = concat!(env!("CARGO_MANIFEST_DIR"), "/flannel-peer");
    let command = "command -v go >/dev/null || { echo 'Go is not installed' >&2; exit 1; }
        timeout 300 go mod download github.com/flannel-io/flannel && \
        go list -m -f '{{.Dir}}' github.com/flannel-io/flannel";
    let output = Command::new("sh").args(["-c", command]).current_dir(module).output().context("run sh")?;
    let dir = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if output.status.success() && dir.is_dir() {
        return Ok(Ok(dir));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Ok(Err(format!("no sources of flannel here: {}", said.lines().last().unwrap_or("no answer"))))
}
