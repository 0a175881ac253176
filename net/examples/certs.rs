//! A small certificate authority for trying TLS: makes an authority, certificates of nodes, renews
//! and revokes them, as PEM that `openssl` reads. Not for production: the key of the authority lies
//! beside the certificates.
//!
//! ```text
//! cargo run -p voussoir-net --example net-certs --features tls -- DIR 1 2 3
//! cargo run -p voussoir-net --example net-certs --features tls -- DIR --revoke 3
//! ```
//!
//! The first makes a certificate for each node, and renews it the next time. The second writes the
//! list that revokes what node 3 has now.
use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber,
};
use voussoir_net::{Tls, TlsConfig};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const USAGE: &str = "usage: net-certs DIR [--revoke] ID...";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("net-certs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1).peekable();
    let dir = args.next().ok_or(USAGE)?;
    let dir = Path::new(&dir);
    let is_revoking = args.next_if(|arg| arg == "--revoke").is_some();
    let ids: Vec<u64> = args.map(|arg| arg.parse()).collect::<Result<_, _>>().map_err(|_| USAGE)?;
    fs::create_dir_all(dir)?;
    let issuer = authority(dir)?;
    if is_revoking {
        return revoke(dir, &issuer, &ids);
    }
    for id in ids {
        issue(dir, &issuer, id)?;
    }
    Ok(())
}

/// The authority in `dir`, made if there is none.
fn authority(dir: &Path) -> Result<Issuer<'static, KeyPair>, Box<dyn Error>> {
    let mut params = CertificateParams::new(vec![])?;
    params.distinguished_name.push(DnType::CommonName, "voussoir authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = validity(3650);
    let (certificate, key) = (dir.join("ca.pem"), dir.join("ca.key"));
    if !certificate.exists() {
        let new = KeyPair::generate()?;
        write_secret(&key, &new.serialize_pem())?;
        fs::write(&certificate, params.self_signed(&new)?.pem())?;
        println!("{}: a new authority, for ten years", certificate.display());
    }
    Ok(Issuer::new(params, KeyPair::from_pem(&fs::read_to_string(key)?)?))
}

/// A new key and certificate of a node, for 30 days; those from before are replaced.
fn issue(dir: &Path, issuer: &Issuer<'_, KeyPair>, id: u64) -> Result<(), Box<dyn Error>> {
    let mut params = CertificateParams::new(vec![])?;
    params.distinguished_name.push(DnType::CommonName, format!("node {id}"));
    let uri = format!("voussoir://node/{id}");
    params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    (params.not_before, params.not_after) = validity(30);
    // The serial is the time, so that a certificate can be revoked without a record of all.
    let serial = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos() as u64;
    params.serial_number = Some(SerialNumber::from(serial));
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    let [pem, of_key, of_serial] =
        ["pem", "key", "serial"].map(|kind| dir.join(format!("node-{id}.{kind}")));
    write_secret(&of_key, &key.serialize_pem())?;
    fs::write(&pem, certificate.pem())?;
    fs::write(of_serial, serial.to_string())?;
    // Read back as a node does.
    let tls = Tls::new(TlsConfig::read(dir.join("ca.pem"), &pem, &of_key)?)?;
    println!("{}: {uri}, for 30 days", pem.display());
    assert_eq!(tls.id(), id, "the certificate names the node");
    Ok(())
}

/// A revocation list with the certificates that these nodes have now, in place of an older list.
fn revoke(dir: &Path, issuer: &Issuer<'_, KeyPair>, ids: &[u64]) -> Result<(), Box<dyn Error>> {
    let (this_update, next_update) = validity(30);
    let mut revoked_certs = Vec::new();
    for id in ids {
        let serial: u64 = fs::read_to_string(dir.join(format!("node-{id}.serial")))?.parse()?;
        revoked_certs.push(RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: this_update,
            reason_code: None,
            invalidity_date: None,
        });
    }
    let list = CertificateRevocationListParams {
        this_update,
        next_update,
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let path = dir.join("revoked.pem");
    fs::write(&path, list.signed_by(issuer)?.pem()?)?;
    println!("{}: revokes the certificates of {ids:?}", path.display());
    Ok(())
}

/// From an hour ago, since clocks differ, until then.
fn validity<T: From<SystemTime>>(days: u32) -> (T, T) {
    let now = SystemTime::now();
    ((now - DAY / 24).into(), (now + DAY * days).into())
}

/// Writes a file that its owner alone can read.
fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)?.write_all(text.as_bytes())
}
