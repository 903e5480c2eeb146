//! See each file.

mod captures;
mod conversations;
mod properties;
mod script;
