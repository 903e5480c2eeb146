//! Work on the auditor: `cargo xtask --help`.
fn main() {}
