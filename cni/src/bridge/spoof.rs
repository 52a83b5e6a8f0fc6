//! `macspoofchk`: frames that leave a container with another hardware address than its own are dropped, by a table of
//! nftables' bridge family for each container. A table of its own comes and goes in one step, and its name says whose it is.

use hostnet::filter::nft;
use serde_json::Value;

use crate::filter::hash;
use crate::protocol::{Attachment, CniError};

/// How the names of all tables begin.
const PREFIX: &str = "cni_spoof";

/// Lets only this hardware address out of the container whose end on the host is `port`.
pub(super) async fn add(
    network: &str,
    attachment: &Attachment,
    port: &str,
    mac: &str,
) -> Result<(), CniError> {
    let table = table(network, attachment);
    let commands = format!(
        "add table bridge {table}\n\
         delete table bridge {table}\n\
         table bridge {table} {{\n\
         \tchain from_container {{\n\
         \t\ttype filter hook prerouting priority -300; policy accept;\n\
         \t\tiifname \"{port}\" ether saddr != {mac} counter drop\n\
         \t}}\n\
         }}\n"
    );
    nft::apply(&commands).await.map_err(|error| {
        CniError::internal(format!(
            "check the hardware addresses of container {}: {error}",
            attachment.container_id
        ))
        .with_details("macspoofchk needs nft, and a kernel with the nftables bridge family")
    })
}

/// Lets everything out again.
pub(super) async fn remove(network: &str, attachment: &Attachment) -> Result<(), CniError> {
    drop_table(&table(network, attachment)).await
}

/// Says whether the table is there.
pub(super) async fn check(network: &str, attachment: &Attachment) -> Result<(), CniError> {
    match tables().await.contains(&table(network, attachment)) {
        true => Ok(()),
        false => {
            Err(CniError::check("hardware addresses are not checked any more: the nftables table is gone"))
        }
    }
}

/// Removes the tables of a network that belong to none of the attachments.
pub(super) async fn gc(network: &str, valid: &[Attachment]) -> Result<(), CniError> {
    let kept: Vec<String> = valid.iter().map(|one| table(network, one)).collect();
    let ours = format!("{PREFIX}_{}_", hash(network, 8));
    let mut answer = Ok(());
    for name in tables().await {
        if name.starts_with(&ours) && !kept.contains(&name) {
            answer = answer.and(drop_table(&name).await);
        }
    }
    answer
}

fn table(network: &str, attachment: &Attachment) -> String {
    let whose = format!("{}:{}", attachment.ifname, attachment.container_id);
    format!("{PREFIX}_{}_{}", hash(network, 8), hash(&whose, 16))
}

async fn drop_table(name: &str) -> Result<(), CniError> {
    match nft::apply(&format!("add table bridge {name}\ndelete table bridge {name}\n")).await {
        // Without nft nothing was made.
        Err(error) if !error.is_missing() => Err(error.into()),
        _ => Ok(()),
    }
}

/// The names of the bridge family's tables; none where they cannot be listed.
async fn tables() -> Vec<String> {
    let listed = nft::json(&["tables", "bridge"]).await.unwrap_or_default();
    let listed: Value = serde_json::from_str(&listed).unwrap_or_default();
    let all = listed.get("nftables").and_then(Value::as_array).cloned().unwrap_or_default();
    all.iter().filter_map(|one| one.pointer("/table/name")?.as_str().map(str::to_owned)).collect()
}
