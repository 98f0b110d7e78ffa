//! POSIX ACLs (acl(5)), as the kernel's extended attributes carry them: a version (4 bytes, 2),
//! then entries of tag (2), permissions (2) and id (4), little-endian.
//!
//! The client's kernel decides by them. What stands here is what the kernel leaves to a file
//! system: that mode and ACL say the same, and what a new object inherits.
//!
//! Pure: bytes and modes in, bytes and modes out.

use bytes::Bytes;
use protocol::codec::{Reader, Writer};

/// Of an object: who may use it.
pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";
/// Of a directory: what is made in it gets this.
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const ENTRY_BYTES: usize = 8;
const PERMISSIONS: u16 = 0o7;
/// Tags, in the order in which entries stand.
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// A valid ACL: one entry each for owner, group and others; a mask where users or groups are
/// named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Acl {
    entries: Vec<Entry>,
}

impl Acl {
    /// Reads an attribute's value; `None`: it is no valid ACL.
    pub(crate) fn decode(value: &Bytes) -> Option<Self> {
        let mut r = Reader::new(value.clone());
        if r.u32("version").ok()? != VERSION || !(value.len() - 4).is_multiple_of(ENTRY_BYTES) {
            return None;
        }
        let mut entries = Vec::with_capacity((value.len() - 4) / ENTRY_BYTES);
        for _ in 0..entries.capacity() {
            entries.push(Entry {
                tag: r.u16("tag").ok()?,
                permissions: r.u16("permissions").ok()?,
                id: r.u32("id").ok()?,
            });
        }
        let count = |tag| entries.iter().filter(|entry| entry.tag == tag).count();
        let named = count(USER) + count(GROUP);
        let whole = [USER_OBJ, GROUP_OBJ, OTHER]
            .iter()
            .all(|tag| count(*tag) == 1)
            && count(MASK) <= 1
            && (named == 0 || count(MASK) == 1)
            && entries.len() == 3 + named + count(MASK);
        let in_order = entries.is_sorted_by_key(|entry| entry.tag);
        let known = entries
            .iter()
            .all(|entry| entry.permissions & !PERMISSIONS == 0);
        (whole && in_order && known).then_some(Self { entries })
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut w = Writer::with_capacity(4 + ENTRY_BYTES * self.entries.len());
        w.u32(VERSION);
        for entry in &self.entries {
            w.u16(entry.tag).u16(entry.permissions).u32(entry.id);
        }
        w.finish()
    }

    /// What the permissions of a mode say.
    pub(crate) fn of_mode(mode: u32) -> Self {
        let entry = |(tag, shift)| Entry {
            tag,
            permissions: bits(mode, shift),
            id: u32::MAX,
        };
        let entries = [(USER_OBJ, 6), (GROUP_OBJ, 3), (OTHER, 0)];
        Self {
            entries: entries.map(entry).into(),
        }
    }

    /// Whether it lets somebody do all that `want` says (4 read, 2 write, 1 execute). `is_in` says
    /// whether he is in a group, the owning one where none is named; `perhaps`: he may as well be
    /// in none.
    pub(crate) fn allows(
        &self,
        owner: bool,
        uid: u32,
        is_in: impl Fn(Option<u32>) -> bool,
        perhaps: bool,
        want: u16,
    ) -> bool {
        let of = |tag| self.entries.iter().find(|entry| entry.tag == tag);
        let mask = of(MASK).map_or(PERMISSIONS, |entry| entry.permissions);
        let grants = |permissions: u16| permissions & want == want;
        if owner {
            return of(USER_OBJ).is_some_and(|entry| grants(entry.permissions));
        }
        let mut entries = self.entries.iter();
        if let Some(named) = entries.find(|entry| entry.tag == USER && entry.id == uid) {
            return grants(named.permissions & mask);
        }
        let groups = self.entries.iter().filter(|entry| match entry.tag {
            GROUP_OBJ => is_in(None),
            GROUP => is_in(Some(entry.id)),
            _ => false,
        });
        let (mut member, mut granted) = (false, false);
        for group in groups {
            member = true;
            granted |= grants(group.permissions & mask);
        }
        let other = of(OTHER).is_some_and(|entry| grants(entry.permissions));
        granted || ((!member || perhaps) && other)
    }

    /// Whether a mode says all of it.
    pub(crate) fn is_only_a_mode(&self) -> bool {
        self.entries.len() == 3
    }

