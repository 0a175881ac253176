//! The content of one file, in shared pages: cloning a disk copies no data, and the zeros of a
//! prepared segment cost nothing.

use std::sync::Arc;

pub(super) const PAGE_BYTES: usize = 4096;

type Page = [u8; PAGE_BYTES];

/// `None` stands for a page of zeros.
#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    len: u64,
    pages: Vec<Option<Arc<Page>>>,
}

impl Image {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Extends with zeros; never shrinks, as no file of the seam does.
    pub(super) fn grow(&mut self, len: u64) {
        self.len = self.len.max(len);
        let pages = (self.len as usize).div_ceil(PAGE_BYTES);
        if self.pages.len() < pages {
            self.pages.resize(pages, None);
        }
    }

    /// Copies out what there is at `offset`; returns how much.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let available = self.len.saturating_sub(offset) as usize;
        let wanted = buf.len().min(available);
        let mut done = 0;
        while done < wanted {
            let (page, start) = place(offset + done as u64);
            let take = (PAGE_BYTES - start).min(wanted - done);
            let target = &mut buf[done..done + take];
            match &self.pages[page] {
                Some(bytes) => target.copy_from_slice(&bytes[start..start + take]),
                None => target.fill(0),
            }
            done += take;
        }
        wanted
    }

    pub(super) fn write(&mut self, data: &[u8], offset: u64) {
        if data.is_empty() {
            return;
        }
        self.grow(offset + data.len() as u64);
        let mut done = 0;
        while done < data.len() {
            let (page, start) = place(offset + done as u64);
            let take = (PAGE_BYTES - start).min(data.len() - done);
            let source = &data[done..done + take];
            let slot = &mut self.pages[page];
            let zeros = source.iter().all(|byte| *byte == 0);
            if zeros && take == PAGE_BYTES {
                *slot = None;
            } else if !(zeros && slot.is_none()) {
                let bytes = slot.get_or_insert_with(|| Arc::new([0; PAGE_BYTES]));
                Arc::make_mut(bytes)[start..start + take].copy_from_slice(source);
            }
            done += take;
        }
    }

    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize];
        self.read(&mut bytes, 0);
        bytes
    }
}

fn place(offset: u64) -> (usize, usize) {
    ((offset / PAGE_BYTES as u64) as usize, (offset % PAGE_BYTES as u64) as usize)
}
