//! Packets to superpackets and back.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| dataplane_core::fuzzing::merge(data));