    /// Which entry the mode's permissions of the group are.
    fn group_class(&self) -> u16 {
        let has_mask = self.entries.iter().any(|entry| entry.tag == MASK);
        if has_mask { MASK } else { GROUP_OBJ }
    }

    /// The entries that the mode shows as well, each with its bits of a mode.
    fn classes(&mut self) -> impl Iterator<Item = (&mut u16, u32)> {
        let group = self.group_class();
        self.entries.iter_mut().filter_map(move |entry| {
            let shift = match entry.tag {
                USER_OBJ => 6,
                OTHER => 0,
                tag if tag == group => 3,
                _ => return None,
            };
            Some((&mut entry.permissions, shift))
        })
    }

    /// What of a mode the ACL says (0777).
    pub(crate) fn mode(&self) -> u32 {
        let mut copy = self.clone();
        copy.classes()
            .map(|(permissions, shift)| u32::from(*permissions) << shift)
            .sum()
    }

    /// chmod(2): the ACL says what the mode does.
    pub(crate) fn set_mode(&mut self, mode: u32) {
        for (permissions, shift) in self.classes() {
            *permissions = bits(mode, shift);
        }
    }

    /// What an object gets of its directory's default ACL when `mode` is asked for.
    pub(crate) fn inherited(&self, mode: u32) -> Self {
        let mut acl = self.clone();
        for (permissions, shift) in acl.classes() {
            *permissions &= bits(mode, shift);
        }
        acl
    }
}

fn bits(mode: u32, shift: u32) -> u16 {
    u16::try_from(mode >> shift & u32::from(PERMISSIONS)).expect("three bits")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An ACL from words such as `u::7`, `g:100:5`, `m::7`.
    pub(crate) fn acl(words: &[&str]) -> Bytes {
        let mut w = Writer::default();
        w.u32(VERSION);
        for word in words {
            let parts: Vec<_> = word.split(':').collect();
            let tag = match (parts[0], parts[1].is_empty()) {
                ("u", true) => USER_OBJ,
                ("u", false) => USER,
                ("g", true) => GROUP_OBJ,
                ("g", false) => GROUP,
                ("m", _) => MASK,
                _ => OTHER,
            };
            let id = parts[1].parse().unwrap_or(u32::MAX);
            w.u16(tag).u16(parts[2].parse().expect("octal")).u32(id);
        }
        w.finish()
    }

    #[test]
    fn an_acl_survives_the_way_and_what_is_none_is_refused() {
        let whole = acl(&["u::7", "u:1000:6", "g::5", "g:7:4", "m::6", "o::0"]);
        let read = Acl::decode(&whole).expect("valid");
        assert_eq!(read.encode(), whole);
        for cut in 0..whole.len() {
            assert_eq!(Acl::decode(&whole.slice(..cut)), None, "cut at {cut}");
        }
        for bad in [
            &["u::7", "g::5"][..],
            &["u::7", "u:1000:6", "g::5", "o::0"],
            &["u::7", "u::7", "g::5", "o::0"],
            &["o::0", "g::5", "u::7"],
            &["u::8", "g::5", "o::0"],
        ] {
            assert_eq!(Acl::decode(&acl(bad)), None, "{bad:?}");
        }
    }

    #[test]
    fn the_group_of_a_mode_is_the_mask_where_there_is_one() {
        let mut with =
            Acl::decode(&acl(&["u::7", "u:9:7", "g::5", "m::6", "o::1"])).expect("valid");
        assert_eq!(with.mode(), 0o761);
        with.set_mode(0o640);
        let expected = acl(&["u::6", "u:9:7", "g::5", "m::4", "o::0"]);
        assert_eq!(with.encode(), expected);
        let mut without = Acl::decode(&acl(&["u::7", "g::5", "o::1"])).expect("valid");
        without.set_mode(0o640);
        assert_eq!((without.mode(), without.is_only_a_mode()), (0o640, true));
    }

    #[test]
    fn what_is_inherited_is_no_more_than_was_asked_for() {
        let default = Acl::decode(&acl(&["u::7", "u:9:7", "g::7", "m::7", "o::5"])).expect("valid");
        let file = default.inherited(0o640);
        assert_eq!(
            file.encode(),
            acl(&["u::6", "u:9:7", "g::7", "m::4", "o::0"])
        );
        assert_eq!(file.mode(), 0o640);
    }
}
