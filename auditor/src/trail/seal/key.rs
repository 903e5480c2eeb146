//! The key that signs checkpoints.
//!
//! [`Signer`] is what the trail asks of it; [`KeyFile`] keeps it in a file, mode 0600, outside of the trail, so that a copy of the trail has no
//! key. A file that others may read, or that another user owns, is refused: whoever has read it can sign. The file's text is that of Go's `note` package: `PRIVATE+KEY+<name>+<key id>+<base64 of the algorithm and the seed>`. In memory
//! the key is AWS-LC's, which cleanses it; what is read and written passes through buffers that are cleansed too.
//!
//! `<trail id>.key` is in force; `<trail id>.new.key` is to come into force, and does so by a hand-over that both sign. A key that was handed
//! over from is not kept.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use data_encoding::BASE64;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use zeroize::Zeroizing;

use super::super::error::Error;
use super::super::head::sync_directory;
use super::checkpoint::origin;
use super::note::VerifierKey;

const PRIVATE: &str = "PRIVATE+KEY+";
const ED25519_TYPE: u8 = 1;
const SEED: usize = 32;

/// What signs for a trail. Where the key is kept is its own affair.
pub trait Signer: fmt::Debug + Send {
    /// The public key, by the name that it signs under.
    fn public(&self) -> &VerifierKey;

    /// An Ed25519 signature of `text`.
    ///
    /// # Errors
    /// The key cannot be used at the moment.
    fn sign(&self, text: &[u8]) -> io::Result<[u8; 64]>;
}

/// A key from a file.
pub struct KeyFile {
    pair: Ed25519KeyPair,
    public: VerifierKey,
}

impl fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyFile").field(&self.public).finish()
    }
}

impl Signer for KeyFile {
    fn public(&self) -> &VerifierKey {
        &self.public
    }

    fn sign(&self, text: &[u8]) -> io::Result<[u8; 64]> {
        let signature = self.pair.try_sign(text).map_err(|_| io::Error::other("AWS-LC refuses to sign"))?;
        signature.as_ref().try_into().map_err(io::Error::other)
    }
}

impl KeyFile {
    fn from_seed(name: &str, seed: &[u8]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).ok()?;
        let public = pair.public_key().as_ref().try_into().ok()?;
        Some(Self { pair, public: VerifierKey::new(name.to_owned(), public) })
    }

    /// Makes a key and keeps it in a new file, whole or not at all.
    fn create(path: &Path, name: &str, randomness: &Path) -> Result<Self, Error> {
        let mut seed = Zeroizing::new([0; SEED]);
        File::open(randomness)
            .and_then(|mut file| file.read_exact(&mut *seed))
            .map_err(Error::call("read", randomness))?;
        let key =
            Self::from_seed(name, &*seed).ok_or_else(|| Error::KeyMalformed { path: path.to_owned() })?;
        let mut bytes = Zeroizing::new([ED25519_TYPE; 1 + SEED]);
        bytes[1..].copy_from_slice(&*seed);
        let encoded = Zeroizing::new(BASE64.encode(&*bytes));
        let text = Zeroizing::new(format!(
            "{PRIVATE}{name}+{:08x}+{}\n",
            u32::from_be_bytes(key.public.id()),
            *encoded
        ));
        let partial = path.with_extension("partial");
        let _ = fs::remove_file(&partial);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial);
        let mut file = file.map_err(Error::call("create", &partial))?;
        file.write_all(text.as_bytes()).map_err(Error::call("write", &partial))?;
        file.sync_all().map_err(Error::call("fsync", &partial))?;
        fs::rename(&partial, path).map_err(Error::call("rename", &partial))?;
        Ok(key)
    }

    /// Reads a key; `None` where there is no such file.
    fn read(path: &Path, name: &str) -> Result<Option<Self>, Error> {
        let mut text = Zeroizing::new(String::with_capacity(512));
        let exposed = |reason| Error::KeyExposed { path: path.to_owned(), reason };
        // Of a FIFO nobody waits for the other end.
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => {
                return Err(exposed("it is a symbolic link"));
            }
            Err(error) => return Err(Error::call("open", path)(error)),
        };
        let metadata = file.metadata().map_err(Error::call("stat", path))?;
        if !metadata.is_file() {
            return Err(exposed("it is not a regular file"));
        }
        if metadata.uid() != geteuid().as_raw() {
            return Err(exposed("another user owns it"));
        }
        if metadata.mode() & 0o077 != 0 {
            return Err(exposed("its mode lets group or others at it"));
        }
        file.take(500).read_to_string(&mut text).map_err(Error::call("read", path))?;
        let parsed = || {
            let (of, rest) = text.trim_end().strip_prefix(PRIVATE)?.split_once('+')?;
            let (id, encoded) = rest.split_once('+')?;
            let bytes = Zeroizing::new(BASE64.decode(encoded.as_bytes()).ok()?);
            let [ED25519_TYPE, seed @ ..] = bytes.as_slice() else { return None };
            let key = Self::from_seed(of, seed)?;
            (of == name && id == format!("{:08x}", u32::from_be_bytes(key.public.id()))).then_some(key)
        };
        parsed().map(Some).ok_or_else(|| Error::KeyMalformed { path: path.to_owned() })
    }
}

