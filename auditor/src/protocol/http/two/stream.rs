//! One stream: what is counted and learnt of its request while it lasts.

use super::frame::Frame;
use crate::clock::Boottime;
use crate::protocol::Side;
use crate::protocol::http::head::Head;
use crate::protocol::http::request::Request;

#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Stream {
    pub(super) request: Box<Request>,
    /// The client has said all that it will.
    pub(super) sent: bool,
    /// The head of the final answer was there.
    pub(super) headed: bool,
    /// The server has said all that it will.
    pub(super) answered: bool,
    /// Bytes that it was counted with.
    pub(super) cost: usize,
}

impl Stream {
    /// DATA with so many bytes of a body.
    pub(super) fn data(&mut self, side: Side, frame: Frame, body: u64, at: Boottime) {
        let request = &mut self.request;
        request.finished = at;
        match side {
            Side::Client => {
                request.request_bytes += frame.size();
                request.request_body += body;
            }
            Side::Server => {
                request.response_bytes += frame.size();
                request.response_body += body;
            }
        }
    }

    /// A header block on a stream that is open: an answer's head, or trailers.
    pub(super) fn more(&mut self, side: Side, head: &Head, size: u64, at: Boottime) {
        let request = &mut *self.request;
        request.finished = at;
        if side == Side::Client {
            request.request_bytes += size;
            return head.trailers(request);
        }
        request.response_bytes += size;
        if self.headed {
            return head.trailers(request);
        }
        let status = head.status.unwrap_or_default();
        if (100..200).contains(&status) {
            return;
        }
        self.headed = true;
        head.answer(request);
        let agreed = (200..300).contains(&status);
        if request.method.as_deref() == Some("CONNECT") {
            // A tunnel without a name, where the client named nothing else.
            request.upgrade = agreed.then(|| request.upgrade.take().unwrap_or_else(|| "tunnel".to_owned()));
        }
    }
}
