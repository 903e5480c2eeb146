//! `auditor prove`: one record, and the proof that the trail's key has signed for it, as a text that needs nothing else.

use std::io::{Write, stdout};
use std::ops::ControlFlow;
use std::path::PathBuf;

use auditor::trail::query::find;
use auditor::trail::seal::Proof;

use super::Places;
use super::failure::Failure;

/// Arguments of `auditor prove`.
#[derive(clap::Args, Debug)]
pub(crate) struct Prove {
    /// A record's uid or number, or a statement's CONNECTION/POSITION
    id: String,
    /// Directory of the trail [default: the trail in the state directory]
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
}

impl Prove {
    pub(crate) fn execute(self, places: &Places) -> Result<(), Failure> {
        let trail = self.path.unwrap_or_else(|| places.trail_dir());
        let mut lines: Vec<Vec<u8>> = Vec::new();
        find(&trail, &self.id, |line, _| {
            lines.push(line.to_vec());
            if lines.len() > 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .map_err(Failure::usage)?;
        let line = match lines.as_slice() {
            [line] => line,
            [] => return Err(Failure::refused(format!("the trail names no record {:?}", self.id))),
            _ => {
                return Err(Failure::usage(format!(
                    "{:?} names several records: name one by its uid or its number (metadata.uid, metadata.sequence)",
                    self.id
                )));
            }
        };
        let proof = Proof::of(&trail, line).map_err(Failure::refused)?;
        let mut out = stdout().lock();
        write!(out, "{proof}")?;
        out.flush()?;
        Ok(())
    }
}
