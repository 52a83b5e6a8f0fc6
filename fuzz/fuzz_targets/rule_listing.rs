//! Listings of packet filter rules.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| control::fuzzing::rule_listing(data));
