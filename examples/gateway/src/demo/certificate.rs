//! A certificate that is made at the start of the demo and trusted by its clients alone.

use std::path::{Path, PathBuf};

use tokio_rustls::rustls::pki_types::CertificateDer;

use super::Error;

/// The name that the certificate is for.
pub(super) const NAME: &str = "demo.test";

/// A certificate, in memory for the clients and in files for the gateway.
#[derive(Debug)]
pub(super) struct Certificate {
    pub(super) der: CertificateDer<'static>,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

impl Certificate {
    /// Makes a certificate and writes it into `folder`.
    pub(super) fn make(folder: &Path) -> Result<Self, Error> {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
        let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
        std::fs::write(&certificate, made.cert.pem())?;
        std::fs::write(&key, made.signing_key.serialize_pem())?;
        Ok(Self { der: made.cert.der().clone(), certificate, key })
    }
}
