//! What the fields of a message say, gathered one by one, and what of it becomes part of the record.

use super::field::{Field, SECRETS};
use super::request::{Grpc, Request};
use super::{api, mask};

/// What was gathered of one head, or of its trailers. Of fields that come twice, the first.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Head {
    pub(super) method: Option<Vec<u8>>,
    pub(super) scheme: Option<Vec<u8>>,
    pub(super) authority: Option<Vec<u8>>,
    /// Path and query as sent, secrets in it; never longer than what is kept of it.
    pub(super) path: Option<Vec<u8>>,
    pub(super) path_length: usize,
    /// `:protocol` or Upgrade.
    pub(super) upgrade: Option<Vec<u8>>,
    pub(super) status: Option<u16>,
    pub(super) host: Option<Vec<u8>>,
    content_type: Option<Vec<u8>>,
    agent: Option<Vec<u8>>,
    grpc_status: Option<u32>,
    grpc_message: Option<Vec<u8>>,
    /// A bit for each of [`SECRETS`].
    secrets: u32,
    /// The server has said that it is Docker, or something that speaks as Docker does.
    docker: bool,
}

impl Head {
    /// A field. `value` is what is kept of it, `length` its whole length.
    pub(super) fn take(&mut self, field: Field, value: &[u8], length: usize) {
        let set = |place: &mut Option<Vec<u8>>| {
            if place.is_none() {
                *place = Some(value.to_vec());
            }
        };
        match field {
            Field::Method => set(&mut self.method),
            Field::Scheme => set(&mut self.scheme),
            // Where user information ends may be in what was cut.
            Field::Authority | Field::Host if length > value.len() => {
                let place = if field == Field::Host { &mut self.host } else { &mut self.authority };
                place.get_or_insert_with(|| b"***".to_vec());
            }
            Field::Authority => set(&mut self.authority),
            Field::Path => {
                if self.path.is_none() {
                    self.path_length = length;
                }
                set(&mut self.path);
            }
            Field::Protocol | Field::Upgrade => set(&mut self.upgrade),
            Field::Status => self.status = self.status.or(number(value)),
            Field::Host => set(&mut self.host),
            Field::ContentType => set(&mut self.content_type),
            Field::UserAgent => set(&mut self.agent),
            Field::GrpcStatus => self.grpc_status = self.grpc_status.or(number(value)),
            Field::GrpcMessage => set(&mut self.grpc_message),
            Field::Server => self.docker |= value.starts_with(b"Docker/") || value.starts_with(b"Libpod/"),
            Field::ApiVersion => self.docker = true,
            Field::Secret(place) => self.secrets |= 1 << place,
            Field::ContentLength | Field::TransferEncoding | Field::Other => {}
        }
    }

    /// Bytes that it takes beside its own size, roughly.
    pub(super) fn memory(&self) -> usize {
        [
            &self.method,
            &self.scheme,
            &self.authority,
            &self.path,
            &self.upgrade,
            &self.host,
            &self.content_type,
            &self.agent,
            &self.grpc_message,
        ]
        .into_iter()
        .flatten()
        .map(Vec::len)
        .sum()
    }

    /// A request of this head: whatever of it is a secret stays behind.
    pub(super) fn request(&self, sequence: u64) -> Request {
        let mut masked = Vec::new();
        self.tell_secrets(&mut masked);
        let authority = self.authority.as_deref().or(self.host.as_deref());
        let authority = authority.map(|authority| text(mask::authority(authority, &mut masked)));
        let target = self.path.as_deref().map(|path| mask::target(path, &mut masked));
        let kept = self.path.as_ref().map_or(0, Vec::len);
        let mut request = Request {
            sequence,
            method: self.method.as_deref().map(text),
            scheme: self.scheme.as_deref().map(text),
            authority,
            target,
            target_length: (self.path_length > kept).then_some(self.path_length as u64),
            request_type: self.content_type.as_deref().map(text),
            agent: self.agent.as_deref().map(text),
            masked,
            ..Request::default()
        };
        if is_grpc(self.content_type.as_deref()) {
            request.grpc = request.target.as_deref().and_then(called);
        }
        request.api = api::call(&request, false);
        request
    }

    /// The answer to `request`.
    pub(super) fn answer(&self, request: &mut Request) {
        request.status = self.status;
        request.response_type = self.content_type.as_deref().map(text);
        if request.api.is_none() && self.docker {
            request.api = api::call(request, true);
        }
        self.trailers(request);
    }

    /// What trailers, or a head in their place, add to `request`.
    pub(super) fn trailers(&self, request: &mut Request) {
        self.tell_secrets(&mut request.masked);
        if let Some(grpc) = &mut request.grpc {
            grpc.status = self.grpc_status.or(grpc.status);
            if let Some(message) = self.grpc_message.as_ref().filter(|message| !message.is_empty()) {
                grpc.message = Some(text(&percent_encoding::percent_decode(message).collect::<Vec<u8>>()));
            }
        }
    }

    fn tell_secrets(&self, masked: &mut Vec<String>) {
        for (place, name) in SECRETS.iter().enumerate().filter(|(place, _)| self.secrets >> place & 1 == 1) {
            debug_assert!(place < SECRETS.len());
            mask::told(masked, "header", name);
        }
    }
}

/// Text for a record. What is not UTF-8 has no place in these fields, and is marked.
pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn number<T: std::str::FromStr>(value: &[u8]) -> Option<T> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value).ok().filter(|_| digits)?.parse().ok()
}

/// `application/grpc`, with a suffix or without, and gRPC-Web.
fn is_grpc(content_type: Option<&[u8]>) -> bool {
    let prefix = b"application/grpc";
    content_type
        .and_then(|kind| kind.get(..prefix.len()))
        .is_some_and(|head| head.eq_ignore_ascii_case(prefix))
}

/// `/package.Service/Method`
fn called(target: &[u8]) -> Option<Grpc> {
    let path = target.split(|byte| matches!(byte, b'?' | b'#' | b';')).next()?;
    let (service, method) = std::str::from_utf8(path).ok()?.strip_prefix('/')?.rsplit_once('/')?;
    Some(Grpc { service: service.to_owned(), method: method.to_owned(), ..Grpc::default() })
}
