//! `flanneld`.
fn main() {}
