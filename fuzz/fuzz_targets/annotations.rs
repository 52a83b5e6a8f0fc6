//! A Node of the Kubernetes API, and the prefix of its annotations.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| control::fuzzing::annotations(data));
