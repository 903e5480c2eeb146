//! Tiles as files, by C2SP tlog-tiles: `tile/<level>/<index>`, partial ones `tile/<level>/<index>.p/<width>`.
//!
//! They hold nothing that the segments do not: whatever a crash leaves of them can be written again. So they are written in place, and made
//! durable only before a checkpoint that covers them is signed.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::super::chain::Hash;
use super::super::error::Error;
use super::tree::{Tile, WIDTH, hashes_at};

/// Directory of tiles in the trail's.
pub(in crate::trail) const DIRECTORY: &str = "tile";
/// So many new files are made durable at once: no more than these wait for a checkpoint, and a commit waits for no more than these.
const SYNCED_AT_ONCE: usize = 64;
const HASH: usize = 32;

/// The path of a tile below the trail's directory.
pub(in crate::trail) fn path(level: u32, index: u64, width: usize) -> PathBuf {
    let mut name = format!("{:03}", index % 1000);
    let mut rest = index / 1000;
    while rest > 0 {
        name = format!("x{:03}/{name}", rest % 1000);
        rest /= 1000;
    }
    let path = PathBuf::from(format!("{DIRECTORY}/{level}/{name}"));
    if width == WIDTH { path } else { path.with_extension("p").join(width.to_string()) }
}

/// Reads the first `width` hashes of a tile that is as wide as it is in a tree of `size` leaves, or full. `None`: there is no such tile
/// that is as long as it must be.
///
/// The partial one comes first: it was durable before the checkpoint over `size` records was signed, and is there until the full one is.
pub(in crate::trail) fn read(
    trail: &Path,
    (level, index): (u32, u64),
    width: usize,
    size: u64,
) -> Result<Option<Vec<Hash>>, Error> {
    let within = hashes_at(level, size).saturating_sub(index.saturating_mul(WIDTH as u64));
    let partial = usize::try_from(within).unwrap_or(WIDTH).min(WIDTH);
    for stored in [partial, WIDTH] {
        let bytes = bytes(trail, &path(level, index, stored))?;
        let hashes = bytes.and_then(|bytes| hashes(&bytes));
        if let Some(mut hashes) = hashes.filter(|hashes| hashes.len() == stored && width <= stored) {
            hashes.truncate(width);
            return Ok(Some(hashes));
        }
    }
    Ok(None)
}

/// A tile's bytes; `None` where there is no such file.
pub(in crate::trail) fn bytes(trail: &Path, path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let path = trail.join(path);
    let mut bytes = Vec::with_capacity(WIDTH * HASH + 1);
    let read = File::open(&path).and_then(|file| {
        io::Read::read_to_end(&mut io::Read::take(file, (WIDTH * HASH) as u64 + 1), &mut bytes)
    });
    match read {
        Ok(_) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::call("read", &path)(error)),
    }
}

fn hashes(bytes: &[u8]) -> Option<Vec<Hash>> {
    let chunks = bytes.chunks_exact(HASH);
    chunks.remainder().is_empty().then(|| chunks.filter_map(Hash::from_slice).collect())
}

/// Writes tiles and knows which are not durable yet.
#[derive(Debug)]
pub(super) struct Tiles {
    trail: PathBuf,
    files: BTreeSet<PathBuf>,
    directories: BTreeSet<PathBuf>,
    /// Directories of partial tiles that are of no use once the full one is durable.
    spent: BTreeSet<PathBuf>,
    /// Where the last tile was written: it is there.
    present: PathBuf,
    starting: bool,
    /// More than are synced one by one.
    many: bool,
}

impl Tiles {
    /// Up to the first [`Tiles::sync`] a whole tree may be made again, and nobody waits for a commit: one syncfs(2) then takes less than an
    /// fdatasync(2) for each tile. Later it would wait for what other programs have written to that file system.
    pub(super) fn new(trail: &Path) -> Self {
        Self {
            trail: trail.to_owned(),
            files: BTreeSet::new(),
            directories: BTreeSet::new(),
            spent: BTreeSet::new(),
            present: PathBuf::new(),
            starting: true,
            many: false,
        }
    }

    /// Writes a tile. Partial ones before it go with the next sync, once it is full: until then a power failure may tear it.
    pub(super) fn write(&mut self, tile: &Tile) -> Result<(), Error> {
        if self.files.len() >= SYNCED_AT_ONCE {
            match self.starting {
                true => self.many = true,
                false => self.sync()?,
            }
        }
        let below = path(tile.level, tile.index, tile.hashes.len());
        let path = self.trail.join(&below);
        let directory = path.parent().unwrap_or(&self.trail).to_owned();
        if directory != self.present {
            self.make_directory(&directory)?;
        }
        if !self.many {
            self.directories.insert(directory);
        }
        let bytes = tile.bytes();
        // One that a checkpoint of the same size has is not emptied under somebody who verifies.
        if tile.hashes.len() == WIDTH || fs::read(&path).ok().as_ref() != Some(&bytes) {
            let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
            let mut file = file.map_err(Error::call("create", &path))?;
            file.write_all(&bytes).map_err(Error::call("write", &path))?;
        }
        if tile.hashes.len() == WIDTH {
            let partial = path.with_extension("p");
            // There are some only where a checkpoint was made within this tile.
            if partial.is_dir() {
                self.spent.insert(partial);
            }
        }
        if !self.many {
            self.files.insert(path);
        }
        Ok(())
    }

