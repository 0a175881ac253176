//! TLS between the nodes: the certificates of this node, read again at SIGHUP.

use std::error::Error;

use tokio::signal::unix::{SignalKind, signal};
use voussoir_net::{Tls, TlsConfig};

use crate::args::TlsFiles;

/// The certificates of this node, or `None` for plain TCP.
///
/// # Errors
/// A file cannot be read, or what is in it cannot be used.
pub fn load(files: &TlsFiles) -> Result<Option<Tls>, Box<dyn Error>> {
    Ok(read(files)?.map(Tls::new).transpose()?)
}

fn read(files: &TlsFiles) -> std::io::Result<Option<TlsConfig>> {
    let TlsFiles { authorities, certificate, key } = files;
    let (Some(authorities), Some(certificate), Some(key)) = (authorities, certificate, key) else {
        return Ok(None);
    };
    TlsConfig::read(authorities, certificate, key).map(Some)
}

/// Reads the files again at each SIGHUP. Connections of peers whose certificate would be rejected
/// now are closed. When the new files cannot be used, the certificates from before stay.
///
/// # Cancel safety
/// Cancel safe.
pub async fn reload_at_hangup(tls: Tls, files: TlsFiles) {
    let Ok(mut hangups) = signal(SignalKind::hangup()) else { return };
    while hangups.recv().await.is_some() {
        let reloaded = match read(&files) {
            Ok(Some(config)) => tls.reload(config).map_err(|error| error.to_string()),
            Ok(None) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        match reloaded {
            Ok(()) => tracing::info!("certificates were reloaded"),
            Err(error) => {
                tracing::error!(%error, "certificates were not reloaded, the old ones stay in use");
            }
        }
    }
}
