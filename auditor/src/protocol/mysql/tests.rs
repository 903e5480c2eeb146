//! See each file.

mod captures;
mod conversations;
mod holes;
mod properties;
mod script;
mod texts;
