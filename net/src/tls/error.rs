//! Why TLS rejected a peer, or a set of certificates.

/// Why a peer was rejected by TLS, or why a TLS connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The other side speaks plain TCP.
    #[error("the other side does not speak TLS")]
    Plaintext,
    /// The other side speaks no TLS 1.3.
    #[error("the other side does not speak TLS 1.3")]
    Version,
    /// No chain leads from the certificate to an authority that is trusted here.
    #[error("the certificate is of an unknown issuer")]
    UnknownIssuer,
    /// The certificate, or one of its chain, is not valid any more.
    #[error("the certificate has expired")]
    Expired,
    /// The certificate, or one of its chain, is not valid yet: the clock of one side is wrong, or
    /// the certificate was installed too early.
    #[error("the certificate is not valid yet")]
    NotYetValid,
    /// The certificate is on a revocation list, or its id in `TlsConfig::revoked_ids`.
    #[error("the certificate is revoked")]
    Revoked,
    /// The other side gave no certificate.
    #[error("no certificate")]
    NoCertificate,
    /// The certificate may not be used on this side of a connection: its extended key usage must
    /// hold both `serverAuth` and `clientAuth`, or nothing.
    #[error("the certificate is for another purpose")]
    Purpose,
    /// The certificate, or one of its chain, is malformed, or a signature in it is wrong or of an
    /// algorithm that is not supported.
    #[error("a bad certificate")]
    BadCertificate,
    /// The chain has more than 7 certificates, or costs too much to check.
    #[error("the chain of certificates is too long")]
    ChainTooLong,
    /// No name of the certificate stands for the id of a peer.
    #[error("the certificate names no peer")]
    NoId,
    /// The names of the certificate stand for several ids.
    #[error("the certificate names several peers")]
    SeveralIds,
    /// The certificate is of another peer than the one that was dialled, or that the other side
    /// says it is.
    #[error("the certificate is of peer {proven}, not of peer {claimed}")]
    WrongId {
        /// The peer dialled, or the id that the other side claims.
        claimed: u64,
        /// The id in its certificate.
        proven: u64,
    },
    /// A record is longer than TLS allows.
    #[error("an oversized record")]
    Oversized,
    /// A record does not decrypt: it was damaged or forged.
    #[error("a record that does not decrypt")]
    Damaged,
    /// The connection ended without `close_notify`: the peer's process was killed, or somebody
    /// between the two cut it.
    #[error("the connection ended without close_notify")]
    Truncated,
    /// The other side ended the connection with this alert (RFC 8446, section 6).
    #[error("the other side sent TLS alert {0}")]
    Alert(u8),
    /// The other side broke the TLS protocol.
    #[error("a violation of the TLS protocol")]
    Protocol,
}

/// A [`TlsConfig`](crate::TlsConfig) cannot be used.
#[cfg(feature = "tls")]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsConfigError {
    /// A field holds no PEM of the kind that it should, what cannot be parsed, or revocation lists
    /// that must not be used: see `TlsConfig::revocation_lists_pem`.
    #[error("`{field}` {rule}")]
    Pem {
        /// The name of the field.
        field: &'static str,
        /// The rule that the field violates.
        rule: &'static str,
    },
    /// The names of the own certificate do not stand for exactly one id.
    #[error("own certificate: {0}")]
    Names(#[source] TlsError),
    /// The own certificate is of another node than it was before, or than the one to be started.
    #[error("own certificate: is of node {id}, not of node {expected}")]
    Id {
        /// The id in the certificate.
        id: u64,
        /// The id that it should have.
        expected: u64,
    },
    /// The private key does not belong to the certificate, or is of an unsupported kind.
    #[error("the private key does not fit the certificate: {0}")]
    Key(String),
}
