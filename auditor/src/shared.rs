//! Values that many owners share, in state that outlives a daemon: written once, and shared again when they are read.
//!
//! Without this, a client could prepare one long text, refer to it a thousand times for a few bytes each, and make the
//! state as large as a thousand copies. What is shared belongs to one [`scope`]: one conversation, written or read in one
//! go by one thread.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

#[derive(Default)]
struct Known {
    /// Index of each value that was written, by its address, which its owners keep for as long as the scope lasts.
    written: HashMap<usize, u32>,
    read: Vec<Arc<dyn Any + Send + Sync>>,
}

thread_local! {
    static KNOWN: RefCell<Known> = RefCell::default();
}

/// What can be read and shared.
pub trait Readable: DeserializeOwned + Send + Sync + 'static {}

impl<T: DeserializeOwned + Send + Sync + 'static> Readable for T {}

/// Writes or reads one whole state, in which values are shared.
pub fn scope<T>(step: impl FnOnce() -> T) -> T {
    let before = KNOWN.take();
    let result = step();
    KNOWN.replace(before);
    result
}

/// Writes a shared value: whole the first time, its number afterwards.
///
/// # Errors
/// The serializer's.
pub fn serialize<T: Serialize, S: Serializer>(value: &Arc<T>, serializer: S) -> Result<S::Ok, S::Error> {
    let address = Arc::as_ptr(value) as usize;
    let known = KNOWN.with_borrow_mut(|known| {
        let next = u32::try_from(known.written.len()).unwrap_or(u32::MAX);
        let mut new = false;
        let index = *known.written.entry(address).or_insert_with(|| {
            new = true;
            next
        });
        (index, new)
    });
    match known {
        (_, true) => (None::<u32>, Some(&**value)).serialize(serializer),
        (index, false) => (Some(index), None::<&T>).serialize(serializer),
    }
}

/// Reads a shared value.
///
/// # Errors
/// The deserializer's, or a number that stands for nothing.
pub fn deserialize<'de, T, D>(deserializer: D) -> Result<Arc<T>, D::Error>
where
    T: Readable,
    D: Deserializer<'de>,
{
    // A value is numbered before what it holds: so it was written.
    let place = KNOWN.with_borrow_mut(|known| {
        known.read.push(Arc::new(()));
        known.read.len() - 1
    });
    match <(Option<u32>, Option<T>)>::deserialize(deserializer)? {
        (None, Some(value)) => {
            let value = Arc::new(value);
            let shared: Arc<dyn Any + Send + Sync> = Arc::<T>::clone(&value);
            KNOWN.with_borrow_mut(|known| {
                if let Some(slot) = known.read.get_mut(place) {
                    *slot = shared;
                }
            });
            Ok(value)
        }
        (Some(index), None) => KNOWN.with_borrow_mut(|known| {
            // It was no new value, so it has no number.
            known.read.pop();
            let shared = usize::try_from(index).ok().and_then(|index| known.read.get(index)).cloned();
            shared
                .and_then(|shared| shared.downcast::<T>().ok())
                .ok_or_else(|| de::Error::custom("a shared value that is not there"))
        }),
        _ => Err(de::Error::custom("a shared value is there or has a number")),
    }
}

/// The same where there may be none.
pub mod option {
    use super::{Arc, Deserialize, Deserializer, Readable, Serialize, Serializer};

    #[derive(Serialize)]
    #[serde(transparent)]
    struct Written<'a, T: Serialize>(#[serde(serialize_with = "super::serialize")] &'a Arc<T>);

    #[derive(Deserialize)]
    #[serde(transparent, bound = "T: Readable")]
    struct Read<T>(#[serde(deserialize_with = "super::deserialize")] Arc<T>);

    /// Writes a shared value or its absence.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<T: Serialize, S: Serializer>(
        value: &Option<Arc<T>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_ref().map(Written).serialize(serializer)
    }

    /// Reads a shared value or its absence.
    ///
    /// # Errors
    /// See [`super::deserialize`].
    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<Arc<T>>, D::Error>
    where
        T: Readable,
        D: Deserializer<'de>,
    {
        Ok(Option::<Read<T>>::deserialize(deserializer)?.map(|Read(value)| value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Holder {
        #[serde(with = "super")]
        one: Arc<String>,
        #[serde(with = "super::option")]
        other: Option<Arc<String>>,
        #[serde(with = "super")]
        third: Arc<String>,
    }

    #[test]
    fn a_shared_value_is_written_once_and_shared_again() {
        let text = Arc::new("x".repeat(10_000));
        let third = Arc::new("another".to_owned());
        let holder = Holder { one: Arc::clone(&text), other: Some(text), third };
        let bytes = scope(|| postcard::to_stdvec(&holder)).unwrap();
        assert!(bytes.len() < 10_100, "{} bytes", bytes.len());
        let read: Holder = scope(|| postcard::from_bytes(&bytes)).unwrap();
        assert!(Arc::ptr_eq(&read.one, read.other.as_ref().unwrap()));
        assert_eq!((read.one.len(), read.third.as_str()), (10_000, "another"));
    }
}
