//! The CNI plugin `flannel`.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni::plugin::main(&cni::flannel::Flannel)
}
