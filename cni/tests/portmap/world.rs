//! A host, a container on it, the container's neighbour, and a client elsewhere; a service in the container; the plugin.
//!
//! ```text
//!  client 198.51.100.2 ── 198.51.100.1 host 192.0.2.1 ── 10.244.1.1 ┬─ container 10.244.1.5/24
//!                                                                   └─ neighbour 10.244.1.6/24
//! ```
//!
//! The two have a wire of their own each, so an answer that the container sends its neighbour directly arrives nowhere: as
//! behind a bridge, where it would come from an address that the neighbour did not ask.
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use hostnet::netns::NetNs;
use serde_json::{Value, json};

/// Long for a wire of this machine; short, for much of what is tested is that nothing comes.
const PATIENCE: Duration = Duration::from_millis(700);
const SETUP: &str = "
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
ip link set lo up
ip addr add 192.0.2.1/32 dev lo
ip addr add 2001:db8::1/128 dev lo
for peer in client pod near; do
    ip link set veth-$peer up
done
ip addr add 198.51.100.1/24 dev veth-client
ip addr add fd51::1/64 dev veth-client nodad
for peer in pod near; do
    ip addr add 10.244.1.1/32 dev veth-$peer
    ip addr add fd00:1::1/128 dev veth-$peer nodad
done
ip route add 10.244.1.5 dev veth-pod
ip route add fd00:1::5 dev veth-pod
ip route add 10.244.1.6 dev veth-near
ip route add fd00:1::6 dev veth-near
";

/// Runs a shell line in the namespace of this thread and answers what it prints.
pub(crate) fn sh(line: &str) -> String {
    let line = format!("PATH=$PATH:/usr/sbin:/sbin; {line}");
    let output = Command::new("sh").args(["-ec", &line]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{line}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn needs(programs: &[&str]) -> anyhow::Result<()> {
    for program in programs {
        if sh(&format!("command -v {program} || true")).is_empty() {
            let packages = "nftables, iptables, iproute2, procps, conntrack, containernetworking-plugins";
            return Err(lab::skip(format!("there is no {program}: install the packages {packages}")));
        }
    }
    Ok(())
}

/// The program that is tested, and what runtimes give it.
pub(crate) struct Plugin<'a> {
    pub program: &'a str,
    pub config: Value,
    pub container: &'a str,
    /// Where programs are looked for before the usual places.
    pub path: &'a str,
}

impl<'a> Plugin<'a> {
    pub(crate) fn ours(config: Value) -> Self {
        Self { program: env!("CARGO_BIN_EXE_portmap"), config, container: "c1", path: "" }
    }

    pub(crate) fn run(&self, command: &str) -> Result<String, String> {
        let mut config = json!({"cniVersion": "1.0.0", "name": "pods", "type": "portmap"});
        config.as_object_mut().unwrap().extend(self.config.as_object().unwrap().clone());
        let mut child = Command::new(self.program)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", self.container)
            .env("CNI_NETNS", "/var/run/netns/none")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/usr/lib/cni")
            .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.path))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        if output.status.success() { Ok(said) } else { Err(said) }
    }

    pub(crate) fn must(&self, command: &str) -> String {
        self.run(command).unwrap_or_else(|said| panic!("{command}: {said}"))
    }

    pub(crate) fn with(&self, key: &str, value: Value) -> Self {
        let mut config = self.config.clone();
        config.as_object_mut().unwrap().insert(key.to_owned(), value);
        Self { config, ..*self }
    }
}

/// TCP and UDP ports 8080 of the host for 80 of the container.
pub(crate) fn config(backend: &str) -> Value {
    json!({
        "backend": backend,
        "runtimeConfig": {"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8080, "containerPort": 80, "protocol": "udp"},
        ]},
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "veth-pod"}, {"name": "eth0", "sandbox": "/var/run/netns/none"}],
            "ips": [
                {"interface": 1, "address": "10.244.1.5/24", "gateway": "10.244.1.1"},
                {"interface": 1, "address": "fd00:1::5/64", "gateway": "fd00:1::1"},
            ],
        },
    })
}

