//! Leaving a full segment for the next one, and the index that it gets afterwards.

use std::sync::Arc;

use super::log::LogInner;
use super::seal::{Seal, SealedLog};
use super::segment::Segment;
use super::writer::{Active, Writer, plain_section};
use super::{Counters, Engine, LOGS_AT_ONCE};
use crate::error::{Error, Fault};
use crate::format::frame::{FrameKind, Header, SectionKind};
use crate::format::table;

impl Engine {
    /// Leaves the active segment for a spare: makes its commits durable, leaves its index to be
    /// written later, and stages the table with which the next one begins. So a commit that needs
    /// a new segment costs one write and one sync like any other.
    pub(crate) fn rotate(&self, writer: &mut Writer, spare: Arc<Segment>) -> Result<(), Fault> {
        if writer.unsynced {
            self.sync(writer)?;
        }
        let seal = (!writer.active.sealed).then(|| self.seal_of(writer));
        let active = Active::new(spare);
        let old = std::mem::replace(&mut writer.active, active);
        self.space.add_sealed(old.segment, seal);
        self.stage_table(writer);
        writer.sync_next = true;
        Counters::add(&self.counters.rotations, 1);
        Ok(())
    }

    /// Stages the table of all logs, as what has been written left them.
    ///
    /// The state is locked for a few logs at a time, so that submitting a commit does not wait for
    /// a table of many logs. Taken bounds do not change meanwhile: only the leader takes commits.
    pub(crate) fn stage_table(&self, writer: &mut Writer) {
        let (names_missing, next_number) = {
            let state = self.state.lock();
            (state.names_missing, state.next_number)
        };
        let mut table = table::Encoder::new(names_missing);
        self.each_existing(|log| {
            let name = log.inner.name();
            table.push(&name.namespace, name.id, &log.taken, log.last);
        });
        let (payload, count) = table.finish();
        let section = plain_section(SectionKind::Table, next_number, count, &payload);
        let lsn = writer.take_lsn();
        writer.active.first_lsn = lsn;
        let mut header = Header::new(FrameKind::Table, lsn, writer.epoch, &[section]);
        header.mark = self.durable_lsn();
        writer.stage_plain(&header, &[section], &[&payload]);
    }
}

impl Engine {
    /// What the index of the active segment will say, which takes the next LSN.
    pub(crate) fn seal_of(&self, writer: &mut Writer) -> Seal {
        let lsn = writer.take_lsn();
        let Active { segment, tail, first_lsn, logs, .. } = &writer.active;
        segment.set_full(*first_lsn, lsn);
        let mut indexes = logs.clone();
        indexes.sort_unstable();
        indexes.dedup();
        let mut logs = Vec::with_capacity(indexes.len());
        // A few logs at a time, so that submitting a commit does not wait for all of them.
        for indexes in indexes.chunks(LOGS_AT_ONCE) {
            let some = self.logs_at(indexes.iter().copied());
            logs.extend(some.iter().filter_map(|log| {
                let view = log.view.read();
                SealedLog::new(log.index(), view.bounds.number, view.extent_in(segment)?)
            }));
        }
        let (segment, mark) = (Arc::clone(segment), self.durable_lsn());
        Seal { at: *tail, lsn, epoch: writer.epoch, mark, logs, segment }
    }

    /// Writes the indexes that segments left behind have to get, and forgets in memory what they
    /// say. They are not synced: without one a recovery reads the frames.
    pub(crate) fn seal_full_segments(&self) -> Result<(), Fault> {
        // One thread at a time, and never beside the preparation of the same file for a new life.
        let _keeper = self.keeper.lock();
        if matches!(self.rejection(), Some(Error::Stopped { .. })) {
            return Ok(());
        }
        while let Some(seal) = self.space.next_seal() {
            Counters::add(&self.counters.bytes, seal.write()?);
            for logs in seal.logs.chunks(LOGS_AT_ONCE) {
                for log in self.logs_at(logs.iter().map(|log| log.index)) {
                    log.view.write().seal(&seal.segment);
                }
            }
        }
        Ok(())
    }

    /// The logs with these places in the table of logs, as far as they are there. A log may have
    /// records in each segment, so that what it has is looked through without the state's lock.
    fn logs_at(&self, indexes: impl Iterator<Item = u32>) -> Vec<Arc<LogInner>> {
        let state = self.state.lock();
        let log_at =
            |index: u32| Some(Arc::clone(&state.logs.get(index as usize)?.as_ref()?.inner));
        indexes.filter_map(log_at).collect()
    }
}
