//! What the CNI plugin flannel reads: its configuration, subnet.env, and its own scratch file.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| cni::fuzzing::cni_flannel(data));
