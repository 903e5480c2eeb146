//! libpg_query: PostgreSQL's own scanner and grammar as a C library, called with text that agents wrote.
//!
//! That is C code fed with hostile text within a daemon that is root, and whoever finds a memory error in it owns the daemon. What
//! is taken of it is as little as there is: `gram.y` and `scan.l` of PostgreSQL 18, which have been fed with hostile text for
//! decades, and a generated printer of the tree. Not its fingerprints, its normalisation, its deparser, its PL/pgSQL. What contains it:
//!
//! * The text is UTF-8 without NUL and no longer than [`super::MAX_TEXT`]; beyond that nobody calls it. That bounds its memory (some 60
//!   bytes of tree and 110 of printed tree for each byte of text) and its time.
//! * Scanning is quadratic where `/*` stands in a long run of operator characters; [`is_patient`] refuses such text before it gets there
//!   (64 KiB of nested comments took 2.4 s).
//! * Its grammar keeps its stack on the heap and refuses more than 10,000 symbols there. The printer recurses, and measures the
//!   calling thread's stack as it does (`check_stack_depth`): what nests too deep is an error, not a crash.
//! * Its errors are longjmp(3) within its own frames. No frame of Rust is between.
//! * It allocates in an arena that is freed when the call returns, and what it answers is freed here.
//!
//! The version is pinned: the two functions below are declared by hand, as their header has them.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

// For the linker: the library is in there.
use pg_query as _;

/// `PG_QUERY_DISABLE_STANDARD_CONFORMING_STRINGS`.
const BACKSLASHES_ESCAPE: c_int = 32;

/// `PgQueryParseResult`.
#[repr(C)]
struct ParseResult {
    parse_tree: *mut c_char,
    stderr_buffer: *mut c_char,
    error: *mut c_void,
}

unsafe extern "C" {
    fn pg_query_parse_opts(input: *const c_char, parser_options: c_int) -> ParseResult;
    fn pg_query_free_parse_result(result: ParseResult);
}

/// A result, until it is freed.
struct Parsed(Option<ParseResult>);

impl Drop for Parsed {
    fn drop(&mut self) {
        if let Some(result) = self.0.take() {
            // SAFETY: it came from pg_query_parse_opts, and `take` hands it over once.
            unsafe { pg_query_free_parse_result(result) };
        }
    }
}

/// The tree of `text` as JSON, given to `read`. `None`: the parser refuses the text. `conforming`: the server's
/// `standard_conforming_strings`.
pub(super) fn parse<T>(text: &str, conforming: bool, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
    if text.len() > super::MAX_TEXT || !is_patient(text.as_bytes()) {
        return None;
    }
    let text = CString::new(text).ok()?;
    let options = if conforming { 0 } else { BACKSLASHES_ESCAPE };
    // SAFETY: `text` ends in NUL and lives until the call returns; the library keeps no pointer to it.
    let parsed = Parsed(Some(unsafe { pg_query_parse_opts(text.as_ptr(), options) }));
    let result = parsed.0.as_ref()?;
    if !result.error.is_null() || result.parse_tree.is_null() {
        return None;
    }
    // SAFETY: without an error `parse_tree` is a string of the C library's, which `parsed` frees after `read` has returned.
    let tree = unsafe { CStr::from_ptr(result.parse_tree) };
    Some(read(tree.to_bytes()))
}

/// Steps that runs of operator characters may cost.
const PATIENCE: usize = 1 << 16;

/// Whether the scanner gets through in time that grows with the text's length only. For each `/*` it looks at the whole rest of the run
/// of operator characters that it is in, wherever that is.
fn is_patient(text: &[u8]) -> bool {
    let mut cost = 0_usize;
    let runs = text.split(|byte| !b"~!@#^&|`?+-*/%<>=".contains(byte));
    for run in runs.filter(|run| run.len() > 2) {
        let begun = memchr::memmem::find_iter(run, b"/*").count();
        cost = cost.saturating_add(run.len().saturating_mul(begun));
    }
    cost <= PATIENCE
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn length(text: &str) -> Option<usize> {
        parse(text, true, <[u8]>::len)
    }

    #[test]
    fn the_tree_is_json() {
        let tree = parse("select 1", true, |tree| serde_json::from_slice::<serde_json::Value>(tree).unwrap());
        assert!(tree.unwrap()["stmts"][0]["stmt"]["SelectStmt"].is_object());
        assert_eq!(length("selec 1"), None);
        assert_eq!(length("select 1\0"), None);
        // Where a backslash escapes, the string goes on.
        assert!(parse(r"select 'a\'", true, |_| ()).is_some());
        assert!(parse(r"select 'a\'", false, |_| ()).is_none());
        assert!(parse(r"select 'a\'b'", false, |_| ()).is_some());
    }

    #[test]
    fn what_nests_too_deep_is_refused_or_parsed_and_does_no_harm() {
        // Also on a small stack, as threads may have one.
        let small = std::thread::Builder::new().stack_size(1 << 20).spawn(nests).unwrap();
        small.join().unwrap();
        nests();
    }

    fn nests() {
        let most = super::super::MAX_TEXT;
        let chain = |head: &str, part: &str| head.to_owned() + &part.repeat((most - head.len()) / part.len());
        let around = |before: &str, after: &str| {
            let depth = (most - 10) / (before.len() + after.len());
            format!("{}1{}", before.repeat(depth), after.repeat(depth))
        };
        for text in [
            chain("select 1", "+1"),
            chain("select 1", " union select 1"),
            chain("select 1", " is null"),
            chain("select 1", "::int"),
            chain("select * from a", " join b on true"),
            chain("select ", "not ") + "true",
            chain("select ", "+ "),
            chain("select ", "("),
            around("select (", ")"),
            around("case when ", " then 1 end"),
            around("array[", "]"),
            chain("select a", ".a"),
            chain("select a", "[1]"),
            chain("create schema a ", "create table b() "),
            chain("explain ", "explain "),
            chain("select 'x' ", "||'x'"),
            chain("with a as (", "with a as ("),
        ] {
            let began = Instant::now();
            length(&text);
            assert!(began.elapsed() < Duration::from_secs(60), "{}", &text[..40]);
        }
    }

    #[test]
    fn runs_of_operators_with_comments_in_them_do_not_get_there() {
        let deep = 8000;
        for text in [
            format!("select /*{}*/ 1", "/*".repeat(deep)),
            format!("select {}1", "/**/".repeat(deep)),
            format!("select {}1", "+/**/".repeat(deep)),
        ] {
            assert!(!is_patient(text.as_bytes()));
            assert_eq!(length(&text), None);
        }
        assert!(length(&format!("/{}/ select 1 /{}/", "*".repeat(2000), "*".repeat(2000))).is_some());
        assert!(length("select 1 /* a /* b */ c */ + 2").is_some());
    }
}
