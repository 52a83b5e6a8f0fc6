//! flannel's own `udp` backend, with its C proxy, as a way of the race: the program of `tests/flannel-peer` on each node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use hostnet::subnet_env::SubnetEnv;
use lab::race::Scenario;
use lab::race::way::{Role, Started, Starter};
use lab::{Cluster, PodNetwork};

/// What flannel says when its device is there.
const READY: &str = "flannel is ready";
const PATIENCE: Duration = Duration::from_secs(10);
const CONFIG: &str = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}}"#;

/// A pair of nodes of real flannel.
#[derive(Clone, Copy, Debug)]
pub struct FlannelUdp;

impl Starter for FlannelUdp {
    fn name(&self) -> String {
        "flannel udp".to_owned()
    }

    fn role(&self) -> Role {
        Role::Program
    }

    fn takes(&self, scenario: Scenario) -> bool {
        scenario != Scenario::LeaseChurn
    }

    fn start(&self, cluster: &Cluster, dir: &Path) -> anyhow::Result<Started> {
        let program = program()?;
        let store = dir.join("leases");
        fs::create_dir_all(&store).with_context(|| format!("make {}", store.display()))?;
        let config = store.join("config");
        fs::write(&config, CONFIG).with_context(|| format!("write {}", config.display()))?;
        let (mut networks, mut processes) = (Vec::new(), Vec::new());
        for node in cluster.nodes() {
            let subnet_file = dir.join(node.name()).join("subnet.env");
            let mut command = Command::new(&program);
            command.arg("-file-subnet-mgr").arg(&store).arg("-subnet-file").arg(&subnet_file);
            let process = node.spawn(command)?;
            process.wait_for_line(READY, PATIENCE)?;
            let file = SubnetEnv::read(&subnet_file)?;
            networks.push(PodNetwork { subnets: file.subnets, mtu: file.mtu });
            processes.push(process);
        }
        Ok(Started { networks, processes })
    }
}

/// Where `.ci/flannel-peer target/flannel-peer` puts it: beside cargo's profiles.
fn program() -> anyhow::Result<PathBuf> {
    let exe = std::env::current_exe().context("find this program")?;
    let target = exe.ancestors().nth(2).context("this program is in a target directory")?;
    let program = target.join("flannel-peer/peer");
    ensure!(
        program.exists(),
        "there is no {}: build it with `.ci/flannel-peer {}` (takes Go)",
        program.display(),
        target.join("flannel-peer").display()
    );
    Ok(program)
}
