//! The key that signs checkpoints.
//!
//! [`Signer`] is what the trail asks of it; [`KeyFile`] keeps it in a file, mode 0600, outside of the trail, so that a copy of the trail has no
//! key. The file's text is that of Go's `note` package: `PRIVATE+KEY+<name>+<key id>+<base64 of the algorithm and the seed>`. In memory
//! the key is AWS-LC's, which cleanses it; what is read and written passes through buffers that are cleansed too.
//!
//! `<trail id>.key` is in force; `<trail id>.new.key` is to come into force, and does so by a hand-over that both sign. A key that was handed
//! over from is not kept.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use data_encoding::BASE64;
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
        match File::open(path).and_then(|file| file.take(500).read_to_string(&mut text)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::call("read", path)(error)),
        }
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
