//! The CNI plugin `loopback`.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni::plugin::main(&cni::loopback::Loopback)
}
