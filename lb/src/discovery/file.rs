//! Endpoints from a file.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{DiscoveryError, Resolved, Source};
use crate::config::EndpointConfig;

/// The largest file, in bytes.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// Endpoints from a text file, read again when it changes; [`parse_endpoints`] has the format.
///
/// Replace the file by renaming another one over it: a file that is written in place may be read
/// half-written, which is noticed only if what is left of a line is malformed.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    poll_interval: Duration,
    /// The file that was read last.
    seen: Mutex<Option<Stamp>>,
}

/// Differs after a file was replaced or written, as far as the times of the file system tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    len: u64,
    inode: u64,
}

impl Stamp {
    fn of(metadata: &std::fs::Metadata) -> Self {
        #[cfg(unix)]
        let inode = std::os::unix::fs::MetadataExt::ino(metadata);
        #[cfg(not(unix))]
        let inode = 0;
        Self { modified: metadata.modified().ok(), len: metadata.len(), inode }
    }
}

impl FileSource {
    /// The endpoints of the file at `path`. Whether it has changed is looked up each second.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), poll_interval: Duration::from_secs(1), seen: Mutex::new(None) }
    }

    /// Sets how often to look whether the file has changed, 1 ms at least.
    pub fn with_poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = interval.max(Duration::from_millis(1));
        self
    }
}

/// Runs blocking file operations.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn read(path: &Path) -> io::Result<(Stamp, Vec<u8>)> {
    let file = File::open(path)?;
    let stamp = Stamp::of(&file.metadata()?);
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("{} exceeds 16 MiB", path.display())));
    }
    Ok((stamp, bytes))
}

#[async_trait]
impl Source for FileSource {
    async fn resolve(&self) -> Result<Resolved, DiscoveryError> {
        let path = self.path.clone();
        let (stamp, bytes) = blocking(move || read(&path)).await?;
        // Also when the content is malformed: `changed` tells of it once, not at each look.
        *self.seen.lock() = Some(stamp);
        Ok(Resolved::new(parse_endpoints(&bytes)?))
    }

    async fn changed(&self) -> Result<Resolved, DiscoveryError> {
        // Ends: when the file changes, or when dropped. A file that is missing for a moment, while
        // it is replaced, is no change.
        loop {
            tokio::time::sleep(self.poll_interval).await;
            let path = self.path.clone();
            let Ok(metadata) = blocking(move || std::fs::metadata(path)).await else { continue };
            if *self.seen.lock() != Some(Stamp::of(&metadata)) {
                return self.resolve().await;
            }
        }
    }
}

/// Parses one endpoint a line: its name, then `weight=N`, `zone=NAME`, `priority=N` or `draining`,
/// separated by spaces. `#` begins a comment.
///
/// # Errors
/// The first line that is malformed.
///
/// # Example
/// ```
/// use voussoir_lb::discovery::parse_endpoints;
/// let set = parse_endpoints(b"10.0.0.1:80 weight=5 zone=a\n10.0.0.2:80 # a spare\n")?;
/// assert_eq!((set.len(), set[0].weight), (2, 5));
/// # Ok::<(), voussoir_lb::discovery::DiscoveryError>(())
/// ```
pub fn parse_endpoints(text: &[u8]) -> Result<Vec<EndpointConfig>, DiscoveryError> {
    let mut endpoints = Vec::new();
    for (at, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let malformed = |column: usize, reason: String| DiscoveryError::Malformed {
            line: at + 1,
            column: column + 1,
            reason,
        };
        let line = std::str::from_utf8(line)
            .map_err(|error| malformed(error.valid_up_to(), "must be UTF-8".to_owned()))?;
        let content = line.split_once('#').map_or(line, |(content, _)| content);
        let mut words = content.split_ascii_whitespace();
        let Some(name) = words.next() else { continue };
        let mut endpoint = EndpointConfig::new(name);
        for word in words {
            // Words are slices of the line.
            let column = word.as_ptr().addr() - line.as_ptr().addr();
            apply(&mut endpoint, word).map_err(|reason| malformed(column, reason))?;
        }
        endpoints.push(endpoint);
    }
    Ok(endpoints)
}

fn apply(endpoint: &mut EndpointConfig, word: &str) -> Result<(), String> {
    match word.split_once('=') {
        None if word == "draining" => endpoint.draining = true,
        Some(("weight", weight)) => {
            let weight = weight.parse().ok().filter(|weight| (1..=65_535).contains(weight));
            endpoint.weight = weight.ok_or("`weight` must be between 1 and 65535")?;
        }
        Some(("priority", priority)) => {
            let priority = priority.parse().ok();
            endpoint.priority = priority.ok_or("`priority` must be between 0 and 255")?;
        }
        Some(("zone", zone)) if !zone.is_empty() => endpoint.zone = Some(zone.to_owned()),
        _ => return Err(format!("`{word}` is none of weight=, zone=, priority=, draining")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_read_and_errors_name_line_and_column() {
        let text = b"a:1 weight=5 zone=x priority=2 draining\r\n\n# all\n  b:1\t# spare";
        let expected = EndpointConfig::new("a:1").with_weight(5).with_zone("x").with_priority(2);
        let parsed = parse_endpoints(text).expect("valid");
        assert_eq!(parsed, [expected.draining(), EndpointConfig::new("b:1")]);
        assert!(parse_endpoints(b"").expect("valid").is_empty());
        let error = |text: &[u8]| parse_endpoints(text).expect_err("malformed").to_string();
        assert_eq!(
            error(b"a\nb  weight=0"),
            "line 2, column 4: `weight` must be between 1 and 65535"
        );
        assert!(error(b"a priority=256").starts_with("line 1, column 3: `priority`"));
        assert!(error(b"a zone=").starts_with("line 1, column 3: `zone=`"));
        assert!(error(b"a\nb \xFF").starts_with("line 2, column 3: must be UTF-8"));
    }
}
