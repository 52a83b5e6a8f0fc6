//! net-conf.json.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| control::fuzzing::net_conf(data));