/// Where a trail's keys are kept.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    directory: PathBuf,
    trail: String,
    randomness: PathBuf,
}

impl Keys {
    pub(super) fn new(directory: &Path, trail: &str, randomness: &Path) -> Self {
        Self { directory: directory.to_owned(), trail: trail.to_owned(), randomness: randomness.to_owned() }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.join(format!("{}.key", self.trail))
    }

    fn new_path(&self) -> PathBuf {
        self.directory.join(format!("{}.new.key", self.trail))
    }

    /// The key in force.
    pub(super) fn current(&self) -> Result<Option<KeyFile>, Error> {
        KeyFile::read(&self.path(), &origin(&self.trail))
    }

    /// The key that is to come into force.
    pub(super) fn next(&self) -> Result<Option<KeyFile>, Error> {
        KeyFile::read(&self.new_path(), &origin(&self.trail))
    }

    /// Makes one that is to come into force, unless there is one.
    pub(super) fn make_next(&self) -> Result<KeyFile, Error> {
        if let Some(key) = self.next()? {
            return Ok(key);
        }
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.directory);
        made.map_err(Error::call("mkdir", &self.directory))?;
        if let Some(up) = self.directory.parent().filter(|up| !up.as_os_str().is_empty()) {
            sync_directory(up)?;
        }
        let key = KeyFile::create(&self.new_path(), &origin(&self.trail), &self.randomness)?;
        sync_directory(&self.directory)?;
        Ok(key)
    }

    /// Puts it into force; the key before is gone by that.
    pub(super) fn promote(&self) -> Result<(), Error> {
        let path = self.new_path();
        fs::rename(&path, self.path()).map_err(Error::call("rename", &path))?;
        sync_directory(&self.directory)
    }
}

/// Makes a new key for the trail in `directory`, to be taken over by its daemon at the next reload or start, and gives its public half.
pub fn prepare_key(directory: &Path, keys: &Path, randomness: &Path) -> Result<VerifierKey, Error> {
    let head = super::super::head::Head::read(directory)?
        .ok_or_else(|| Error::HeadMissing { path: super::super::head::Head::path(directory) })?;
    Ok(Keys::new(keys, &head.trail, randomness).make_next()?.public().clone())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn a_key_that_others_may_have_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("keys");
        let keys = Keys::new(&directory, &"0f".repeat(16), Path::new("/dev/urandom"));
        let made = keys.make_next().unwrap();
        assert_eq!(keys.next().unwrap().unwrap().public(), made.public());
        let path = keys.new_path();
        let refused = |why: &str| {
            let error = keys.next().unwrap_err();
            assert!(matches!(error, Error::KeyExposed { .. }), "{why}: {error}");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        };
        for mode in [0o640, 0o604, 0o620, 0o601, 0o777] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            refused("mode");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        assert_eq!(keys.next().unwrap().unwrap().public(), made.public());
        let aside = directory.join("aside");
        fs::rename(&path, &aside).unwrap();
        symlink(&aside, &path).unwrap();
        refused("link");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        refused("directory");
        fs::remove_dir(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
        chown(&path, Some(geteuid().as_raw() + 1), None).expect("tests run as root");
        refused("owner");
    }
}
