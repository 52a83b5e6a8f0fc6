//! The IPAM plugin `static`: the addresses that the configuration names.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni::plugin::main(&cni::static_ipam::Static)
}
