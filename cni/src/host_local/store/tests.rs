//! Reservations as files: whole or not there, found by owner, freed once.

use std::os::unix::fs::{MetadataExt, symlink};

use tempfile::TempDir;

use super::*;

const THEN: &str = "11111111-1111-4111-8111-111111111111";
const TODAY: &str = "22222222-2222-4222-8222-222222222222";

fn attachment(id: &str) -> Attachment {
    Attachment { container_id: id.to_owned(), ifname: "eth0".to_owned() }
}

fn ip(host: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, host])
}

fn open(directory: &Path, boot: Option<&str>) -> Store {
    let boot = boot.map(|id| Boot::parse(id).unwrap());
    let lock = lock::open(&directory.join("lock"));
    Store::with(lock, directory, Duration::from_secs(1), boot).unwrap()
}

fn names(directory: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(directory.path()).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn taken(store: &Store) -> Vec<IpAddr> {
    store.taken().map(|(ip, _)| ip).collect()
}

#[test]
fn a_reservation_has_the_form_of_the_reference_plugin() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = open(directory.path(), Some(TODAY));
    assert!(store.reserve(ip(5), &attachment("c"), 1).unwrap());
    assert_eq!(names(&directory), [".boot_id", "10.0.0.5", "last_reserved_ip.1", "lock"]);
    let path = directory.path().join("10.0.0.5");
    assert_eq!(fs::read(&path).unwrap(), b"c\r\neth0");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::read(directory.path().join("last_reserved_ip.1")).unwrap(), b"10.0.0.5");
    assert_eq!((store.last(1), store.last(0)), (Some(ip(5)), None));
    assert!(!store.reserve(ip(5), &attachment("other"), 1).unwrap());
    assert_eq!(*store.owner(ip(5)), Owner::Attachment(attachment("c")));
}

#[test]
fn a_name_that_somebody_takes_without_the_lock_is_never_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = open(directory.path(), None);
    fs::write(directory.path().join("10.0.0.5"), "").unwrap();
    assert!(!store.reserve(ip(5), &attachment("c"), 0).unwrap());
    assert_eq!(fs::read(directory.path().join("10.0.0.5")).unwrap(), b"");
    assert!(!directory.path().join(ASIDE).exists());
}

#[test]
fn leftovers_of_dead_writers_are_free_and_go_away() {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in
        [("10.0.0.5", &b""[..]), ("10.0.0.6", b"\0\0\0"), ("10.0.0.7", b"\r\n"), (ASIDE, b"c\r\n")]
    {
        fs::write(directory.path().join(name), content).unwrap();
    }
    let mut store = open(directory.path(), None);
    assert!(taken(&store).is_empty());
    assert!(!directory.path().join(ASIDE).exists());
    assert!(store.reserve(ip(5), &attachment("c"), 0).unwrap());
    store.free_all(|_| false).unwrap();
    assert_eq!(taken(&store), [ip(5)]);
    assert_eq!(names(&directory), ["10.0.0.5", "last_reserved_ip.0", "lock"]);
}

#[test]
fn an_aside_that_was_linked_already_does_not_spoil_its_reservation() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(ASIDE), "dead\r\neth0").unwrap();
    fs::hard_link(directory.path().join(ASIDE), directory.path().join("10.0.0.5")).unwrap();
    let mut store = open(directory.path(), None);
    assert!(store.reserve(ip(6), &attachment("c"), 0).unwrap());
    assert_eq!(fs::read(directory.path().join("10.0.0.5")).unwrap(), b"dead\r\neth0");
    assert_eq!(fs::read(directory.path().join("10.0.0.6")).unwrap(), b"c\r\neth0");
}

#[test]
fn what_is_in_the_way_of_writing_is_told_and_is_no_owner_of_addresses() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join(ASIDE)).unwrap();
    let mut store = open(directory.path(), Some(TODAY));
    let error = store.reserve(ip(5), &attachment("c"), 0).unwrap_err();
    assert!(error.message.ends_with(".reservation is in the way and cannot be removed"), "{error}");
    store.probe().unwrap_err();
    assert!(taken(&store).is_empty());
}

