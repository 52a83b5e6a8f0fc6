//! The table of flags: one row a flag, flannel's names and defaults, and ours marked (new).

/// One flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flag {
    /// The name without dashes; the variable is derived from it.
    pub name: &'static str,
    /// How its value is read.
    pub kind: Kind,
    /// The value when it is not given, as text; empty for none.
    pub default: &'static str,
    /// What stands for the value in the help.
    pub placeholder: &'static str,
    /// What it does, in one line.
    pub help: &'static str,
    /// Left out of the help: for the demo and the tests.
    pub hidden: bool,
}

/// How a flag's value is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A boolean; its value comes only with `=`.
    Switch,
    /// A whole number in Go's notation.
    Integer,
    /// Any text; the last one given counts.
    Text,
    /// Any text; all that are given count, in order.
    List,
}

const fn flag(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    placeholder: &'static str,
    help: &'static str,
) -> Flag {
    Flag { name, kind, default, placeholder, help, hidden: false }
}

/// Every flag, in the order of the help.
pub const FLAGS: &[Flag] = &[
    flag("kube-subnet-mgr", Kind::Switch, "false", "", "leases are the nodes of the Kubernetes API"),
    flag("kube-api-url", Kind::Text, "", "URL", "API server; without it and a kubeconfig: the pod's own"),
    flag("kubeconfig-file", Kind::Text, "", "FILE", "kubeconfig to reach the API server with"),
    flag(
        "kube-annotation-prefix",
        Kind::Text,
        "flannel.alpha.coreos.com",
        "PREFIX",
        "prefix of the node annotations",
    ),
    flag(
        "set-node-network-unavailable",
        Kind::Switch,
        "true",
        "",
        "set the node's NetworkUnavailable=False when ready",
    ),
    flag(
        "etcd-endpoints",
        Kind::Text,
        "http://127.0.0.1:4001,http://127.0.0.1:2379",
        "URLS",
        "etcd servers, by commas",
    ),
    flag("etcd-prefix", Kind::Text, "/coreos.com/network", "KEY", "where in etcd the network is kept"),
    flag("etcd-cafile", Kind::Text, "", "FILE", "certificates that the etcd servers are trusted by"),
    flag("etcd-certfile", Kind::Text, "", "FILE", "our certificate for etcd"),
    flag("etcd-keyfile", Kind::Text, "", "FILE", "its key"),
    flag("etcd-username", Kind::Text, "", "NAME", "user for etcd"),
    flag(
        "etcd-password",
        Kind::Text,
        "",
        "TEXT",
        "password for etcd; FLANNELD_ETCD_PASSWORD hides it from `ps`",
    ),
    flag("file-subnet-mgr", Kind::Text, "", "DIR", "keep leases in DIR, shared by all nodes (new)"),
    flag(
        "net-config-path",
        Kind::Text,
        "/etc/kube-flannel/net-conf.json",
        "FILE",
        "network configuration, if the store has none",
    ),
    flag(
        "iface",
        Kind::List,
        "",
        "NAME|IP",
        "interface for the traffic between nodes; repeatable, first found wins",
    ),
    flag(
        "iface-regex",
        Kind::List,
        "",
        "REGEX",
        "the same by pattern over addresses, then names; tried after --iface",
    ),
    flag(
        "iface-can-reach",
        Kind::Text,
        "",
        "IP",
        "the interface the kernel would use to reach IP; tried last",
    ),
    flag("public-ip", Kind::Text, "", "IP", "IPv4 address that the other nodes send to"),
    flag("public-ipv6", Kind::Text, "", "IP", "IPv6 address that the other nodes send to"),
    flag("subnet-file", Kind::Text, "/run/flannel/subnet.env", "FILE", "where subnet.env goes"),
    flag(
        "subnet-lease-renew-margin",
        Kind::Integer,
        "60",
        "MINUTES",
        "renew this long before the lease ends, 1..1439",
    ),
    flag(
        "ip-masq",
        Kind::Switch,
        "false",
        "",
        "translate the addresses of packets that leave the pod network",
    ),
    flag(
        "ip-masq-fully-random-disable",
        Kind::Switch,
        "false",
        "",
        "choose their ports the kernel's usual way",
    ),
    flag("iptables-forward-rules", Kind::Switch, "true", "", "accept forwarded packets of the pod network"),
    flag("iptables-resync", Kind::Integer, "5", "SECONDS", "how often rules and routes are looked after"),
    flag(
        "ip-blackhole-route",
        Kind::Switch,
        "false",
        "",
        "drop packets for pods of this node that are not there",
    ),
    flag("nftables-guard", Kind::Switch, "true", "", "kernel VXLAN accepts packets from nodes only (new)"),
    flag(
        "engine",
        Kind::Text,
        "auto",
        "auto|always|never",
        "carry packets in this process; auto: where the kernel cannot (new)",
    ),
    flag("engine-off", Kind::Text, "", "LIST", "engine features to do without, e.g. udp-gso,tun-tso (new)"),
    flag("engine-workers", Kind::Text, "auto", "auto|N", "workers; auto: half of the CPUs, up to 4 (new)"),
    flag(
        "engine-duplex",
        Kind::Text,
        "auto",
        "auto|half|full",
        "threads of a worker; auto: two (full) from 4 CPUs a worker on (new)",
    ),
    flag(
        "engine-spin",
        Kind::Text,
        "auto",
        "auto|off|US",
        "poll before sleeping; auto: 50 if a CPU is free (new)",
    ),
    flag(
        "engine-source-ports",
        Kind::Text,
        "auto",
        "auto|fixed|spread",
        "UDP source ports; auto: spread for vxlan (new)",
    ),
    flag(
        "source-check",
        Kind::Text,
        "loose",
        "loose|strict",
        "packets from outside the cluster: count or drop (new)",
    ),
    flag("healthz-ip", Kind::Text, "0.0.0.0", "IP", "address of /healthz, /readyz and /metrics"),
    flag("healthz-port", Kind::Integer, "0", "PORT", "their port; 0: none"),
    flag(
        "status-socket",
        Kind::Text,
        "",
        "PATH|off",
        "where `flanneld status` asks [flanneld.sock by the subnet file] (new)",
    ),
    flag(
        "lease-cache",
        Kind::Text,
        "",
        "FILE",
        "last known leases; off: none; default: leases.json by the subnet file (new)",
    ),
    flag(
        "hold-back",
        Kind::Integer,
        "300",
        "SECONDS",
        "keep nodes this long when over half of them vanish at once (new)",
    ),
    flag("log-format", Kind::Text, "text", "text|json", "form of the log on stderr (new)"),
    flag("v", Kind::Integer, "0", "LEVEL", "log more: 1 decisions, 5 everything"),
    flag("version", Kind::Switch, "false", "", "print the version and leave"),
    Flag { hidden: true, ..flag("vmodule", Kind::Text, "", "PATTERNS", "of flannel's log; has no effect") },
    Flag {
        hidden: true,
        ..flag("log_backtrace_at", Kind::Text, "", "PLACE", "of flannel's log; has no effect")
    },
    Flag {
        hidden: true,
        ..flag(
            "exit-with-parent",
            Kind::Switch,
            "false",
            "",
            "end when the process that started this one ends",
        )
    },
];
