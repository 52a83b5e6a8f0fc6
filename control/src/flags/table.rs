//! The table of flags: one row a flag, and one row for each flag of flannel that this version answers with a reason.

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

/// A flag that flannel has and this version does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Absent {
    /// flannel's name for it.
    pub name: &'static str,
    /// What is missing and what to use.
    pub why: &'static str,
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
    flag("file-subnet-mgr", Kind::Text, "", "DIR", "keep leases in DIR, shared by all nodes (new)"),
    flag(
        "net-config-path",
        Kind::Text,
        "/etc/kube-flannel/net-conf.json",
        "FILE",
        "network configuration, unless DIR/config",
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
        "say FLANNEL_IPMASQ=true in subnet.env (installs no rules yet)",
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
    flag("log-format", Kind::Text, "text", "text|json", "form of the log on stderr (new)"),
    flag("v", Kind::Integer, "0", "LEVEL", "log more: 1 decisions, 5 everything"),
    flag("version", Kind::Switch, "false", "", "print the version and leave"),
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

const STORE: &str = "this version keeps leases in a directory only: use --file-subnet-mgr DIR";
const RULES: &str = "this version installs no packet filter rules; leave the flag out";
const KLOG: &str = "this version has no klog; use -v and --log-format";
const HEALTH: &str = "this version has no health server; leave the flag out";

/// Flags of flannel that are refused with a reason, not as unknown.
pub const ABSENT: &[Absent] = &[
    Absent { name: "etcd-endpoints", why: STORE },
    Absent { name: "etcd-prefix", why: STORE },
    Absent { name: "etcd-keyfile", why: STORE },
    Absent { name: "etcd-certfile", why: STORE },
    Absent { name: "etcd-cafile", why: STORE },
    Absent { name: "etcd-username", why: STORE },
    Absent { name: "etcd-password", why: STORE },
    Absent { name: "kube-subnet-mgr", why: STORE },
    Absent { name: "kube-api-url", why: STORE },
    Absent { name: "kube-annotation-prefix", why: STORE },
    Absent { name: "kubeconfig-file", why: STORE },
    Absent { name: "set-node-network-unavailable", why: STORE },
    Absent { name: "ip-masq-fully-random-disable", why: RULES },
    Absent { name: "iptables-resync", why: RULES },
    Absent { name: "iptables-forward-rules", why: RULES },
    Absent {
        name: "ip-blackhole-route",
        why: "this version has no blackhole route: the engine itself drops packets for the node's own subnet",
    },
    Absent { name: "healthz-ip", why: HEALTH },
    Absent { name: "healthz-port", why: HEALTH },
    Absent { name: "vmodule", why: KLOG },
    Absent { name: "log_backtrace_at", why: KLOG },
];
