//! Object files: opening, and what of their directories is not durable yet.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::units::ObjectId;

use crate::layout::{OBJECTS, object_dirs, object_path};
use crate::medium::{Medium, OpenMode};

/// Most files kept open.
const OPEN_FILES_MAX: usize = 512;

/// Directories with entries that are not durable, shared by the brick's thread and a checkpoint's:
/// each may find a file that the other has just made.
#[derive(Debug, Clone, Default)]
pub(crate) struct DirtyDirs {
    inner: Arc<Mutex<Marks>>,
}

#[derive(Debug, Default)]
struct Marks {
    /// Each with the number of its last change.
    dirs: BTreeMap<String, u64>,
    changes: u64,
}

impl DirtyDirs {
    fn lock(&self) -> MutexGuard<'_, Marks> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, dir: String) {
        let mut marks = self.lock();
        marks.changes += 1;
        let change = marks.changes;
        marks.dirs.insert(dir, change);
    }

    /// Directories to be synced, each with the mark to give to [`DirtyDirs::synced`].
    pub(crate) fn list(&self) -> Vec<(String, u64)> {
        let marks = self.lock();
        marks
            .dirs
            .iter()
            .map(|(dir, mark)| (dir.clone(), *mark))
            .collect()
    }

    /// The directories are durable, as far as nothing changed in them since.
    pub(crate) fn synced(&self, dirs: &[(String, u64)]) {
        let mut marks = self.lock();
        for (dir, mark) in dirs {
            if marks.dirs.get(dir) == Some(mark) {
                marks.dirs.remove(dir);
            }
        }
    }

    /// Opens an object's file, making it and its directories where they are missing. A directory
    /// is listed before its entry is made: whoever finds the entry finds the mark.
    pub(crate) fn open_or_make<M: Medium>(
        &self,
        medium: &M,
        object: ObjectId,
    ) -> io::Result<M::File> {
        let path = object_path(object);
        match medium.open(&path, OpenMode::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let [outer, inner] = object_dirs(object);
        self.add(inner.clone());
        match medium.open(&path, OpenMode::Create) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        self.add(OBJECTS.to_owned());
        self.add(outer.clone());
        medium.make_dir(&outer)?;
        medium.make_dir(&inner)?;
        medium.open(&path, OpenMode::Create)
    }
}

/// Open object files.
pub(crate) struct Files<M: Medium> {
    medium: M,
    read_only: bool,
    open: RefCell<HashMap<ObjectId, M::File>>,
    pub(crate) dirty_dirs: DirtyDirs,
}

impl<M: Medium> Files<M> {
    pub(crate) fn new(medium: M, read_only: bool) -> Self {
        Self {
            medium,
            read_only,
            open: RefCell::default(),
            dirty_dirs: DirtyDirs::default(),
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

    /// For writing.
    pub(crate) fn get_or_make(&self, object: ObjectId) -> io::Result<M::File> {
        if let Some(file) = self.open.borrow().get(&object) {
            return Ok(file.clone());
        }
        let file = self.dirty_dirs.open_or_make(&self.medium, object)?;
        self.keep(object, &file);
        Ok(file)
    }

    /// Every file may be another one.
    pub(crate) fn forget_all(&self) {
        self.open.borrow_mut().clear();
    }

    /// The file is, or will be, another one.
    pub(crate) fn forget(&self, object: ObjectId) {
        self.open.borrow_mut().remove(&object);
    }
}
