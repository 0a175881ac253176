//! The check of a peer's certificate: in its handshake, and again when certificates are reloaded.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, InvalidMessage, OtherError,
    PeerIncompatible, SignatureScheme,
};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use super::handle::{Name, Names};
use super::revocation::RevocationLists;
use super::{TlsConfigError, TlsError};

/// The longest chain that is looked at, with the certificate of the peer; `webpki` follows six
/// certificates between that and an authority.
const MAX_CHAIN: usize = 7;

/// A further check of a chain whose signatures, dates and usage `webpki` has verified.
type PathCheck<'a> = dyn Fn(&VerifiedPath<'_>) -> Result<(), webpki::Error> + 'a;

/// The side of a connection that a certificate was shown by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// Whom to trust.
pub(super) struct Authorities {
    anchors: Vec<TrustAnchor<'static>>,
    lists: RevocationLists,
}

impl Authorities {
    pub(super) fn new(
        certificates: &[CertificateDer<'static>],
        lists: RevocationLists,
    ) -> Result<Self, TlsConfigError> {
        let field = "authorities_pem";
        if certificates.is_empty() {
            return Err(TlsConfigError::Pem { field, rule: "must hold a certificate" });
        }
        let rule = "must hold certificates that can be parsed";
        let anchor = |certificate| webpki::anchor_from_trusted_cert(certificate);
        let anchors = certificates.iter().map(|one| anchor(one).map(|anchor| anchor.to_owned()));
        let anchors: Result<_, _> = anchors.collect();
        let anchors = anchors.map_err(|_| TlsConfigError::Pem { field, rule })?;
        Ok(Self { anchors, lists })
    }
}

/// Checks certificates of peers, of both sides alike.
pub(crate) struct PeerVerifier {
    authorities: Authorities,
    revoked: BTreeSet<u64>,
    names: Names,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PeerVerifier {
    pub(super) fn new(
        authorities: Authorities,
        revoked: BTreeSet<u64>,
        names: Names,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Self {
        Self { authorities, revoked, names, algorithms }
    }

    /// Checks a chain, the certificate of the peer first, and returns the peer's id.
    pub(crate) fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<u64, TlsError> {
        let (peer, between) = chain.split_first().ok_or(TlsError::NoCertificate)?;
        if chain.len() > MAX_CHAIN {
            return Err(TlsError::ChainTooLong);
        }
        let certificate = EndEntityCert::try_from(peer).map_err(|error| of_webpki(&error))?;
        let usage = match role {
            Role::Client => KeyUsage::client_auth(),
            Role::Server => KeyUsage::server_auth(),
        };
        let Authorities { anchors, lists } = &self.authorities;
        let is_unrevoked = |path: &VerifiedPath<'_>| lists.check(path);
        let (algorithms, check) = (self.algorithms.all, Some(&is_unrevoked as &PathCheck<'_>));
        certificate
            .verify_for_usage(algorithms, anchors, between, now, usage, None, check)
            .map_err(|error| of_webpki(&error))?;
        let id = self.id_of(peer)?;
        if self.revoked.contains(&id) { Err(TlsError::Revoked) } else { Ok(id) }
    }

    /// The one id that the names of a certificate stand for. Nothing else of it is checked.
    pub(crate) fn id_of(&self, certificate: &CertificateDer<'_>) -> Result<u64, TlsError> {
        let certificate =
            EndEntityCert::try_from(certificate).map_err(|error| of_webpki(&error))?;
        let uris = certificate.valid_uri_names().map(Name::Uri);
        let names = uris.chain(certificate.valid_dns_names().map(Name::Dns));
        let ids: BTreeSet<u64> = names.filter_map(|name| self.peer_named(name)).collect();
        match (ids.len(), ids.first()) {
            (1, Some(&id)) => Ok(id),
            (0, _) => Err(TlsError::NoId),
            _ => Err(TlsError::SeveralIds),
        }
    }

    /// Asks the user's function, which is foreign code.
    fn peer_named(&self, name: Name<'_>) -> Option<u64> {
        catch_unwind(AssertUnwindSafe(|| (self.names)(name))).unwrap_or_else(|_| {
            tracing::error!(target: "voussoir::net", ?name, "the function of names panicked");
            None
        })
    }

    /// As the handshake wants it: errors become those whose alerts tell the peer.
    fn in_handshake(
        &self,
        peer: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<(), Error> {
        // Before the copy, which is of references to what the handshake has bounded already.
        if between.len() >= MAX_CHAIN {
            return Err(to_rustls(TlsError::ChainTooLong));
        }
        let chain: Vec<CertificateDer<'_>> =
            std::iter::once(peer).chain(between).map(|one| one.as_ref().into()).collect();
        self.verify(&chain, role, now).map(|_| ()).map_err(to_rustls)
    }
}

impl std::fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerVerifier").field("revoked", &self.revoked).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.in_handshake(end_entity, intermediates, Role::Server, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A node has one certificate, so a hint helps it to nothing.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.in_handshake(end_entity, intermediates, Role::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn of_webpki(error: &webpki::Error) -> TlsError {
    use webpki::Error as E;
    match error {
        E::CertExpired { .. } => TlsError::Expired,
        E::CertNotValidYet { .. } => TlsError::NotYetValid,
        E::CertRevoked => TlsError::Revoked,
        E::UnknownIssuer => TlsError::UnknownIssuer,
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => TlsError::Purpose,
        E::MaximumPathBuildCallsExceeded
        | E::MaximumPathDepthExceeded
        | E::MaximumSignatureChecksExceeded
        | E::MaximumNameConstraintComparisonsExceeded => TlsError::ChainTooLong,
        _ => TlsError::BadCertificate,
    }
}

fn to_rustls(error: TlsError) -> Error {
    let of_certificate = match error {
        TlsError::Expired => CertificateError::Expired,
        TlsError::NotYetValid => CertificateError::NotValidYet,
        TlsError::Revoked => CertificateError::Revoked,
        TlsError::UnknownIssuer => CertificateError::UnknownIssuer,
        TlsError::Purpose => CertificateError::InvalidPurpose,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    };
    Error::InvalidCertificate(of_certificate)
}

/// The typed reason of an error of rustls.
pub(crate) fn error_of(error: &Error) -> TlsError {
    match error {
        Error::NoCertificatesPresented => TlsError::NoCertificate,
        Error::InvalidCertificate(error) => match error {
            CertificateError::Expired => TlsError::Expired,
            CertificateError::NotValidYet => TlsError::NotYetValid,
            CertificateError::Revoked => TlsError::Revoked,
            CertificateError::UnknownIssuer => TlsError::UnknownIssuer,
            CertificateError::InvalidPurpose => TlsError::Purpose,
            CertificateError::Other(OtherError(other)) => {
                other.downcast_ref().copied().unwrap_or(TlsError::BadCertificate)
            }
            _ => TlsError::BadCertificate,
        },
        Error::PeerIncompatible(
            PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls13RequiredForQuic
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ) => TlsError::Version,
        Error::InvalidMessage(
            InvalidMessage::CertificatePayloadTooLarge | InvalidMessage::HandshakePayloadTooLarge,
        ) => TlsError::ChainTooLong,
        Error::PeerSentOversizedRecord | Error::InvalidMessage(InvalidMessage::MessageTooLarge) => {
            TlsError::Oversized
        }
        Error::DecryptError => TlsError::Damaged,
        Error::AlertReceived(alert) => TlsError::Alert((*alert).into()),
        _ => TlsError::Protocol,
    }
}
