//! What stays and what goes: DEL, GC, CHECK, and an ADD after somebody's hand, among many others, or killed.
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;

use lab::Scene;
use serde_json::{Value, json};

use crate::world::{Plugin, World, config, needs, sh, tcp};
use crate::{BACKENDS, rules_of_containers};

pub(crate) fn del_needs_nothing_but_the_name(_: &Scene) -> anyhow::Result<()> {
    needs(&["nft", "iptables"])?;
    let _world = World::new()?;
    for backend in BACKENDS {
        let plugin = Plugin::ours(config(backend));
        plugin.must("DEL");
        for less in [
            plugin.with("prevResult", Value::Null),
            plugin.with("backend", Value::Null),
            plugin.with("backend", json!("ebpf")),
            plugin.with("runtimeConfig", json!({"portMappings": [{"hostPort": -1}]})),
            plugin.with("runtimeConfig", json!({"portMappings": [{"hostPort": 1, "containerPort": 1}]})),
        ] {
            plugin.must("ADD");
            assert!(!rules_of_containers().is_empty());
            less.must("DEL");
            assert_eq!(rules_of_containers(), [""; 0], "{backend} {}", less.config);
        }
    }
    Ok(())
}

pub(crate) fn gc_frees_only_what_belongs_to_no_attachment(_: &Scene) -> anyhow::Result<()> {
    needs(&["nft", "iptables"])?;
    let _world = World::new()?;
    for backend in BACKENDS {
        let valid = |ids: &[&str]| {
            let ids: Vec<Value> = ids.iter().map(|id| json!({"containerID": id, "ifname": "eth0"})).collect();
            json!(ids)
        };
        let kept = Plugin::ours(config(backend)).with("cniVersion", json!("1.1.0"));
        let gone = Plugin { container: "c2", ..kept.with("cniVersion", json!("1.1.0")) };
        let elsewhere = Plugin { container: "c3", ..kept.with("name", json!("others")) };
        for plugin in [&kept, &gone, &elsewhere] {
            plugin.must("ADD");
        }
        kept.with("cni.dev/valid-attachments", valid(&["c1"])).must("GC");
        kept.must("CHECK");
        elsewhere.must("CHECK");
        assert!(gone.run("CHECK").is_err(), "{backend}");
        assert!(kept.run("GC").is_err(), "without a list nothing is freed");
        kept.with("cni.dev/valid-attachments", valid(&[])).must("GC");
        elsewhere.must("CHECK");
        elsewhere.with("cni.dev/valid-attachments", valid(&[])).must("GC");
        assert_eq!(rules_of_containers(), [""; 0], "{backend}");
    }
    Ok(())
}

pub(crate) fn a_container_in_two_networks_keeps_what_the_other_gave(_: &Scene) -> anyhow::Result<()> {
    needs(&["nft", "iptables"])?;
    let _world = World::new()?;
    for backend in BACKENDS {
        let one = Plugin::ours(config(backend));
        let previous =
            json!({"ips": [{"address": "10.9.0.5/24"}, {"address": "fd09::5/64"}], "cniVersion": "1.0.0"});
        let other = one.with("name", json!("others")).with("prevResult", previous);
        one.must("ADD");
        other.must("ADD");
        one.must("CHECK");
        one.with("prevResult", Value::Null).must("DEL");
        other.must("CHECK");
        assert!(one.run("CHECK").is_err(), "{backend}");
        other.must("DEL");
        assert_eq!(rules_of_containers(), [""; 0], "{backend}");
    }
    Ok(())
}

const HARMS: [(&str, &str); 7] = [
    ("iptables", "iptables -t nat -F PREROUTING"),
    ("iptables", "iptables -t nat -F CNI-HOSTPORT-MASQ"),
    ("iptables", "iptables -t nat -F"),
    ("iptables", "ip6tables -t nat -D OUTPUT 1"),
    ("nftables", "nft flush chain ip cni_hostport output"),
    ("nftables", "nft flush chain ip6 cni_hostport hostports"),
    ("nftables", "nft delete table ip cni_hostport"),
];

