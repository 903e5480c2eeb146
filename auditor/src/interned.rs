//! Names that are part of the program (`&'static str`) in state that outlives a daemon.
//!
//! They are written as text. Read back, each becomes one leaked copy for the rest of the process; there are as many as the
//! program has such names, and a file that holds more is refused.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Deserializer, Serializer, de};

/// A name that is part of the program. Under this name, because serde takes a `&str` that it sees for borrowed from its
/// input.
pub type Name = &'static str;

/// More names than the program has.
const MOST: usize = 1024;
/// Longer than any of them.
const LONGEST: usize = 256;

static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

/// The one copy of a name.
fn copy_of(name: &str) -> Option<&'static str> {
    // A set is whole between two calls, whatever a thread that held it did.
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.get(name) {
        return Some(known);
    }
    if names.len() >= MOST || name.len() > LONGEST {
        return None;
    }
    let leaked: &'static str = Box::leak(Box::from(name));
    names.insert(leaked);
    Some(leaked)
}

/// Writes a name.
///
/// # Errors
/// The serializer's.
pub fn serialize<S: Serializer>(name: &&'static str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name)
}

/// Reads a name.
///
/// # Errors
/// The deserializer's, or the text is not one of the program's names.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<&'static str, D::Error> {
    let name = String::deserialize(deserializer)?;
    copy_of(&name).ok_or_else(|| de::Error::custom("not one of the program's names"))
}

/// The same where there may be none.
pub mod option {
    use super::{Deserialize, Deserializer, Serializer, copy_of, de};

    /// Writes a name or its absence.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(name: &Option<&'static str>, serializer: S) -> Result<S::Ok, S::Error> {
        match name {
            Some(name) => serializer.serialize_some(name),
            None => serializer.serialize_none(),
        }
    }

    /// Reads a name or its absence.
    ///
    /// # Errors
    /// See [`super::deserialize`].
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'static str>, D::Error> {
        let Some(name) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
        copy_of(&name).map(Some).ok_or_else(|| de::Error::custom("not one of the program's names"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_copy_and_a_text_that_cannot_be_one_is_refused() {
        let (first, second) = (copy_of("postgres").unwrap(), copy_of(&String::from("postgres")).unwrap());
        assert!(std::ptr::eq(first, second));
        assert_eq!(copy_of(&"x".repeat(LONGEST + 1)), None);
    }
}
