//! What can go wrong, surface by surface.

use std::error::Error as StdError;
use std::sync::Arc;

use thiserror::Error;

/// A field of a configuration is out of its range. Nothing was built or changed; mend the field.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{field}` {rule}")]
#[non_exhaustive]
pub struct ConfigError {
    /// The name of the field.
    pub field: &'static str,
    /// What must hold for it.
    pub rule: &'static str,
}

/// A definition that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DefinitionError {
    /// No step, or too many.
    #[error("a saga has from 1 to {max} steps, not {count}")]
    Steps {
        /// Steps that were defined.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// A name is empty, longer than 100 bytes, or has a slash or a zero byte in it.
    #[error("`{name}` is no name: from 1 to 100 bytes, without slash and zero byte")]
    Name {
        /// The name.
        name: String,
    },
    /// Two steps have one name, which would give their calls one key.
    #[error("the step `{step}` is defined twice")]
    Duplicate {
        /// The name.
        step: String,
    },
    /// A time limit of zero.
    #[error("the time limit of the step `{step}` must be above zero")]
    Timeout {
        /// The step.
        step: String,
    },
    /// A step needs the output of a step of another definition.
    #[error("the step `{step}` needs a step of another definition")]
    Foreign {
        /// The step that needs it.
        step: String,
    },
    /// A retry policy that cannot work.
    #[error(transparent)]
    Retry(#[from] ConfigError),
}

/// How a step, an undo or a probe fails. The three kinds lead to different ends, so say the one
/// that you know.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum StepError {
    /// Refused for good, without effect: the card is declined. A compensatable step or the pivot
    /// is not tried again and the saga is undone; any other step waits for an operator.
    #[error("refused: {0}")]
    Domain(String),
    /// Without effect, and may succeed later: the connection was refused. Tried again.
    #[error("failed without effect: {0}")]
    Transient(String),
    /// It may have had its effect: no answer came. Probed, or tried again with the same key.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
}

impl StepError {
    /// [`Domain`](Self::Domain) from anything that can be shown.
    pub fn domain(why: impl ToString) -> Self {
        Self::Domain(why.to_string())
    }

    /// [`Transient`](Self::Transient) from anything that can be shown.
    pub fn transient(why: impl ToString) -> Self {
        Self::Transient(why.to_string())
    }

    /// [`Unknown`](Self::Unknown) from anything that can be shown.
    pub fn unknown(why: impl ToString) -> Self {
        Self::Unknown(why.to_string())
    }
}

/// The store failed. A record that was being appended may be found after a restart, or not, unless
/// [`is_retryable`](Self::is_retryable) says that it was not appended.
#[derive(Clone, Debug, Error)]
#[error("the store failed: {error}")]
pub struct StoreError {
    error: Arc<dyn StdError + Send + Sync>,
    is_retryable: bool,
}

impl StoreError {
    /// Wraps what the store says.
    pub fn new(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { error: Arc::from(error.into()), is_retryable: false }
    }

    /// Wraps what the store says of an append that it did not take and that it may take later: it
    /// has no room. Nothing of the append is in the store, and nothing of it will be.
    pub fn retryable(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { is_retryable: true, ..Self::new(error) }
    }

    /// Whether nothing was appended and the same append may succeed later.
    pub fn is_retryable(&self) -> bool {
        self.is_retryable
    }

    /// What the store said, if it is of this type.
    pub(crate) fn is<E: StdError + 'static>(&self) -> Option<&E> {
        self.error.downcast_ref()
    }
}

/// The sagas of earlier processes could not be taken up. Nothing was changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The configuration breaks a rule.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Two definitions have one name and version.
    #[error("the definition `{name}` of version {version} is registered twice")]
    Duplicate {
        /// Its name.
        name: String,
        /// Its version.
        version: u32,
    },
}

/// A saga was not started, or that is not known.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// The id is empty, longer than 200 bytes, or has a slash or a zero byte in it.
    #[error("a saga's id has from 1 to 200 bytes, without slash and zero byte")]
    Id,
    /// The id belongs to a saga of another definition, or with another input.
    #[error("this id belongs to another saga")]
    Mismatch,
    /// The definition was not given to the builder. One that was built again by the same code is
    /// another one, whose steps nobody has compared: keep the value that was registered, or clones.
    #[error(
        "this definition was not registered: start sagas with the one that was, or a clone of it"
    )]
    Unregistered,
    /// The input cannot be encoded, or is longer than
    /// [`Config::max_value_bytes`](crate::Config::max_value_bytes).
    #[error("the input cannot be recorded: {0}")]
    Input(String),
    /// [`Config::max_open`](crate::Config::max_open) sagas are open. Try again later.
    #[error("too many sagas are open")]
    Busy,
    /// The sagas are drained.
    #[error("no saga is started any more")]
    Draining,
    /// The store failed: whether the saga has begun shows the next start of the process.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl StartError {
    /// Whether the saga may have begun. Starting it again with the same id never runs it twice.
    pub fn may_have_begun(&self) -> bool {
        matches!(self, Self::Store(_))
    }
}

/// A saga's end is not known yet.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum WaitError {
    /// It waits for an operator: see [`Sagas::resolve`](crate::Sagas::resolve).
    #[error("the saga waits for an operator at the step `{step}`: {why}")]
    Stuck {
        /// The step.
        step: String,
        /// Why.
        why: String,
    },
    /// The saga stopped because the store failed. It goes on when the process has opened the store
    /// again.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The saga was begun by a definition that is not registered, or has changed.
    #[error("the saga is parked: {0}")]
    Parked(String),
    /// The sagas are drained; another process goes on with it.
    #[error("the sagas are drained")]
    Drained,
}

/// A saga was not aborted or given up, or a step was not resolved. After [`Store`](Self::Store)
/// that is not known.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// There is no open saga of this id, or no step of this name.
    #[error("there is no open saga or step of this name")]
    NotFound,
    /// The step is not stuck, or this resolution does not fit it.
    #[error("the step is not stuck, or this resolution does not fit it")]
    NotStuck,
    /// The output that takes the place of the step's is longer than
    /// [`Config::max_value_bytes`](crate::Config::max_value_bytes), or the saga has no room for it.
    #[error("an output of {bytes} bytes is too long for the saga")]
    TooLong {
        /// Its bytes.
        bytes: usize,
    },
    /// Past the pivot a saga can only be completed or given up.
    #[error("the saga is past its pivot")]
    PastPivot,
    /// The store failed: whether it is recorded shows the next start of the process.
    #[error(transparent)]
    Store(#[from] StoreError),
}
