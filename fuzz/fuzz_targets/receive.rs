//! Datagrams to verdicts.
#![no_main]
use std::cell::RefCell;

use dataplane_core::fuzzing::Receiver;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static RECEIVER: RefCell<Receiver> = RefCell::default();
}

fuzz_target!(|data: &[u8]| RECEIVER.with_borrow_mut(|receiver| receiver.receive(data)));
