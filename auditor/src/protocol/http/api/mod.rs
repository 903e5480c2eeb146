//! Which call of a known API a request is. Pure: a request in, a call out.
//!
//! Told by the shape of paths, which both APIs have to themselves apart from a few; for those the server must have said what it
//! is. Something else with such paths gets a call all the same: it is what was asked for, whoever answers.

mod docker;
mod kubernetes;

use super::request::{Call, Request};

/// Names that are kept of a call's resource, namespace and the like.
const LONGEST: usize = 253;

/// The call that `request` is. `docker`: the server has said that it is Docker.
pub(super) fn call(request: &Request, docker: bool) -> Option<Call> {
    let (path, query) = request.path_and_query()?;
    // An encoded slash separates nothing.
    let decode = |segment| percent_encoding::percent_decode(segment).decode_utf8().ok();
    let segments = path.split(|byte| *byte == b'/').map(decode).collect::<Option<Vec<_>>>()?;
    let query = query.map_or(Some(""), |query| std::str::from_utf8(query).ok())?;
    let asked = Asked {
        method: request.method.as_deref()?,
        segments: segments.iter().map(|segment| &**segment).filter(|segment| !segment.is_empty()).collect(),
        query,
    };
    let named = docker || request.agent.as_deref().is_some_and(docker::is_client);
    kubernetes::call(&asked).or_else(|| docker::call(&asked, named))
}

/// A request as APIs see it.
struct Asked<'a> {
    method: &'a str,
    segments: Vec<&'a str>,
    query: &'a str,
}

impl Asked<'_> {
    /// The value of the query's first parameter of this name.
    fn parameter(&self, name: &str) -> Option<String> {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        let value = pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next()?;
        let value = percent_encoding::percent_decode_str(value).decode_utf8().ok()?;
        Some(kept(&value)).filter(|value| !value.is_empty())
    }
}

fn kept(name: &str) -> String {
    name[..name.floor_char_boundary(LONGEST)].to_owned()
}