pub(crate) fn what_somebody_removes_is_told_by_check(_: &Scene) -> anyhow::Result<()> {
    needs(&["nft", "iptables"])?;
    let _world = World::new()?;
    for (backend, harm) in HARMS {
        let plugin = Plugin::ours(config(backend));
        plugin.must("ADD");
        plugin.must("CHECK");
        sh(harm);
        let said = plugin.run("CHECK").expect_err(harm);
        assert!(
            said.contains("\"code\": 100") && said.contains("not mapped as they should be"),
            "{harm}: {said}"
        );
        plugin.must("DEL");
        assert_eq!(rules_of_containers(), [""; 0], "{harm}");
    }
    Ok(())
}

pub(crate) fn what_somebody_removes_is_made_again_by_the_next_add(_: &Scene) -> anyhow::Result<()> {
    needs(&["nft", "iptables"])?;
    let world = World::new()?;
    for (backend, harm) in HARMS {
        let plugin = Plugin::ours(config(backend));
        let next = Plugin { container: "c9", ..plugin.with("backend", json!(backend)) };
        plugin.must("ADD");
        sh(harm);
        next.must("ADD");
        next.must("CHECK");
        assert!(world.client.run("client", || tcp("192.0.2.1:8080"))?.is_some(), "{harm}");
        next.must("DEL");
        plugin.must("DEL");
        assert_eq!(rules_of_containers(), [""; 0], "{harm}");
    }
    Ok(())
}

pub(crate) fn many_at_once_lose_nothing_and_leave_nothing(_: &Scene) -> anyhow::Result<()> {
    needs(&["nft", "iptables"])?;
    let _world = World::new()?;
    let names: Vec<String> = (0..40).map(|number| format!("c{number}")).collect();
    for backend in BACKENDS {
        let all = |command: &str| {
            thread::scope(|scope| {
                for name in &names {
                    scope.spawn(|| {
                        let plugin = Plugin { container: name, ..Plugin::ours(config(backend)) };
                        plugin.must(command);
                    });
                }
            });
        };
        all("ADD");
        all("CHECK");
        all("DEL");
        assert_eq!(rules_of_containers(), [""; 0], "{backend}");
    }
    Ok(())
}

/// Stands in the place of every program: does what it does, and kills who started it once so many were started.
const DEADLY: &str = r#"#!/bin/sh
program=/usr/sbin/${0##*/}
echo >>$STARTED
[ -n "$BEFORE" ] && [ $(wc -l <$STARTED) -ge $DIE_AT ] && kill -9 $PPID
$program "$@"
status=$?
[ -z "$BEFORE" ] && [ $(wc -l <$STARTED) -ge $DIE_AT ] && kill -9 $PPID
exit $status
"#;

pub(crate) fn killed_after_any_step_nothing_is_left_after_del(scene: &Scene) -> anyhow::Result<()> {
    needs(&["nft", "iptables"])?;
    let _world = World::new()?;
    let (started, script) = (scene.dir().join("started"), scene.dir().join("plugin"));
    for program in ["nft", "iptables", "ip6tables", "iptables-restore", "ip6tables-restore"] {
        let path = scene.dir().join(program);
        fs::write(&path, DEADLY)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    let path = scene.dir().display().to_string();
    for backend in BACKENDS {
        for (command, before) in [("ADD", ""), ("ADD", "1"), ("DEL", ""), ("DEL", "1")] {
            for die_at in 1..=12 {
                let plugin = Plugin::ours(config(backend));
                if command == "DEL" {
                    plugin.must("ADD");
                }
                fs::write(&started, "")?;
                let text = format!(
                    "#!/bin/sh\nexport STARTED={} DIE_AT={die_at} BEFORE={before}\nexec {}\n",
                    started.display(),
                    plugin.program
                );
                let program = script.display().to_string();
                fs::write(&script, text)?;
                fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
                let deadly = Plugin { program: &program, path: &path, ..Plugin::ours(config(backend)) };
                let survived = deadly.run(command).is_ok();
                plugin.must("DEL");
                assert_eq!(rules_of_containers(), [""; 0], "{backend} {command} {die_at} {before}");
                if survived {
                    assert!(die_at > 1, "{backend} {command}: nothing was killed");
                    break;
                }
            }
        }
    }
    Ok(())
}
