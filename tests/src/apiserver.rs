//! A real kube-apiserver over a real etcd on a lab node of their own, where other nodes reach it over the underlay.
//!
//! Everything is the run's own: keys, tokens, certificates and data are in the test's directory, ports are those of the
//! node's network namespace.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use k8s_openapi::api::core::v1::{Namespace, Node as KubeNode, Pod as KubePod};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use lab::{Node, Process};
use serde_json::{Value, json};

use crate::flannel::Missing;

/// What `.ci/kube-apiserver` ends with where a machine cannot have one.
const CANNOT: i32 = 75;
/// How long the server may take to be ready on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const ADMIN_TOKEN: &str = "admin-of-the-lab";
/// The name behind flannel's token is that of its service account, so the manifest's binding holds for it.
const FLANNEL: &str = "system:serviceaccount:kube-flannel:flannel";

/// Builds the server or finds it, and looks for etcd.
///
/// # Errors
///
/// When it does not build for another reason than that this machine cannot.
pub fn build() -> anyhow::Result<Result<(), Missing>> {
    for program in ["etcd", "openssl"] {
        if find(program).is_none() {
            let package = if program == "etcd" { "etcd-server" } else { program };
            return Ok(Err(Missing(format!("no {program} here: apt-get install {package}"))));
        }
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../.ci/kube-apiserver");
    let output = Command::new(script).arg(dir()?).output().with_context(|| format!("run {script}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.code() == Some(CANNOT) {
        return Ok(Err(Missing(said)));
    }
    ensure!(output.status.success(), "kube-apiserver does not build ({}): {said}", output.status);
    Ok(Ok(()))
}

/// Beside cargo's profiles: both use the same program.
fn dir() -> anyhow::Result<PathBuf> {
    if let Some(dir) = std::env::var_os("KUBE_APISERVER_DIR") {
        return Ok(dir.into());
    }
    // target/debug/deps/TEST-HASH
    let exe = std::env::current_exe()?;
    let target = exe.ancestors().nth(3).context("tests run from a target directory")?;
    Ok(target.join("kube-apiserver"))
}

fn find(program: &str) -> Option<PathBuf> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let path = std::env::var_os("PATH")?;
    assets
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(program))
        .find(|file| file.exists())
}

/// A running API server. Dropping it ends it, and its etcd.
#[derive(Debug)]
pub struct ApiServer {
    server: Option<Process>,
    _etcd: Process,
    dir: PathBuf,
    address: std::net::Ipv4Addr,
}

impl ApiServer {
    /// Starts both on the node; their files are in `dir`. RBAC holds, and flannel has the rights of its manifest.
    ///
    /// # Errors
    ///
    /// When one does not start, with its log.
    pub fn start(node: &Node, dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir)?;
        let address = node.v4().context("the API server's node has an IPv4 address")?;
        let mut etcd = Command::new(find("etcd").context("etcd")?);
        etcd.arg("--data-dir").arg(dir.join("etcd"));
        etcd.args([
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--unsafe-no-fsync",
        ]);
        let etcd = node.spawn(etcd)?;
        etcd.wait_for_line("ready to serve client requests", PATIENCE)?;
        let key = dir.join("service-account.key");
        let made = Command::new("openssl")
            .args(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"])
            .arg(&key)
            .output()?;
        ensure!(made.status.success(), "no key: {}", String::from_utf8_lossy(&made.stderr));
        fs::write(
            dir.join("tokens.csv"),
            format!(
                "{ADMIN_TOKEN},admin,1,system:masters\n{},{FLANNEL},2,system:serviceaccounts\n",
                flannel_token()
            ),
        )?;
        let mut server = Self { server: None, _etcd: etcd, dir: dir.to_owned(), address };
        server.again(node)?;
        server.kubeconfig("admin", ADMIN_TOKEN)?;
        server.kubeconfig("flannel", &flannel_token())?;
        server.allow_flannel(node)?;
        Ok(server)
    }

