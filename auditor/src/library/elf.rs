//! The little of an ELF file that is needed (System V ABI, chapters 4 and 5): its symbols, single sections, and which part of the file is code.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use object::elf::{
    ELFCLASS64, ELFDATA2LSB, ELFMAG, EM_AARCH64, EM_X86_64, FileHeader64, PF_X, PT_LOAD, ProgramHeader64,
    SHF_ALLOC, SHF_EXECINSTR, SHF_WRITE, SHN_UNDEF, SHT_DYNSYM, SHT_PROGBITS, SHT_SYMTAB, STT_FUNC,
    STT_NOTYPE, SectionHeader64, Sym64,
};
use object::pod::{Pod, from_bytes, slice_from_all_bytes};
use object::{LittleEndian as Little, LittleEndian};

const LE: Little = LittleEndian;
/// Headers of one kind in a file: more is nonsense.
const MOST_HEADERS: u16 = 4096;
/// Bytes of symbols, or of their names, in one table. The largest programs, unstripped, have some tens of MiB.
const MOST_BYTES: u64 = 64 << 20;
/// Bytes of the names of sections: more is nonsense.
const MOST_NAMES: u64 = 1 << 20;
/// Bytes of sections that are looked through, in pieces of this size.
const MOST_SCANNED: u64 = 512 << 20;
const PIECE: usize = 1 << 20;
/// Places where a name may stand among all names, and those that are looked at for them: most are in others' names.
const MOST_PLACES: usize = 16;
const MOST_LOOKED_AT: usize = 65_536;
/// How far before a method's name a mangled name may begin.
const LONGEST_MANGLED: usize = 1024;
/// What this host runs.
const MACHINE: u16 = if cfg!(target_arch = "aarch64") { EM_AARCH64 } else { EM_X86_64 };

/// A file that is not what it says it is.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// read(2).
    #[error("read {what}: {error}")]
    Read {
        /// Of what.
        what: &'static str,
        /// What the kernel said; an unexpected end where the file is shorter than it says.
        error: io::Error,
    },
    /// A number is beyond all measure.
    #[error("{what} of {bytes} bytes")]
    TooLong {
        /// Of what.
        what: &'static str,
        /// How many bytes it would have.
        bytes: u64,
    },
    /// Something that must be there is not.
    #[error("{0}")]
    Malformed(&'static str),
}

impl Unreadable {
    /// Whether it is so as long as nobody writes to the file; not where a read failed, which may not fail again.
    pub fn lasts(&self) -> bool {
        !matches!(self, Self::Read { error, .. } if error.kind() != io::ErrorKind::UnexpectedEof)
    }
}

/// A file that was recognised.
pub(super) struct Elf<'a> {
    file: &'a File,
    segments: Vec<ProgramHeader64<Little>>,
    sections: Vec<SectionHeader64<Little>>,
    /// Number of the section with the names of sections.
    names: usize,
}

impl<'a> Elf<'a> {
    /// Reads the headers. `None`: it is no ELF file, or not one that this host runs.
    pub(super) fn read(file: &'a File) -> Result<Option<Self>, Unreadable> {
        let mut start = [0; size_of::<FileHeader64<Little>>()];
        match file.read_exact_at(&mut start, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            result => result.map_err(|error| Unreadable::Read { what: "the header", error })?,
        }
        let header: &FileHeader64<Little> =
            from_bytes(&start).map_err(|()| Unreadable::Malformed("no header"))?.0;
        let ident = &header.e_ident;
        if (ident.magic, ident.class, ident.data) != (ELFMAG, ELFCLASS64, ELFDATA2LSB)
            || header.e_machine.get(LE) != MACHINE
        {
            return Ok(None);
        }
        let segments = (header.e_phoff.get(LE), header.e_phnum.get(LE), header.e_phentsize.get(LE));
        let sections = (header.e_shoff.get(LE), header.e_shnum.get(LE), header.e_shentsize.get(LE));
        Ok(Some(Self {
            file,
            segments: headers(file, "program headers", segments)?,
            sections: headers(file, "section headers", sections)?,
            names: usize::from(header.e_shstrndx.get(LE)),
        }))
    }

