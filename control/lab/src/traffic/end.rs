//! A flag that is raised however a scope is left: a thread scope waits for its threads, after an error and a panic too.

use std::sync::atomic::{AtomicBool, Ordering};

/// Raises the flag when dropped.
pub(crate) struct EndOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
