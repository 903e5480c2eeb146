//! Reading through the segments.

use std::ops::ControlFlow;
use std::path::Path;

use memchr::memmem::Finder;

use super::super::error::Error;
use super::super::head::is_id;
use super::super::segment::{Lines, Segment};
use super::{Query, View};

/// Where a scan goes on: after the last whole line that it read. The default is the trail's beginning.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Cursor {
    segment: u64,
    line: u64,
    offset: u64,
}

/// What a scan did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Scanned {
    /// Whole lines read.
    pub lines: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Lines given to the visitor.
    pub matched: u64,
    /// Lines that are not records of this program, among those that had to be parsed. Above zero: verify the trail.
    pub unreadable: u64,
}

/// Gives every matching line from `cursor` on to `visitor`: its bytes with the newline, unchanged, and their view.
/// Afterwards `cursor` is behind the last line that was read, so that a caller who follows a trail calls again.
pub fn scan(
    directory: &Path,
    query: &Query,
    cursor: &mut Cursor,
    mut visitor: impl FnMut(&[u8], &View<'_>) -> ControlFlow<()>,
) -> Result<Scanned, Error> {
    let filter = Filter { needles: query.needles(), query };
    let limit = query.limit.unwrap_or(u64::MAX);
    let mut matched = 0_u64;
    if limit == 0 {
        return Ok(Scanned::default());
    }
    walk(directory, cursor, &filter, |line, view| {
        if !query.matches(line, view) {
            return Visit { matched: false, flow: ControlFlow::Continue(()) };
        }
        matched += 1;
        let flow = visitor(line, view);
        Visit { matched: true, flow: if matched >= limit { ControlFlow::Break(()) } else { flow } }
    })
}

/// Gives all records that `id` names to `visitor`: one record by its uid or its sequence (fewer than 16 digits), one
/// statement or request by `<connection id>/<position>`, or all records of a connection or a session.
pub fn find(
    directory: &Path,
    id: &str,
    mut visitor: impl FnMut(&[u8], &View<'_>) -> ControlFlow<()>,
) -> Result<Scanned, Error> {
    let query = Query::default();
    let all = Filter { needles: Vec::new(), query: &query };
    if let Some(sequence) = sequence_of(id) {
        let mut cursor = Cursor { segment: segment_of(directory, sequence)?, ..Cursor::default() };
        let whole_uid = id.contains('-');
        return walk(directory, &mut cursor, &all, |line, view| {
            let matched = view.metadata.sequence == sequence && (!whole_uid || *view.metadata.uid == *id);
            let flow = if matched { visitor(line, view) } else { ControlFlow::Continue(()) };
            let past = view.metadata.sequence >= sequence;
            Visit { matched, flow: if past { ControlFlow::Break(()) } else { flow } }
        });
    }
    let quoted = serde_json::to_string(id)?;
    let named = Filter { needles: vec![Finder::new(quoted.as_bytes())], query: &query };
    walk(directory, &mut Cursor::default(), &named, |line, view| {
        let own = view.own();
        let matched = own.session.as_ref().is_some_and(|session| *session.id == *id)
            || own.connection.as_ref().is_some_and(|connection| *connection.id == *id)
            || view.query_info.as_ref().and_then(|info| info.uid.as_deref()).is_some_and(|uid| uid == id)
            || view
                .http_request
                .as_ref()
                .and_then(|request| request.uid.as_deref())
                .is_some_and(|uid| uid == id);
        let flow = if matched { visitor(line, view) } else { ControlFlow::Continue(()) };
        Visit { matched, flow }
    })
}

/// Gives all records that tell of a session as a whole to `visitor`: its beginning, its end, findings about it.
pub fn sessions(
    directory: &Path,
    mut visitor: impl FnMut(&View<'_>) -> ControlFlow<()>,
) -> Result<Scanned, Error> {
    let query = Query::default();
    // Their kinds begin with it.
    let filter = Filter { needles: vec![Finder::new(b"\"session-")], query: &query };
    walk(directory, &mut Cursor::default(), &filter, |_, view| {
        let matched = view.own().session.is_some();
        let flow = if matched { visitor(view) } else { ControlFlow::Continue(()) };
        Visit { matched, flow }
    })
}

/// The record's number, where `id` is a record's uid or a bare number. Session ids have 16 digits and can look like a
/// number too.
fn sequence_of(id: &str) -> Option<u64> {
    match id.split_once('-') {
        Some((trail, sequence)) if is_id(trail) => sequence.parse().ok(),
        Some(_) => None,
        None => id.parse().ok().filter(|_| id.len() < 16),
    }
}

/// First sequence of the segment that has the record.
fn segment_of(directory: &Path, sequence: u64) -> Result<u64, Error> {
    let segments = Segment::list(directory)?;
    let before = segments.iter().map(|segment| segment.first).take_while(|first| *first <= sequence);
    Ok(before.last().unwrap_or(0))
}

struct Visit {
    matched: bool,
    flow: ControlFlow<()>,
}

/// The tests that need no parsing.
struct Filter<'a> {
    needles: Vec<Finder<'a>>,
    query: &'a Query,
}

impl Filter<'_> {
    fn may_match(&self, line: &[u8]) -> bool {
        time_of(line).is_none_or(|time| self.query.in_time(time))
            && self.needles.iter().all(|needle| needle.find(line).is_some())
    }
}

/// The time at a line's beginning, where the renderer puts it; `None` sends the line to the parser.
fn time_of(line: &[u8]) -> Option<u64> {
    let rest = line.strip_prefix(b"{\"time\":")?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(rest.get(..digits)?).ok()?.parse().ok()
}

fn walk(
    directory: &Path,
    cursor: &mut Cursor,
    filter: &Filter<'_>,
    mut visit: impl FnMut(&[u8], &View<'_>) -> Visit,
) -> Result<Scanned, Error> {
    let mut scanned = Scanned::default();
    for segment in Segment::list(directory)? {
        if segment.first < cursor.segment {
            continue;
        }
        if segment.first > cursor.segment {
            *cursor = Cursor { segment: segment.first, ..Cursor::default() };
        }
        let mut lines = Lines::open_at(&segment.path, cursor.line, cursor.offset)?;
        while let Some(line) = lines.next_line()? {
            if !line.is_whole() && !line.is_too_long() {
                break;
            }
            *cursor = Cursor { segment: segment.first, line: line.number, offset: line.offset + line.length };
            scanned.lines += 1;
            scanned.bytes += line.length;
            if !filter.may_match(line.bytes) {
                continue;
            }
            let Some(view) = View::read(line.bytes) else {
                scanned.unreadable += 1;
                continue;
            };
            let Visit { matched, flow } = visit(line.bytes, &view);
            scanned.matched += u64::from(matched);
            if flow.is_break() {
                return Ok(scanned);
            }
        }
    }
    Ok(scanned)
}