    /// Where in the file the code at an address is; `None`: there is none.
    pub(super) fn offset(&self, address: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let is_code = segment.p_type.get(LE) == PT_LOAD && segment.p_flags.get(LE) & PF_X != 0;
            let within = address.checked_sub(segment.p_vaddr.get(LE))?;
            (is_code && within < segment.p_filesz.get(LE))
                .then(|| segment.p_offset.get(LE).checked_add(within))?
        })
    }

    /// Shows the addresses of functions with one of the wanted names, by their number among these; first of those that are exported. A name
    /// that is wanted within a crate is a method's, as it is in the mangled name of its implementation.
    ///
    /// Names are looked for as a whole, and symbols then compared by where their names begin: a program has tens of thousands.
    pub(super) fn functions<const N: usize>(
        &self,
        wanted: [(&[u8], Option<&[u8]>); N],
        mut on: impl FnMut(usize, u64),
    ) -> Result<(), Unreadable> {
        for kind in [SHT_DYNSYM, SHT_SYMTAB] {
            // A file has one of each at most (System V ABI, "Sections"); what lies about that is not to be read again and again.
            if let Some(section) = self.sections.iter().find(|section| section.sh_type.get(LE) == kind) {
                let link = section.sh_link.get(LE) as usize;
                let Some(names) = self.sections.get(link) else {
                    return Err(Unreadable::Malformed("symbols without names"));
                };
                let names = self.bytes("names of symbols", names)?;
                let places: Vec<(usize, usize)> = wanted
                    .iter()
                    .enumerate()
                    .flat_map(|(index, (name, within))| {
                        // One name may be the end of another; its symbols begin further behind.
                        let found = memchr::memmem::find_iter(&names, name).take(MOST_LOOKED_AT);
                        let begins = |at| match within {
                            Some(crate_name) => mangled(&names, at, name, crate_name),
                            None => Some(at),
                        };
                        found.filter_map(begins).take(MOST_PLACES).map(|at| (at, index)).collect::<Vec<_>>()
                    })
                    .collect();
                if places.is_empty() {
                    continue;
                }
                let symbols = self.bytes("symbols", section)?;
                let symbols: &[Sym64<Little>] = slice_from_all_bytes(&symbols)
                    .map_err(|()| Unreadable::Malformed("a table of symbols that is cut"))?;
                for symbol in symbols {
                    let at = symbol.st_name.get(LE) as usize;
                    let Some((_, index)) = places.iter().find(|(place, _)| *place == at) else { continue };
                    let kind = symbol.st_info & 0xf;
                    if symbol.st_shndx.get(LE) != SHN_UNDEF && (kind == STT_FUNC || kind == STT_NOTYPE) {
                        on(*index, symbol.st_value.get(LE));
                    }
                }
            }
        }
        Ok(())
    }

    /// Where the function at an address goes if the first thing that it does, beside saving registers, is a call. x86-64 only.
    pub(super) fn first_call(&self, address: u64) -> Option<u64> {
        if MACHINE != EM_X86_64 {
            return None;
        }
        let code = self.code(address)?;
        let at = saved_registers(&code)?;
        let (0xe8, distance) = (*code.get(at)?, code.get(at + 1..at + 5)?) else { return None };
        let distance = i32::from_le_bytes(distance.try_into().ok()?);
        address.checked_add(at as u64 + 5)?.checked_add_signed(distance.into())
    }

    /// The first code of the function at an address.
    pub(super) fn code(&self, address: u64) -> Option<[u8; 32]> {
        let mut code = [0; 32];
        self.file.read_exact_at(&mut code, self.offset(address)?).ok()?;
        Some(code)
    }

    /// The address and the content of the first section with a name that is wanted.
    pub(super) fn section(
        &self,
        is_wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Option<(u64, Vec<u8>)>, Unreadable> {
        let Some(section) = self.find(is_wanted)? else { return Ok(None) };
        Ok(Some((section.sh_addr.get(LE), self.bytes("a section", section)?)))
    }

    /// Its length, by the file's own account.
    pub(super) fn section_bytes(&self, is_wanted: impl Fn(&[u8]) -> bool) -> Result<u64, Unreadable> {
        Ok(self.find(is_wanted)?.map_or(0, |section| section.sh_size.get(LE)))
    }

    /// Shows what cannot be changed and is no code, piece by piece with its address; the last `overlap` bytes of each piece again with the next.
    pub(super) fn constants(&self, overlap: usize, on: impl FnMut(u64, &[u8])) -> Result<(), Unreadable> {
        self.pieces(u64::from(SHF_ALLOC), overlap, on)
    }

    /// The same of code.
    pub(super) fn code_pieces(&self, overlap: usize, on: impl FnMut(u64, &[u8])) -> Result<(), Unreadable> {
        self.pieces(u64::from(SHF_ALLOC | SHF_EXECINSTR), overlap, on)
    }

    /// Bytes of both.
    pub(super) fn fixed_bytes(&self) -> u64 {
        let sections = self.sections.iter().filter(|section| {
            section.sh_type.get(LE) == SHT_PROGBITS && section.sh_flags.get(LE) & u64::from(SHF_ALLOC) != 0
        });
        sections.fold(0, |sum: u64, section| sum.saturating_add(section.sh_size.get(LE)))
    }

    fn pieces(&self, flags: u64, overlap: usize, mut on: impl FnMut(u64, &[u8])) -> Result<(), Unreadable> {
        let kinds = u64::from(SHF_ALLOC | SHF_EXECINSTR | SHF_WRITE);
        let mut piece = vec![0; PIECE];
        let mut left = MOST_SCANNED;
        for section in &self.sections {
            if section.sh_type.get(LE) != SHT_PROGBITS || section.sh_flags.get(LE) & kinds != flags {
                continue;
            }
            let (mut at, length) = (0, section.sh_size.get(LE));
            while at < length {
                let count = (length - at).min(PIECE as u64);
                left =
                    left.checked_sub(count).ok_or(Unreadable::TooLong { what: "sections", bytes: length })?;
                let bytes = &mut piece[..count as usize];
                let offset = section.sh_offset.get(LE).saturating_add(at);
                let read = self.file.read_exact_at(bytes, offset);
                read.map_err(|error| Unreadable::Read { what: "a section", error })?;
                on(section.sh_addr.get(LE).wrapping_add(at), bytes);
                if at + count == length {
                    break;
                }
                at += count - overlap as u64;
            }
        }
        Ok(())
    }

    fn find(
        &self,
        is_wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Option<&SectionHeader64<Little>>, Unreadable> {
        let Some(names) = self.sections.get(self.names) else { return Ok(None) };
        if names.sh_size.get(LE) > MOST_NAMES {
            return Ok(None);
        }
        let names = self.bytes("names of sections", names)?;
        let has_name = |section: &&SectionHeader64<Little>| {
            let name = names.get(section.sh_name.get(LE) as usize..).unwrap_or_default();
            section.sh_type.get(LE) == SHT_PROGBITS
                && is_wanted(name.split(|byte| *byte == 0).next().unwrap_or_default())
        };
        Ok(self.sections.iter().find(has_name))
    }

    /// Bytes of all tables of symbols, by the file's own account.
    pub(super) fn symbol_bytes(&self) -> u64 {
        let symbols = self
            .sections
            .iter()
            .filter(|section| [SHT_DYNSYM, SHT_SYMTAB].contains(&section.sh_type.get(LE)));
        symbols.fold(0, |sum: u64, section| sum.saturating_add(section.sh_size.get(LE)))
    }

    fn bytes(&self, what: &'static str, section: &SectionHeader64<Little>) -> Result<Vec<u8>, Unreadable> {
        read(self.file, what, section.sh_offset.get(LE), section.sh_size.get(LE))
    }
}

/// Where the mangled name begins that a method's name is in at a place, if it is the method's own (a closure's has more behind) and names
/// the crate: `_ZN…rustls…10for_secret17h0123456789abcdefE` (rustc's legacy mangling) or `_RN…6rustls…10for_secret` (its v0).
fn mangled(names: &[u8], at: usize, method: &[u8], crate_name: &[u8]) -> Option<usize> {
    let before = &names[at.saturating_sub(LONGEST_MANGLED)..at];
    let begins = at - before.len() + memchr::memrchr(0, before).map_or(0, |zero| zero + 1);
    let behind = &names[at + method.len()..];
    let is_own = behind.starts_with(b"17h") || matches!(behind.first(), Some(0 | b'.'));
    let is_within = memchr::memmem::find(&names[begins..at], crate_name).is_some();
    (is_own && is_within).then_some(begins)
}

/// Bytes of the instructions at a function's beginning that save registers and make room on the stack.
fn saved_registers(code: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += match code.get(at..)? {
            // endbr64
            [0xf3, 0x0f, 0x1e, 0xfa, ..] => 4,
            // push
            [0x50..=0x57, ..] => 1,
            [0x41, 0x50..=0x57, ..] => 2,
            // sub $n, %rsp
            [0x48, 0x83, 0xec, _, ..] => 4,
            _ => return Some(at),
        };
    }
}

