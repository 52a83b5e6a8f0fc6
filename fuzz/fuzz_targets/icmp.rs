//! Any packet to the reply about it.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| dataplane_core::fuzzing::icmp(data));
