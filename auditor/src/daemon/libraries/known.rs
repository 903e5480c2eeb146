//! What is known of files: which are probed, and which have nothing to probe. Who is known is not looked through again.
//!
//! There is room for so many probed files. A session may have as many as are still free, so that one that makes files up leaves some to
//! the others. A file that was not probed for want of room is not known by that: it is looked at again for the next session.
//!
//! Of files without anything to probe so many are remembered, too, and when there is no room for another one, the session that has
//! brought the most of them loses its oldest. So one that makes files up makes nobody forget but itself.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::hash::Hash;

use super::Identity;

/// Files that are remembered: those without anything to probe, those that were refused to a session, and those with.
const MOST_KNOWN: usize = 65536;
const MOST_REFUSED: usize = 65536;
const MOST_PROBED: usize = 1024;
/// The owner of what is the host's own. It keeps what it has, up to half of all.
const HOST: u64 = 0;

/// Things that are remembered, so many in all, each for a session.
struct Shares<K, V> {
    most: usize,
    all: HashMap<K, V>,
    /// What is whose, the oldest first.
    of: HashMap<u64, VecDeque<K>>,
}

impl<K: Copy + Eq + Hash, V> Shares<K, V> {
    fn new(most: usize) -> Self {
        Self { most, all: HashMap::new(), of: HashMap::new() }
    }

    fn get(&self, key: &K) -> Option<&V> {
        self.all.get(key)
    }

    fn insert(&mut self, owner: u64, key: K, value: V) {
        if self.all.insert(key, value).is_some() {
            return;
        }
        self.of.entry(owner).or_default().push_back(key);
        if self.all.len() > self.most {
            self.make_room();
        }
    }

    /// Takes its oldest from whoever has the most.
    fn make_room(&mut self) {
        let gives_way = |(owner, keys): &(&u64, &VecDeque<K>)| **owner != HOST || keys.len() > self.most / 2;
        let largest = self.of.iter().filter(gives_way).max_by_key(|(_, keys)| keys.len());
        let Some(owner) = largest.map(|(owner, _)| *owner) else { return };
        if let Some(keys) = self.of.get_mut(&owner) {
            if let Some(oldest) = keys.pop_front() {
                self.all.remove(&oldest);
            }
            if keys.is_empty() {
                self.of.remove(&owner);
            }
        }
    }
}

/// A file that is probed.
struct Probed {
    /// `None`: an earlier daemon's, of which the number is all that is known.
    file: Option<File>,
    inode: Option<(u64, u64)>,
    /// What is told of its content, see `Identity`.
    content: u64,
    /// The session that it was probed for; 0: the host's own.
    session: u64,
}

/// See the module.
pub(super) struct Known {
    /// Numbers of files that have nothing to probe, and why it cannot be told whether they have.
    nothing: Shares<u64, Option<String>>,
    /// Sessions, and files that were not probed for them.
    refused: Shares<(u64, u64), ()>,
    probed: HashMap<u64, Probed>,
    by_inode: HashMap<(u64, u64), u64>,
    /// Files that were probed for a session.
    of: HashMap<u64, usize>,
}

impl Known {
    /// With what an earlier daemon has probed.
    pub(super) fn of_earlier(libraries: Vec<u64>) -> Self {
        let mut known = Self {
            nothing: Shares::new(MOST_KNOWN),
            refused: Shares::new(MOST_REFUSED),
            probed: HashMap::new(),
            by_inode: HashMap::new(),
            of: HashMap::new(),
        };
        for library in libraries {
            known.probed.insert(library, Probed { file: None, inode: None, content: 0, session: HOST });
            *known.of.entry(HOST).or_default() += 1;
        }
        known
    }

    /// Whether a file is to be looked through for a session.
    pub(super) fn is_new(&self, session: u64, library: u64) -> bool {
        self.nothing.get(&library).is_none()
            && !self.probed.contains_key(&library)
            && !self.is_refused(session, library)
    }

    /// Why a file cannot be looked through, if that is known and was not told of this session.
    pub(super) fn unreadable(&self, session: u64, library: u64) -> Option<&str> {
        let error = self.nothing.get(&library)?.as_deref();
        error.filter(|_| !self.is_refused(session, library))
    }

    fn is_refused(&self, session: u64, library: u64) -> bool {
        self.refused.get(&(session, library)).is_some()
    }

    /// Whether it is probed, and what is in it could be found out for a session.
    pub(super) fn is_unknown(&self, session: u64, library: u64) -> bool {
        self.probed.get(&library).is_some_and(|probed| probed.file.is_none())
            && !self.is_refused(session, library)
    }

    /// Whether another file may be probed for a session, beside so many that may be probed soon, its own and all.
    pub(super) fn admits(&self, session: u64, (own, all): (usize, usize)) -> bool {
        let free = MOST_PROBED.saturating_sub(self.probed.len() + all);
        self.of.get(&session).copied().unwrap_or(0) + own < free
    }

    /// It has nothing to probe, or cannot be looked through; a session has brought it.
    pub(super) fn nothing(&mut self, session: u64, library: u64, unreadable: Option<String>) {
        self.nothing.insert(session, library, unreadable);
    }

    /// It is not probed for this session.
    pub(super) fn refuse(&mut self, session: u64, library: u64) {
        self.refused.insert(session, (session, library), ());
    }

