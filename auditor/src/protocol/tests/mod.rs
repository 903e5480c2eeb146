//! What the tests of all protocols share. Each protocol says in its own tests what is said on a connection of its kind, and what must
//! come of it; how a connection is cut, damaged, recorded and taken over is the same for all of them, and is here.

pub(super) mod captures;
pub(super) mod events;
pub(super) mod properties;
