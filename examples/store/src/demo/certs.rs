//! Certificates for a cluster on this machine: an authority, and a certificate for each node.

use std::fs;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};

use crate::cluster::Cluster;

/// An authority whose key is in memory only.
#[derive(Debug)]
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn new() -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::new(vec![])?;
        params.distinguished_name.push(DnType::CommonName, "store");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { pem, issuer: Issuer::new(params, key) })
    }

    /// Writes the files of node `id` to `folder`, in place of older ones.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn issue(&self, folder: &Path, id: u64) -> Result<(), Box<dyn std::error::Error>> {
        let mut params = CertificateParams::new(vec![])?;
        let name = format!("voussoir://node/{id}");
        params.subject_alt_names = vec![SanType::URI(name.as_str().try_into()?)];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        fs::write(folder.join("ca.pem"), &self.pem)?;
        fs::write(folder.join(format!("node-{id}.pem")), certificate.pem())?;
        fs::write(folder.join(format!("node-{id}.key")), key.serialize_pem())?;
        Ok(())
    }

    /// Gives node `id` of the cluster its files in `folder`, from its next start on.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn equip(
        &self,
        cluster: &mut Cluster,
        folder: &Path,
        id: u64,
    ) -> Result<(), Box<dyn std::error::Error>> {
        self.issue(folder, id)?;
        let file = |name: String| folder.join(name).display().to_string();
        let [ca, certificate, key] =
            ["ca.pem".to_owned(), format!("node-{id}.pem"), format!("node-{id}.key")].map(file);
        let options = ["--tls-ca", &*ca, "--tls-cert", &*certificate, "--tls-key", &*key];
        cluster.set_node_options(id, &options);
        Ok(())
    }
}

/// Makes an authority and gives each node of the cluster its files in `folder`.
///
/// # Errors
/// A file cannot be written.
pub fn set_up(
    cluster: &mut Cluster,
    folder: &Path,
) -> Result<Authority, Box<dyn std::error::Error>> {
    let authority = Authority::new()?;
    for id in cluster.ids() {
        authority.equip(cluster, folder, id)?;
    }
    Ok(authority)
}
