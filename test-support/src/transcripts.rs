//! Golden transcripts: text files of what goes in and everything that comes out.

use std::path::Path;

/// Plays each file of `folder`, of which there are at least `least`, and holds it against what
/// `play` makes of it: what the file should look like. With `UPDATE=1` in the environment the files
/// are rewritten instead.
///
/// # Panics
/// If a file differs, cannot be read or written, or there are too few.
pub fn check(folder: &Path, least: usize, play: impl Fn(&str) -> String) {
    let update = std::env::var_os("UPDATE").is_some();
    let mut played = 0;
    for file in std::fs::read_dir(folder).expect("the folder of the transcripts") {
        let path = file.expect("an entry of the folder").path();
        let expected = std::fs::read_to_string(&path).expect("a transcript is text");
        let actual = play(&expected);
        if update {
            std::fs::write(&path, actual).expect("a transcript is rewritten");
        } else {
            assert_eq!(actual, expected, "{} differs; UPDATE=1 rewrites it", path.display());
        }
        played += 1;
    }
    assert!(played >= least, "the transcripts are gone");
}
