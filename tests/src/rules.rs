//! Packet filter rules of a node, looked at and spoiled with the programs that an administrator would use.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use hostnet::netns::NetNs;

/// Skips aloud where the program is not installed.
///
/// # Errors
///
/// The skip.
pub fn need(program: &str) -> anyhow::Result<()> {
    let found =
        Command::new("sh").args(["-c", &format!("PATH=$PATH:/usr/sbin command -v {program}")]).output()?;
    if found.status.success() {
        return Ok(());
    }
    Err(lab::skip(format!("there is no {program}: install nftables and iptables")))
}

/// Runs a shell line inside the namespace and answers what it printed.
///
/// # Errors
///
/// When it fails, with what it said.
pub fn sh(namespace: &NetNs, line: &str) -> anyhow::Result<String> {
    let line = format!("PATH=$PATH:/usr/sbin; {line}");
    let output = namespace.run("sh", || Command::new("sh").args(["-ec", &line]).output())??;
    ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Sends a datagram and answers who the receiver takes for its sender; `None` where nothing came.
///
/// # Errors
///
/// When no socket can be opened or bound to `to`.
pub fn sender_seen(from: &NetNs, at: &NetNs, to: IpAddr) -> anyhow::Result<Option<IpAddr>> {
    let receiver = at.run("receiver", || UdpSocket::bind(SocketAddr::new(to, 0)))??;
    receiver.set_read_timeout(Some(Duration::from_secs(2)))?;
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let sender = from.run("sender", || UdpSocket::bind(any))??;
    sender.send_to(b"who am I?", receiver.local_addr()?).context("send")?;
    let mut buffer = [0; 64];
    match receiver.recv_from(&mut buffer) {
        Ok((len, from)) => {
            ensure!(&buffer[..len] == b"who am I?", "something else came from {from}");
            Ok(Some(from.ip()))
        }
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) =>
        {
            Ok(None)
        }
        Err(error) => bail!("receive at {to}: {error}"),
    }
}
