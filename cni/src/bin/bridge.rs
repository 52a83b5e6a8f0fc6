//! The CNI plugin `bridge`.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni::plugin::main(&cni::bridge::Bridge)
}
