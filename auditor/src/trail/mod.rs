//! The trail: append-only segments of JSON lines, each chained to the one before it.
