//! What a runtime asks, and the numbers of what is wrong with it.

use super::*;

fn read(variables: &[(&str, &str)], stdin: &str) -> Result<Request, CniError> {
    let variable =
        |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    Request::read(variable, stdin.as_bytes()).map_err(|(_, error)| error)
}

const ADD: [(&str, &str); 5] = [
    ("CNI_COMMAND", "ADD"),
    ("CNI_CONTAINERID", "c1"),
    ("CNI_NETNS", "/run/netns/c1"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_PATH", "/opt/cni/bin:/usr/lib/cni"),
];
const CONFIG: &str = r#"{"cniVersion":"1.1.0","name":"cbr0","type":"flannel"}"#;

fn with<'a>(changes: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let kept = ADD.iter().filter(|(key, _)| changes.iter().all(|(other, _)| other != key));
    kept.chain(changes).copied().collect()
}

#[test]
fn a_question_is_read_whole() {
    let request = read(&with(&[("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=p")]), CONFIG).unwrap();
    assert_eq!((request.command, request.version), (Command::Add, Version::V1_1_0));
    assert_eq!(
        (request.attachment.container_id.as_str(), request.attachment.ifname.as_str()),
        ("c1", "eth0")
    );
    assert_eq!(request.path, ["/opt/cni/bin", "/usr/lib/cni"].map(PathBuf::from));
    assert_eq!(request.network, "cbr0");
    assert_eq!(request.args.known(["MAC"]).unwrap(), [None]);
}

#[test]
fn what_is_missing_in_the_environment_is_named_in_order() {
    let error = read(&[("CNI_COMMAND", "ADD"), ("CNI_IFNAME", "eth0")], CONFIG).unwrap_err();
    assert_eq!(error.code, Code::INVALID_ENVIRONMENT);
    assert_eq!(error.message, "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_PATH] missing");
    let del = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0"), ("CNI_PATH", "/x")];
    assert!(read(&del, CONFIG).is_ok(), "a namespace that is gone has no path");
    let gc = [("CNI_COMMAND", "GC"), ("CNI_PATH", "/x")];
    assert!(read(&gc, CONFIG).is_ok());
    let error = read(&with(&[("CNI_COMMAND", "ADDD")]), CONFIG).unwrap_err();
    assert_eq!(
        (error.code, error.message.as_str()),
        (Code::INVALID_ENVIRONMENT, "unknown CNI_COMMAND: ADDD")
    );
}

#[test]
fn numbers_tell_what_is_wrong() {
    for (changes, config, code) in [
        (&[("CNI_CONTAINERID", "../c")][..], CONFIG, Code::INVALID_ENVIRONMENT),
        (&[("CNI_IFNAME", "eth0eth0eth0eth0")], CONFIG, Code::INVALID_ENVIRONMENT),
        (&[("CNI_IFNAME", "a/b")], CONFIG, Code::INVALID_ENVIRONMENT),
        (&[("CNI_IFNAME", "..")], CONFIG, Code::INVALID_ENVIRONMENT),
        (&[("CNI_ARGS", "IP")], CONFIG, Code::INVALID_ENVIRONMENT),
        (&[], "not json", Code::DECODING_FAILURE),
        (&[], "[]", Code::DECODING_FAILURE),
        (&[], r#"{"cniVersion":"1.1.0"}"#, Code::INVALID_CONFIG),
        (&[], r#"{"cniVersion":"1.1.0","name":"a/b"}"#, Code::INVALID_CONFIG),
        (&[], r#"{"cniVersion":"9.0.0","name":"n"}"#, Code::INCOMPATIBLE_VERSION),
        (&[("CNI_COMMAND", "CHECK")], r#"{"cniVersion":"0.3.1","name":"n"}"#, Code::INCOMPATIBLE_VERSION),
        (&[("CNI_COMMAND", "GC")], r#"{"cniVersion":"1.0.0","name":"n"}"#, Code::INCOMPATIBLE_VERSION),
    ] {
        let error = read(&with(changes), config).unwrap_err();
        assert_eq!(error.code, code, "{changes:?} {config}: {error}");
    }
}

#[test]
fn a_configuration_without_a_version_is_of_the_oldest() {
    assert_eq!(read(&ADD, r#"{"name":"n"}"#).unwrap().version, Version::V0_1_0);
}

#[test]
fn arguments_that_nobody_knows_are_refused_unless_they_are_to_be_ignored() {
    let request = read(&with(&[("CNI_ARGS", "IP=10.1.2.3;MAC=")]), CONFIG).unwrap();
    assert_eq!(request.args.known(["MAC", "IP"]).unwrap(), [None, Some("10.1.2.3")]);
    let error = request.args.known(["IP"]).unwrap_err();
    assert!(
        error.to_string().contains("\"MAC\"") && error.to_string().contains("IgnoreUnknown=1"),
        "{error}"
    );
}

#[test]
fn null_is_nothing_and_letters_may_be_of_any_case() {
    #[derive(Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    #[derive(Default, Debug, PartialEq)]
    struct Some {
        is_gateway: bool,
        mtu: u32,
        data_dir: String,
    }
    let config =
        r#"{"cniVersion":null,"name":"n","mtu":null,"isgateway":true,"DATADIR":"/d","ipam":{"Subnet":null}}"#;
    let request = read(&ADD, config).unwrap();
    assert_eq!(
        request.config::<Some>().unwrap(),
        Some { is_gateway: true, mtu: 0, data_dir: "/d".to_owned() }
    );
    let both = serde_json::json!({"isgateway": false, "isGateway": true});
    assert!(parse_config::<Some>(&both).unwrap().is_gateway);
}

#[test]
fn gc_without_a_list_frees_nothing() {
    let gc = [("CNI_COMMAND", "GC"), ("CNI_PATH", "/x")];
    assert_eq!(read(&gc, CONFIG).unwrap().valid_attachments().unwrap_err().code, Code::INVALID_CONFIG);
    let config = r#"{"cniVersion":"1.1.0","name":"n","cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]}"#;
    let [one] = read(&gc, config).unwrap().valid_attachments().unwrap().try_into().unwrap();
    assert_eq!(one, Attachment { container_id: "a".to_owned(), ifname: "eth0".to_owned() });
}
