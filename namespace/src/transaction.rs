//! One operation's view of the volume: the store with the operation's own changes over it.

use bytes::Bytes;
use protocol::codec::{DecodeError, Reader, Writer};
use protocol::record::Change;
use protocol::units::ObjectId;

use crate::entry::{CHAIN_MAX, Entry, Slot, first_cookie};
use crate::errno::{ENOENT, ENOSPC, ENOTDIR, ESTALE};
use crate::inode::{Detail, Inode, S_IFDIR};
use crate::{ExecuteError, Store, keys};

/// Why an operation ends before its end.
pub(crate) enum Stop<E: std::error::Error + 'static> {
    /// It fails, as POSIX wants.
    Errno(i32),
    /// It cannot be decided.
    Failed(ExecuteError<E>),
}

impl<E: std::error::Error + 'static> From<ExecuteError<E>> for Stop<E> {
    fn from(error: ExecuteError<E>) -> Self {
        Self::Failed(error)
    }
}

pub(crate) type Step<T, S> = Result<T, Stop<<S as Store>::Error>>;

/// An entry that was found, and where.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) cookie: u64,
    pub(crate) object: ObjectId,
    pub(crate) file_type: u32,
}

impl Found {
    pub(crate) fn is_directory(&self) -> bool {
        self.file_type == S_IFDIR
    }
}

pub(crate) struct Transaction<'a, S: Store> {
    store: &'a S,
    /// Few: searched from the end.
    puts: Vec<(Bytes, Option<Bytes>)>,
    data: Vec<Change>,
}

pub(crate) fn damaged<E: std::error::Error + 'static>(
    key: &[u8],
    source: DecodeError,
) -> ExecuteError<E> {
    ExecuteError::Damaged {
        kind: key.first().copied().unwrap_or(b'?'),
        at: keys::object_of(key).map_or(0, |object| object.0),
        source,
    }
}

pub(crate) fn read_inode<S: Store>(
    store: &S,
    object: ObjectId,
) -> Result<Option<Inode>, ExecuteError<S::Error>> {
    let key = keys::inode(object);
    let Some(value) = store.get(&key).map_err(ExecuteError::Store)? else {
        return Ok(None);
    };
    Inode::decode(value)
        .map(Some)
        .map_err(|source| damaged(&key, source))
}

pub(crate) fn read_totals<S: Store>(store: &S) -> Result<u64, ExecuteError<S::Error>> {
    match store.get(keys::TOTALS).map_err(ExecuteError::Store)? {
        None => Ok(0),
        Some(value) => decode_totals(value).map_err(|source| damaged(keys::TOTALS, source)),
    }
}

fn decode_totals(value: Bytes) -> Result<u64, DecodeError> {
    let mut r = Reader::new(value);
    match r.u8("totals version")? {
        1 => {}
        other => {
            return Err(DecodeError::Invalid {
                what: "totals version",
                value: u64::from(other),
            });
        }
    }
    let objects = r.u64("objects")?;
    r.end("totals")?;
    Ok(objects)
}

pub(crate) fn encode_totals(objects: u64) -> Bytes {
    Writer::with_capacity(9).u8(1).u64(objects).finish()
}

impl<'a, S: Store> Transaction<'a, S> {
    pub(crate) fn new(store: &'a S) -> Self {
        Self {
            store,
            puts: Vec::new(),
            data: Vec::new(),
        }
    }

