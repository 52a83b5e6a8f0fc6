//! The promises of a lab, each tried in private namespaces that die with the test.

#[path = "lab/clusters.rs"]
mod clusters;
#[path = "lab/lifetime.rs"]
mod lifetime;
#[path = "lab/race.rs"]
mod race;
#[path = "lab/traffic.rs"]
mod traffic;

use std::process::ExitCode;

fn main() -> ExitCode {
    // The lifetime tests start this program again in another role.
    if let Some(code) = lifetime::play_role() {
        return code;
    }
    let cases = [clusters::cases(), lifetime::cases(), race::cases(), traffic::cases()].concat();
    lab::harness("lab-tests", cases)
}
