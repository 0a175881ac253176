//! Whether a thread has the lead.

/// Set while a thread leads, or has been told to. It is part of the state, so that it changes
/// together with the queue; only the module of the lead changes it.
#[derive(Debug, Default)]
pub(crate) struct LeadFlag {
    taken: bool,
}

impl LeadFlag {
    pub(crate) fn is_taken(&self) -> bool {
        self.taken
    }

    /// Takes the lead; answers whether it was free.
    pub(super) fn take(&mut self) -> bool {
        !std::mem::replace(&mut self.taken, true)
    }

    pub(super) fn free(&mut self) {
        self.taken = false;
    }
}
