//! The program around a plugin.

use super::*;

/// Succeeds, and has nothing to say.
struct Quiet;

impl Plugin for Quiet {
    const NAME: &'static str = "quiet";

    fn add(&self, _: &Request) -> Result<AddResult, CniError> {
        Ok(AddResult::default())
    }

    fn del(&self, _: &Request) -> Result<(), CniError> {
        Ok(())
    }

    fn check(&self, _: &Request) -> Result<(), CniError> {
        Err(CniError::check("the route is gone"))
    }

    fn gc(&self, _: &Request) -> Result<(), CniError> {
        Ok(())
    }

    fn status(&self, _: &Request) -> Result<(), CniError> {
        Ok(())
    }
}

fn asked(command: &str, netns: &str, more: &[&str]) -> String {
    let variable = |name: &str| {
        Some(match name {
            "CNI_COMMAND" => command.to_owned(),
            "CNI_CONTAINERID" => "c".to_owned(),
            "CNI_IFNAME" => "eth0".to_owned(),
            "CNI_PATH" => "/x".to_owned(),
            "CNI_NETNS" => netns.to_owned(),
            name if more.contains(&name) => "TRUE".to_owned(),
            _ => return None,
        })
    };
    answer(&Quiet, variable, br#"{"cniVersion":"1.0.0","name":"n"}"#).0
}

#[test]
fn answers_are_json_of_the_version_that_asked() {
    assert_eq!(asked("ADD", "/none", &[]), "{\n    \"cniVersion\": \"1.0.0\"\n}");
    assert_eq!(asked("DEL", "", &[]), "");
    let refused =
        "{\n    \"cniVersion\": \"1.0.0\",\n    \"code\": 100,\n    \"msg\": \"the route is gone\"\n}";
    assert_eq!(asked("CHECK", "/none", &[]), refused);
    assert!(asked("VERSION", "", &[]).contains("\"supportedVersions\": [\n        \"0.1.0\""));
}

#[test]
fn the_hosts_own_namespace_is_no_containers() {
    let own = "/proc/self/ns/net";
    assert!(asked("ADD", own, &[]).contains("\"code\": 8"));
    assert!(asked("ADD", own, &["CNI_NETNS_OVERRIDE"]).starts_with("{\n    \"cniVersion\""));
    assert!(!asked("ADD", own, &["CNI_NETNS_OVERRIDE"]).contains("code"));
}