#[test]
fn what_cannot_be_read_is_neither_given_nor_freed() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("10.0.0.5")).unwrap();
    symlink("/etc/passwd", directory.path().join("10.0.0.6")).unwrap();
    fs::write(directory.path().join("10.0.0.7"), [0xff; 10]).unwrap();
    fs::write(directory.path().join("10.0.0.8"), [b'x'; 5000]).unwrap();
    let store = open(directory.path(), None);
    assert_eq!(taken(&store), [ip(5), ip(6), ip(7), ip(8)]);
    assert!(store.taken().all(|(_, owner)| *owner == Owner::Unknown));
}

#[test]
fn owners_are_read_in_both_forms_and_with_white_space() {
    let owner = |text: &str| Owner::parse(text.as_bytes());
    assert_eq!(owner("c\r\neth0"), Owner::Attachment(attachment("c")));
    assert_eq!(owner(" c\neth0\n"), Owner::Attachment(attachment("c")));
    assert_eq!(owner("c\r\n"), Owner::Container("c".to_owned()));
    assert!(owner("c").is(&attachment("c")) && !owner("c").is(&attachment("d")));
    let other = Attachment { ifname: "eth1".to_owned(), ..attachment("c") };
    assert!(owner("c").is(&other) && !owner("c\r\neth0").is(&other));
}

#[test]
fn a_reboot_frees_what_we_reserved_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = open(directory.path(), Some(THEN));
    assert!(store.reserve(ip(5), &attachment("dead"), 0).unwrap());
    drop(store);
    // The reference plugin, in whichever boot; its files look old where the clock was set after the start.
    fs::write(directory.path().join("10.0.0.6"), "live\r\neth0").unwrap();
    let old = std::time::UNIX_EPOCH + Duration::from_secs(60);
    File::open(directory.path().join("10.0.0.6")).unwrap().set_modified(old).unwrap();

    assert_eq!(taken(&open(directory.path(), Some(THEN))), [ip(5), ip(6)], "the same boot");
    let mut store = open(directory.path(), Some(TODAY));
    if !boot::is_ours_alone(directory.path()) {
        println!("skipped: in a container, or on a file system that machines share, a reboot frees nothing");
        assert_eq!(taken(&store), [ip(5), ip(6)]);
        return;
    }
    assert_eq!(taken(&store), [ip(6)]);
    assert!(store.reserve(ip(7), &attachment("new"), 0).unwrap());
    drop(store);
    assert_eq!(taken(&open(directory.path(), Some(TODAY))), [ip(6), ip(7)]);
    assert_eq!(fs::read_to_string(directory.path().join(boot::FILE)).unwrap(), TODAY);
}

#[test]
fn a_directory_without_a_boot_id_only_gets_one() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = open(directory.path(), Some(THEN));
    assert!(store.reserve(ip(5), &attachment("c"), 0).unwrap());
    drop(store);
    for torn in [None, Some(""), Some("1111")] {
        match torn {
            None => fs::remove_file(directory.path().join(boot::FILE)).unwrap(),
            Some(text) => fs::write(directory.path().join(boot::FILE), text).unwrap(),
        }
        assert_eq!(taken(&open(directory.path(), Some(TODAY))), [ip(5)]);
        assert_eq!(fs::read_to_string(directory.path().join(boot::FILE)).unwrap(), TODAY);
    }
    assert_eq!(taken(&open(directory.path(), None)), [ip(5)], "where the kernel does not tell");
}

#[test]
fn the_machines_boot_is_read() {
    let boot = Boot::current().unwrap();
    assert_eq!(Boot::parse(boot.id()), Some(boot));
    assert_eq!(Boot::parse("not a boot id at all, and of 36 bytes."), None);
    assert_eq!(Boot::parse("äöüäöü"), None);
}
