//! Beside the reference plugin of Debian's package containernetworking-plugins, on one host.
use lab::Scene;
use serde_json::Value;

use crate::rules_of_containers;
use crate::world::{Plugin, World, config, needs, tcp};

fn theirs<'a>() -> anyhow::Result<Plugin<'a>> {
    needs(&["nft", "iptables", "/usr/lib/cni/portmap"])?;
    Ok(Plugin { program: "/usr/lib/cni/portmap", ..Plugin::ours(config("iptables")) })
}

pub(crate) fn what_the_reference_plugin_made_goes_with_our_del(_: &Scene) -> anyhow::Result<()> {
    let theirs = theirs()?;
    let world = World::new()?;
    let ours = Plugin::ours(config(""));
    for ours in [ours.with("x", Value::Null), ours.with("prevResult", Value::Null)] {
        theirs.must("ADD");
        assert!(world.client.run("client", || tcp("192.0.2.1:8080"))?.is_some());
        ours.must("DEL");
        assert_eq!(rules_of_containers(), [""; 0]);
        assert_eq!(world.client.run("client", || tcp("192.0.2.1:8080"))?, None);
    }
    // Both on one node: each other's shared chains serve.
    theirs.must("ADD");
    let second = Plugin { container: "c2", ..ours };
    second.must("ADD");
    second.must("CHECK");
    theirs.must("DEL");
    second.must("CHECK");
    second.must("DEL");
    assert_eq!(rules_of_containers(), [""; 0]);
    Ok(())
}

pub(crate) fn what_we_made_goes_with_the_reference_plugins_del(_: &Scene) -> anyhow::Result<()> {
    let theirs = theirs()?;
    let world = World::new()?;
    let ours = Plugin::ours(config("iptables"));
    ours.must("ADD");
    assert!(world.client.run("client", || tcp("192.0.2.1:8080"))?.is_some());
    theirs.must("DEL");
    assert_eq!(rules_of_containers(), [""; 0]);
    // Its CHECK is no judge: 1.1.1 looks for the rules of one family in the tables of both, and fails after its own ADD.
    // And after theirs, ours find a node in order.
    ours.must("ADD");
    ours.must("CHECK");
    ours.must("DEL");
    assert_eq!(rules_of_containers(), [""; 0]);
    Ok(())
}
