//! What etcd tells of the leases.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| control::fuzzing::etcd_leases(data));
