//! The errnos that operations answer with, by Linux's numbers.

/// Operation not permitted.
pub const EPERM: i32 = 1;
/// No such file or directory.
pub const ENOENT: i32 = 2;
/// No such device or address: SEEK_DATA past the last data.
pub const ENXIO: i32 = 6;
/// Argument list too long: an extended attribute's value.
pub const E2BIG: i32 = 7;
/// Somebody holds a lock that clashes.
pub const EAGAIN: i32 = 11;
/// Permission denied: a default ACL of what is no directory.
pub const EACCES: i32 = 13;
/// Exists.
pub const EEXIST: i32 = 17;
/// fallocate of something that is neither file nor directory.
pub const ENODEV: i32 = 19;
/// Not a directory.
pub const ENOTDIR: i32 = 20;
/// Is a directory.
pub const EISDIR: i32 = 21;
/// Invalid argument.
pub const EINVAL: i32 = 22;
/// File too large.
pub const EFBIG: i32 = 27;
/// No space, or one extended attribute too many.
pub const ENOSPC: i32 = 28;
/// Too many links.
pub const EMLINK: i32 = 31;
/// Owners of locks would wait for each other for ever.
pub const EDEADLK: i32 = 35;
/// Name too long.
pub const ENAMETOOLONG: i32 = 36;
/// One lock too many.
pub const ENOLCK: i32 = 37;
/// Directory not empty.
pub const ENOTEMPTY: i32 = 39;
/// No such extended attribute.
pub const ENODATA: i32 = 61;
/// Not supported.
pub const EOPNOTSUPP: i32 = 95;
/// The object is gone; a kernel looks its path up again.
pub const ESTALE: i32 = 116;