    fn make_directory(&mut self, directory: &Path) -> Result<(), Error> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(Error::call("mkdir", directory))?;
        if !self.many {
            let up = directory.ancestors().take_while(|up| *up != self.trail);
            self.directories.extend(up.map(Path::to_owned));
        }
        self.present = directory.to_owned();
        Ok(())
    }

    /// Makes all that was written durable, and takes away what is of no use by that.
    pub(super) fn sync(&mut self) -> Result<(), Error> {
        if self.many {
            let directory = File::open(&self.trail).map_err(Error::call("open", &self.trail))?;
            nix::unistd::syncfs(&directory)
                .map_err(|error| Error::call("syncfs", &self.trail)(error.into()))?;
        } else {
            let mut files = Vec::with_capacity(self.files.len());
            for path in &self.files {
                let file = File::open(path).map_err(Error::call("open", path))?;
                // Begins to write it, so that one commit of the file system's journal has them all.
                let _ = posix_fadvise(file.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
                files.push((path, file));
            }
            for (path, file) in files {
                file.sync_data().map_err(Error::call("fdatasync", path))?;
            }
            for path in &self.directories {
                let synced = File::open(path).and_then(|file| file.sync_all());
                synced.map_err(Error::call("fsync", path))?;
            }
        }
        (self.starting, self.many) = (false, false);
        self.files.clear();
        self.directories.clear();
        for partial in std::mem::take(&mut self.spent) {
            // What stays is in nobody's way.
            let _ = fs::remove_dir_all(&partial);
            if self.present == partial {
                self.present = PathBuf::new();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_specification() {
        let named = |level, index, width| path(level, index, width).to_str().unwrap().to_owned();
        assert_eq!(named(0, 1_234_067, 256), "tile/0/x001/x234/067");
        assert_eq!(named(2, 0, 1), "tile/2/000.p/1");
        assert_eq!(named(1, 999, 255), "tile/1/999.p/255");
        assert_eq!(named(1, 1000, 256), "tile/1/x001/000");
    }

    fn tile(index: u64, width: u8) -> Tile {
        let hashes = (0..=255).take(if width == 0 { WIDTH } else { width.into() });
        Tile { level: 0, index, hashes: hashes.map(|byte| Hash::new([byte; 32])).collect() }
    }

    #[test]
    fn a_partial_tile_is_there_and_is_read_until_the_full_one_is_durable() {
        let folder = tempfile::tempdir().unwrap();
        let trail = folder.path();
        let mut tiles = Tiles::new(trail);
        tiles.write(&tile(1, 44)).unwrap();
        tiles.sync().unwrap();
        tiles.write(&tile(1, 0)).unwrap();
        let (full, partial) = (trail.join("tile/0/001"), trail.join("tile/0/001.p/44"));
        assert!(partial.is_file(), "a power failure may take the full one");
        // What it may leave of the full one: none, a part, or a length without content.
        for left in [0, 1, 32 * 44, 8191, 8192] {
            fs::write(&full, vec![0; left]).unwrap();
            assert_eq!(read(trail, (0, 1), 44, 300).unwrap(), Some(tile(1, 44).hashes), "{left}");
        }
        tiles.write(&tile(1, 0)).unwrap();
        tiles.sync().unwrap();
        assert!(!partial.exists());
        assert_eq!(read(trail, (0, 1), 44, 300).unwrap(), Some(tile(1, 44).hashes));
        // Partial ones that a power failure brings back, torn.
        fs::create_dir(partial.parent().unwrap()).unwrap();
        fs::write(&partial, [1, 2, 3]).unwrap();
        assert_eq!(read(trail, (0, 1), 44, 300).unwrap(), Some(tile(1, 44).hashes));
        // The same directory is made again.
        tiles.write(&tile(1, 45)).unwrap();
        tiles.sync().unwrap();
    }

    #[test]
    fn the_whole_file_system_is_synced_at_the_start_only() {
        let folder = tempfile::tempdir().unwrap();
        let mut tiles = Tiles::new(folder.path());
        (0..200).for_each(|index| tiles.write(&tile(index, 0)).unwrap());
        assert!(tiles.many);
        tiles.sync().unwrap();
        for index in 200..3000 {
            tiles.write(&tile(index, 0)).unwrap();
            assert!(!tiles.many && tiles.files.len() <= SYNCED_AT_ONCE, "{index}");
        }
        tiles.sync().unwrap();
        assert!(tiles.files.is_empty() && tiles.directories.is_empty());
        for index in 0..3000 {
            assert_eq!(read(folder.path(), (0, index), WIDTH, u64::MAX).unwrap(), Some(tile(0, 0).hashes));
        }
    }
}
