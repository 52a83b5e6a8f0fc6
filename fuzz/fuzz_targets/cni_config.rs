//! What a runtime writes to an IPAM plugin.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| cni::fuzzing::cni_config(data));
