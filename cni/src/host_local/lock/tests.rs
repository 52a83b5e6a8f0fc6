//! The lock is waited for, and whoever holds it too long is named.

use std::process;

use super::*;

#[test]
fn a_stuck_holder_is_named_by_its_pid() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lock");
    let held = take(open(&path).unwrap(), &path, PATIENCE).unwrap();
    let error = take(open(&path).unwrap(), &path, Duration::from_millis(20)).unwrap_err();
    assert_eq!(error.code, Code::TRY_AGAIN_LATER);
    let holder = format!("lock {}: process {} (", path.display(), process::id());
    assert!(error.message.starts_with(&holder), "{error}");
    drop(held);
    take(open(&path).unwrap(), &path, PATIENCE).unwrap();
}

#[test]
fn a_lock_that_is_given_back_goes_to_who_waits() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lock");
    let held = take(open(&path).unwrap(), &path, PATIENCE).unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| take(open(&path).unwrap(), &path, PATIENCE).map(drop));
        drop(held);
        waiting.join().unwrap().unwrap();
    });
}

#[test]
fn what_is_no_file_is_not_locked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lock");
    fs::create_dir(&path).unwrap();
    open(&path).unwrap_err();
    fs::remove_dir(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(open(&path).unwrap_err().to_string().contains("not a regular file"));
}

#[test]
fn the_holder_is_found_among_all_locks() {
    let locks = "1: POSIX  ADVISORY  WRITE 11 fe:00:5701636 0 EOF\n\
                 2: FLOCK  ADVISORY  WRITE 12 fe:00:57016361 0 EOF\n\
                 3: FLOCK  ADVISORY  WRITE 13 00:2a:5701636 0 EOF\n\
                 4: FLOCK  ADVISORY  WRITE 14 fe:00:5701636 0 EOF\n\
                 4: -> FLOCK  ADVISORY  WRITE 15 fe:00:5701636 0 EOF\n";
    let holder = Holder { device: nix::sys::stat::makedev(0xfe, 0), inode: 5_701_636 };
    assert_eq!(holder.pid(locks), Some("14"));
    let on_btrfs = Holder { device: nix::sys::stat::makedev(0, 0x33), inode: 5_701_636 };
    assert_eq!(on_btrfs.pid(locks), Some("13"));
    assert_eq!(Holder { device: 0, inode: 7 }.pid(locks), None);
}
