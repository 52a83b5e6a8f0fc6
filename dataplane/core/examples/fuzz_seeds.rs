//! Writes the seeds of the packet targets below a corpus folder: `cargo run -p dataplane-core --features testing
//! --example fuzz_seeds -- fuzz/corpus`.
use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let root = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("fuzz/corpus"), PathBuf::from);
    for (target, name, bytes) in dataplane_core::fuzzing::seeds() {
        let folder = root.join(target);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(name), bytes)?;
    }
    Ok(())
}
