//! Object files: opening, and what of their directories is not durable yet.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;

use protocol::units::ObjectId;

use crate::layout::{OBJECTS, object_dirs, object_path};
use crate::medium::{Medium, OpenMode};

/// Most files kept open.
const OPEN_FILES_MAX: usize = 512;

/// Opens an object's file, making it and its directories where they are missing. The directories
/// whose entries changed are added to `dirs`.
pub(crate) fn open_or_make<M: Medium>(
    medium: &M,
    object: ObjectId,
    dirs: &mut BTreeSet<String>,
) -> io::Result<M::File> {
    let path = object_path(object);
    match medium.open(&path, OpenMode::Write) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let [outer, inner] = object_dirs(object);
    if medium.make_dir(&outer)? {
        dirs.insert(OBJECTS.to_owned());
    }
    if medium.make_dir(&inner)? {
        dirs.insert(outer);
    }
    let file = medium.open(&path, OpenMode::Create)?;
    dirs.insert(inner);
    Ok(file)
}

/// Open object files.
pub(crate) struct Files<M: Medium> {
    medium: M,
    read_only: bool,
    open: RefCell<HashMap<ObjectId, M::File>>,
    /// Directories with entries that are not durable, and when that was last made so.
    dirty_dirs: BTreeMap<String, u64>,
    changes: u64,
}

impl<M: Medium> Files<M> {
    pub(crate) fn new(medium: M, read_only: bool) -> Self {
        Self {
            medium,
            read_only,
            open: RefCell::default(),
            dirty_dirs: BTreeMap::new(),
            changes: 0,
        }
    }

    fn keep(&self, object: ObjectId, file: &M::File) {
        let mut open = self.open.borrow_mut();
        if open.len() >= OPEN_FILES_MAX {
            open.clear();
        }
        open.insert(object, file.clone());
    }

    /// For reading: `None` where there is no file.
    pub(crate) fn get(&self, object: ObjectId) -> io::Result<Option<M::File>> {
        if let Some(file) = self.open.borrow().get(&object) {
            return Ok(Some(file.clone()));
        }
        let mode = if self.read_only {
            OpenMode::Read
        } else {
            OpenMode::Write
        };
        match self.medium.open(&object_path(object), mode) {
            Ok(file) => {
                self.keep(object, &file);
                Ok(Some(file))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// For writing; true if it was not open before, so that nothing is known of its length.
    pub(crate) fn get_or_make(&mut self, object: ObjectId) -> io::Result<(M::File, bool)> {
        if let Some(file) = self.open.borrow().get(&object) {
            return Ok((file.clone(), false));
        }
        let mut dirs = BTreeSet::new();
        let file = open_or_make(&self.medium, object, &mut dirs)?;
        self.changes += 1;
        for dir in dirs {
            self.dirty_dirs.insert(dir, self.changes);
        }
        self.keep(object, &file);
        Ok((file, true))
    }

    /// Directories to be synced, each with the mark to give to [`Files::dir_synced`].
    pub(crate) fn dirty_dirs(&self) -> Vec<(String, u64)> {
        let dirs = self.dirty_dirs.iter();
        dirs.map(|(dir, mark)| (dir.clone(), *mark)).collect()
    }

    pub(crate) fn dir_synced(&mut self, dir: &str, mark: u64) {
        if self.dirty_dirs.get(dir) == Some(&mark) {
            self.dirty_dirs.remove(dir);
        }
    }

    /// The file is, or will be, another one.
    pub(crate) fn forget(&self, object: ObjectId) {
        self.open.borrow_mut().remove(&object);
    }
}
