//! The HTTP+JSON API on the unix socket: server and client.
