//! `auditor reload`: has the daemon read its configuration again. An invalid file changes nothing.

use super::failure::Failure;
use super::{Connection, Places};

pub(crate) fn execute(places: &Places) -> Result<(), Failure> {
    let Connection { mut client, runtime } = Connection::open(places)?;
    Ok(runtime.block_on(client.reload())?)
}
