//! Hands the compiled kernel programs to the crate as `AUDITOR_BPF_OBJECT`, the path of one ELF object.
//!
//! The object is built by `cargo xtask build` (another target, another linker), so a plain `cargo build` does not need
//! that toolchain as long as the object is there.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=AUDITOR_BPF_OBJECT");
    let object = env::var_os("AUDITOR_BPF_OBJECT").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/auditor.bpf.o"),
        PathBuf::from,
    );
    println!("cargo::rerun-if-changed={}", object.display());
    match object.canonicalize() {
        Ok(path) => println!("cargo::rustc-env=AUDITOR_BPF_OBJECT={}", path.display()),
        Err(error) => println!(
            "cargo::error=the kernel programs are not built ({}: {error}): run `cargo xtask build`",
            object.display()
        ),
    }
}
