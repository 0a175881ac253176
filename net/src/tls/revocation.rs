//! Revocation lists: which certificates of a chain they revoke, and which lists are rejected.
//!
//! `webpki` looks into the first list alone that names the issuer of a certificate, and rejects the
//! certificate if the signature of that list is of another key. So it checks chains without lists,
//! and each chain that it has verified is looked up here.

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor};
use webpki::{CertRevocationList, EndEntityCert, Error, OwnedCertRevocationList, VerifiedPath};

use super::TlsConfigError;

/// Revocation lists of any authorities, any number of each.
pub(super) struct RevocationLists {
    lists: Vec<List>,
    algorithms: WebPkiSupportedAlgorithms,
}

struct List {
    parsed: CertRevocationList<'static>,
    der: CertificateRevocationListDer<'static>,
}

impl RevocationLists {
    /// # Errors
    /// A list that cannot be parsed; a list that names an issuer which is in `authorities` or
    /// `chain`, and is signed by none of that name, so that it would revoke nothing; a list that
    /// revokes a certificate of `chain`, the own one.
    pub(super) fn new(
        lists: Vec<CertificateRevocationListDer<'static>>,
        authorities: &[CertificateDer<'_>],
        chain: &[CertificateDer<'_>],
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Result<Self, TlsConfigError> {
        let rejected = |rule| TlsConfigError::Pem { field: "revocation_lists_pem", rule };
        let issuers = authorities.iter().chain(chain.iter().skip(1));
        let issuers: Vec<TrustAnchor<'_>> =
            issuers.filter_map(|der| webpki::anchor_from_trusted_cert(der).ok()).collect();
        let mut all = Self { lists: Vec::with_capacity(lists.len()), algorithms };
        for der in lists {
            let parsed = OwnedCertRevocationList::from_der(&der)
                .map_err(|_| rejected("must hold revocation lists that can be parsed"))?;
            let list = List { parsed: parsed.into(), der };
            let mut named = issuers.iter().filter(|issuer| list.names(issuer)).peekable();
            if named.peek().is_some() && !named.any(|one| is_signed_by(&list.der, one, algorithms))
            {
                return Err(rejected("must be signed by the authorities that its lists name"));
            }
            all.lists.push(list);
        }
        let is_revoked = |der: &CertificateDer<'_>| {
            let Ok(own) = EndEntityCert::try_from(der) else { return false };
            let mut signers = issuers.iter().filter(|one| is_signed_by(der, one, algorithms));
            signers.any(|issuer| all.has(own.serial(), issuer))
        };
        if chain.iter().any(is_revoked) {
            return Err(rejected("must not revoke a certificate of `chain_pem`"));
        }
        Ok(all)
    }

    /// Looks up each certificate of a path whose signatures have been verified.
    ///
    /// # Errors
    /// [`Error::CertRevoked`] if one is on a list that the key of its issuer has signed.
    pub(super) fn check(&self, path: &VerifiedPath<'_>) -> Result<(), Error> {
        let mut serial = path.end_entity().serial();
        for issuer in path.intermediate_certificates() {
            let der = issuer.der();
            if self.has(serial, &webpki::anchor_from_trusted_cert(&der)?) {
                return Err(Error::CertRevoked);
            }
            serial = issuer.serial();
        }
        if self.has(serial, path.anchor()) { Err(Error::CertRevoked) } else { Ok(()) }
    }

    /// Whether a list of this issuer has the serial number.
    fn has(&self, serial: &[u8], issuer: &TrustAnchor<'_>) -> bool {
        self.lists.iter().any(|list| {
            list.names(issuer)
                && !matches!(list.parsed.find_serial(serial), Ok(None))
                && is_signed_by(&list.der, issuer, self.algorithms)
        })
    }
}

impl List {
    fn names(&self, issuer: &TrustAnchor<'_>) -> bool {
        self.parsed.issuer() == issuer.subject.as_ref()
    }
}

/// Whether the key of the issuer has signed a certificate or a revocation list.
fn is_signed_by(
    der: &[u8],
    issuer: &TrustAnchor<'_>,
    algorithms: WebPkiSupportedAlgorithms,
) -> bool {
    let (signed, key) = (Signed::parse(der), Key::parse(&issuer.subject_public_key_info));
    let (Some(signed), Some(key)) = (signed, key) else { return false };
    algorithms.all.iter().any(|one| {
        one.signature_alg_id().as_ref() == signed.algorithm
            && one.public_key_alg_id().as_ref() == key.algorithm
            && one.verify_signature(key.bits, signed.body, signed.signature).is_ok()
    })
}

/// A certificate or a revocation list, as its signature sees it (RFC 5280, 4.1 and 5.1).
struct Signed<'a> {
    /// What is signed, with its tag and length.
    body: &'a [u8],
    /// The contents of the identifier of the algorithm.
    algorithm: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Signed<'a> {
    fn parse(der: &'a [u8]) -> Option<Self> {
        let mut parts = Element::take(&mut &*der, SEQUENCE)?.contents;
        let body = Element::take(&mut parts, SEQUENCE)?.whole;
        let algorithm = Element::take(&mut parts, SEQUENCE)?.contents;
        Some(Self { body, algorithm, signature: bits(&mut parts)? })
    }
}

/// A public key (RFC 5280, 4.1).
struct Key<'a> {
    /// The contents of the identifier of its kind.
    algorithm: &'a [u8],
    bits: &'a [u8],
}

impl<'a> Key<'a> {
    /// Of the contents of a `SubjectPublicKeyInfo`.
    fn parse(mut parts: &'a [u8]) -> Option<Self> {
        let algorithm = Element::take(&mut parts, SEQUENCE)?.contents;
        Some(Self { algorithm, bits: bits(&mut parts)? })
    }
}

const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;

/// Takes a string of whole bytes.
fn bits<'a>(der: &mut &'a [u8]) -> Option<&'a [u8]> {
    // The first byte says how many bits of the last one are not used.
    Element::take(der, BIT_STRING)?.contents.strip_prefix(&[0])
}

struct Element<'a> {
    /// With tag and length.
    whole: &'a [u8],
    contents: &'a [u8],
}

impl<'a> Element<'a> {
    /// Takes the first element, if it has this tag.
    fn take(der: &mut &'a [u8], tag: u8) -> Option<Self> {
        let (&first, rest) = der.strip_prefix(&[tag])?.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (contents, after) = rest.split_at_checked(length)?;
        let whole = &der[..der.len() - after.len()];
        *der = after;
        Some(Self { whole, contents })
    }
}
