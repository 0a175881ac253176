//! [`Tls`]: the certificates of a node, which may be replaced at any time.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::watch;

use super::revocation::RevocationLists;
use super::verify::{Authorities, PeerVerifier};
use super::{TlsConfigError, TlsError};

/// Says in each handshake which protocol follows, so that a connection meant for another service
/// with certificates of the same authority is rejected.
pub(crate) const PROTOCOL: &[u8] = b"voussoir-net/1";

/// What the node shows to its peers, and whom it trusts. All of it is PEM, as `openssl` writes it.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct TlsConfig {
    /// The certificates of the authorities that sign the nodes of this cluster. While an authority
    /// is replaced: the old one and the new one.
    pub authorities_pem: Vec<u8>,
    /// The certificate of this node, then those between it and an authority, if there are any.
    pub chain_pem: Vec<u8>,
    /// The private key of this node: PKCS #8, SEC 1 or PKCS #1.
    pub key_pem: Vec<u8>,
    /// Revocation lists of the authorities, any number of each; may be empty. A certificate is
    /// revoked if it is on any list that the key of its issuer has signed; one on none of them is
    /// not revoked. A list is used past its `nextUpdate` too: a list that is late locks nobody out.
    ///
    /// Rejected are lists that would revoke nothing, because no authority of the name that the list
    /// has has signed it, and lists that revoke the own certificate. While an authority is replaced
    /// by one of the same name with another key, give the lists of both, and drop the old list with
    /// the old authority.
    pub revocation_lists_pem: Vec<u8>,
    /// Peers that are rejected whatever their certificates say; for when an authority cannot issue
    /// a revocation list in time.
    pub revoked_ids: BTreeSet<u64>,
}

impl TlsConfig {
    /// A configuration without revocations.
    pub fn new(
        authorities_pem: impl Into<Vec<u8>>,
        chain_pem: impl Into<Vec<u8>>,
        key_pem: impl Into<Vec<u8>>,
    ) -> Self {
        Self {
            authorities_pem: authorities_pem.into(),
            chain_pem: chain_pem.into(),
            key_pem: key_pem.into(),
            ..Self::default()
        }
    }

    /// A configuration without revocations, from three files.
    ///
    /// # Errors
    /// Of the first file that cannot be read; the message names it.
    pub fn read(
        authorities: impl AsRef<Path>,
        chain: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> std::io::Result<Self> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| {
                std::io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            })
        };
        Ok(Self::new(read(authorities.as_ref())?, read(chain.as_ref())?, read(key.as_ref())?))
    }
}

impl std::fmt::Debug for TlsConfig {
    /// Shows no key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsConfig")
            .field("authorities_pem", &self.authorities_pem.len())
            .field("chain_pem", &self.chain_pem.len())
            .field("revocation_lists_pem", &self.revocation_lists_pem.len())
            .field("revoked_ids", &self.revoked_ids)
            .finish_non_exhaustive()
    }
}

/// A name in a certificate (a subject alternative name).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Name<'a> {
    /// A URI.
    Uri(&'a str),
    /// A name of the domain name system; may begin with `*.`.
    Dns(&'a str),
}

pub(super) type Names = Arc<dyn Fn(Name<'_>) -> Option<u64> + Send + Sync>;

/// The certificates of a node, which may be replaced while it runs. Clones are handles to the same.
///
/// The id of a peer is the one that its certificate proves: a URI `voussoir://node/7` among its
/// subject alternative names, or what the function given to [`Tls::with_names`] makes of its names.
/// Exactly one id must come of them.
///
/// # Example
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use voussoir_net::{Config, Peers, Tcp, Tls, TlsConfig};
///
/// let read = || TlsConfig::read("ca.pem", "node-1.pem", "node-1.key");
/// let tls = Tls::new(read()?)?;
/// let peers = Arc::new(Peers::new());
/// let node = Tcp::bind_tls(1, "[::]:7001".parse()?, peers, Config::new(42), tls.clone()).await?;
/// // Later, after the files have been renewed:
/// tls.reload(read()?)?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Tls {
    shared: Arc<Shared>,
}

struct Shared {
    names: Names,
    id: u64,
    loaded: watch::Sender<Arc<Loaded>>,
}

/// One set of certificates, ready for use.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) verifier: Arc<PeerVerifier>,
}

impl Tls {
    /// The id of a peer is in a URI `voussoir://node/<id>` of its certificate, the id in decimal.
    ///
    /// # Errors
    /// [`TlsConfigError`]: what cannot be used. Whether the certificate is valid now is for peers
    /// to judge: a node may start with one that has expired, and reload.
    pub fn new(config: TlsConfig) -> Result<Self, TlsConfigError> {
        Self::with_names(config, node_uri)
    }

