//! HPACK's static table, and the dynamic one.
//!
//! Of a field in the dynamic table that nobody asks for, of credentials above all, only the size is kept: that is what decides when
//! others leave the table.

use std::collections::VecDeque;

use crate::protocol::http::field::Field;

/// What a field counts beside its bytes (RFC 7541, section 4.1).
const OVERHEAD: usize = 32;
/// The size that both ends begin with.
const FIRST_SIZE: usize = 4096;
/// The largest table that is followed. Clients and servers that are in use announce 4 KiB to 64 KiB.
pub(super) const LARGEST: usize = 64 << 10;

/// RFC 7541, appendix A.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// A field: what it means, how long its name is, what is kept of its value, and how long that is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'a> {
    pub(super) field: Field,
    pub(super) name_length: usize,
    pub(super) value: &'a [u8],
    pub(super) length: usize,
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Entry {
    field: Field,
    name_length: u32,
    length: u32,
    value: Vec<u8>,
}

/// See the module.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Table {
    /// The newest first.
    entries: VecDeque<Entry>,
    size: usize,
    most: usize,
    /// Bytes of values that are kept.
    kept: usize,
}

impl Default for Table {
    fn default() -> Self {
        Self { entries: VecDeque::new(), size: 0, most: FIRST_SIZE, kept: 0 }
    }
}

impl Table {
    /// The field at this place, from 1.
    pub(super) fn get(&self, index: usize) -> Option<Known<'_>> {
        let index = index.checked_sub(1)?;
        if let Some((name, value)) = STATIC.get(index) {
            let (name, value) = (name.as_bytes(), value.as_bytes());
            return Some(Known {
                field: Field::of_two(name),
                name_length: name.len(),
                value,
                length: value.len(),
            });
        }
        self.entries.get(index - STATIC.len()).map(|entry| Known {
            field: entry.field,
            name_length: entry.name_length as usize,
            value: &entry.value,
            length: entry.length as usize,
        })
    }

    /// Adds a field; others leave for it.
    pub(super) fn add(&mut self, known: Known<'_>) {
        let size = known.name_length + known.length + OVERHEAD;
        self.shrink(self.most.saturating_sub(size));
        if size <= self.most {
            self.size += size;
            self.kept += known.value.len();
            // Both are smaller than the table.
            let short = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
            self.entries.push_front(Entry {
                field: known.field,
                name_length: short(known.name_length),
                length: short(known.length),
                value: known.value.to_vec(),
            });
        }
    }

    /// The encoder uses another size.
    pub(super) fn resize(&mut self, most: usize) {
        self.most = most;
        self.shrink(most);
    }

    /// Bytes that it keeps, roughly.
    pub(super) fn memory(&self) -> usize {
        self.entries.len() * size_of::<Entry>() + self.kept
    }

    fn shrink(&mut self, most: usize) {
        while self.size > most
            && let Some(entry) = self.entries.pop_back()
        {
            self.size -= entry.name_length as usize + entry.length as usize + OVERHEAD;
            self.kept -= entry.value.len();
        }
    }
}
