//! Names, numbers and limits of the on-disk format. `docs/on-disk-format.md` explains them; a test
//! keeps the two equal.

use protocol::units::ObjectId;

/// Version of a brick that holds a retained point, or held one since it was opened; the newest that
/// is read.
pub const FORMAT_VERSION: u32 = 2;
/// Version of a brick without one: nothing in it needs the newer.
pub const FORMAT_WITHOUT_POINTS: u32 = 1;
/// Version of the journal's segments.
pub const JOURNAL_VERSION: u32 = 1;
/// The brick's own directory inside the directory that the operator named.
pub const DIRECTORY: &str = ".cairn";
/// Two copies of the superblock.
pub const SUPERBLOCK: &str = "superblock";
/// Locked while a process has the brick open.
pub const LOCK: &str = "LOCK";
/// The metadata store.
pub const STORE: &str = "meta.redb";
/// Journal segments.
pub const JOURNAL: &str = "journal";
/// Object files.
pub const OBJECTS: &str = "objects";
/// What retained points keep of object files.
pub const POINTS: &str = "points";

/// First bytes of a superblock copy.
pub const SUPERBLOCK_MAGIC: [u8; 8] = *b"CAIRNSB\0";
/// Bytes of one superblock copy.
pub const SUPERBLOCK_BYTES: usize = 128 * 1024;
/// Longest description of the volume in a superblock, as JSON.
pub const SPEC_BYTES_MAX: usize = 64 * 1024;
/// Longest replication state in a superblock.
pub const STATE_BYTES_MAX: usize = 48 * 1024;

/// First bytes of a journal segment.
pub const SEGMENT_MAGIC: [u8; 8] = *b"CAIRNSEG";
/// Bytes of a segment before its first frame.
pub const SEGMENT_HEADER_BYTES: u64 = 4096;
/// Bytes of a frame before its parts.
pub const FRAME_HEADER_BYTES: usize = 40;
/// Frames begin at multiples of this.
pub const FRAME_ALIGN: u64 = 8;

/// An object whose bytes all lie before this stands in the metadata store.
pub const INLINE_BYTES_MAX: u64 = 4096;

/// Directory of an object's file: 256 objects made one after another share it.
#[must_use]
pub fn object_dirs(object: ObjectId) -> [String; 2] {
    let outer = format!("{OBJECTS}/{:02x}", (object.0 >> 16) & 0xff);
    let inner = format!("{outer}/{:02x}", (object.0 >> 8) & 0xff);
    [outer, inner]
}

/// An object's file.
#[must_use]
pub fn object_path(object: ObjectId) -> String {
    let [_, inner] = object_dirs(object);
    format!("{inner}/{:016x}", object.0)
}

/// The object that a file's name stands for.
#[must_use]
pub fn object_of_name(name: &str) -> Option<ObjectId> {
    (name.len() == 16)
        .then(|| u64::from_str_radix(name, 16).ok().map(ObjectId))
        .flatten()
}

/// Directory of what a point keeps.
#[must_use]
pub fn point_dir(point: u64) -> String {
    format!("{POINTS}/{point:08x}")
}

/// Directory of the files that a point keeps of an object.
#[must_use]
pub fn kept_dir(point: u64, object: ObjectId) -> String {
    format!("{}/{:02x}", point_dir(point), (object.0 >> 8) & 0xff)
}

/// Blocks of an object as they were, each at its own place in a sparse file.
#[must_use]
pub fn kept_path(point: u64, object: ObjectId) -> String {
    format!("{}/{:016x}", kept_dir(point, object), object.0)
}

/// The file of an object that was dropped, as a whole.
#[must_use]
pub fn whole_path(point: u64, object: ObjectId) -> String {
    format!("{}.whole", kept_path(point, object))
}

/// The point that a directory's name stands for.
#[must_use]
pub fn point_of_name(name: &str) -> Option<u64> {
    (name.len() == 8)
        .then(|| u64::from_str_radix(name, 16).ok())
        .flatten()
}

/// A segment's file.
#[must_use]
pub fn segment_path(slot: u32) -> String {
    format!("{JOURNAL}/{slot:08}.seg")
}

/// The slot of a segment's file name.
#[must_use]
pub fn segment_slot(name: &str) -> Option<u32> {
    name.strip_suffix(".seg")?.parse().ok()
}
