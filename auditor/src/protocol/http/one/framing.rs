//! Where a body ends (RFC 9112, section 6.3), and what makes that ambiguous.
//!
//! Two ends that disagree about it take one's body for the other's next request. So nothing is repaired here: what a strict
//! receiver refuses is a violation, told with its reason, and the connection is not read on.

use super::Violation;
use crate::protocol::http::field::Field;

/// How a body is framed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) enum Framing {
    /// There is none.
    None,
    /// Of this many bytes.
    Length(u64),
    /// In chunks.
    Chunked,
    /// It ends with the connection.
    Close,
}

/// What a head says of its body.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Fields {
    length: Option<u64>,
    /// Transfer-Encoding was there.
    encoded: bool,
    /// Its last coding is `chunked`.
    chunked: bool,
}

impl Fields {
    /// A field of the head.
    pub(super) fn take(&mut self, field: Field, value: &[u8]) -> Result<(), Violation> {
        match field {
            // A list of the same lengths is one length.
            Field::ContentLength => value.split(|byte| *byte == b',').try_for_each(|one| {
                let one = one.trim_ascii();
                let digits = !one.is_empty() && one.iter().all(u8::is_ascii_digit);
                let length =
                    std::str::from_utf8(one).ok().filter(|_| digits).and_then(|one| one.parse().ok());
                let Some(length) = length else {
                    return Err(
                        "a Content-Length that is no number: receivers may disagree where the body ends"
                            .into(),
                    );
                };
                if self.length.replace(length).is_some_and(|before| before != length) {
                    return Err(
                        "Content-Length twice, and not the same: receivers may disagree where the body ends"
                            .into(),
                    );
                }
                Ok(())
            }),
            Field::TransferEncoding => {
                self.encoded = true;
                for coding in
                    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|one| !one.is_empty())
                {
                    if self.chunked {
                        return Err("something after chunked in Transfer-Encoding".into());
                    }
                    self.chunked = coding.eq_ignore_ascii_case(b"chunked");
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn check(&self, old: bool) -> Result<(), Violation> {
        if self.encoded && self.length.is_some() {
            return Err(
                "both Content-Length and Transfer-Encoding: receivers may disagree where the body ends"
                    .into(),
            );
        }
        if self.encoded && old {
            return Err("Transfer-Encoding in HTTP/1.0: receivers may disagree where the body ends".into());
        }
        Ok(())
    }

    /// A request's; `old`: it is of HTTP/1.0.
    pub(super) fn of_request(&self, old: bool) -> Result<Framing, Violation> {
        self.check(old)?;
        match (self.encoded, self.chunked, self.length) {
            (true, true, _) => Ok(Framing::Chunked),
            (true, false, _) => Err("a request with a Transfer-Encoding that does not end in chunked".into()),
            (false, _, Some(length)) if length > 0 => Ok(Framing::Length(length)),
            (false, ..) => Ok(Framing::None),
        }
    }

    /// An answer's that may have a body.
    pub(super) fn of_response(&self, old: bool) -> Result<Framing, Violation> {
        self.check(old)?;
        Ok(match (self.encoded, self.chunked, self.length) {
            (true, true, _) => Framing::Chunked,
            (true, false, _) | (false, _, None) => Framing::Close,
            (false, _, Some(0)) => Framing::None,
            (false, _, Some(length)) => Framing::Length(length),
        })
    }
}

/// Whether a name that is no token is meant to be taken for a field that frames, by somebody at least.
pub(super) fn disguised(name: &[u8]) -> bool {
    let letters: Vec<u8> =
        name.iter().filter(|byte| byte.is_ascii_alphanumeric()).map(u8::to_ascii_lowercase).collect();
    let frames = [&b"contentlength"[..], b"transferencoding"].contains(&&*letters);
    frames && !matches!(Field::of(name), Field::ContentLength | Field::TransferEncoding)
}
