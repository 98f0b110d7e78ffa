//! The data of options.

use bytes::{Buf, Bytes};

/// Longest name that the document allows.
const NAME_BYTES_MAX: usize = 4096;
/// Queries of one option for contexts of metadata.
const QUERIES_MAX: u32 = 64;

/// The data does not have the option's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Invalid;

/// What INFO and GO ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InfoRequest {
    pub(crate) name: String,
    pub(crate) wants: Vec<u16>,
}

/// What the options for contexts of metadata ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MetaRequest {
    pub(crate) name: String,
    pub(crate) queries: Vec<String>,
}

fn u32_of(data: &mut Bytes) -> Result<u32, Invalid> {
    data.try_get_u32().map_err(|_| Invalid)
}

fn text(data: &mut Bytes, len: usize) -> Result<String, Invalid> {
    if len > NAME_BYTES_MAX || len > data.len() {
        return Err(Invalid);
    }
    let bytes = data.split_to(len);
    let text = String::from_utf8(bytes.to_vec()).map_err(|_| Invalid)?;
    if text.contains('\0') {
        return Err(Invalid);
    }
    Ok(text)
}

/// A string whose length stands before it.
fn counted_text(data: &mut Bytes) -> Result<String, Invalid> {
    let len = u32_of(data)?;
    text(data, usize::try_from(len).map_err(|_| Invalid)?)
}

/// The name alone, to the end.
pub(crate) fn name(mut data: Bytes) -> Result<String, Invalid> {
    let len = data.len();
    text(&mut data, len)
}

pub(crate) fn info(mut data: Bytes) -> Result<InfoRequest, Invalid> {
    let name = counted_text(&mut data)?;
    let count = data.try_get_u16().map_err(|_| Invalid)?;
    if data.len() != 2 * usize::from(count) {
        return Err(Invalid);
    }
    let wants = (0..count).map(|_| data.get_u16()).collect();
    Ok(InfoRequest { name, wants })
}

pub(crate) fn meta(mut data: Bytes) -> Result<MetaRequest, Invalid> {
    let name = counted_text(&mut data)?;
    let count = u32_of(&mut data)?;
    if count > QUERIES_MAX {
        return Err(Invalid);
    }
    let mut queries = Vec::new();
    for _ in 0..count {
        let query = counted_text(&mut data)?;
        if !query.contains(':') {
            return Err(Invalid);
        }
        queries.push(query);
    }
    if data.is_empty() {
        Ok(MetaRequest { name, queries })
    } else {
        Err(Invalid)
    }
}
