//! `flanneld --help`: one screen, made from the table.

use std::fmt;

use super::table::{FLAGS, Kind};

/// The help as text.
#[derive(Debug, Clone, Copy)]
pub struct Help;

const HEAD: &str = "\
flanneld - a network for pods across nodes, with flannel's flags and files

  flanneld demo                                     a whole cluster on this machine, in under a minute
  flanneld --kube-subnet-mgr --ip-masq              a node of a Kubernetes cluster, as in kube-flannel.yml
  flanneld --file-subnet-mgr DIR --iface eth0       one node; DIR/config holds the network configuration
  flanneld status | peers | explain                 what the daemon does; what it would do, and why

";

const TAIL: &str = "
Each flag can be given as a variable: --ip-masq is FLANNELD_IP_MASQ=true. One dash works as well as two.
DIR/config, the least there is:   {\"Network\": \"10.5.0.0/16\", \"Backend\": {\"Type\": \"vxlan\"}}
Exit status: 0 stopped by a signal, 1 could not start or lost the lease, 2 wrong flags.
Variables: NODE_NAME, or POD_NAME and POD_NAMESPACE, with --kube-subnet-mgr; NOTIFY_SOCKET.
";

impl fmt::Display for Help {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HEAD)?;
        for flag in FLAGS.iter().filter(|flag| !flag.hidden) {
            let usage = match flag.kind {
                Kind::Switch => format!("--{}", flag.name),
                _ => format!("--{} {}", flag.name, flag.placeholder),
            };
            write!(f, "  {usage:<36} {}", flag.help)?;
            match flag.default {
                "" | "false" | "0" => writeln!(f)?,
                default => writeln!(f, " [{default}]")?,
            }
        }
        f.write_str(TAIL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_is_short() {
        let text = Help.to_string();
        assert!(text.lines().count() <= 70, "{} lines", text.lines().count());
        for line in text.lines() {
            assert!(line.chars().count() <= 120, "too wide: {line}");
        }
    }

    #[test]
    fn hidden_flags_stay_hidden() {
        assert!(!Help.to_string().contains("exit-with-parent"));
        assert!(Help.to_string().contains("--file-subnet-mgr DIR"));
    }
}
