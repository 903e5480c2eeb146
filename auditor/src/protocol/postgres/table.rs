//! A bounded table of names, which gives out what it forgets.
//!
//! What is forgotten can be executed all the same. So that no text is executed that is not on record, whatever a later execution may not
//! find here is given out first ([`super::names::Names::due`]), unless it was told with an execution of its own: what finds no room, what has
//! a name that cannot be looked up, what may be meant by such a name. And because SQL's EXECUTE and FETCH know these names too, also
//! from within functions that any statement may call, everything that has a name is given out before another statement is told.
//! What Close or DEALLOCATE takes away is not: the server forgets it as well. Only a portal is, since making one may run functions
//! with its values, and with them the statements that were there then: see [`super::names::Names::tell_portals`].

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::names::Name;

/// What a table keeps, and what that costs.
pub(super) trait Kept: Clone {
    /// Bytes, roughly.
    fn cost(&self) -> usize;
}

/// What a name takes in a table beside its meaning: its bytes, its slot and its place in the order.
const NAME: usize = 256;

/// A bounded table of names.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(bound(serialize = "T: serde::Serialize", deserialize = "T: crate::shared::Readable"))]
pub(super) struct Table<T> {
    unnamed: Option<Slot<T>>,
    named: HashMap<Arc<[u8]>, Slot<T>>,
    /// Names in the order in which they got their meaning; a stamp that is not the slot's is an old meaning.
    order: VecDeque<(u64, Arc<[u8]>)>,
    stamp: u64,
    /// All with stamps up to this one are on record.
    told: u64,
    cost: usize,
    max_names: usize,
    max_cost: usize,
    /// What has to be given out; taken before the step that it was found in ends.
    #[serde(skip)]
    pub(super) due: Vec<(Name, Arc<T>)>,
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(bound(serialize = "T: serde::Serialize", deserialize = "T: crate::shared::Readable"))]
struct Slot<T> {
    stamp: u64,
    cost: usize,
    /// It is on record.
    told: bool,
    #[serde(with = "crate::shared")]
    value: Arc<T>,
}

impl<T: Kept> Table<T> {
    pub(super) fn new(max_names: usize, max_cost: usize) -> Self {
        Self {
            unnamed: None,
            named: HashMap::new(),
            order: VecDeque::new(),
            stamp: 0,
            told: 0,
            cost: 0,
            max_names,
            max_cost,
            due: Vec::new(),
        }
    }

    /// Bytes that it takes, roughly.
    pub(super) fn memory(&self) -> usize {
        self.unnamed.as_ref().map_or(0, |slot| slot.cost) + self.cost + self.order.len() * NAME
    }

    /// What the name means, if that is known.
    pub(super) fn get(&self, name: &Name) -> Option<&Arc<T>> {
        match name {
            Name::Exact(key) if key.is_empty() => self.unnamed.as_ref().map(|slot| &slot.value),
            Name::Exact(key) => self.named.get(key.as_ref()).map(|slot| &slot.value),
            Name::Long(_) | Name::Unknown => None,
        }
    }

    /// The same for what is going to be executed. A name that is not to be told from others may be any of them: these are due.
    pub(super) fn look_up(&mut self, name: &Name) -> Option<Arc<T>> {
        match name {
            Name::Exact(_) => {}
            Name::Long(_) => self.tell_named(),
            Name::Unknown => self.tell_all(),
        }
        self.get(name).cloned()
    }

    /// This is told with an execution, if it is what the name means.
    pub(super) fn told_with(&mut self, name: &Name, value: &Arc<T>) {
        let slot = match name {
            Name::Exact(key) if key.is_empty() => self.unnamed.as_mut(),
            Name::Exact(key) => self.named.get_mut(key.as_ref()),
            Name::Long(_) | Name::Unknown => None,
        };
        if let Some(slot) = slot.filter(|slot| Arc::ptr_eq(&slot.value, value)) {
            slot.told = true;
        }
    }

    /// Everything but the unnamed one is due, the oldest first.
    pub(super) fn tell_named(&mut self) {
        let from = self.order.partition_point(|(stamp, _)| *stamp <= self.told);
        for (stamp, key) in self.order.range(from..) {
            let slot = self.named.get_mut(key).filter(|slot| slot.stamp == *stamp && !slot.told);
            if let Some(slot) = slot {
                slot.told = true;
                self.due.push((Name::Exact(key.as_ref().into()), Arc::clone(&slot.value)));
            }
        }
        self.told = self.stamp;
    }

