//! What is said of a plugin that cannot be found.

use super::*;

fn missing(kind: &str) -> CniError {
    let variable = |name: &str| {
        Some(match name {
            "CNI_COMMAND" => "STATUS".to_owned(),
            "CNI_PATH" => "/nowhere:/nor/here".to_owned(),
            _ => return None,
        })
    };
    let request =
        Request::read(variable, br#"{"cniVersion":"1.1.0","name":"n"}"#).map_err(|(_, error)| error);
    find(kind, &request.unwrap()).unwrap_err()
}

#[test]
fn a_missing_plugin_is_named_with_the_places_and_what_to_do() {
    let error = missing("bridge");
    assert_eq!(error.message, "failed to find plugin \"bridge\" in path [/nowhere /nor/here]");
    assert!(error.details.contains("containernetworking-plugins"), "{}", error.details);
}

#[test]
fn a_missing_dhcp_says_that_its_daemon_must_run() {
    let error = missing("dhcp");
    assert_eq!(error.code, Code::INVALID_CONFIG);
    for part in ["containernetworking-plugins", "dhcp daemon", "/run/cni/dhcp.sock"] {
        assert!(error.details.contains(part), "{}", error.details);
    }
}
