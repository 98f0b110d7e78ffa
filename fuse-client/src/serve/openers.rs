//! Who opened what. Data is asked for as whoever opened the file: another process may have got the
//! descriptor, and the kernel writes mappings back as nobody at all.

use std::collections::HashMap;

use parking_lot::Mutex;
use protocol::fs::Caller;

/// Handles of open files and directories, each with who opened it.
#[derive(Debug, Default)]
pub(super) struct Openers(Mutex<HashMap<u64, Caller>>);

impl Openers {
    /// `caller` asks to open `handle`.
    pub(super) fn opens(&self, handle: u64, caller: Caller) {
        self.0.lock().insert(handle, caller);
    }

    /// It was closed, or not opened after all.
    pub(super) fn closed(&self, handle: u64) {
        self.0.lock().remove(&handle);
    }

    /// Who opened it; `now` where that is not known.
    pub(super) fn of(&self, handle: u64, now: Caller) -> Caller {
        self.0.lock().get(&handle).copied().unwrap_or(now)
    }
}