    /// What the name means is due.
    pub(super) fn tell(&mut self, name: &Name) {
        let slot = match name {
            Name::Exact(key) if key.is_empty() => self.unnamed.as_mut(),
            Name::Exact(key) => self.named.get_mut(key.as_ref()).filter(|slot| slot.stamp > self.told),
            // These find nothing, or all: see [`Self::remove`].
            Name::Long(_) | Name::Unknown => None,
        };
        if let Some(slot) = slot.filter(|slot| !slot.told) {
            slot.told = true;
            self.due.push((name.clone(), Arc::clone(&slot.value)));
        }
    }

    /// Whether something in it is not on record.
    pub(super) fn has_untold(&self) -> bool {
        let from = self.order.partition_point(|(stamp, _)| *stamp <= self.told);
        let untold = |(stamp, key): &(u64, Arc<[u8]>)| {
            self.named.get(key).is_some_and(|slot| slot.stamp == *stamp && !slot.told)
        };
        self.unnamed.as_ref().is_some_and(|slot| !slot.told) || self.order.range(from..).any(untold)
    }

    /// Everything is due.
    pub(super) fn tell_all(&mut self) {
        self.tell_named();
        if let Some(slot) = self.unnamed.as_mut().filter(|slot| !slot.told) {
            slot.told = true;
            self.due.push((Name::Exact(Box::default()), Arc::clone(&slot.value)));
        }
    }

    /// What the name may mean, but nobody knows.
    pub(super) fn doubt(&mut self, name: &Name, value: Arc<T>) {
        self.due.push((name.clone(), value));
    }

    /// Changes what the name means, if that is known.
    pub(super) fn change(&mut self, name: &Name, change: impl FnOnce(&mut T)) {
        match name {
            Name::Exact(key) if key.is_empty() => {
                if let Some(slot) = &mut self.unnamed {
                    change(Arc::make_mut(&mut slot.value));
                    slot.cost = slot.value.cost();
                }
            }
            Name::Exact(key) => {
                if let Some(slot) = self.named.get_mut(key.as_ref()) {
                    change(Arc::make_mut(&mut slot.value));
                    self.cost -= slot.cost;
                    slot.cost = slot.value.cost();
                    self.cost += slot.cost;
                    self.evict();
                }
            }
            Name::Long(_) | Name::Unknown => {}
        }
    }

    /// Gives the name a meaning, instead of any that it had.
    pub(super) fn insert(&mut self, name: &Name, value: Arc<T>) {
        let key = match name {
            Name::Exact(key) if key.is_empty() => {
                self.unnamed = Some(Slot { stamp: 0, cost: value.cost(), told: false, value });
                return;
            }
            Name::Exact(key) => key,
            Name::Long(_) | Name::Unknown => {
                self.remove(name);
                return self.doubt(name, value);
            }
        };
        drop(self.forget(key));
        let key: Arc<[u8]> = key.as_ref().into();
        let cost = value.cost();
        self.stamp += 1;
        self.cost += cost;
        self.order.push_back((self.stamp, Arc::clone(&key)));
        self.named.insert(key, Slot { stamp: self.stamp, cost, told: false, value });
        self.evict();
    }

    /// Takes the name's meaning away. Which name was meant may be unknown; then none is certain any more.
    pub(super) fn remove(&mut self, name: &Name) {
        match name {
            Name::Exact(key) if key.is_empty() => self.unnamed = None,
            Name::Exact(key) => drop(self.forget(key)),
            // To a server that does not cut names these are two.
            Name::Long(key) => {
                self.tell_named();
                drop(self.forget(key));
            }
            Name::Unknown => {
                self.tell_all();
                self.clear();
            }
        }
    }

    /// Nothing is certain any more but the unnamed one.
    pub(super) fn doubt_named(&mut self) {
        self.tell_named();
        self.clear_named();
    }

    /// The unnamed one may not be there any more.
    pub(super) fn doubt_unnamed(&mut self) {
        let slot = self.unnamed.take().filter(|slot| !slot.told);
        self.due.extend(slot.map(|slot| (Name::Exact(Box::default()), slot.value)));
    }

