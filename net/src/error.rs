//! Errors, one small enum per surface.

use std::net::SocketAddr;

use bytes::Bytes;

/// Effect of a failed operation at the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The peer did nothing, and will do nothing, because of this operation.
    NotApplied,
    /// The peer may have done it, may be doing it, or may never have seen it.
    Unknown,
}

/// A message was not sent. Nothing of it left this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The queue to this peer is full (or, for a call, so many calls are under way). The peer or
    /// the network is slower than the caller. Nothing was queued; retry after a pause.
    #[error("the queue to the peer is full")]
    Full,
    /// No connection to the peer stands. Nothing was queued; an attempt to connect is under way
    /// or will follow by itself. Retry when [`Event::Up`](crate::Event::Up) says so, or later.
    #[error("no connection to the peer")]
    Down,
    /// The message is longer than this side or the peer takes on this class of channel. Nothing
    /// was queued; a retry will fail the same way.
    #[error("{bytes} bytes are more than the {max_bytes} of this channel")]
    TooLarge {
        /// The length of the message.
        bytes: usize,
        /// The longest that both sides take.
        max_bytes: usize,
    },
    /// The resolver gives no address for this peer. Nothing was queued; retry only after the peer
    /// has been made known.
    #[error("unknown peer: the resolver gives no address for it")]
    UnknownPeer,
    /// The peer is this node. A transport carries nothing to its own node: call the handler.
    /// Nothing was queued; a retry will fail the same way.
    #[error("the peer is this node itself")]
    ToSelf,
    /// The deadline of the call passed before its first byte left. Only
    /// [`Transport::call`](crate::Transport::call) fails so. Retry with a new deadline.
    #[error("the deadline passed before the request left")]
    Expired,
    /// This transport has been shut down. A retry will fail the same way.
    #[error("the transport is shut down")]
    Closed,
}

impl SendError {
    /// Always [`Outcome::NotApplied`].
    pub fn outcome(&self) -> Outcome {
        Outcome::NotApplied
    }

    /// Whether the same operation may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Full | Self::Down | Self::Expired)
    }
}

/// A call brought no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The request never left this process: not a byte of it was given to a connection.
    #[error("not sent: {0}")]
    NotSent(#[source] SendError),
    /// The peer answered that it rejects the request and did nothing because of it.
    #[error("rejected: {0}")]
    Rejected(#[source] Rejected),
    /// The request left, at least in part, and no answer came: the peer may have acted on it.
    #[error("outcome unknown: {0}")]
    Unknown(#[source] Lost),
}

impl CallError {
    /// Effect of the call at the peer.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::NotSent(_) | Self::Rejected(_) => Outcome::NotApplied,
            Self::Unknown(_) => Outcome::Unknown,
        }
    }

    /// Whether the same call may succeed later. After [`Outcome::Unknown`] a retry may do the
    /// work a second time: only a service that recognises the repetition bears that.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotSent(error) => error.is_retryable(),
            Self::Rejected(rejected) => {
                matches!(rejected, Rejected::Busy | Rejected::UnknownService)
            }
            Self::Unknown(lost) => !matches!(lost, Lost::AnswerTooLong),
        }
    }
}

impl From<SendError> for CallError {
    fn from(error: SendError) -> Self {
        Self::NotSent(error)
    }
}

impl From<Lost> for CallError {
    fn from(lost: Lost) -> Self {
        Self::Unknown(lost)
    }
}

/// Why a peer rejects a request. It did nothing because of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejected {
    /// No handler serves this service at the peer, now: it may be about to start. Retry after a
    /// pause.
    #[error("unknown service")]
    UnknownService,
    /// The peer has as many calls of this node under way as it takes. Retry after a pause.
    #[error("busy")]
    Busy,
    /// The handler rejects; the bytes are its own. Whether to retry is for them to say.
    #[error("rejected by the handler")]
    ByHandler(Bytes),
}

/// Why the outcome of a request is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Lost {
    /// The deadline passed. The peer drops the handler's future at about the same time.
    #[error("the deadline passed")]
    Deadline,
    /// The connection broke. The peer drops the handler's future when it sees that.
    #[error("the connection broke")]
    Disconnected,
    /// The handler at the peer panicked.
    #[error("the handler at the peer failed")]
    HandlerFailed,
    /// The answer of the handler at the peer, or the reason of its rejection, is longer than
    /// `max_message_bytes` of the class at one of the two sides. The handler may have acted; a
    /// retry would have the same end.
    #[error("the answer is longer than `max_message_bytes` of its class")]
    AnswerTooLong,
    /// The handler at the peer has answered, and the peer has dropped the answer: as many bytes of
    /// answers as its `max_queue_bytes` of the class waited already, because this node reads them
    /// slowly. Ask for less at a time; a retry may do the work a second time.
    #[error("the peer had no room for the answer: too many wait to be read")]
    AnswerDropped,
    /// The peer gave a reason that this version does not know.
    #[error("the peer gave an unknown reason")]
    UnknownReason,
    /// This transport was shut down while the call was under way.
    #[error("the transport was shut down")]
    Closed,
}

/// A service was not registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The service has a handler already; it stays. Choose another number, or withdraw it first.
    #[error("service {service} is served already")]
    AlreadyServed {
        /// The number of the service.
        service: u16,
    },
    /// This transport has been shut down; nothing was registered, and a retry fails the same way.
    #[error("the transport is shut down")]
    Closed,
}

/// A transport did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// A field of the configuration is out of its range. Nothing was opened.
    #[error("config: {0}")]
    Config(#[from] ConfigError),
    /// The address could not be listened on. Nothing stays open; retry when it is free.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// The error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// The certificate is not of this node. Nothing was opened.
    #[cfg(feature = "tls")]
    #[error("TLS: {0}")]
    Tls(#[from] crate::TlsConfigError),
}

/// A field of a configuration is out of its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {rule}")]
#[non_exhaustive]
pub struct ConfigError {
    /// The name of the field.
    pub field: &'static str,
    /// The rule that the field violates.
    pub rule: &'static str,
}
