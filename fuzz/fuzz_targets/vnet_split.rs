//! One TUN read to datagrams.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| dataplane_core::fuzzing::vnet_split(data));