/// Who there is. The host is the namespace of the test's thread.
pub(crate) struct World {
    pub container: NetNs,
    pub neighbour: NetNs,
    pub client: NetNs,
}

impl World {
    pub(crate) fn new() -> anyhow::Result<Self> {
        needs(&["ip", "sysctl"])?;
        let world = Self { container: NetNs::new()?, neighbour: NetNs::new()?, client: NetNs::new()? };
        let all = [
            ("pod", &world.container, "10.244.1.5/24", "10.244.1.1", "fd00:1::5/64", "fd00:1::1"),
            ("near", &world.neighbour, "10.244.1.6/24", "10.244.1.1", "fd00:1::6/64", "fd00:1::1"),
            ("client", &world.client, "198.51.100.2/24", "198.51.100.1", "fd51::2/64", "fd51::1"),
        ];
        // A router asks for neighbours from its link-local address, and would wait for the proof that nobody else has it.
        sh("sysctl -qw net.ipv6.conf.default.accept_dad=0");
        for (name, namespace, ..) in all {
            let file = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd());
            sh(&format!("ip link add veth-{name} type veth peer name eth0 netns {file}"));
        }
        for (_, namespace, ip4, gateway4, ip6, gateway6) in all {
            let line = format!(
                "ip link set lo up; ip link set eth0 up; ip addr add {ip4} dev eth0; ip addr add {ip6} dev eth0 nodad; \
                 ip route add default via {gateway4}; ip -6 route add default via {gateway6}"
            );
            namespace.run("setup", || sh(&line))?;
        }
        sh(SETUP);
        world.serve()?;
        Ok(world)
    }

    /// Answers with the address of who asks, on port 80 of the container.
    fn serve(&self) -> anyhow::Result<()> {
        let any = SocketAddr::from(([0_u16; 8], 80));
        let (tcp, udp) = self.container.run("serve", || (TcpListener::bind(any), UdpSocket::bind(any)))?;
        let (tcp, udp) = (tcp?, udp?);
        thread::spawn(move || {
            for stream in tcp.incoming() {
                let Ok(mut stream) = stream else { continue };
                if let Ok(peer) = stream.peer_addr() {
                    stream.write_all(peer.ip().to_canonical().to_string().as_bytes()).ok();
                }
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                udp.send_to(peer.ip().to_canonical().to_string().as_bytes(), peer).ok();
            }
        });
        Ok(())
    }
}

/// Whom the service saw when this thread's namespace asked it by TCP; `None`: no answer came.
pub(crate) fn tcp(to: &str) -> Option<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&to.parse().unwrap(), PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.parse().ok()
}

/// The same by UDP.
pub(crate) fn udp(to: &str) -> Option<IpAddr> {
    let to: SocketAddr = to.parse().unwrap();
    let from = if to.is_ipv4() { SocketAddr::from(([0; 4], 0)) } else { SocketAddr::from(([0_u16; 8], 0)) };
    udp_from(&UdpSocket::bind(from).unwrap(), to)
}

pub(crate) fn udp_from(socket: &UdpSocket, to: SocketAddr) -> Option<IpAddr> {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 64];
    match socket.send_to(b"who am I", to).and_then(|_| socket.recv_from(&mut buffer)) {
        // An answer from elsewhere is none.
        Ok((length, sender)) if sender == to => std::str::from_utf8(&buffer[..length]).ok()?.parse().ok(),
        Ok(_) => None,
        Err(error) => {
            let nobody = [ErrorKind::WouldBlock, ErrorKind::TimedOut, ErrorKind::ConnectionRefused];
            assert!(nobody.contains(&error.kind()), "{error}");
            None
        }
    }
}
