//! What is known of files: which are probed, and which have nothing to probe.
//!
//! There is room for so many probed files. A session may have as many as are still free, so that one that makes files up leaves some to
//! the others. A file that was not probed for want of room is not known by that: it is looked at again for the next session.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;

/// Files that are remembered: those without anything to probe, and those with.
const MOST_KNOWN: usize = 65536;
const MOST_PROBED: usize = 1024;

/// A file that is probed.
struct Probed {
    /// `None`: an earlier daemon's, of which the number is all that is known.
    file: Option<File>,
    inode: Option<(u64, u64)>,
    /// The session that it was probed for; 0: the host's own.
    session: u64,
}

/// See the module.
#[derive(Default)]
pub(super) struct Known {
    /// Numbers of files that have nothing to probe.
    nothing: BTreeSet<u64>,
    /// Sessions, and files that were not probed for them.
    refused: BTreeSet<(u64, u64)>,
    probed: HashMap<u64, Probed>,
    by_inode: HashMap<(u64, u64), u64>,
    /// Files that were probed for a session.
    of: HashMap<u64, usize>,
}

impl Known {
    /// With what an earlier daemon has probed.
    pub(super) fn of_earlier(libraries: Vec<u64>) -> Self {
        let mut known = Self::default();
        for library in libraries {
            known.probed.insert(library, Probed { file: None, inode: None, session: 0 });
            *known.of.entry(0).or_default() += 1;
        }
        known
    }

    /// Whether a file is to be looked through for a session.
    pub(super) fn is_new(&self, session: u64, library: u64) -> bool {
        !self.nothing.contains(&library)
            && !self.probed.contains_key(&library)
            && !self.refused.contains(&(session, library))
    }

    /// Whether it is probed, and what is in it could be found out for a session.
    pub(super) fn is_unknown(&self, session: u64, library: u64) -> bool {
        self.probed.get(&library).is_some_and(|probed| probed.file.is_none())
            && !self.refused.contains(&(session, library))
    }

    /// Whether another file may be probed for a session, beside so many that may be probed soon, its own and all.
    pub(super) fn admits(&self, session: u64, (own, all): (usize, usize)) -> bool {
        let free = MOST_PROBED.saturating_sub(self.probed.len() + all);
        self.of.get(&session).copied().unwrap_or(0) + own < free
    }

    /// It has nothing to probe.
    pub(super) fn nothing(&mut self, library: u64) {
        if self.nothing.len() >= MOST_KNOWN {
            self.nothing.clear();
        }
        self.nothing.insert(library);
    }

    /// It is not probed for this session.
    pub(super) fn refuse(&mut self, session: u64, library: u64) {
        if self.refused.len() >= MOST_KNOWN {
            self.refused.clear();
        }
        self.refused.insert((session, library));
    }

    /// It is probed. Answers the number under which the same file was probed before: it was written to since.
    pub(super) fn probed(
        &mut self,
        session: u64,
        library: u64,
        inode: (u64, u64),
        file: File,
    ) -> Option<u64> {
        let earlier = self.by_inode.insert(inode, library).filter(|earlier| *earlier != library);
        if let Some(earlier) = earlier {
            self.forget(earlier);
            self.by_inode.insert(inode, library);
        }
        let session = self.probed.get(&library).map_or(session, |probed| probed.session);
        if self.probed.insert(library, Probed { file: Some(file), inode: Some(inode), session }).is_none() {
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

    /// Probes files for a session until there is no room.
    fn fill(known: &mut Known, session: u64) -> usize {
        let mut count = 0;
        while known.admits(session, (0, 0)) {
            count += 1;
            let number = session << 32 | count;
            assert_eq!(known.probed(session, number, (session, count), file()), None);
        }
        count as usize
    }

    #[test]
    fn a_session_that_makes_files_up_leaves_some_to_the_others() {
        let mut known = Known::default();
        let mut free = MOST_PROBED;
        for session in 1..=6 {
            let got = fill(&mut known, session);
            assert!(got.abs_diff(free / 2) <= 1, "{session}: {got} of {free}");
            free -= got;
        }
        assert!(known.admits(7, (0, 0)) && !known.admits(7, (MOST_PROBED / 2, MOST_PROBED / 2)));
    }

    #[test]
    fn what_was_refused_to_one_is_new_to_another() {
        let mut known = Known::default();
        known.refuse(1, 77);
        assert!(!known.is_new(1, 77));
        assert!(known.is_new(2, 77));
    }

    #[test]
    fn a_file_that_is_written_to_again_and_again_is_one() {
        let mut known = Known::default();
        assert_eq!(known.probed(1, 100, (8, 9), file()), None);
        for number in 101..5000 {
            assert_eq!(known.probed(1, number, (8, 9), file()), Some(number - 1));
        }
        assert_eq!(known.probed.len(), 1);
        known.forget(4999);
        assert!(known.of.is_empty() && known.by_inode.is_empty());
    }

    #[test]
    fn what_an_earlier_daemon_probed_is_recognised_once() {
        let mut known = Known::of_earlier(vec![5]);
        assert!(!known.is_new(1, 5) && known.is_unknown(1, 5));
        assert_eq!(known.probed(1, 5, (8, 9), file()), None);
        assert!(!known.is_unknown(1, 5) && known.is_hosts(5));
    }
}
