//! The process that has a log open: it tells its parent each step, and is killed with the power.
//!
//! Lines on its standard output: `R n` a record that was found; `X why` one that was never made;
//! `L` the end of them; `S n` a record is appended; `A n` it was acknowledged; `E n why` it was
//! not; `F why` the log did not open or could not be read; `P` it takes nothing any more.

use std::io::{self, Write};
use std::path::Path;

use crate::{record, subjects};

/// After so many errors in a row nothing more is tried.
const MAX_ERRORS: u32 = 3;

fn tell(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", line.replace('\n', " "))?;
    out.flush()
}

/// Opens the log, tells what it has, and appends until it is killed or rejected; `appends` ends it
/// before, in a life without faults.
pub(crate) fn run(name: &str, folder: &Path, first: u64, appends: u64) -> io::Result<()> {
    let mut subject = match subjects::open(name, folder) {
        Ok(subject) => subject,
        Err(error) => return tell(&format!("F {error}")),
    };
    let records = match subject.records() {
        Ok(records) => records,
        Err(error) => return tell(&format!("F {error}")),
    };
    for found in &records {
        match record::number(found) {
            Some(number) => tell(&format!("R {number}"))?,
            None => tell(&format!("X {} bytes", found.len()))?,
        }
    }
    tell("L")?;
    let mut errors = 0;
    for number in first..first + appends {
        tell(&format!("S {number}"))?;
        match subject.append(&record::make(number)) {
            Ok(()) => {
                errors = 0;
                tell(&format!("A {number}"))?;
            }
            Err(error) => {
                errors += 1;
                tell(&format!("E {number} {error}"))?;
                if errors == MAX_ERRORS {
                    return tell("P");
                }
            }
        }
    }
    Ok(())
}
