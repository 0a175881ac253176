//! TLS by rustls with the provider `ring`: towards clients, with certificates that can be replaced,
//! and towards backends.

use std::fmt;
use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::config::Protocol;

/// Certificates or keys that cannot be used. The old ones stay in use.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// No PEM, or none of the kind that is needed.
    #[error("{what}: no valid PEM: {why}")]
    Pem {
        /// What was read.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// rustls does not accept them, such as a key that is not the certificate's.
    #[error("{0}")]
    Rejected(rustls::Error),
    /// The name of the backend is no host name and no address.
    #[error("`{0}` is no host name")]
    Name(String),
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let invalid = |why: String| TlsError::Pem { what: "certificates", why };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| invalid(error.to_string()))?;
    if found.is_empty() { Err(invalid("no certificate".to_owned())) } else { Ok(found) }
}

/// The certificate that clients see. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ArcSwap<ServerConfig>>,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

impl ServerTls {
    /// A certificate chain and its key, both as PEM. HTTP/2 and HTTP/1.1 are offered.
    ///
    /// # Errors
    /// What cannot be read, or does not fit.
    pub fn new(chain_pem: &[u8], key_pem: &[u8]) -> Result<Self, TlsError> {
        let config = server_config(chain_pem, key_pem)?;
        Ok(Self { config: Arc::new(ArcSwap::from_pointee(config)) })
    }

    /// Replaces both for connections to come. Connections that are open stay.
    ///
    /// # Errors
    /// What cannot be read, or does not fit; the old certificate stays.
    pub fn reload(&self, chain_pem: &[u8], key_pem: &[u8]) -> Result<(), TlsError> {
        self.config.store(Arc::new(server_config(chain_pem, key_pem)?));
        Ok(())
    }

    pub(super) async fn accept(&self, tcp: TcpStream) -> io::Result<server::TlsStream<TcpStream>> {
        TlsAcceptor::from(self.config.load_full()).accept(tcp).await
    }
}

fn server_config(chain_pem: &[u8], key_pem: &[u8]) -> Result<ServerConfig, TlsError> {
    let key = PrivateKeyDer::from_pem_slice(key_pem)
        .map_err(|error| TlsError::Pem { what: "key", why: error.to_string() })?;
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
    let mut config = builder
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Rejected)?
        .with_no_client_auth()
        .with_single_cert(certificates(chain_pem)?, key)
        .map_err(TlsError::Rejected)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// How backends are verified.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Backends must show a certificate for `name` that one of `roots_pem` signed.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn new(roots_pem: &[u8], name: &str) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for root in certificates(roots_pem)? {
            roots.add(root).map_err(TlsError::Rejected)?;
        }
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Rejected)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let named = ServerName::try_from(name.to_owned());
        let name = named.map_err(|_| TlsError::Name(name.to_owned()))?;
        Ok(Self { config: Arc::new(config), name })
    }

    pub(super) fn with_protocol(self, protocol: Protocol) -> Self {
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols = vec![match protocol {
            Protocol::Http1 => b"http/1.1".to_vec(),
            Protocol::Http2 => b"h2".to_vec(),
        }];
        Self { config: Arc::new(config), name: self.name }
    }

    pub(super) async fn connect(&self, tcp: TcpStream) -> io::Result<client::TlsStream<TcpStream>> {
        TlsConnector::from(Arc::clone(&self.config)).connect(self.name.clone(), tcp).await
    }
}