    /// It is probed. Answers the number under which the same file was probed before: it was written to since.
    pub(super) fn probed(
        &mut self,
        session: u64,
        Identity { number: library, inode, content }: Identity,
        file: File,
    ) -> Option<u64> {
        let earlier = self.by_inode.insert(inode, library).filter(|earlier| *earlier != library);
        if let Some(earlier) = earlier {
            self.forget(earlier);
            self.by_inode.insert(inode, library);
        }
        let session = self.probed.get(&library).map_or(session, |probed| probed.session);
        let probed = Probed { file: Some(file), inode: Some(inode), content, session };
        if self.probed.insert(library, probed).is_none() {
            *self.of.entry(session).or_default() += 1;
        }
        earlier
    }

    /// Its probes are gone.
    pub(super) fn forget(&mut self, library: u64) {
        let Some(probed) = self.probed.remove(&library) else { return };
        if let Some(inode) = probed.inode {
            self.by_inode.remove(&inode);
        }
        if let Some(count) = self.of.get_mut(&probed.session) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.of.remove(&probed.session);
            }
        }
    }

    /// Files that are probed.
    pub(super) fn files(&self) -> impl Iterator<Item = (u64, &File)> {
        self.probed.iter().filter_map(|(library, probed)| Some((*library, probed.file.as_ref()?)))
    }

    /// Whether this was the content of a file when it was probed.
    pub(super) fn has_content(&self, library: u64, content: u64) -> bool {
        self.probed.get(&library).is_some_and(|probed| probed.content == content)
    }

    /// Whether so many are probed that those which nobody uses any more had better go.
    pub(super) fn is_crowded(&self) -> bool {
        self.probed.len() >= MOST_PROBED / 4
    }

    /// Whether it is one of the host's own, or an earlier daemon's.
    pub(super) fn is_hosts(&self, library: u64) -> bool {
        self.probed.get(&library).is_some_and(|probed| probed.session == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> File {
        File::open("/dev/null").unwrap()
    }

    fn known() -> Known {
        Known::of_earlier(Vec::new())
    }

    fn identity(number: u64, inode: (u64, u64)) -> Identity {
        Identity { number, inode, content: number }
    }

    /// Probes files for a session until there is no room.
    fn fill(known: &mut Known, session: u64) -> usize {
        let mut count = 0;
        while known.admits(session, (0, 0)) {
            count += 1;
            let number = session << 32 | count;
            assert_eq!(known.probed(session, identity(number, (session, count)), file()), None);
        }
        count as usize
    }

    #[test]
    fn a_session_that_makes_files_up_leaves_some_to_the_others() {
        let mut known = known();
        let mut free = MOST_PROBED;
        for session in 1..=6 {
            let got = fill(&mut known, session);
            assert!(got.abs_diff(free / 2) <= 1, "{session}: {got} of {free}");
            free -= got;
        }
        assert!(known.admits(7, (0, 0)) && !known.admits(7, (MOST_PROBED / 2, MOST_PROBED / 2)));
    }

    #[test]
    fn a_session_that_makes_files_up_makes_nobody_forget_but_itself() {
        let mut known = known();
        let host = 0..3000;
        let honest = 10_000..10_200;
        host.clone().for_each(|number| known.nothing(HOST, number, None));
        honest.clone().for_each(|number| known.nothing(1, number, None));
        let made_up = 1 << 20..(1 << 20) + 3 * MOST_KNOWN as u64;
        for number in made_up.clone() {
            known.nothing(2, number, None);
            known.refuse(2, number);
        }
        known.refuse(1, 77);
        assert!(host.chain(honest).all(|number| !known.is_new(3, number)));
        assert!(known.is_new(3, made_up.start) && !known.is_new(3, made_up.end - 1));
        assert!(!known.is_new(1, 77));
        assert!(known.nothing.all.len() == MOST_KNOWN && known.refused.all.len() == MOST_REFUSED);
        assert_eq!(known.nothing.of.values().map(VecDeque::len).sum::<usize>(), MOST_KNOWN);
    }

    #[test]
    fn what_is_the_hosts_does_not_take_all_the_room() {
        let mut known = known();
        (0..2 * MOST_KNOWN as u64).for_each(|number| known.nothing(HOST, number, None));
        known.nothing(1, 1 << 40, None);
        assert!(!known.is_new(2, 1 << 40) && known.nothing.all.len() == MOST_KNOWN);
    }

    #[test]
    fn what_was_refused_to_one_is_new_to_another() {
        let mut known = known();
        known.refuse(1, 77);
        assert!(!known.is_new(1, 77));
        assert!(known.is_new(2, 77));
    }

    #[test]
    fn what_cannot_be_read_is_told_to_each_and_read_once() {
        let mut known = known();
        known.nothing(1, 77, Some("it is cut".to_owned()));
        known.refuse(1, 77);
        assert_eq!(known.unreadable(1, 77), None);
        assert!(!known.is_new(2, 77));
        assert_eq!(known.unreadable(2, 77), Some("it is cut"));
    }

    #[test]
    fn a_file_that_is_written_to_again_and_again_is_one() {
        let mut known = known();
        assert_eq!(known.probed(1, identity(100, (8, 9)), file()), None);
        for number in 101..5000 {
            assert_eq!(known.probed(1, identity(number, (8, 9)), file()), Some(number - 1));
        }
        assert_eq!(known.probed.len(), 1);
        known.forget(4999);
        assert!(known.of.is_empty() && known.by_inode.is_empty());
    }

    #[test]
    fn what_an_earlier_daemon_probed_is_recognised_once() {
        let mut known = Known::of_earlier(vec![5]);
        assert!(!known.is_new(1, 5) && known.is_unknown(1, 5));
        assert_eq!(known.probed(1, identity(5, (8, 9)), file()), None);
        assert!(!known.is_unknown(1, 5) && known.is_hosts(5) && known.has_content(5, 5));
    }
}
