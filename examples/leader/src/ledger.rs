//! The guarded resource: a file of numbered lines that only the newest leader may add to.
//!
//! It stands for whatever your leader writes to. What makes it safe is the [`Fence`]: it remembers
//! the greatest term that has entered, **in the same synced write as the effect**, and refuses
//! older ones. In a database it is `UPDATE … WHERE epoch <= $term`.
//!
//! The file has a line for each change: `TERM NODE enter`, or `TERM NODE line NUMBER TEXT`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use voussoir_lock::{Fence, FencingToken, StaleToken};

/// Who asks: the term that it leads in, and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Author {
    pub(crate) term: u64,
    pub(crate) node: u64,
}

/// A ledger file.
#[derive(Debug)]
pub(crate) struct Ledger {
    lines: Fence<Lines>,
}

#[derive(Debug)]
struct Lines {
    file: File,
    /// Number of the last line; 0 before the first.
    last: u64,
    /// A write or sync has failed: what the file holds is not known until it is opened again.
    is_failed: bool,
}

/// Why the ledger refused. Nothing was written, except with `Io`: the line may be there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error(transparent)]
    Stale(#[from] StaleToken),
    /// The line does not follow the last one.
    #[error("line {number} does not follow line {last}")]
    Gap { number: u64, last: u64 },
    #[error("the ledger's disk has failed: {0}")]
    Io(#[from] io::Error),
}

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) author: Author,
    /// Number and text; `None` where the author has only entered.
    pub(crate) text: Option<(u64, String)>,
}

impl Ledger {
    /// Opens the file, or creates it. A torn last line was never acknowledged, and is cut. A file
    /// that is no ledger is not changed.
    pub(crate) fn open(path: &Path) -> Result<Self, crate::Error> {
        let is_new = !path.exists();
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let (text, torn) = bytes.split_at(whole);
        let lines = std::str::from_utf8(text).map_err(|error| error.to_string()).and_then(read);
        let lines = lines.map_err(|error| format!("{}: {error}", path.display()))?;
        // The first line of a ledger begins with a term, also where it is torn.
        if lines.is_empty() && !torn.first().is_none_or(u8::is_ascii_digit) {
            return Err(format!("{}: it is no ledger", path.display()).into());
        }
        file.set_len(whole as u64)?;
        file.seek(io::SeekFrom::End(0))?;
        file.sync_all()?;
        if is_new {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
        }
        let latest = lines.iter().map(|line| line.author.term).max().unwrap_or(0);
        let last = lines.iter().rev().find_map(|line| Some(line.text.as_ref()?.0)).unwrap_or(0);
        let lines = Lines { file, last, is_failed: false };
        Ok(Self { lines: Fence::restored(lines, latest) })
    }

    /// Enters, and returns the number of the last line. From then on older terms are shut out, so
    /// nothing is added between this answer and the line that the author adds next.
    pub(crate) fn enter(&mut self, author: Author) -> Result<u64, Refused> {
        let is_first = author.term > self.lines.latest();
        let lines = self.lines.enter(FencingToken::new(author.term))?;
        let Author { term, node } = author;
        if is_first {
            lines.write(&format!("{term} {node} enter\n"))?;
        }
        lines.check()?;
        Ok(lines.last)
    }

    /// Adds a line. It is on stable storage when this returns.
    pub(crate) fn append(
        &mut self,
        author: Author,
        number: u64,
        text: &str,
    ) -> Result<(), Refused> {
        let lines = self.lines.enter(FencingToken::new(author.term))?;
        if number != lines.last + 1 {
            return Err(Refused::Gap { number, last: lines.last });
        }
        let Author { term, node } = author;
        lines.write(&format!("{term} {node} line {number} {text}\n"))?;
        lines.last = number;
        Ok(())
    }
}

impl Lines {
    fn check(&self) -> io::Result<()> {
        let failed = || io::Error::other("an earlier write failed; restart the ledger");
        if self.is_failed { Err(failed()) } else { Ok(()) }
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        self.check()?;
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        self.is_failed = written.is_err();
        written
    }
}

/// The lines of a ledger file.
pub(crate) fn read(text: &str) -> Result<Vec<Line>, String> {
    text.lines().map(|line| parse(line).ok_or(format!("`{line}` is no line of a ledger"))).collect()
}

fn parse(line: &str) -> Option<Line> {
    let mut words = line.splitn(5, ' ');
    let term = words.next()?.parse().ok()?;
    let author = Author { term, node: words.next()?.parse().ok()? };
    let text = match words.next()? {
        "enter" => None,
        "line" => Some((words.next()?.parse().ok()?, words.next()?.to_owned())),
        _ => return None,
    };
    Some(Line { author, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Author = Author { term: 3, node: 1 };
    const NEW: Author = Author { term: 5, node: 2 };

    #[test]
    fn an_older_term_is_refused_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let mut ledger = Ledger::open(&path).unwrap();
        assert_eq!(ledger.enter(OLD).unwrap(), 0);
        ledger.append(OLD, 1, "a b").unwrap();
        // The new leader has entered and not written: that alone shuts the old one out.
        assert_eq!(ledger.enter(NEW).unwrap(), 1);
        let stale = StaleToken::clone(match &ledger.append(OLD, 2, "late").unwrap_err() {
            Refused::Stale(stale) => stale,
            error => panic!("{error}"),
        });
        assert_eq!((stale.token, stale.latest), (3, 5));
        drop(ledger);
        let mut ledger = Ledger::open(&path).unwrap();
        assert!(matches!(ledger.append(OLD, 2, "late"), Err(Refused::Stale(_))));
        assert!(matches!(ledger.enter(OLD), Err(Refused::Stale(_))));
        assert!(matches!(ledger.append(NEW, 3, "c"), Err(Refused::Gap { number: 3, last: 1 })));
        ledger.append(NEW, 2, "c").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "3 1 enter\n3 1 line 1 a b\n5 2 enter\n5 2 line 2 c\n");
    }

    #[test]
    fn a_torn_line_is_cut_and_a_foreign_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        std::fs::write(&path, "3 1 enter\n3 1 line 1 a\n3 1 li").unwrap();
        let mut ledger = Ledger::open(&path).unwrap();
        assert_eq!(ledger.enter(OLD).unwrap(), 1);
        ledger.append(OLD, 2, "b").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "3 1 enter\n3 1 line 1 a\n3 1 line 2 b\n");
        drop(ledger);
        // In the middle of a character.
        let torn = [text.as_bytes(), b"3 1 line 3 \xc3"].concat();
        std::fs::write(&path, torn).unwrap();
        assert_eq!(Ledger::open(&path).unwrap().enter(OLD).unwrap(), 2);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        for foreign in ["something else\n", "something else", "3 1 enter\nelse\nand more"] {
            std::fs::write(&path, foreign).unwrap();
            let error = Ledger::open(&path).unwrap_err().to_string();
            assert!(error.contains("is no"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), foreign);
        }
    }
}
