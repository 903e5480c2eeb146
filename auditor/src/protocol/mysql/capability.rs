//! What client and server can do: the flags that change how packets read.

/// Flags of both ends: the lower 32 are common, those above them MariaDB's.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Capabilities(pub(super) u64);

impl Capabilities {
    /// MySQL's own; MariaDB leaves it out and puts flags of its own where MySQL has zeros.
    pub(super) const MYSQL: u64 = 1;
    pub(super) const CONNECT_WITH_DB: u64 = 1 << 3;
    /// Packets are compressed by zlib once the login is done.
    pub(super) const COMPRESS: u64 = 1 << 5;
    pub(super) const PROTOCOL_41: u64 = 1 << 9;
    pub(super) const SSL: u64 = 1 << 11;
    /// Authentication data has a length in front.
    pub(super) const SECURE_CONNECTION: u64 = 1 << 15;
    pub(super) const PLUGIN_AUTH: u64 = 1 << 19;
    pub(super) const CONNECT_ATTRS: u64 = 1 << 20;
    /// That length may be larger than a byte holds.
    pub(super) const PLUGIN_AUTH_LENENC: u64 = 1 << 21;
    pub(super) const SESSION_TRACK: u64 = 1 << 23;
    /// Results end with OK instead of EOF.
    pub(super) const DEPRECATE_EOF: u64 = 1 << 24;
    /// Results may come without the definitions of their columns.
    pub(super) const OPTIONAL_METADATA: u64 = 1 << 25;
    /// Packets are compressed by zstd once the login is done.
    pub(super) const ZSTD: u64 = 1 << 26;
    /// Statements carry named values beside their own.
    pub(super) const QUERY_ATTRIBUTES: u64 = 1 << 27;
    /// MariaDB: column definitions have one field more.
    pub(super) const EXTENDED_METADATA: u64 = 1 << 35;
    /// MariaDB: results may come without the definitions of their columns.
    pub(super) const CACHE_METADATA: u64 = 1 << 36;

    /// What `client` may use with a server that offers `self`.
    pub(super) fn shared(self, client: Self) -> Self {
        Self(self.0 & client.0)
    }

    pub(super) fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    /// Whether a column count says if definitions follow.
    pub(super) fn optional_metadata(self) -> bool {
        self.has(Self::OPTIONAL_METADATA | Self::CACHE_METADATA)
    }
}

/// Flags of the server's state in OK and EOF.
pub(super) mod status {
    pub(in super::super) const IN_TRANSACTION: u16 = 1;
    /// Another result of the same command follows.
    pub(in super::super) const MORE_RESULTS: u16 = 8;
    /// The rows wait for COM_STMT_FETCH.
    pub(in super::super) const CURSOR_EXISTS: u16 = 0x40;
    pub(in super::super) const IN_READ_ONLY_TRANSACTION: u16 = 0x2000;
    /// OK says what has changed in the session.
    pub(in super::super) const SESSION_STATE_CHANGED: u16 = 0x4000;
}