    pub(crate) fn store(&self) -> &'a S {
        self.store
    }

    /// Every key's last change, then the changes of data.
    pub(crate) fn into_changes(self) -> Vec<Change> {
        let mut changes: Vec<_> = self
            .puts
            .into_iter()
            .map(|(key, value)| match value {
                Some(value) => Change::Put { key, value },
                None => Change::Delete { key },
            })
            .collect();
        changes.extend(self.data);
        changes
    }

    pub(crate) fn get(&self, key: &[u8]) -> Step<Option<Bytes>, S> {
        if let Some((_, value)) = self.puts.iter().rev().find(|(k, _)| &k[..] == key) {
            return Ok(value.clone());
        }
        self.store
            .get(key)
            .map_err(|e| Stop::Failed(ExecuteError::Store(e)))
    }

    fn change(&mut self, key: &[u8], value: Option<Bytes>) {
        match self.puts.iter_mut().find(|(k, _)| &k[..] == key) {
            Some(slot) => slot.1 = value,
            None => self.puts.push((Bytes::copy_from_slice(key), value)),
        }
    }

    pub(crate) fn put(&mut self, key: &[u8], value: Bytes) {
        self.change(key, Some(value));
    }

    pub(crate) fn delete(&mut self, key: &[u8]) {
        self.change(key, None);
    }

    pub(crate) fn data(&mut self, change: Change) {
        self.data.push(change);
    }

    fn try_inode(&self, object: ObjectId) -> Step<Option<Inode>, S> {
        let key = keys::inode(object);
        let Some(value) = self.get(&key)? else {
            return Ok(None);
        };
        Inode::decode(value)
            .map(Some)
            .map_err(|source| damaged(&key, source).into())
    }

    /// The object that a request names. ESTALE where it is gone.
    pub(crate) fn inode(&self, object: ObjectId) -> Step<Inode, S> {
        self.try_inode(object)?.ok_or(Stop::Errno(ESTALE))
    }

    /// The object that an entry names.
    pub(crate) fn named(&self, object: ObjectId) -> Step<Inode, S> {
        self.try_inode(object)?
            .ok_or_else(|| ExecuteError::Inconsistent { object }.into())
    }

    /// The directory in which a request names something. ENOENT where it was removed.
    pub(crate) fn directory(&self, parent: ObjectId) -> Step<Inode, S> {
        let inode = self.try_inode(parent)?.ok_or(Stop::Errno(ENOENT))?;
        if !inode.is_directory() {
            return Err(Stop::Errno(ENOTDIR));
        }
        if inode.nlink == 0 {
            return Err(Stop::Errno(ENOENT));
        }
        Ok(inode)
    }

    pub(crate) fn put_inode(&mut self, object: ObjectId, inode: &Inode) {
        self.put(&keys::inode(object), inode.encode());
    }

    /// Changes the number of objects in use.
    pub(crate) fn count_objects(&mut self, delta: i64) -> Step<(), S> {
        let objects = match self.get(keys::TOTALS)? {
            None => 0,
            Some(value) => decode_totals(value).map_err(|source| damaged(keys::TOTALS, source))?,
        };
        self.put(
            keys::TOTALS,
            encode_totals(objects.saturating_add_signed(delta)),
        );
        Ok(())
    }

    fn slot(&self, parent: ObjectId, cookie: u64) -> Step<Option<Slot>, S> {
        let key = keys::entry(parent, cookie);
        let Some(value) = self.get(&key)? else {
            return Ok(None);
        };
        Slot::decode(value)
            .map(Some)
            .map_err(|source| damaged(&key, source).into())
    }

    /// Looks a name up. Does not check that `parent` is a directory.
    pub(crate) fn find(&self, parent: ObjectId, name: &[u8]) -> Step<Option<Found>, S> {
        let first = first_cookie(name);
        let Some(slot) = self.slot(parent, first)? else {
            return Ok(None);
        };
        let found = |cookie, entry: &Entry| Found {
            cookie,
            object: entry.object,
            file_type: entry.file_type,
        };
        if let Some(entry) = slot.entry.as_ref().filter(|e| e.name == name) {
            return Ok(Some(found(first, entry)));
        }
        if !slot.chained {
            return Ok(None);
        }
        for cookie in first + 1..first + CHAIN_MAX {
            let slot = self.slot(parent, cookie)?;
            if let Some(entry) = slot.and_then(|s| s.entry).filter(|e| e.name == name) {
                return Ok(Some(found(cookie, &entry)));
            }
        }
        Ok(None)
    }

    /// Adds a name that does not exist.
    pub(crate) fn insert(&mut self, parent: ObjectId, entry: Entry) -> Step<(), S> {
        let first = first_cookie(&entry.name);
        let Some(mut head) = self.slot(parent, first)? else {
            self.put_slot(parent, first, false, Some(entry));
            return Ok(());
        };
        if head.entry.is_none() {
            self.put_slot(parent, first, head.chained, Some(entry));
            return Ok(());
        }
        for cookie in first + 1..first + CHAIN_MAX {
            if self.slot(parent, cookie)?.is_none() {
                self.put_slot(parent, cookie, false, Some(entry));
                if !head.chained {
                    head.chained = true;
                    self.put(&keys::entry(parent, first), head.encode());
                }
                return Ok(());
            }
        }
        Err(Stop::Errno(ENOSPC))
    }

    /// Lets the name at `cookie` name something else.
    pub(crate) fn repoint(
        &mut self,
        parent: ObjectId,
        cookie: u64,
        object: ObjectId,
        file_type: u32,
    ) -> Step<(), S> {
        let slot = self.slot(parent, cookie)?;
        let Some((chained, mut entry)) = slot.and_then(|s| Some((s.chained, s.entry?))) else {
            return Err(ExecuteError::Inconsistent { object: parent }.into());
        };
        entry.object = object;
        entry.file_type = file_type;
        self.put_slot(parent, cookie, chained, Some(entry));
        Ok(())
    }

    /// Removes the name at `cookie`.
    pub(crate) fn remove(&mut self, parent: ObjectId, cookie: u64) -> Step<(), S> {
        let first = cookie & !(CHAIN_MAX - 1);
        if cookie == first {
            let chained = self.slot(parent, first)?.is_some_and(|slot| slot.chained);
            if chained && self.chain_has_more(parent, first)? {
                self.put_slot(parent, first, true, None);
            } else {
                self.delete(&keys::entry(parent, first));
            }
            return Ok(());
        }
        self.delete(&keys::entry(parent, cookie));
        let head_removed = self
            .slot(parent, first)?
            .is_some_and(|slot| slot.entry.is_none());
        if head_removed && !self.chain_has_more(parent, first)? {
            self.delete(&keys::entry(parent, first));
        }
        Ok(())
    }

    fn chain_has_more(&self, parent: ObjectId, first: u64) -> Step<bool, S> {
        for cookie in first + 1..first + CHAIN_MAX {
            if self.slot(parent, cookie)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn put_slot(&mut self, parent: ObjectId, cookie: u64, chained: bool, entry: Option<Entry>) {
        let slot = Slot { chained, entry };
        self.put(&keys::entry(parent, cookie), slot.encode());
    }

    /// The directory's entries changed by `entries`, its sub-directories by `directories`.
    pub(crate) fn touch_directory(
        &mut self,
        object: ObjectId,
        now: protocol::units::Timestamp,
        entries: i64,
        directories: i32,
    ) -> Step<(), S> {
        let mut inode = self.named(object)?;
        let Detail::Directory { entries: count, .. } = &mut inode.detail else {
            return Err(ExecuteError::Inconsistent { object }.into());
        };
        *count = count.saturating_add_signed(entries);
        inode.nlink = inode.nlink.saturating_add_signed(directories);
        inode.modified(now);
        self.put_inode(object, &inode);
        Ok(())
    }
}
