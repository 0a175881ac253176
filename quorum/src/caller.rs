//! Calls to nodes over a link: classes, answers that are too long, what an answer means.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::link::{Class, Link};
use crate::table::{CallError, Reply, Request};
use crate::wire::{Answer, Ask, Envelope};

/// Calls a node. What the node did not do is [`CallError::NotSent`], whoever says so.
pub(crate) async fn call(
    link: &Arc<dyn Link>,
    to: u64,
    class: Class,
    epoch: u64,
    ask: Ask,
    deadline: Instant,
) -> Result<(u64, Answer), CallError> {
    let key = match &ask {
        Ask::Table(request) => request.key().cloned(),
        _ => None,
    };
    let (seen, answer) = call_once(link, to, class, epoch, ask.clone(), deadline).await?;
    match answer {
        Answer::TooLong { is_written: false } if class == Class::Small => {
            call_once(link, to, Class::Bulk, epoch, ask, deadline).await
        }
        Answer::TooLong { is_written: true } => {
            // The write was made. The key's state holds it, now or later.
            let Some(key) = key else { return Err(CallError::Unknown) };
            let get = Ask::Table(Request::Get { key });
            let read = call_once(link, to, Class::Bulk, epoch, get, deadline).await;
            match read {
                Ok((seen, Answer::Table(Reply::Value { state }))) => {
                    Ok((seen, Answer::Table(Reply::Written { state })))
                }
                _ => Err(CallError::Unknown),
            }
        }
        answer => Ok((seen, answer)),
    }
}

async fn call_once(
    link: &Arc<dyn Link>,
    to: u64,
    class: Class,
    epoch: u64,
    ask: Ask,
    deadline: Instant,
) -> Result<(u64, Answer), CallError> {
    let (mut class, mut envelope) =
        (class, Envelope { max_answer_bytes: class.max_bytes(), epoch, ask });
    let mut request = envelope.encode();
    if request.len() > class.max_bytes() {
        class = Class::Bulk;
        envelope.max_answer_bytes = class.max_bytes();
        request = envelope.encode();
    }
    if request.len() > class.max_bytes() {
        return Err(CallError::NotSent);
    }
    let answer: Bytes = link.call(to, class, request, deadline).await?;
    match Answer::decode(answer) {
        Ok((_, Answer::Busy)) => Err(CallError::NotSent),
        Ok(answer) => Ok(answer),
        Err(error) => {
            tracing::debug!(target: "voussoir::quorum", node = to, %error, "no answer of ours");
            Err(CallError::Unknown)
        }
    }
}
