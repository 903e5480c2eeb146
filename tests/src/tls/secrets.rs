//! Looks for TLS secrets where none may be.
//!
//! Which secrets there are is not asked of the auditor: the clients' own libraries write them down (the format of
//! `SSLKEYLOGFILE`), and the keys that TLS 1.3 derives from them are derived here once more (RFC 8446 §7.3). Each is looked for as
//! it is, in hexadecimal, in base64 and as a list of numbers, which is how a careless `Debug` or JSON would have it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256, Sha384};

/// As many bytes of a needle tell it from everything else.
const ENOUGH: usize = 8;
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Secrets in all their forms, each with the name that it is told by.
#[derive(Debug, Default)]
pub struct Needles {
    forms: Vec<(String, Vec<u8>)>,
    beginnings: HashMap<[u8; ENOUGH], Vec<usize>>,
    secrets: usize,
}

impl Needles {
    /// Adds all secrets of the key logs in `folder`.
    ///
    /// # Errors
    /// One cannot be read or is no key log.
    pub fn add_logs(&mut self, folder: &Path) -> Result<()> {
        let logs = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for log in logs {
            self.add_log(&log?.path())?;
        }
        Ok(())
    }

    fn add_log(&mut self, path: &Path) -> Result<()> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        // The last line of a program that still runs may not be whole.
        let whole = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        for line in whole.filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let [label, _, secret] = line.split(' ').collect::<Vec<_>>()[..] else {
                bail!("{}: no key log: {line}", path.display())
            };
            let secret = from_hexadecimal(secret).with_context(|| format!("{}: {line}", path.display()))?;
            if label.contains("TRAFFIC_SECRET") {
                for (what, length) in [("key", 16), ("key", 32), ("iv", 12)] {
                    self.add(&format!("{label}, {what}"), &expand_label(&secret, what, length));
                }
            }
            self.add(label, &secret);
        }
        Ok(())
    }

    /// Adds one.
    pub fn add(&mut self, name: &str, secret: &[u8]) {
        self.secrets += 1;
        let list =
            |between: &str| secret.iter().map(u8::to_string).collect::<Vec<_>>().join(between).into_bytes();
        let lower: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut forms = vec![
            ("raw", secret.to_vec()),
            ("numbers", list(",")),
            ("numbers with spaces", list(", ")),
            ("HEX", lower.to_uppercase().into_bytes()),
            ("hex", lower.into_bytes()),
        ];
        // Wherever in a longer text it begins.
        forms.extend((0..3).map(|before| ("base64", base64_within(secret, before))));
        for (form, bytes) in forms {
            let Some(beginning) = bytes.first_chunk::<ENOUGH>() else { continue };
            self.beginnings.entry(*beginning).or_default().push(self.forms.len());
            self.forms.push((format!("{name} ({form})"), bytes));
        }
    }

    /// How many secrets there are.
    pub fn count(&self) -> usize {
        self.secrets
    }

    /// The names of those that are in `bytes`, with the place of the first.
    pub fn find(&self, bytes: &[u8]) -> BTreeMap<&str, usize> {
        let mut first = vec![false; 1 << 16];
        for [high, low, ..] in self.beginnings.keys() {
            first[usize::from(*high) << 8 | usize::from(*low)] = true;
        }
        let mut found = BTreeMap::new();
        for (place, window) in bytes.windows(ENOUGH).enumerate() {
            if !first[usize::from(window[0]) << 8 | usize::from(window[1])] {
                continue;
            }
            let candidates = window.first_chunk().and_then(|beginning| self.beginnings.get(beginning));
            for (name, form) in candidates.into_iter().flatten().map(|index| &self.forms[*index]) {
                if bytes[place..].starts_with(form) {
                    found.entry(name.as_str()).or_insert(place);
                }
            }
        }
        found
    }

    /// Looks through all files below `folder`; returns what was found where, and how many bytes were looked at.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn search(&self, folder: &Path) -> Result<(Vec<String>, u64)> {
        let (mut found, mut looked_at) = (Vec::new(), 0);
        let mut open = vec![folder.to_owned()];
        while let Some(path) = open.pop() {
            let kind =
                fs::symlink_metadata(&path).with_context(|| format!("cannot read {}", path.display()))?;
            if kind.is_dir() {
                open.extend(fs::read_dir(&path)?.flatten().map(|entry| entry.path()));
            } else if kind.is_file() {
                let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                looked_at += bytes.len() as u64;
                found.extend(
                    self.find(&bytes)
                        .iter()
                        .map(|(name, place)| format!("{} at {place}: {name}", path.display())),
                );
            }
        }
        Ok((found, looked_at))
    }

    /// Looks through the memory that a process alone can write; returns what was found where, and how many bytes were looked at.
    ///
    /// Not for the IV of TLS 1.3, which is the first record's nonce as well (RFC 8446 §5.3): a library that opens that record handles it
    /// like any nonce, and without the key it opens nothing.
    ///
    /// # Errors
    /// Its memory cannot be read.
    pub fn search_memory(&self, pid: u32) -> Result<(Vec<String>, u64)> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let maps = fs::read_to_string(folder.join("maps")).context("the process's maps")?;
        let mut memory = fs::File::open(folder.join("mem")).context("the process's memory")?;
        let (mut found, mut looked_at) = (Vec::new(), 0);
        for line in maps.lines().filter(|line| line.contains(" rw-p ")) {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let (begin, end) = range.with_context(|| format!("maps: {line}"))?;
            let (begin, end) = (u64::from_str_radix(begin, 16)?, u64::from_str_radix(end, 16)?);
            memory.seek(SeekFrom::Start(begin))?;
            let mut bytes = Vec::new();
            // A thread's stack may have gone since.
            if memory.by_ref().take(end - begin).read_to_end(&mut bytes).is_err() {
                continue;
            }
            looked_at += bytes.len() as u64;
            let secrets = self.find(&bytes).into_iter().filter(|(name, _)| !name.ends_with(", iv (raw)"));
            found.extend(secrets.map(|(name, place)| format!("{line} at {place:#x}: {name}")));
        }
        Ok((found, looked_at))
    }
}

