//! Libraries that are compiled into a program without symbols, and still have a function for key logs (SSLKEYLOGFILE): BoringSSL and what
//! comes of it.
//!
//! They call `ssl_log_secret(ssl, label, secret, length)` with each secret before they use it, whether anybody wants a log or not.
//! The labels are texts that the key log's format names (draft-ietf-tls-keylogfile), so they are in the file as they are. The function is
//! what is called next after the address of a label was put into the second argument's register, if at least two different labels say
//! the same. A compiler that puts the function's code into its callers leaves nothing to find. x86-64 only.

use std::collections::{BTreeMap, BTreeSet};

use super::elf::{Elf, Unreadable};

/// Labels that are looked for.
const LABELS: [&[u8]; 6] = [
    b"\0CLIENT_RANDOM\0",
    b"\0CLIENT_EARLY_TRAFFIC_SECRET\0",
    b"\0CLIENT_HANDSHAKE_TRAFFIC_SECRET\0",
    b"\0SERVER_HANDSHAKE_TRAFFIC_SECRET\0",
    b"\0CLIENT_TRAFFIC_SECRET_0\0",
    b"\0EXPORTER_SECRET\0",
];
/// How far from the label the call may be.
const NEAR: usize = 48;
/// Labels that must agree.
const AGREE: usize = 2;
/// `lea distance(%rip), %rsi`
const LOAD_NEAR: [u8; 3] = [0x48, 0x8d, 0x35];
/// `mov $address, %esi`
const LOAD: u8 = 0xbe;
/// `call distance`
const CALL: u8 = 0xe8;

/// The address of the function; `None`: it is not there, or cannot be told.
pub(super) fn function(elf: &Elf<'_>) -> Result<Option<u64>, Unreadable> {
    if cfg!(not(target_arch = "x86_64")) {
        return Ok(None);
    }
    let mut labels = BTreeMap::new();
    elf.constants(LABELS[3].len(), |address, bytes| {
        for (index, label) in LABELS.iter().enumerate() {
            labels.extend(memchr::memmem::find_iter(bytes, label).map(|at| (address + at as u64 + 1, index)));
        }
    })?;
    // Whoever has none of this has no more to say.
    if labels.values().collect::<BTreeSet<_>>().len() < AGREE {
        return Ok(None);
    }
    let mut called: BTreeMap<u64, BTreeSet<usize>> = BTreeMap::new();
    elf.code_pieces(NEAR + 16, |address, code| {
        let mut seen = |label: usize, behind: usize| {
            if let Some(target) = next_call(code, address, behind) {
                called.entry(target).or_default().insert(label);
            }
        };
        for at in memchr::memmem::find_iter(code, &LOAD_NEAR) {
            let Some(distance) = distance(code, at + LOAD_NEAR.len()) else { continue };
            let behind = at + LOAD_NEAR.len() + 4;
            let place = (address + behind as u64).wrapping_add_signed(distance);
            if let Some(label) = labels.get(&place) {
                seen(*label, behind);
            }
        }
        for (place, label) in &labels {
            let Ok(place) = u32::try_from(*place) else { continue };
            let mut load = [LOAD; 5];
            load[1..].copy_from_slice(&place.to_le_bytes());
            memchr::memmem::find_iter(code, &load).for_each(|at| seen(*label, at + load.len()));
        }
    })?;
    let agreed = called.into_iter().max_by_key(|(_, labels)| labels.len());
    Ok(agreed.filter(|(_, labels)| labels.len() >= AGREE).map(|(function, _)| function))
}

fn distance(code: &[u8], at: usize) -> Option<i64> {
    Some(i32::from_le_bytes(code.get(at..at + 4)?.try_into().ok()?).into())
}

/// Where the next call goes. Bytes of other instructions that look like one lead anywhere, and no two labels agree on that.
fn next_call(code: &[u8], address: u64, from: usize) -> Option<u64> {
    let at = from + memchr::memchr(CALL, code.get(from..code.len().min(from + NEAR))?)?;
    let behind = at + 5;
    Some((address + behind as u64).wrapping_add_signed(distance(code, at + 1)?))
}
