//! Notices when the configuration is to be read again: SIGHUP, or a change of the file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;

/// Time between two looks at the file.
const PERIOD: Duration = Duration::from_millis(250);

/// A file that is watched.
#[derive(Debug)]
pub struct Watched {
    path: PathBuf,
    last: String,
    hangup: Signal,
    /// Whether a signal has arrived that no text was returned for.
    is_asked: bool,
}

impl Watched {
    /// Watches `path`, whose text was `text` when it was read.
    ///
    /// # Errors
    /// The system refuses a handler for SIGHUP.
    pub fn new(path: &Path, text: &str) -> std::io::Result<Self> {
        let hangup = signal(SignalKind::hangup())?;
        Ok(Self { path: path.to_owned(), last: text.to_owned(), hangup, is_asked: false })
    }

    /// Waits for SIGHUP or for another text in the file, and returns the text. A file that cannot
    /// be read, such as one that is being replaced, is looked at again.
    ///
    /// # Cancel safety
    /// Nothing is lost: a change or signal that was not returned is seen by the next call.
    pub async fn changed(&mut self) -> String {
        // Ends with a change or a signal: for how long, is the operator's choice.
        loop {
            if !self.is_asked {
                tokio::select! {
                    _ = self.hangup.recv() => self.is_asked = true,
                    () = sleep(PERIOD) => {}
                }
            }
            let read = tokio::fs::read_to_string(&self.path).await;
            let is_asked = std::mem::take(&mut self.is_asked);
            match read {
                Ok(text) if is_asked || text != self.last => {
                    self.last.clone_from(&text);
                    return text;
                }
                Ok(_) => {}
                Err(error) if is_asked => {
                    tracing::error!(path = %self.path.display(), %error, "cannot be read");
                }
                Err(_) => {}
            }
        }
    }
}
