//! The bytes of a simulated file, in pages that images of it share.

use std::sync::Arc;

const PAGE_BYTES: usize = 4096;

type Page = [u8; PAGE_BYTES];

/// The bytes of a file. A copy shares its pages until one of the two changes them, so that a disk
/// is as cheap to sync, to crash and to fork as it changed since.
#[derive(Debug, Clone, Default)]
pub(super) struct Image {
    /// `None`: zeros. Beyond the file's end a page holds zeros as well.
    pages: Vec<Option<Arc<Page>>>,
    len: usize,
}

impl Image {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Cuts the file, or makes it longer by zeros.
    pub(super) fn set_len(&mut self, len: usize) {
        if len < self.len {
            let page_end = len.next_multiple_of(PAGE_BYTES).min(self.len);
            self.zero(len, page_end);
        }
        self.pages.resize(len.div_ceil(PAGE_BYTES), None);
        self.len = len;
    }

    /// Copies what the file holds from `offset` on; returns how many bytes there were.
    pub(super) fn read(&self, offset: usize, buf: &mut [u8]) -> usize {
        let start = offset.min(self.len);
        let end = start.saturating_add(buf.len()).min(self.len);
        let mut at = start;
        while at < end {
            let (page, from, to) = piece(at, end);
            let part = &mut buf[at - start..at - start + (to - from)];
            match &self.pages[page] {
                Some(bytes) => part.copy_from_slice(&bytes[from..to]),
                None => part.fill(0),
            }
            at += to - from;
        }
        end - start
    }

    /// Puts bytes there; the file gets longer where it must.
    pub(super) fn write(&mut self, offset: usize, data: &[u8]) {
        let end = offset + data.len();
        if self.len < end {
            self.set_len(end);
        }
        let mut at = offset;
        while at < end {
            let (page, from, to) = piece(at, end);
            let part = &data[at - offset..at - offset + (to - from)];
            match <&Page>::try_from(part) {
                Ok(whole) => self.pages[page] = Some(Arc::new(*whole)),
                Err(_) => self.page(page)[from..to].copy_from_slice(part),
            }
            at += to - from;
        }
    }

    /// Makes this part of the file zeros; its length stays.
    pub(super) fn zero(&mut self, from: usize, to: usize) {
        let (mut at, end) = (from.min(self.len), to.min(self.len));
        while at < end {
            let (page, from, to) = piece(at, end);
            if to - from == PAGE_BYTES {
                self.pages[page] = None;
            } else if self.pages[page].is_some() {
                self.page(page)[from..to].fill(0);
            }
            at += to - from;
        }
    }

    /// Has `change` edit this part of the file, which lies within one page.
    pub(super) fn edit(&mut self, from: usize, to: usize, change: impl FnOnce(&mut [u8])) {
        let (page, start, end) = piece(from, to);
        debug_assert_eq!(end - start, to - from, "within a page");
        change(&mut self.page(page)[start..end]);
    }

    /// Takes over the length of `other`, and its pages from `from` to `to`: beside them, and beyond
    /// the shorter length, both hold the same.
    pub(super) fn follow(&mut self, other: &Self, from: usize, to: usize) {
        self.pages.resize(other.pages.len(), None);
        self.len = other.len;
        let pages = from / PAGE_BYTES..to.div_ceil(PAGE_BYTES).min(self.pages.len());
        if pages.start < pages.end {
            self.pages[pages.clone()].clone_from_slice(&other.pages[pages]);
        }
    }

    fn page(&mut self, page: usize) -> &mut Page {
        let page = self.pages[page].get_or_insert_with(|| Arc::new([0; PAGE_BYTES]));
        Arc::make_mut(page)
    }
}

/// The page in which `at` lies, and which part of it lies between `at` and `end`.
fn piece(at: usize, end: usize) -> (usize, usize, usize) {
    let (page, from) = (at / PAGE_BYTES, at % PAGE_BYTES);
    (page, from, PAGE_BYTES.min(from + (end - at)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(image: &Image) -> Vec<u8> {
        let mut all = vec![1; image.len() + 1];
        let found = image.read(0, &mut all);
        all.truncate(found);
        all
    }

    #[test]
    fn an_image_holds_what_a_plain_vector_holds() {
        let (mut image, mut plain) = (Image::default(), Vec::new());
        let (mut durable, mut synced) = (image.clone(), plain.clone());
        let mut changed = Vec::new();
        let mut random = 7_u64;
        let mut below = |n: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005) + 1;
            usize::try_from(random >> 33).expect("31 bits") % n
        };
        for round in 0..4000 {
            let (at, len) = (below(20_000), below(9000));
            let end = at + len;
            match below(8) {
                0..4 => {
                    let data = vec![u8::try_from(round % 251).expect("small"); len];
                    plain.resize(plain.len().max(end), 0);
                    plain[at..end].copy_from_slice(&data);
                    image.write(at, &data);
                    changed.push((at, end));
                }
                4 => {
                    plain.resize(end, 0);
                    image.set_len(end);
                    changed.push((end, usize::MAX));
                }
                5 => {
                    let there = at.min(plain.len())..end.min(plain.len());
                    plain[there].fill(0);
                    image.zero(at, end);
                    changed.push((at, end));
                }
                6 => {
                    synced.clone_from(&plain);
                    for (from, to) in changed.drain(..) {
                        durable.follow(&image, from, to);
                    }
                }
                _ if at < plain.len() => {
                    plain[at] ^= 1;
                    image.edit(at, at + 1, |byte| byte[0] ^= 1);
                    changed.push((at, at + 1));
                }
                _ => {}
            }
            assert_eq!(bytes(&image), plain);
            assert_eq!(bytes(&durable), synced, "a copy is a copy");
        }
    }
}