    fn clear_named(&mut self) {
        self.named.clear();
        self.order.clear();
        self.named.shrink_to(64);
        self.order.shrink_to(64);
        self.cost = 0;
    }

    /// Takes away every meaning.
    pub(super) fn clear(&mut self) {
        self.unnamed = None;
        if !self.named.is_empty() {
            self.clear_named();
        }
    }

    fn forget(&mut self, key: &[u8]) -> Option<Slot<T>> {
        let slot = self.named.remove(key)?;
        self.cost -= slot.cost;
        Some(slot)
    }

    fn evict(&mut self) {
        while self.named.len() > self.max_names || self.cost > self.max_cost {
            let Some((stamp, key)) = self.order.pop_front() else { return };
            if self.named.get(&key).is_some_and(|slot| slot.stamp == stamp)
                && let Some(slot) = self.forget(&key)
                && !slot.told
                && stamp > self.told
            {
                self.due.push((Name::Exact(key.as_ref().into()), slot.value));
            }
        }
        // Names that are given and taken over and over must not pile up.
        if self.order.len() > 2 * self.named.len() + 64 {
            self.order.retain(|(stamp, key)| self.named.get(key).is_some_and(|slot| slot.stamp == *stamp));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value that costs what it is.
    impl Kept for usize {
        fn cost(&self) -> usize {
            *self
        }
    }

    fn exact(name: &str) -> Name {
        Name::new(name.as_bytes(), name.len() as u64)
    }

    #[test]
    fn a_name_means_what_it_was_given_last() {
        let mut table = Table::new(8, 100);
        table.insert(&exact("a"), Arc::new(1));
        table.insert(&exact("a"), Arc::new(2));
        table.insert(&exact(""), Arc::new(3));
        assert_eq!(table.get(&exact("a")).map(|value| **value), Some(2));
        assert_eq!(table.get(&exact("")).map(|value| **value), Some(3));
        table.doubt_named();
        assert_eq!(table.get(&exact("a")), None);
        assert_eq!(table.get(&exact("")).map(|value| **value), Some(3));
    }

    #[test]
    fn names_and_bytes_are_bounded_and_the_oldest_goes_first() {
        let mut table = Table::new(3, 100);
        for name in ["a", "b", "c", "d"] {
            table.insert(&exact(name), Arc::new(10));
        }
        assert_eq!(table.get(&exact("a")), None);
        assert!(table.get(&exact("b")).is_some());
        table.insert(&exact("e"), Arc::new(90));
        assert_eq!(table.get(&exact("c")), None);
        assert!(table.get(&exact("d")).is_some() && table.get(&exact("e")).is_some());
        table.insert(&exact("f"), Arc::new(101));
        assert_eq!(table.get(&exact("f")), None, "too large to be kept at all");
        assert_eq!(table.cost, 0);
    }

    #[test]
    fn giving_and_taking_one_name_does_not_pile_up() {
        let mut table = Table::new(3, 100);
        table.insert(&exact("stays"), Arc::new(7));
        for _ in 0..10_000 {
            table.insert(&exact("a"), Arc::new(1));
            table.remove(&exact("a"));
        }
        assert!(table.order.len() < 100, "{}", table.order.len());
        assert_eq!(table.get(&exact("stays")).map(|value| **value), Some(7));
    }

    #[test]
    fn a_long_name_is_unknown_and_takes_its_short_form_along() {
        let short = "x".repeat(63);
        let long = format!("{short}y");
        let mut table = Table::new(8, 1000);
        table.insert(&exact(&short), Arc::new(1));
        assert!(table.get(&exact(&short)).is_some());
        table.insert(&exact(&long), Arc::new(2));
        assert_eq!(table.get(&exact(&short)), None);
        assert_eq!(table.get(&exact(&long)), None);
    }

    #[test]
    fn an_unknown_name_leaves_none_certain() {
        let mut table = Table::new(8, 1000);
        table.insert(&exact("a"), Arc::new(1));
        table.insert(&exact(""), Arc::new(1));
        table.remove(&Name::Unknown);
        assert_eq!((table.get(&exact("a")), table.get(&exact(""))), (None, None));
    }
}