fn headers<T: Pod + Clone>(
    file: &File,
    what: &'static str,
    (offset, count, size): (u64, u16, u16),
) -> Result<Vec<T>, Unreadable> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if usize::from(size) != size_of::<T>() {
        return Err(Unreadable::Malformed("headers of another size"));
    }
    let bytes = u64::from(count) * u64::from(size);
    if count > MOST_HEADERS {
        return Err(Unreadable::TooLong { what, bytes });
    }
    let bytes = read(file, what, offset, bytes)?;
    slice_from_all_bytes(&bytes)
        .map(<[T]>::to_vec)
        .map_err(|()| Unreadable::Malformed("headers that are cut"))
}

fn read(file: &File, what: &'static str, offset: u64, length: u64) -> Result<Vec<u8>, Unreadable> {
    if length > MOST_BYTES {
        return Err(Unreadable::TooLong { what, bytes: length });
    }
    let failed = |error| Unreadable::Read { what, error };
    // Before memory is taken for it.
    let end = file.metadata().map_err(failed)?.len();
    if offset.checked_add(length).is_none_or(|needed| needed > end) {
        return Err(failed(io::ErrorKind::UnexpectedEof.into()));
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, offset).map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_told_by_its_name_and_its_crate() {
        let legacy = "_ZN82_$LT$rustls..crypto..tls12..PrfUsingHmac$u20$as$u20$rustls..crypto..tls12..Prf$GT$10for_secret17h050394fd0f30d3f0E";
        let v0 = "_RNvXs_NtNtCs1_6rustls6crypto5tls12NtB4_12PrfUsingHmacNtB4_3Prf10for_secret";
        let closure = "_ZN6rustls10for_secret28_$u7b$$u7b$closure$u7d$$u7d$17h050394fd0f30d3f0E";
        let other = "_ZN5other10for_secret17h050394fd0f30d3f0E";
        let names = format!("\0first\0{legacy}\0{v0}\0{closure}\0{other}\0");
        let found: Vec<usize> = memchr::memmem::find_iter(names.as_bytes(), "10for_secret")
            .filter_map(|at| mangled(names.as_bytes(), at, b"10for_secret", b"rustls"))
            .collect();
        assert_eq!(found, [names.find(legacy).unwrap(), names.find(v0).unwrap()]);
        assert_eq!(mangled(b"rustls10for_secret", 6, b"10for_secret", b"rustls"), None);
    }
}
