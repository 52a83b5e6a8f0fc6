//! What an operator and their machines do: ask a daemon over HTTP, read its metrics, run its subcommands.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use lab::Node;
use serde_json::Value;

use crate::binary;

/// Where the daemons of these promises answer HTTP.
pub const PORT: u16 = 10_256;

/// An answer over HTTP.
#[derive(Debug)]
pub struct Answer {
    /// 200, 503, ...
    pub status: u16,
    /// Everything before the body.
    pub head: String,
    /// The body.
    pub body: String,
}

/// Asks the daemon of a node from within the node.
///
/// # Errors
///
/// When nobody answers, or not in HTTP.
pub fn get(node: &Node, target: &str) -> anyhow::Result<Answer> {
    request(node, &format!("GET {target} HTTP/1.1\r\nHost: node\r\n\r\n"))
}

/// The same with any text for a request.
///
/// # Errors
///
/// As [`get`].
pub fn request(node: &Node, text: &str) -> anyhow::Result<Answer> {
    let mut stream = connect(node)?;
    stream.write_all(text.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no HTTP: {answer:?}"))?;
    let status = head.split(' ').nth(1).context("a status")?.parse()?;
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// A connection to the daemon of a node from within the node.
///
/// # Errors
///
/// When nobody listens.
pub fn connect(node: &Node) -> anyhow::Result<TcpStream> {
    let stream = node.namespace().run("operator", || TcpStream::connect(("127.0.0.1", PORT)))??;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

/// The daemon's metrics, each series with its labels as it stands in the text. Anything that is not OpenMetrics is an
/// error: a sample without a type before it, a name or a label that Prometheus would not take, a series that comes twice.
///
/// # Errors
///
/// When nobody answers, or with something else.
pub fn metrics(node: &Node) -> anyhow::Result<BTreeMap<String, f64>> {
    let answer = get(node, "/metrics")?;
    ensure!(answer.status == 200, "{answer:?}");
    ensure!(
        answer.head.to_lowercase().contains("content-type: application/openmetrics-text"),
        "{}",
        answer.head
    );
    parse(&answer.body).with_context(|| answer.body)
}

fn parse(text: &str) -> anyhow::Result<BTreeMap<String, f64>> {
    let body = text.strip_suffix("# EOF\n").context("no end")?;
    let mut types: BTreeMap<&str, &str> = BTreeMap::new();
    let mut helps: Vec<&str> = Vec::new();
    let mut series = BTreeMap::new();
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').with_context(|| line.to_owned())?;
            ensure!(["counter", "gauge", "info"].contains(&kind), "{line}");
            ensure!(types.insert(name, kind).is_none(), "a type twice: {line}");
        } else if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').with_context(|| line.to_owned())?;
            ensure!(help.ends_with('.'), "no sentence: {line}");
            helps.push(name);
        } else {
            ensure!(!line.starts_with('#') && !line.is_empty(), "what is {line:?}?");
            let (key, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
            let (name, labels) = match key.split_once('{') {
                Some((name, labels)) => (name, labels.strip_suffix('}').with_context(|| line.to_owned())?),
                None => (key, ""),
            };
            let family = types.iter().find(|(family, kind)| match **kind {
                "counter" => name.strip_suffix("_total") == Some(**family),
                "info" => name.strip_suffix("_info") == Some(**family),
                _ => name == **family,
            });
            let (family, kind) = family.with_context(|| format!("no type for {line}"))?;
            ensure!(helps.contains(family), "no help for {line}");
            ensure!(is_name(name), "no name: {line}");
            check_labels(labels).with_context(|| line.to_owned())?;
            let number: f64 = value.parse().with_context(|| line.to_owned())?;
            ensure!(number.is_finite() && (*kind != "counter" || number >= 0.0), "{line}");
            ensure!(series.insert(key.to_owned(), number).is_none(), "a series twice: {line}");
        }
    }
    Ok(series)
}

fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

fn check_labels(labels: &str) -> anyhow::Result<()> {
    let mut names = Vec::new();
    for pair in labels.split(',').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').context("no pair")?;
        ensure!(is_name(name) && !names.contains(&name), "{pair}");
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        ensure!(value.is_some_and(|value| !value.contains(['"', '\\'])), "{pair}");
        names.push(name);
    }
    Ok(())
}

/// What `flanneld WORDS` answers, asked at the socket beside `subnet_file`.
///
/// # Errors
///
/// When the program cannot be run.
pub fn ask(subnet_file: &Path, words: &[&str]) -> anyhow::Result<Output> {
    let mut command = Command::new(binary::flanneld()?);
    command.args(words).arg("--status-socket").arg(socket(subnet_file));
    Ok(command.output()?)
}

/// The socket of the daemon that writes `subnet_file`.
#[must_use]
pub fn socket(subnet_file: &Path) -> PathBuf {
    subnet_file.with_file_name("flanneld.sock")
}

/// Every path of keys in `value`, sorted; the items of a list are taken as one.
pub fn keys(value: &Value, under: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            for (key, inner) in object {
                let path = if under.is_empty() { key.clone() } else { format!("{under}.{key}") };
                keys(inner, &path, found);
                found.push(path);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| keys(item, &format!("{under}[]"), found)),
        _ => {}
    }
    found.sort();
    found.dedup();
}

/// The exit status of a command that ended by itself.
///
/// # Errors
///
/// When a signal ended it.
pub fn exit(output: &Output) -> anyhow::Result<i32> {
    match output.status.code() {
        Some(code) => Ok(code),
        None => bail!("a signal ended it: {output:?}"),
    }
}

/// Its standard output.
#[must_use]
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

    use super::*;

    #[test]
    fn only_open_metrics_pass() {
        let good = "# HELP flannel_drops Some.\n# TYPE flannel_drops counter\nflannel_drops_total{reason=\"x\"} 3\n# EOF\n";
        assert_eq!(parse(good).unwrap()["flannel_drops_total{reason=\"x\"}"], 3.0);
        for (from, to) in [
            ("# EOF\n", ""),
            ("# TYPE flannel_drops counter\n", ""),
            ("# HELP flannel_drops Some.\n", ""),
            ("_total", ""),
            ("reason=\"x\"", "reason=x"),
            ("reason=\"x\"", "Reason=\"x\""),
            (" 3\n", " -3\n"),
            (" 3\n", " 3\nflannel_drops_total{reason=\"x\"} 3\n"),
            (" 3\n", " three\n"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert!(parse(&bad).is_err(), "{bad}");
        }
    }
}
