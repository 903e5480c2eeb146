//! Meanings by shape or text, bounded.
//!
//! Two generations: what is looked up moves to the younger one; when that is full, it becomes the older one and what was there
//! is forgotten. That is as good as least-recently-used here and has no list to keep. Keys are chosen by agents, so the maps are
//! keyed at random, and what one costs is bounded by its length.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;

/// Longer keys are not kept: with their maps' bound they give the whole cache one.
const KEY_BYTES: usize = 4096;
/// Entries of a generation.
const ENTRIES: usize = 4096;
/// Bytes of keys in a generation.
const BYTES: usize = 2 << 20;

#[derive(Debug)]
pub(super) struct Cache<V> {
    young: HashMap<Box<[u8]>, Arc<V>>,
    old: HashMap<Box<[u8]>, Arc<V>>,
    young_bytes: usize,
}

impl<V> Default for Cache<V> {
    fn default() -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), young_bytes: 0 }
    }
}

impl<V> Cache<V> {
    pub(super) fn get(&mut self, key: &[u8]) -> Option<Arc<V>> {
        if let Some(value) = self.young.get(key) {
            return Some(Arc::clone(value));
        }
        let (key, value) = self.old.remove_entry(key)?;
        self.keep(key, Arc::clone(&value));
        Some(value)
    }

    pub(super) fn insert(&mut self, key: &[u8], value: Arc<V>) {
        if key.len() <= KEY_BYTES {
            self.keep(key.into(), value);
        }
    }

    fn keep(&mut self, key: Box<[u8]>, value: Arc<V>) {
        if self.young.len() >= ENTRIES || self.young_bytes + key.len() > BYTES {
            self.old = mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += key.len();
        self.young.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_keeps_what_is_used() {
        let mut cache = Cache::default();
        cache.insert(b"used", Arc::new(0));
        for number in 1..100_000_u32 {
            cache.insert(&number.to_be_bytes(), Arc::new(number));
            assert_eq!(cache.get(b"used").as_deref(), Some(&0));
        }
        assert!(cache.young.len() + cache.old.len() <= 2 * ENTRIES);
        assert!(cache.get(&1_u32.to_be_bytes()).is_none());
        cache.insert(&vec![0; KEY_BYTES + 1], Arc::new(7));
        assert!(cache.get(&vec![0; KEY_BYTES + 1]).is_none());
    }
}
