//! Bodies: read up to a limit, and given on.

use std::collections::VecDeque;
use std::fmt;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};

/// The body of an answer: one that was stored, or the service's own.
pub struct AnswerBody<B: Body> {
    /// Frames that were read already.
    read: VecDeque<Frame<Bytes>>,
    /// What follows them: the rest of the body, or why it ended.
    rest: Rest<B>,
}

enum Rest<B: Body> {
    None,
    Body(Pin<Box<B>>),
    Error(Option<B::Error>),
}

impl<B: Body> AnswerBody<B> {
    pub(super) fn full(bytes: Bytes) -> Self {
        let read = if bytes.is_empty() { VecDeque::new() } else { [Frame::data(bytes)].into() };
        Self { read, rest: Rest::None }
    }

    pub(super) fn whole(body: B) -> Self {
        Self { read: VecDeque::new(), rest: Rest::Body(Box::pin(body)) }
    }
}

/// What became of reading a body.
pub(super) enum ReadBody<B: Body> {
    /// All of it, and the body to give on.
    All(Bytes, AnswerBody<B>),
    /// It is longer, or has trailers, or failed: the body to give on has it all.
    Not(AnswerBody<B>),
}

/// Reads the body of an answer, up to `max` bytes.
pub(super) async fn read_answer<B>(body: B, max: usize) -> ReadBody<B>
where
    B: Body<Data = Bytes>,
{
    let mut body = Box::pin(body);
    let mut read: VecDeque<Frame<Bytes>> = VecDeque::new();
    let mut all = BytesMut::new();
    // Ends: with the body, or past `max` bytes.
    loop {
        let frame = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await;
        match frame {
            None => {
                let answer = AnswerBody { read, rest: Rest::None };
                return ReadBody::All(all.freeze(), answer);
            }
            Some(Err(error)) => {
                return ReadBody::Not(AnswerBody { read, rest: Rest::Error(Some(error)) });
            }
            Some(Ok(frame)) => {
                let fits = frame.data_ref().is_some_and(|data| all.len() + data.len() <= max);
                if fits && let Some(data) = frame.data_ref() {
                    all.extend_from_slice(data);
                }
                read.push_back(frame);
                if !fits {
                    return ReadBody::Not(AnswerBody { read, rest: Rest::Body(body) });
                }
            }
        }
    }
}

/// Why a request was not read.
pub(super) enum RequestError {
    TooLong,
    Broken,
}

/// Reads the body of a request, up to `max` bytes. Trailers are left out.
pub(super) async fn read_request<B: Body>(body: B, max: usize) -> Result<Bytes, RequestError> {
    let mut body = pin!(body);
    if body.size_hint().lower() > max as u64 {
        return Err(RequestError::TooLong);
    }
    let mut all = BytesMut::new();
    // Ends: with the body, or past `max` bytes.
    loop {
        let frame = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await;
        let Some(frame) = frame else { return Ok(all.freeze()) };
        let frame = frame.map_err(|_| RequestError::Broken)?;
        if let Ok(mut data) = frame.into_data() {
            if data.remaining() > max - all.len() {
                return Err(RequestError::TooLong);
            }
            // Ends: each round takes a chunk off.
            while data.has_remaining() {
                let chunk = data.chunk();
                let length = chunk.len();
                all.extend_from_slice(chunk);
                data.advance(length);
            }
        }
    }
}

impl<B: Body<Data = Bytes>> Body for AnswerBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        if let Some(frame) = this.read.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        match &mut this.rest {
            Rest::None => Poll::Ready(None),
            Rest::Body(body) => body.as_mut().poll_frame(context),
            Rest::Error(error) => Poll::Ready(error.take().map(Err)),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty()
            && match &self.rest {
                Rest::None => true,
                Rest::Body(body) => body.is_end_stream(),
                Rest::Error(error) => error.is_none(),
            }
    }

    fn size_hint(&self) -> SizeHint {
        let read: usize = self.read.iter().filter_map(Frame::data_ref).map(Bytes::len).sum();
        let mut hint = match &self.rest {
            Rest::None => SizeHint::with_exact(0),
            Rest::Body(body) => body.size_hint(),
            Rest::Error(_) => SizeHint::new(),
        };
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + read as u64);
        }
        hint.set_lower(hint.lower() + read as u64);
        hint
    }
}

impl<B: Body> fmt::Debug for AnswerBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnswerBody").field("read", &self.read.len()).finish_non_exhaustive()
    }
}

/// Errors move only with the body.
impl<B: Body> Unpin for AnswerBody<B> {}
