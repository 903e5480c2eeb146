//! `auditor openapi`: the description of the API, for the documentation and for generators of clients.

use std::io::{Write, stdout};

use super::failure::Failure;

pub(crate) fn execute() -> Result<(), Failure> {
    let text = auditor::api::openapi()
        .to_pretty_json()
        .map_err(|error| Failure::refused(format!("the description cannot be written: {error}")))?;
    writeln!(stdout().lock(), "{text}")?;
    Ok(())
}
