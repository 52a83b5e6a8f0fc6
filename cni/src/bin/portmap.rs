//! The CNI plugin `portmap`: ports of the host lead to containers.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni::plugin::main(&cni::portmap::Portmap)
}