fn from_hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    digits?.chunks(2).map(|pair| u8::try_from(pair[0] << 4 | pair.get(1)?).ok()).collect()
}

/// The part of a base64 text that depends on `secret` alone, where `before` bytes of its group of three precede it.
fn base64_within(secret: &[u8], before: usize) -> Vec<u8> {
    let mut bytes = vec![0; before];
    bytes.extend(secret);
    let mut text = Vec::new();
    // A last group that is not whole depends on what follows, too.
    for group in bytes.chunks_exact(3) {
        let bits = u32::from(group[0]) << 16 | u32::from(group[1]) << 8 | u32::from(group[2]);
        text.extend([18, 12, 6, 0].map(|shift| BASE64[(bits >> shift & 63) as usize]));
    }
    if before == 0 { text } else { text.split_off(4) }
}

/// HKDF-Expand-Label with an empty context, for keys that need one round.
fn expand_label(secret: &[u8], label: &str, length: u8) -> Vec<u8> {
    let label = format!("tls13 {label}");
    let mut info = vec![0, length, u8::try_from(label.len()).unwrap_or(u8::MAX)];
    info.extend(label.bytes());
    // An empty context, and the number of the round.
    info.extend([0, 1]);
    let mut key =
        if secret.len() == 48 { mac::<Sha384>(secret, &info, 128) } else { mac::<Sha256>(secret, &info, 64) };
    key.truncate(usize::from(length));
    key
}

/// HMAC (RFC 2104) with keys that are not longer than a block.
fn mac<D: Digest>(key: &[u8], message: &[u8], block: usize) -> Vec<u8> {
    let pad =
        |with: u8| (0..block).map(|index| key.get(index).copied().unwrap_or(0) ^ with).collect::<Vec<u8>>();
    let inner = D::new().chain_update(pad(0x36)).chain_update(message).finalize();
    D::new().chain_update(pad(0x5c)).chain_update(inner).finalize().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8448 §3: the server's handshake traffic secret, and its key and IV.
    #[test]
    fn keys_are_derived_as_the_rfc_does() {
        let secret = "b67b7d690cc16c4e75e54213cb2d37b4e9c912bcded9105d42befd59d391ad38";
        let secret = from_hexadecimal(secret).unwrap();
        let key = from_hexadecimal("3fce516009c21727d0f2e4e86ee403bc").unwrap();
        let iv = from_hexadecimal("5d313eb2671276ee13000b30").unwrap();
        assert_eq!(expand_label(&secret, "key", 16), key);
        assert_eq!(expand_label(&secret, "iv", 12), iv);
    }

    #[test]
    fn a_secret_is_found_in_each_form() {
        let secret: Vec<u8> = (100..132).collect();
        let mut needles = Needles::default();
        needles.add("secret", &secret);
        let base64 = "eHh4ZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7fH1+f4CBgoODeA==";
        let list = format!("{secret:?}");
        let hex: String = secret.iter().map(|byte| format!("{byte:02X}")).collect();
        for text in
            [base64.as_bytes(), list.as_bytes(), hex.as_bytes(), hex.to_lowercase().as_bytes(), &secret]
        {
            assert_eq!(needles.find(&[b"before ", text, b" after"].concat()).len(), 1, "{text:?}");
        }
        assert!(needles.find(&secret[1..]).is_empty());
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("deep")).unwrap();
        fs::write(folder.path().join("deep/file"), &secret).unwrap();
        assert_eq!(needles.search(folder.path()).unwrap().0.len(), 1);
    }

    #[test]
    fn the_memory_of_a_process_is_looked_through() {
        // Of a child: this process holds the needles.
        let mut needles = Needles::default();
        let secret: Vec<u8> = (0..32u8).map(|byte| byte.wrapping_mul(37).wrapping_add(11)).collect();
        needles.add("secret", &secret);
        let list = secret.iter().map(u8::to_string).collect::<Vec<_>>().join("+0,");
        let script = format!("secret = bytes(({list}+0,)); print(flush=True); import time; time.sleep(60)");
        let mut command = std::process::Command::new("/usr/bin/python3");
        command.args(["-c", &script]).stdout(std::process::Stdio::piped());
        let mut child = crate::child::Child::start(&mut command, nix::sys::signal::Signal::SIGKILL).unwrap();
        child.take_stdout().unwrap().read_exact(&mut [0]).unwrap();
        let (found, _) = needles.search_memory(child.id()).unwrap();
        assert!(!found.is_empty());
    }
}
