//! The bytes of one message, in pieces.

use bytes::Bytes;

/// The bytes of one message: a head and any number of further pieces.
///
/// The pieces are sent one after the other and arrive as a single [`Bytes`]; where one ends and
/// the next begins is for the protocol above to say (usually in the head). They are never copied
/// together on the way to the socket, except for pieces so short that a copy costs less than an
/// entry of a vectored write.
///
/// # Example
/// ```
/// use voussoir_net::Parts;
///
/// let entries = ["a", "b"].map(|entry| entry.into());
/// let parts = Parts::new("head").with(entries);
/// assert_eq!(parts.len(), 6);
/// assert_eq!(parts.to_bytes(), "headab");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    head: Bytes,
    body: Vec<Bytes>,
}

impl Parts {
    /// A message of one piece. Allocates nothing.
    pub fn new(head: impl Into<Bytes>) -> Self {
        Self { head: head.into(), body: Vec::new() }
    }

    /// Adds pieces behind those that are there.
    pub fn with(mut self, pieces: impl IntoIterator<Item = Bytes>) -> Self {
        self.body.extend(pieces);
        self
    }

    /// Adds one piece behind those that are there.
    pub fn push(&mut self, piece: Bytes) {
        self.body.push(piece);
    }

    /// The length of all pieces together, in bytes.
    pub fn len(&self) -> usize {
        self.pieces().map(Bytes::len).sum()
    }

    /// Whether there is no byte in any piece.
    pub fn is_empty(&self) -> bool {
        self.pieces().all(Bytes::is_empty)
    }

    /// The pieces in order, the head first.
    pub fn pieces(&self) -> impl Iterator<Item = &Bytes> {
        std::iter::once(&self.head).chain(&self.body)
    }

    /// How many pieces there are, the head included; at least 1.
    pub fn count(&self) -> usize {
        1 + self.body.len()
    }

    /// All pieces as one: without a copy when there is only the head.
    pub fn to_bytes(&self) -> Bytes {
        if self.body.iter().all(Bytes::is_empty) {
            return self.head.clone();
        }
        let mut whole = Vec::with_capacity(self.len());
        for piece in self.pieces() {
            whole.extend_from_slice(piece);
        }
        whole.into()
    }
}

impl From<Bytes> for Parts {
    fn from(head: Bytes) -> Self {
        Self::new(head)
    }
}

impl From<Vec<u8>> for Parts {
    fn from(head: Vec<u8>) -> Self {
        Self::new(head)
    }
}

impl From<&'static str> for Parts {
    fn from(head: &'static str) -> Self {
        Self::new(head)
    }
}
