//! Configuration: a TOML file, in; validated settings, or diagnostics with their place in the file, out.