    /// As [`Tls::new`], with a function that says for which peer a name stands. It is called in
    /// handshakes and after a reload, for the names of certificates that a trusted authority has
    /// signed. It must not block; one that panics has not known the name.
    ///
    /// # Errors
    /// As [`Tls::new`].
    pub fn with_names(
        config: TlsConfig,
        names: impl Fn(Name<'_>) -> Option<u64> + Send + Sync + 'static,
    ) -> Result<Self, TlsConfigError> {
        let names: Names = Arc::new(names);
        let (loaded, id) = load(&config, &names)?;
        let loaded = watch::Sender::new(Arc::new(loaded));
        Ok(Self { shared: Arc::new(Shared { names, id, loaded }) })
    }

    /// The id in the certificate of this node.
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// Replaces the certificates. New connections use the new ones. The certificate of the peer of
    /// each connection that stands is checked again as in a handshake, now: if it is revoked,
    /// expired or of an authority that is not trusted any more, the connection ends with
    /// `Event::Revoked` or `DownReason::Revoked`.
    ///
    /// # Errors
    /// [`TlsConfigError`]: what cannot be used, a certificate of another node among it. The
    /// certificates from before stay in use.
    pub fn reload(&self, config: TlsConfig) -> Result<(), TlsConfigError> {
        let (loaded, id) = load(&config, &self.shared.names)?;
        if id != self.shared.id {
            return Err(TlsConfigError::Id { id, expected: self.shared.id });
        }
        self.shared.loaded.send_replace(Arc::new(loaded));
        Ok(())
    }

    /// The certificates now and all later ones.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Loaded>> {
        self.shared.loaded.subscribe()
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("id", &self.shared.id).finish_non_exhaustive()
    }
}

/// Only the one spelling of an id that there is: no sign, no leading zeros.
fn node_uri(name: Name<'_>) -> Option<u64> {
    let Name::Uri(uri) = name else { return None };
    let text = uri.strip_prefix("voussoir://node/")?;
    text.parse().ok().filter(|id: &u64| id.to_string() == text)
}

fn pem<T: PemObject>(bytes: &[u8], field: &'static str) -> Result<Vec<T>, TlsConfigError> {
    let all: Result<Vec<T>, _> = T::pem_slice_iter(bytes).collect();
    all.map_err(|_| TlsConfigError::Pem { field, rule: "must be PEM" })
}

fn load(config: &TlsConfig, names: &Names) -> Result<(Loaded, u64), TlsConfigError> {
    let authorities: Vec<CertificateDer<'static>> =
        pem(&config.authorities_pem, "authorities_pem")?;
    let chain: Vec<CertificateDer<'static>> = pem(&config.chain_pem, "chain_pem")?;
    let lists: Vec<CertificateRevocationListDer<'static>> =
        pem(&config.revocation_lists_pem, "revocation_lists_pem")?;
    let key = PrivateKeyDer::from_pem_slice(&config.key_pem)
        .map_err(|_| TlsConfigError::Pem { field: "key_pem", rule: "must be a private key" })?;
    let provider = Arc::new(ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let lists = RevocationLists::new(lists, &authorities, &chain, algorithms)?;
    let authorities = Authorities::new(&authorities, lists)?;
    let revoked = config.revoked_ids.clone();
    let verifier = PeerVerifier::new(authorities, revoked, Arc::clone(names), algorithms);
    let verifier = Arc::new(verifier);
    let own = chain.first().ok_or(TlsConfigError::Names(TlsError::NoCertificate))?;
    let id = verifier.id_of(own).map_err(TlsConfigError::Names)?;
    let unfit = |error: rustls::Error| TlsConfigError::Key(error.to_string());
    let (client, server) = configs(provider, &verifier, chain, key).map_err(unfit)?;
    Ok((Loaded { client: Arc::new(client), server: Arc::new(server), verifier }, id))
}

/// Both sides: TLS 1.3 alone, both show certificates, and no handshake is skipped: no session is
/// resumed, and no data comes before the handshake is complete.
fn configs(
    provider: Arc<CryptoProvider>,
    verifier: &Arc<PeerVerifier>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<(ClientConfig, ServerConfig), rustls::Error> {
    let versions = &[&rustls::version::TLS13];
    let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_client_auth_cert(chain.clone(), key.clone_key())?;
    client.resumption = Resumption::disabled();
    client.enable_early_data = false;
    client.enable_sni = false;
    client.alpn_protocols = vec![PROTOCOL.to_vec()];
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(verifier.clone())
        .with_single_cert(chain, key)?;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    server.max_early_data_size = 0;
    server.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok((client, server))
}
