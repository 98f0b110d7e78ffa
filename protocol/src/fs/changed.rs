//! What a reply tells of objects that its request changed, besides the outcome.

use super::wire::{decode_attributes, encode_attributes};
use super::{Attributes, CHANGED_DIRECTORIES_MAX};
use crate::codec::{DecodeError, Reader, Writer};
use crate::units::{ObjectId, Timestamp};

fn write_count(w: &mut Writer, count: usize) {
    w.u8(u8::try_from(count).expect("a request changes few objects"));
}

pub(super) fn write_times(w: &mut Writer, times: &[(ObjectId, Timestamp)]) {
    write_count(w, times.len());
    for (object, at) in times {
        w.u64(object.0).i64(at.0);
    }
}

pub(super) fn read_times(r: &mut Reader) -> Result<Vec<(ObjectId, Timestamp)>, DecodeError> {
    let count = r.u8("count of change times")?;
    let mut times = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let object = ObjectId(r.u64("changed object")?);
        times.push((object, Timestamp(r.i64("change time")?)));
    }
    Ok(times)
}

pub(super) fn write_directories(w: &mut Writer, directories: &[Attributes]) {
    write_count(w, directories.len());
    for directory in directories {
        encode_attributes(w, directory);
    }
}

pub(super) fn read_directories(r: &mut Reader) -> Result<Vec<Attributes>, DecodeError> {
    let what = "count of changed directories";
    let count = usize::from(r.u8(what)?);
    if count > CHANGED_DIRECTORIES_MAX {
        return Err(DecodeError::Invalid {
            what,
            value: count as u64,
        });
    }
    (0..count).map(|_| decode_attributes(r)).collect()
}
