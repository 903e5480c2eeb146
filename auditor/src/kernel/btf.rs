//! The kernel's description of its own types (BTF, Documentation/bpf/btf.rst): where a field stands in a structure, and whether
//! an enumeration has a word.
//!
//! Only what the programs need is looked up, by name; Rust's compiler emits no relocations by which a loader could do it.
#![forbid(unsafe_code)]

/// The description as the kernel gives it out.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
/// Nesting of nameless structures that is followed.
const DEPTH: u32 = 8;

/// The bytes are no BTF of this machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the kernel's type information cannot be understood")]
pub struct Malformed;

/// A parsed description.
pub struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins in `types`; its id is its position here, from 1.
    starts: Vec<u32>,
}

impl<'a> Types<'a> {
    /// Finds the types in the bytes of [`VMLINUX`].
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let word = |at: usize| read(bytes, at).map(|word| word as usize).ok_or(Malformed);
        let magic = bytes.first_chunk::<2>().ok_or(Malformed)?;
        if u16::from_ne_bytes(*magic) != MAGIC {
            return Err(Malformed);
        }
        let body = bytes.get(word(4)?..).ok_or(Malformed)?;
        let part = |offset: usize, length: usize| {
            body.get(offset..offset.checked_add(length).ok_or(Malformed)?).ok_or(Malformed)
        };
        let types = part(word(8)?, word(12)?)?;
        let strings = part(word(16)?, word(20)?)?;
        let mut starts = Vec::new();
        let mut at = 0;
        while at < types.len() {
            let info = read(types, at + 4).ok_or(Malformed)?;
            starts.push(u32::try_from(at).map_err(|_| Malformed)?);
            at += 12 + following(info).ok_or(Malformed)?;
        }
        if at != types.len() {
            return Err(Malformed);
        }
        Ok(Self { types, strings, starts })
    }

    /// Offset in bytes of a field in `struct NAME`, also where it lies in a nameless structure within.
    pub fn offset(&self, structure: &str, field: &str) -> Option<u32> {
        let mut candidates = self.starts.iter().map(|start| *start as usize);
        candidates.find_map(|at| {
            let named = kind(read(self.types, at + 4)?) == STRUCT && self.is_named(at, structure);
            named.then(|| self.field(at, field, DEPTH))?
        })
    }

    /// Whether `enum NAME` has a word.
    pub fn has_word(&self, enumeration: &str, word: &str) -> bool {
        self.starts.iter().map(|start| *start as usize).any(|at| {
            let Some(info) = read(self.types, at + 4) else { return false };
            kind(info) == ENUM
                && self.is_named(at, enumeration)
                && (0..count(info)).any(|index| self.is_named(at + 12 + 8 * index, word))
        })
    }

    fn field(&self, at: usize, field: &str, depth: u32) -> Option<u32> {
        let info = read(self.types, at + 4)?;
        let bitfields = info >> 31 != 0;
        (0..count(info)).find_map(|index| {
            let member = at + 12 + 12 * index;
            let offset = read(self.types, member + 8)?;
            // With bit fields in the structure, the upper byte is the field's width: 0 for ordinary ones.
            let (bits, width) = if bitfields { (offset & 0xff_ffff, offset >> 24) } else { (offset, 0) };
            if self.is_named(member, field) {
                return (width == 0 && bits % 8 == 0).then_some(bits / 8);
            }
            if read(self.types, member)? != 0 || depth == 0 {
                return None;
            }
            let inner = read(self.types, member + 4)?.checked_sub(1)?;
            let inner = *self.starts.get(inner as usize)? as usize;
            let nameless = matches!(kind(read(self.types, inner + 4)?), STRUCT | UNION);
            nameless.then(|| self.field(inner, field, depth - 1))?.map(|offset| bits / 8 + offset)
        })
    }

    /// Whether the entry that begins with a name's offset has this name.
    fn is_named(&self, at: usize, name: &str) -> bool {
        let bytes = read(self.types, at).and_then(|offset| self.strings.get(offset as usize..));
        bytes.is_some_and(|bytes| bytes.starts_with(name.as_bytes()) && bytes.get(name.len()) == Some(&0))
    }
}

fn read(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_ne_bytes(*word))
}

const fn kind(info: u32) -> u32 {
    info >> 24 & 0x1f
}

const fn count(info: u32) -> usize {
    (info & 0xffff) as usize
}

/// Bytes after the common part of a type.
fn following(info: u32) -> Option<usize> {
    let count = count(info);
    Some(match kind(info) {
        1 | 14 | 17 => 4,
        3 => 12,
        STRUCT | UNION | 15 | 19 => 12 * count,
        ENUM | 13 => 8 * count,
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The description of a kernel with one structure and one enumeration.
    pub(crate) fn kernel(word: &str) -> Vec<u8> {
        let strings = format!("\0outer\0inner\0bpf_attach_type\0{word}\0");
        let place = |name: &str| u32::try_from(strings.find(&format!("\0{name}\0")).unwrap() + 1).unwrap();
        let types: Vec<u32> = [
            // 1: a nameless union with `inner` at bit 32.
            [0, UNION << 24 | 1, 8].as_slice(),
            &[place("inner"), 3, 32],
            // 2: struct outer with that union at bit 64.
            &[place("outer"), STRUCT << 24 | 1, 16],
            &[0, 1, 64],
            // 3: int.
            &[0, 1 << 24, 4, 0],
            // 4: enum bpf_attach_type.
            &[place("bpf_attach_type"), ENUM << 24 | 1, 4],
            &[place(word), 49],
        ]
        .concat();
        let length = u32::try_from(types.len() * 4).unwrap();
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for word in [24, 0, length, length, u32::try_from(strings.len()).unwrap()].iter().chain(&types) {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(strings.as_bytes());
        bytes
    }

    #[test]
    fn fields_of_nameless_structures_are_found() {
        let bytes = kernel("BPF_CGROUP_UNIX_CONNECT");
        let types = Types::parse(&bytes).unwrap();
        assert_eq!(types.offset("outer", "inner"), Some(12));
        assert_eq!(types.offset("outer", "inne"), None);
        assert_eq!(types.offset("inner", "outer"), None);
        assert!(types.has_word("bpf_attach_type", "BPF_CGROUP_UNIX_CONNECT"));
        assert!(!types.has_word("bpf_attach_type", "BPF_CGROUP_UNIX"));
    }

    #[test]
    fn what_is_cut_or_foreign_is_refused() {
        let bytes = kernel("X");
        for length in 0..bytes.len() {
            assert!(Types::parse(&bytes[..length]).is_err(), "{length}");
        }
        let foreign: Vec<u8> = bytes.iter().rev().copied().collect();
        assert!(Types::parse(&foreign).is_err());
    }
}
