//! Where functions are in a Go program without symbols: by the table that the runtime itself unwinds stacks with.
//!
//! `strip` and `-ldflags "-s -w"` leave it, because a panic needs it (runtime/symtab.go, Go 1.18 and later): a header with offsets, names,
//! and for each function the offset of its code from the beginning of Go's. Where that is the header says until Go 1.25, and from
//! then on only the runtime's description of the program (`moduledata`), which is found by its pointer to the table.
//!
//! An offset into the wrong place would break the program that is probed there. So nothing is taken that does not begin as Go functions do
//! that need stack: with a look at the goroutine's limit. Programs whose description is not in the file but made when it is loaded
//! (position independent ones of Go 1.26 and later) are not found.

use super::elf::{Elf, Unreadable};

/// The first four bytes: Go 1.18, and Go 1.20.
const MAGICS: [u32; 2] = [0xffff_fff0, 0xffff_fff1];
/// Header of the table: magic, 0, 0, instruction size, pointer size, then eight numbers.
const HEADER: usize = 8 + 8 * 8;
/// In the description: pointers to the table and to names, the first function, the beginning of all code.
const DESCRIPTION: usize = 184;
const NAMES_AT: usize = 8;
const FIRST_AT: usize = 160;
const CODE_AT: usize = 176;

/// Shows the addresses of functions with one of the wanted names (with the NUL behind it), by their number among these.
pub(super) fn functions<const N: usize>(
    elf: &Elf<'_>,
    wanted: [&[u8]; N],
    mut on: impl FnMut(usize, u64),
) -> Result<(), Unreadable> {
    let Some((address, table)) = elf.section(is_table)? else { return Ok(()) };
    let Some(header) = table.get(..HEADER) else { return Ok(()) };
    let number = |at: usize| long(header, at).and_then(|number| usize::try_from(number).ok());
    let is_known = word(header, 0).is_some_and(|magic| MAGICS.contains(&magic)) && header.get(7) == Some(&8);
    let (Some(count), Some(names), Some(behind), Some(entries)) =
        (number(8), number(32), number(40), number(64))
    else {
        return Ok(());
    };
    let (Some(text), Some(functions)) = (table.get(names..behind), table.get(entries..)) else {
        return Ok(());
    };
    if !is_known || functions.len() / 8 < count {
        return Ok(());
    }
    let places: Vec<(u32, usize)> = wanted
        .iter()
        .enumerate()
        .flat_map(|(index, name)| {
            // Each name ends with NUL, and so does the one before it.
            let whole = |at: &usize| *at > 0 && text.get(at - 1) == Some(&0);
            let found = memchr::memmem::find_iter(text, name).find(whole);
            found.and_then(|at| u32::try_from(at).ok()).map(|at| (at, index))
        })
        .collect();
    if places.is_empty() {
        return Ok(());
    }
    let Some(code) = begin(elf, header, address, (names, functions))? else { return Ok(()) };
    for entry in functions.chunks_exact(8).take(count) {
        let Some(function) = word(entry, 4).and_then(|at| functions.get(at as usize..)) else { continue };
        let (Some(offset), Some(name)) = (word(function, 0), word(function, 4)) else { continue };
        if let Some((_, index)) = places.iter().find(|(place, _)| *place == name)
            && let Some(address) = code.checked_add(u64::from(offset))
            && elf.code(address).is_some_and(|code| looks_at_the_limit(&code))
        {
            on(*index, address);
        }
    }
    Ok(())
}

/// Bytes of the table; 0: there is none.
pub(super) fn bytes(elf: &Elf<'_>) -> u64 {
    elf.section_bytes(is_table).unwrap_or(0)
}

fn is_table(name: &[u8]) -> bool {
    name.ends_with(b".gopclntab")
}

/// The address of the first code.
fn begin(
    elf: &Elf<'_>,
    header: &[u8],
    table: u64,
    (names, functions): (usize, &[u8]),
) -> Result<Option<u64>, Unreadable> {
    if let Some(code) = long(header, 24).filter(|code| *code != 0) {
        return Ok(Some(code));
    }
    let first = word(functions, 0).map(u64::from);
    for name in [&b".go.module"[..], b".noptrdata", b".data"] {
        let Some((_, data)) = elf.section(|found| found == name)? else { continue };
        for place in memchr::memmem::find_iter(&data, &table.to_le_bytes()) {
            let Some(description) = data.get(place..place + DESCRIPTION) else { continue };
            let (Some(named), Some(lowest), Some(code)) =
                (long(description, NAMES_AT), long(description, FIRST_AT), long(description, CODE_AT))
            else {
                continue;
            };
            if table.checked_add(names as u64) == Some(named)
                && first.and_then(|first| code.checked_add(first)) == Some(lowest)
            {
                return Ok(Some(code));
            }
        }
    }
    Ok(None)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// Whether code begins as cmd/internal/obj has functions begin that may have to grow their stack.
fn looks_at_the_limit(code: &[u8]) -> bool {
    if cfg!(target_arch = "aarch64") {
        // ldr x16, [x28, #16]
        return code.starts_with(&[0x90, 0x0b, 0x40, 0xf9]);
    }
    match code {
        // cmp 16(%r14), %rsp
        [0x49, 0x3b, 0x66, 0x10, ..] => true,
        // lea -n(%rsp), %r12; cmp 16(%r14), %r12
        [0x4c, 0x8d, 0x64, 0x24, _, 0x4d, 0x3b, 0x66, 0x10, ..] => true,
        [0x4c, 0x8d, 0xa4, 0x24, _, _, _, _, 0x4d, 0x3b, 0x66, 0x10, ..] => true,
        _ => false,
    }
}