    /// Starts the server again after [`stop`](Self::stop), with what etcd holds.
    ///
    /// # Errors
    ///
    /// When it is not ready in time, with its log.
    pub fn again(&mut self, node: &Node) -> anyhow::Result<()> {
        let file = |name: &str| self.dir.join(name).display().to_string();
        let mut command = Command::new(dir()?.join("kube-apiserver"));
        command
            .arg("--etcd-servers=http://127.0.0.1:2379")
            .arg(format!("--bind-address={}", self.address))
            .arg(format!("--advertise-address={}", self.address))
            .arg(format!("--cert-dir={}", file("certificates")))
            .arg(format!("--token-auth-file={}", file("tokens.csv")))
            .arg(format!("--service-account-key-file={}", file("service-account.key")))
            .arg(format!("--service-account-signing-key-file={}", file("service-account.key")))
            .args([
                "--secure-port=6443",
                "--service-account-issuer=https://kubernetes.default.svc",
                "--authorization-mode=RBAC",
                "--service-cluster-ip-range=10.96.0.0/24",
                "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
            ]);
        self.server = Some(node.spawn(command)?);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ready = self.certificate().exists() && {
                self.kubeconfig("admin", ADMIN_TOKEN)?;
                let request = async |client: Client| {
                    let request =
                        kube::core::Request::new("/readyz").get("ping", &kube::api::GetParams::default())?;
                    Ok(client.request_text(request).await?)
                };
                self.admin(node, request).is_ok() && self.roles_are_there(node)
            };
            if ready {
                return Ok(());
            }
            let server = self.server.as_mut().context("it was started")?;
            if server.status()?.is_some() || Instant::now() > deadline {
                let lines = server.lines();
                let last = lines[lines.len().saturating_sub(30)..].join("\n  ");
                bail!("kube-apiserver is not ready:\n  {last}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Kills the server; etcd stays.
    ///
    /// # Errors
    ///
    /// When it cannot be killed.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        match self.server.take() {
            Some(mut server) => server.kill().map(drop),
            None => Ok(()),
        }
    }

    /// The certificate that the server made for itself; it is its own authority.
    fn certificate(&self) -> PathBuf {
        self.dir.join("certificates/apiserver.crt")
    }

    /// The kubeconfig that flannel has.
    #[must_use]
    pub fn flannels_kubeconfig(&self) -> PathBuf {
        self.dir.join("flannel.kubeconfig")
    }

    fn kubeconfig(&self, name: &str, token: &str) -> anyhow::Result<()> {
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {
                "server": format!("https://{}:6443", self.address),
                "certificate-authority": self.certificate(),
            }}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": name}}],
        });
        Ok(fs::write(self.dir.join(format!("{name}.kubeconfig")), text.to_string())?)
    }

    /// Asks the server, as its administrator, from the given node.
    ///
    /// # Errors
    ///
    /// What `work` answers, or that there is no client for it.
    pub fn admin<T: Send>(
        &self,
        node: &Node,
        work: impl AsyncFnOnce(Client) -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        let path = self.dir.join("admin.kubeconfig");
        node.namespace().run("kube-admin", || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let read = Kubeconfig::read_from(&path)?;
                let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
                work(Client::try_from(config)?).await
            })
        })?
    }

    fn roles_are_there(&self, node: &Node) -> bool {
        // The server makes them itself shortly after it began to answer.
        let asked = self.admin(node, async |client| {
            Ok(Api::<ClusterRole>::all(client).get("cluster-admin").await.map(drop)?)
        });
        asked.is_ok()
    }

    /// The rules of flannel's manifest, and nothing more.
    fn allow_flannel(&self, node: &Node) -> anyhow::Result<()> {
        let role: ClusterRole = from(json!({
            "metadata": {"name": "flannel"},
            "rules": [
                {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
                {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
                {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
            ],
        }))?;
        let binding: ClusterRoleBinding = from(json!({
            "metadata": {"name": "flannel"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "flannel"},
            "subjects": [{"kind": "ServiceAccount", "name": "flannel", "namespace": "kube-flannel"}],
        }))?;
        self.admin(node, async |client| {
            let params = PostParams::default();
            Api::<ClusterRole>::all(client.clone()).create(&params, &role).await?;
            Api::<ClusterRoleBinding>::all(client).create(&params, &binding).await?;
            Ok(())
        })
    }

    /// Registers a node as the kubelet would, with the podCIDRs that the controller manager would assign.
    ///
    /// # Errors
    ///
    /// When the server refuses.
    pub fn register(&self, node: &Node, name: &str, cidrs: &[&str]) -> anyhow::Result<()> {
        let object: KubeNode = from(json!({
            "metadata": {"name": name},
            "spec": cidrs.first().map_or(json!({}), |first| json!({"podCIDR": first, "podCIDRs": cidrs})),
        }))?;
        self.admin(node, async |client| {
            Ok(Api::<KubeNode>::all(client).create(&PostParams::default(), &object).await.map(drop)?)
        })
    }

    /// Gives a node its podCIDRs, as the controller manager does.
    ///
    /// # Errors
    ///
    /// When the server refuses.
    pub fn assign(&self, node: &Node, name: &str, cidrs: &[&str]) -> anyhow::Result<()> {
        let spec = json!({"spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs}});
        self.admin(node, async |client| {
            let patch = Patch::Merge(&spec);
            Ok(Api::<KubeNode>::all(client).patch(name, &PatchParams::default(), &patch).await.map(drop)?)
        })
    }

    /// Writes annotations of a node; a null removes one.
    ///
    /// # Errors
    ///
    /// When the server refuses.
    pub fn annotate(&self, node: &Node, name: &str, annotations: &Value) -> anyhow::Result<()> {
        let patch = json!({"metadata": {"annotations": annotations}});
        self.admin(node, async |client| {
            let patch = Patch::Merge(&patch);
            Ok(Api::<KubeNode>::all(client).patch(name, &PatchParams::default(), &patch).await.map(drop)?)
        })
    }

    /// A node as the server has it.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn node(&self, node: &Node, name: &str) -> anyhow::Result<Value> {
        let object = self.admin(node, async |client| Ok(Api::<KubeNode>::all(client).get(name).await?))?;
        Ok(serde_json::to_value(object)?)
    }

    /// Deletes a node.
    ///
    /// # Errors
    ///
    /// When the server refuses.
    pub fn delete(&self, node: &Node, name: &str) -> anyhow::Result<()> {
        self.admin(node, async |client| {
            Ok(Api::<KubeNode>::all(client)
                .delete(name, &kube::api::DeleteParams::default())
                .await
                .map(drop)?)
        })
    }

    /// A pod of flannel's DaemonSet on a node.
    ///
    /// # Errors
    ///
    /// When the server refuses.
    pub fn flannel_pod(&self, node: &Node, pod: &str, on: &str) -> anyhow::Result<()> {
        let namespace: Namespace = from(json!({"metadata": {"name": "kube-flannel"}}))?;
        let object: KubePod = from(json!({
            "metadata": {"name": pod, "namespace": "kube-flannel"},
            "spec": {"nodeName": on, "containers": [{"name": "kube-flannel", "image": "flannel"}]},
        }))?;
        self.admin(node, async |client| {
            let params = PostParams::default();
            match Api::all(client.clone()).create(&params, &namespace).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(error.into()),
            }
            Api::<KubePod>::namespaced(client, "kube-flannel").create(&params, &object).await?;
            Ok(())
        })
    }
}

fn flannel_token() -> String {
    "flannel-in-the-lab".to_owned()
}

fn from<T: serde::de::DeserializeOwned>(value: Value) -> anyhow::Result<T> {
    Ok(serde_json::from_value(value)?)
}
