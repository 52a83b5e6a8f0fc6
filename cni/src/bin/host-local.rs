//! The IPAM plugin `host-local`: addresses from ranges, one file each.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni::plugin::main(&cni::host_local::HostLocal)
}
