//! HEAD: the last durable record, in a file of fixed size beside the segments.
//!
//! One line, `<trail id, 32 hex> <sequence, 20 digits> <hash, 64 hex>`, 119 bytes with its newline: smaller than a sector, so
//! that writing it in place leaves either the old or the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::chain::Hash;
use super::error::Error;

const NAME: &str = "HEAD";
const NEW: &str = "HEAD.new";
const ID: usize = 32;
const LENGTH: usize = ID + 1 + 20 + 1 + 64 + 1;

/// What HEAD says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Head {
    /// The trail's id: 32 hexadecimal digits, made at its beginning.
    pub trail: String,
    /// Sequence of the last durable record; 0 before the first.
    pub sequence: u64,
    /// Its hash; the genesis hash before the first.
    pub hash: Hash,
}

impl Head {
    /// The HEAD of a trail without records.
    pub(super) fn genesis(trail: String) -> Self {
        let hash = Hash::genesis(&trail);
        Self { trail, sequence: 0, hash }
    }

    fn line(&self) -> String {
        format!("{} {:020} {}\n", self.trail, self.sequence, self.hash)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(bytes).ok().filter(|line| line.len() == LENGTH)?;
        let mut words = line.strip_suffix('\n')?.split(' ');
        let (trail, sequence, hash) = (words.next()?, words.next()?, words.next()?);
        let head = Self {
            trail: Some(trail).filter(|trail| is_id(trail))?.to_owned(),
            sequence: sequence.parse().ok()?,
            hash: Hash::parse(hash.as_bytes())?,
        };
        (head.line() == line).then_some(head)
    }

    /// Reads the HEAD of the trail in `directory`; `None` where there is none.
    pub(super) fn read(directory: &Path) -> Result<Option<Self>, Error> {
        let path = directory.join(NAME);
        // A reader beside a running writer may see a write half done; it is over in no time.
        for _ in 0..100 {
            match fs::read(&path) {
                Ok(bytes) => {
                    if let Some(head) = Self::parse(&bytes) {
                        return Ok(Some(head));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(Error::call("read", &path)(error)),
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Err(Error::HeadMalformed { path })
    }

    /// Where the HEAD of the trail in `directory` is.
    pub(super) fn path(directory: &Path) -> PathBuf {
        directory.join(NAME)
    }

    /// Makes the first HEAD of a trail, whole or not at all.
    pub(super) fn create(&self, directory: &Path) -> Result<(), Error> {
        let new = directory.join(NEW);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .map_err(Error::call("create", &new))?;
        file.write_all(self.line().as_bytes()).map_err(Error::call("write", &new))?;
        file.sync_all().map_err(Error::call("fsync", &new))?;
        fs::rename(&new, directory.join(NAME)).map_err(Error::call("rename", &new))?;
        sync_directory(directory)
    }
}

/// Whether `text` can be a trail's id.
pub(super) fn is_id(text: &str) -> bool {
    text.len() == ID && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Makes created, renamed and removed names in `directory` durable.
pub(super) fn sync_directory(directory: &Path) -> Result<(), Error> {
    File::open(directory).and_then(|file| file.sync_all()).map_err(Error::call("fsync", directory))
}

/// The writer's HEAD.
#[derive(Debug)]
pub(super) struct HeadFile {
    path: PathBuf,
    file: File,
    trail: String,
}

impl HeadFile {
    pub(super) fn open(directory: &Path, trail: &str) -> Result<Self, Error> {
        let path = directory.join(NAME);
        let file = OpenOptions::new().write(true).open(&path).map_err(Error::call("open", &path))?;
        Ok(Self { path, file, trail: trail.to_owned() })
    }

    pub(super) fn write(&self, sequence: u64, hash: Hash) -> Result<(), Error> {
        let line = Head { trail: self.trail.clone(), sequence, hash }.line();
        self.file.write_all_at(line.as_bytes(), 0).map_err(Error::call("write", &self.path))
    }

    pub(super) fn sync(&self) -> Result<(), Error> {
        self.file.sync_data().map_err(Error::call("fdatasync", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_writes_and_nothing_else() {
        let head = Head { sequence: 42, ..Head::genesis("0f".repeat(16)) };
        let line = head.line();
        assert_eq!(line.len(), LENGTH);
        assert_eq!(Head::parse(line.as_bytes()), Some(head));
        assert_eq!(Head::parse(line.replace("0042", "+042").as_bytes()), None);
        assert_eq!(Head::parse(line.trim_end().as_bytes()), None);
        assert_eq!(Head::parse(line.to_uppercase().as_bytes()), None);
    }
}
