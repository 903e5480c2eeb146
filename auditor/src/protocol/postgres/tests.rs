//! Conversations as a client and a server would hold them, written out message by message.

mod captures;
mod conversations;
mod holes;
mod properties;
mod script;
mod skips;
mod texts;
