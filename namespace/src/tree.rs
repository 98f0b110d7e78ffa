//! The tree as a whole: a new volume's, walking it, orphans.

use bytes::Bytes;
use protocol::record::Change;
use protocol::units::{ObjectId, Timestamp};

use crate::entry::{Entry, Slot};
use crate::execute::delete_object;
use crate::inode::{Detail, Inode, S_IFDIR};
use crate::transaction::{Stop, Transaction, damaged, encode_totals, read_inode, read_totals};
use crate::{ExecuteError, Store, keys};

/// Deepest directory that [`walk`] and the check for renames into oneself go: far deeper than
/// any path that can be named; more means that parents form a ring.
pub(crate) const DEPTH_MAX: usize = 1 << 20;
/// Entries that are read at once, so that a scan of a huge directory does not hold it in memory.
const BATCH: usize = 1024;

/// What a new volume holds: the root directory, root:root 0755.
#[must_use]
pub fn mkfs(now: Timestamp) -> Vec<Change> {
    root(now, 0)
}

/// A root directory with so many files, whose own keys stand elsewhere.
pub(crate) fn root(now: Timestamp, files: u64) -> Vec<Change> {
    let root = Inode {
        mode: S_IFDIR | 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        xattrs: 0,
        size: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        detail: Detail::Directory {
            parent: ObjectId::ROOT,
            entries: files,
        },
    };
    vec![
        Change::Put {
            key: Bytes::copy_from_slice(&keys::inode(ObjectId::ROOT)),
            value: root.encode(),
        },
        Change::Put {
            key: Bytes::from_static(keys::TOTALS),
            value: encode_totals(1 + files),
        },
    ]
}

/// Objects in use, orphans included.
pub fn objects<S: Store>(store: &S) -> Result<u64, ExecuteError<S::Error>> {
    read_totals(store)
}

/// Objects without a name that wait for their last close.
pub type Orphans = Vec<ObjectId>;

/// Every orphan. A new primary releases those that no session presents again.
pub fn orphans<S: Store>(store: &S) -> Result<Orphans, ExecuteError<S::Error>> {
    let mut found = Vec::new();
    store
        .scan(
            &[keys::ORPHAN],
            &keys::end_of(keys::ORPHAN),
            &mut |key, _| {
                found.extend(keys::object_of(key));
                true
            },
        )
        .map_err(ExecuteError::Store)?;
    Ok(found)
}

/// Whether the object has no name and waits for its last close.
pub fn is_orphan<S: Store>(store: &S, object: ObjectId) -> Result<bool, ExecuteError<S::Error>> {
    let value = store
        .get(&keys::orphan(object))
        .map_err(ExecuteError::Store)?;
    Ok(value.is_some())
}

/// The changes that delete an orphan whose last open has gone; none where it is no orphan.
pub fn release_orphan<S: Store>(
    store: &S,
    object: ObjectId,
) -> Result<Vec<Change>, ExecuteError<S::Error>> {
    if !is_orphan(store, object)? {
        return Ok(Vec::new());
    }
    let Some(inode) = read_inode(store, object)? else {
        return Err(ExecuteError::Inconsistent { object });
    };
    let mut tx = Transaction::new(store);
    tx.delete(&keys::orphan(object));
    match delete_object(&mut tx, object, &inode) {
        Ok(()) => Ok(tx.into_changes()),
        Err(Stop::Failed(error)) => Err(error),
        Err(Stop::Errno(_)) => Err(ExecuteError::Inconsistent { object }),
    }
}

/// Entries, and the cookie of the last key that was read.
type Batch = (Vec<Entry>, Option<u64>);

/// Reads up to [`BATCH`] entries after `cookie` and the last cookie seen, `None` at the end.
fn batch<S: Store>(
    store: &S,
    parent: ObjectId,
    cookie: u64,
) -> Result<Batch, ExecuteError<S::Error>> {
    let mut entries = Vec::new();
    let mut last = None;
    let mut broken = None;
    let from = keys::entry(parent, cookie + 1);
    let to = keys::entry(parent, 1 << 63);
    store
        .scan(&from, &to, &mut |key, value| {
            match Slot::decode(Bytes::copy_from_slice(value)) {
                Ok(slot) => entries.extend(slot.entry),
                Err(source) => {
                    broken = Some(damaged(key, source));
                    return false;
                }
            }
            last = keys::entry_cookie(key);
            entries.len() < BATCH
        })
        .map_err(ExecuteError::Store)?;
    match broken {
        Some(error) => Err(error),
        None => Ok((entries, last)),
    }
}

struct Level {
    object: ObjectId,
    cookie: u64,
    path_bytes: usize,
    pending: std::vec::IntoIter<Entry>,
}

/// Calls `f` with the path (without a leading `/`), the object and its inode for everything in
/// the tree but the root, directories before what is in them, until it returns false. Memory
/// grows with the depth, not with the size of the tree.
pub fn walk<S: Store>(
    store: &S,
    f: &mut dyn FnMut(&[u8], ObjectId, &Inode) -> bool,
) -> Result<(), ExecuteError<S::Error>> {
    let mut path = Vec::new();
    let mut levels = vec![Level {
        object: ObjectId::ROOT,
        cookie: 0,
        path_bytes: 0,
        pending: Vec::new().into_iter(),
    }];
    while let Some(level) = levels.last_mut() {
        path.truncate(level.path_bytes);
        let Some(entry) = level.pending.next() else {
            let (entries, last) = batch(store, level.object, level.cookie)?;
            match last {
                Some(last) => {
                    level.cookie = last;
                    level.pending = entries.into_iter();
                }
                None => {
                    levels.pop();
                }
            }
            continue;
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&entry.name);
        let object = entry.object;
        let inode = read_inode(store, object)?.ok_or(ExecuteError::Inconsistent { object })?;
        if !f(&path, object, &inode) {
            return Ok(());
        }
        if inode.is_directory() {
            if levels.len() >= DEPTH_MAX {
                return Err(ExecuteError::Inconsistent { object });
            }
            levels.push(Level {
                object,
                cookie: 0,
                path_bytes: path.len(),
                pending: Vec::new().into_iter(),
            });
        }
    }
    Ok(())
}

/// The object that a key and its value are about: an inode, an attribute of it, or the entry that
/// names it. `None`: the key says nothing about what users see, or names nothing.
#[must_use]
pub fn about(key: &[u8], value: Option<&[u8]>) -> Option<ObjectId> {
    match *key.first()? {
        keys::INODE | keys::XATTR => keys::object_of(key),
        keys::ENTRY => {
            let slot = Slot::decode(Bytes::copy_from_slice(value?)).ok()?;
            slot.entry.map(|entry| entry.object)
        }
        _ => None,
    }
}

/// The inode of an object; `None`: there is none.
pub fn inode_of<S: Store>(
    store: &S,
    object: ObjectId,
) -> Result<Option<Inode>, ExecuteError<S::Error>> {
    read_inode(store, object)
}

/// A path (without a leading `/`) that names the object, the root's being empty. Walks the tree
/// until it finds one: for people, not for a request.
pub fn path_of<S: Store>(
    store: &S,
    object: ObjectId,
) -> Result<Option<Bytes>, ExecuteError<S::Error>> {
    if object == ObjectId::ROOT {
        return Ok(Some(Bytes::new()));
    }
    let mut found = None;
    walk(store, &mut |path, at, _| {
        if at == object {
            found = Some(Bytes::copy_from_slice(path));
        }
        found.is_none()
    })?;
    Ok(found)
}
