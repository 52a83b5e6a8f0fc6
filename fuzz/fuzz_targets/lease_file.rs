//! A file of the lease store.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| control::fuzzing::lease_file(data));
