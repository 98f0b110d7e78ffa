//! redb's file on a medium.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};

use redb::StorageBackend;

use crate::error::IoFault;
use crate::layout::STORE;
use crate::medium::{Medium, OpenMode};

/// The store's file, written in place.
pub(crate) struct MediumBackend<M: Medium> {
    medium: M,
    file: M::File,
}

impl<M: Medium> std::fmt::Debug for MediumBackend<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MediumBackend").finish_non_exhaustive()
    }
}

impl<M: Medium> MediumBackend<M> {
    pub(crate) fn open(medium: &M, create: bool) -> Result<Self, IoFault> {
        let mode = if create {
            OpenMode::Create
        } else {
            OpenMode::Write
        };
        let file = medium
            .open(STORE, mode)
            .map_err(|error| IoFault::new("open the metadata store", &error))?;
        Ok(Self {
            medium: medium.clone(),
            file,
        })
    }
}

fn read_exact<M: Medium>(medium: &M, file: &M::File, at: u64, out: &mut [u8]) -> io::Result<()> {
    if medium.read_at(file, at, out)? < out.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

impl<M: Medium> StorageBackend for MediumBackend<M> {
    fn len(&self) -> io::Result<u64> {
        self.medium.len(&self.file)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        read_exact(&self.medium, &self.file, offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.medium.set_len(&self.file, len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.medium.sync(&self.file)
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.medium.write_at(&self.file, offset, data)
    }
}

const PAGE: u64 = 4096;

#[derive(Debug, Default)]
struct Changed {
    pages: BTreeMap<u64, Box<[u8]>>,
    len: u64,
    /// Nothing of the file counts at or past this.
    base_len: u64,
}

/// The store's file with all changes in memory: a repair that leaves no trace.
pub(crate) struct CopyOnWrite<M: Medium> {
    medium: M,
    file: M::File,
    changed: Mutex<Changed>,
}

impl<M: Medium> std::fmt::Debug for CopyOnWrite<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CopyOnWrite").finish_non_exhaustive()
    }
}

impl<M: Medium> CopyOnWrite<M> {
    pub(crate) fn open(medium: &M) -> Result<Self, IoFault> {
        let open = || -> io::Result<Self> {
            let file = medium.open(STORE, OpenMode::Read)?;
            let len = medium.len(&file)?;
            Ok(Self {
                medium: medium.clone(),
                file,
                changed: Mutex::new(Changed {
                    pages: BTreeMap::new(),
                    len,
                    base_len: len,
                }),
            })
        };
        open().map_err(|error| IoFault::new("open the metadata store", &error))
    }

    fn page(&self, changed: &Changed, page: u64) -> io::Result<Box<[u8]>> {
        if let Some(found) = changed.pages.get(&page) {
            return Ok(found.clone());
        }
        let mut out = vec![0; PAGE as usize].into_boxed_slice();
        let start = page * PAGE;
        if start < changed.base_len {
            let part = (changed.base_len - start).min(PAGE) as usize;
            self.medium.read_at(&self.file, start, &mut out[..part])?;
        }
        Ok(out)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Changed> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: Medium> StorageBackend for CopyOnWrite<M> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let changed = self.lock();
        if offset + out.len() as u64 > changed.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut at = 0;
        while at < out.len() {
            let position = offset + at as u64;
            let inside = (position % PAGE) as usize;
            let part = (out.len() - at).min(PAGE as usize - inside);
            let page = self.page(&changed, position / PAGE)?;
            out[at..at + part].copy_from_slice(&page[inside..inside + part]);
            at += part;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut changed = self.lock();
        if len < changed.len {
            let edge = self.page(&changed, len / PAGE)?;
            changed.pages.split_off(&(len / PAGE));
            changed.base_len = changed.base_len.min(len);
            if !len.is_multiple_of(PAGE) {
                let mut edge = edge;
                edge[(len % PAGE) as usize..].fill(0);
                changed.pages.insert(len / PAGE, edge);
            }
        }
        changed.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut changed = self.lock();
        let mut at = 0;
        while at < data.len() {
            let position = offset + at as u64;
            let inside = (position % PAGE) as usize;
            let part = (data.len() - at).min(PAGE as usize - inside);
            let mut page = self.page(&changed, position / PAGE)?;
            page[inside..inside + part].copy_from_slice(&data[at..at + part]);
            changed.pages.insert(position / PAGE, page);
            at += part;
        }
        changed.len = changed.len.max(offset + data.len() as u64);
        Ok(())
    }
}
