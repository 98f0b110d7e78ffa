//! What the simulated disk holds, in memory and durably.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::image::Image;
use super::{CrashAt, SimFile};
use crate::medium::{Completion, Op, OpenMode, Room};

/// What a real disk writes as a whole or not at all.
const SECTOR: u64 = 512;
/// What cannot be read at once where a sector is bad.
const BLOCK: u64 = 4096;

#[derive(Debug, Clone)]
enum Change {
    Write {
        offset: u64,
        data: Vec<u8>,
    },
    /// A write of zeros: a journal's new segment is nothing else.
    WriteZeros {
        offset: u64,
        len: u64,
    },
    SetLen(u64),
    Punch {
        offset: u64,
        len: u64,
    },
}

#[derive(Debug, Clone, Default)]
struct Inode {
    data: Image,
    durable: Image,
    /// What makes `data` of `durable`.
    changes: Vec<Change>,
}

pub(super) struct State {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    pub(super) entries: BTreeMap<String, u64>,
    durable_entries: BTreeMap<String, u64>,
    dirs: BTreeSet<String>,
    durable_dirs: BTreeSet<String>,
    pub(super) locks: BTreeSet<String>,
    pub(super) queue: Vec<(Op<SimFile>, u64)>,
    pub(super) done: Vec<Completion>,
    random: u64,
    pub(super) syncs: u64,
    pub(super) changes: u64,
    pub(super) crash_at: Option<CrashAt>,
    pub(super) crashed: bool,
    pub(super) fail_sync: Option<u64>,
    /// Changes until the one that fails.
    pub(super) fail_write: Option<u64>,
    pub(super) unreadable: BTreeSet<u64>,
    /// Blocks that cannot be read until they are written as a whole.
    pub(super) bad: BTreeSet<(u64, u64)>,
    pub(super) capacity: u64,
    pub(super) slowness: u64,
    used: u64,
    /// How often there was no room.
    pub(super) refused: u64,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("syncs", &self.syncs)
            .field("crashed", &self.crashed)
            .finish_non_exhaustive()
    }
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

impl Change {
    fn apply(&self, image: &mut Image) {
        match self {
            Self::Write { offset, data } => image.write(index(*offset), data),
            Self::WriteZeros { offset, len } => {
                let (from, to) = (index(*offset), index(offset + len));
                image.set_len(image.len().max(to));
                image.zero(from, to);
            }
            Self::SetLen(len) => image.set_len(index(*len)),
            Self::Punch { offset, len } => image.zero(index(*offset), index(offset + len)),
        }
    }

    /// The length that a file of `len` bytes has afterwards.
    fn len_after(&self, len: u64) -> u64 {
        match self {
            Self::Write { offset, data } => len.max(offset + data.len() as u64),
            Self::WriteZeros { offset, len: zeros } => len.max(offset + zeros),
            Self::SetLen(len) => *len,
            Self::Punch { .. } => len,
        }
    }

    /// Writes what this does to one sector.
    fn apply_to_sector(&self, start: u64, sector: &mut [u8]) {
        let end = start + sector.len() as u64;
        let (from, to) = self.range();
        let bytes = match self {
            Self::Write { data, .. } => Some(data),
            Self::WriteZeros { .. } | Self::SetLen(_) | Self::Punch { .. } => None,
        };
        let (low, high) = (from.max(start), to.min(end));
        if low >= high {
            return;
        }
        let part = &mut sector[index(low - start)..index(high - start)];
        match bytes {
            Some(bytes) => part.copy_from_slice(&bytes[index(low - from)..index(high - from)]),
            None => part.fill(0),
        }
    }

    /// First byte, and the byte after the last, that this says something about.
    fn range(&self) -> (u64, u64) {
        match self {
            Self::Write { offset, data } => (*offset, offset + data.len() as u64),
            Self::SetLen(len) => (*len, u64::MAX),
            Self::WriteZeros { offset, len } | Self::Punch { offset, len } => {
                (*offset, offset + len)
            }
        }
    }
}

impl State {
    pub(super) fn new(seed: u64, capacity: u64) -> Self {
        Self {
            inodes: BTreeMap::new(),
            next_inode: 1,
            entries: BTreeMap::new(),
            durable_entries: BTreeMap::new(),
            dirs: BTreeSet::from([String::new()]),
            durable_dirs: BTreeSet::from([String::new()]),
            locks: BTreeSet::new(),
            queue: Vec::new(),
            done: Vec::new(),
            random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03,
            syncs: 0,
            changes: 0,
            crash_at: None,
            crashed: false,
            fail_sync: None,
            fail_write: None,
            unreadable: BTreeSet::new(),
            bad: BTreeSet::new(),
            capacity,
            refused: 0,
            slowness: 1,
            used: 0,
        }
    }

    /// A number below `below`, or 0.
    pub(super) fn random(&mut self, below: u64) -> u64 {
        // splitmix64
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)).checked_rem(below).unwrap_or(0)
    }

    pub(super) fn alive(&self) -> io::Result<()> {
        if self.crashed { Err(eio()) } else { Ok(()) }
    }

    /// Counts a change; the crash may come instead of it.
    fn change(&mut self, is_sync: bool) -> io::Result<()> {
        self.alive()?;
        let crash = match self.crash_at {
            Some(CrashAt::Sync(n)) => is_sync && self.syncs >= n,
            Some(CrashAt::Change(n)) => self.changes >= n,
            None => false,
        };
        self.changes += 1;
        if is_sync {
            self.syncs += 1;
        }
        if crash {
            self.crashed = true;
            return Err(eio());
        }
        if is_sync && self.fail_sync.is_some_and(|n| self.syncs > n) {
            self.fail_sync = None;
            return Err(eio());
        }
        if !is_sync && let Some(left) = self.fail_write {
            self.fail_write = left.checked_sub(1);
            if left == 0 {
                return Err(eio());
            }
        }
        Ok(())
    }

    fn inode(&mut self, inode: u64) -> io::Result<&mut Inode> {
        self.inodes.get_mut(&inode).ok_or_else(eio)
    }

    pub(super) fn next_op(&mut self) -> Option<(Op<SimFile>, u64)> {
        if self.queue.is_empty() {
            return None;
        }
        let mut at = index(self.random(self.queue.len() as u64));
        // Jobs run one after another.
        if matches!(self.queue[at].0, Op::Job(_)) {
            at = self
                .queue
                .iter()
                .position(|(op, _)| matches!(op, Op::Job(_)))
                .unwrap_or(at);
        }
        Some(self.queue.remove(at))
    }

    pub(super) fn open(&mut self, path: &str, mode: OpenMode) -> io::Result<u64> {
        self.alive()?;
        if let Some(inode) = self.entries.get(path) {
            return Ok(*inode);
        }
        if mode != OpenMode::Create || !self.dirs.contains(parent(path)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.change(false)?;
        let inode = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(inode, Inode::default());
        self.entries.insert(path.to_owned(), inode);
        Ok(inode)
    }

    pub(super) fn len(&mut self, inode: u64) -> io::Result<u64> {
        self.alive()?;
        Ok(self.inode(inode)?.data.len() as u64)
    }

    pub(super) fn check_readable(&self, inode: u64, offset: u64, len: usize) -> io::Result<()> {
        self.alive()?;
        let end = (offset + len as u64).div_ceil(BLOCK);
        let mut bad = self.bad.range((inode, offset / BLOCK)..(inode, end));
        if self.unreadable.contains(&inode) || bad.next().is_some() {
            return Err(eio());
        }
        Ok(())
    }

    pub(super) fn read(&mut self, inode: u64, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.check_readable(inode, offset, buf.len())?;
        Ok(self.inode(inode)?.data.read(index(offset), buf))
    }

    fn take_room(&mut self, bytes: u64) -> io::Result<()> {
        if self.used + bytes > self.capacity {
            self.refused += 1;
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.used += bytes;
        Ok(())
    }

    fn apply(&mut self, inode: u64, change: Change) -> io::Result<()> {
        let old = self.inode(inode)?.data.len() as u64;
        // Every byte up to the end counts as used: holes cost what they would if filled.
        let new = change.len_after(old);
        if new > old {
            self.take_room(new - old)?;
        } else {
            self.used -= old - new;
        }
        let inode = self.inode(inode)?;
        change.apply(&mut inode.data);
        inode.changes.push(change);
        Ok(())
    }

    pub(super) fn write(&mut self, inode: u64, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(false)?;
        let end = (offset + data.len() as u64) / BLOCK;
        for block in offset.div_ceil(BLOCK)..end {
            self.bad.remove(&(inode, block));
        }
        let change = if data.iter().all(|byte| *byte == 0) {
            let len = data.len() as u64;
            Change::WriteZeros { offset, len }
        } else {
            let data = data.to_vec();
            Change::Write { offset, data }
        };
        self.apply(inode, change)
    }

    pub(super) fn set_len(&mut self, inode: u64, len: u64) -> io::Result<()> {
        self.change(false)?;
        self.apply(inode, Change::SetLen(len))
    }

    pub(super) fn allocate(&mut self, inode: u64, len: u64) -> io::Result<()> {
        self.change(false)?;
        let offset = self.inode(inode)?.data.len() as u64;
        let len = len.saturating_sub(offset);
        self.apply(inode, Change::WriteZeros { offset, len })
    }

    pub(super) fn punch(&mut self, inode: u64, offset: u64, len: u64) -> io::Result<()> {
        self.change(false)?;
        self.apply(inode, Change::Punch { offset, len })
    }

    fn settle(inode: &mut Inode) {
        let Inode {
            data,
            durable,
            changes,
        } = inode;
        for change in changes.drain(..) {
            let (from, to) = change.range();
            durable.follow(data, index(from), index(to));
        }
    }

    pub(super) fn sync(&mut self, inode: u64) -> io::Result<()> {
        self.change(true)?;
        Self::settle(self.inode(inode)?);
        Ok(())
    }

    pub(super) fn sync_dir(&mut self, path: &str) -> io::Result<()> {
        if !self.dirs.contains(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.change(true)?;
        self.durable_entries.retain(|name, _| parent(name) != path);
        let now = self.entries.iter().filter(|(name, _)| parent(name) == path);
        self.durable_entries
            .extend(now.map(|(name, inode)| (name.clone(), *inode)));
        let dirs = &self.dirs;
        self.durable_dirs
            .retain(|name| name.is_empty() || parent(name) != path || dirs.contains(name));
        let now = dirs.iter().filter(|name| parent(name) == path);
        self.durable_dirs.extend(now.cloned());
        Ok(())
    }

    pub(super) fn sync_all(&mut self) -> io::Result<()> {
        self.change(true)?;
        self.inodes.values_mut().for_each(Self::settle);
        self.durable_entries.clone_from(&self.entries);
        self.durable_dirs.clone_from(&self.dirs);
        Ok(())
    }

    pub(super) fn unlink(&mut self, path: &str) -> io::Result<()> {
        self.change(false)?;
        if let Some(inode) = self.entries.remove(path) {
            if self.entries.values().any(|other| *other == inode) {
                return Ok(());
            }
            // Open handles may still use it; its room is free at once, which is near enough.
            let len = self.inode(inode)?.data.len() as u64;
            self.used -= len.min(self.used);
        }
        Ok(())
    }

    pub(super) fn link(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.alive()?;
        let Some(inode) = self.entries.get(from).copied() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if !self.dirs.contains(parent(to)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if self.entries.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.change(false)?;
        self.entries.insert(to.to_owned(), inode);
        Ok(())
    }

    pub(super) fn remove_dir(&mut self, path: &str) -> io::Result<()> {
        self.alive()?;
        let mut names = self.entries.keys().chain(&self.dirs);
        if names.any(|name| name != path && parent(name) == path) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        self.change(false)?;
        self.dirs.remove(path);
        Ok(())
    }

    pub(super) fn make_dir(&mut self, path: &str) -> io::Result<bool> {
        if !self.dirs.contains(parent(path)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.change(false)?;
        Ok(self.dirs.insert(path.to_owned()))
    }

    pub(super) fn list(&mut self, path: &str) -> io::Result<Vec<String>> {
        self.alive()?;
        if !self.dirs.contains(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let names = self.entries.keys().chain(&self.dirs);
        let inside = names.filter(|name| !name.is_empty() && parent(name) == path);
        Ok(inside
            .map(|name| name.rsplit('/').next().unwrap_or(name).to_owned())
            .collect())
    }

    pub(super) fn room(&mut self) -> io::Result<Room> {
        self.alive()?;
        Ok(Room {
            total_bytes: self.capacity,
            free_bytes: self.capacity.saturating_sub(self.used),
        })
    }

    pub(super) fn peek(&self, path: &str, offset: u64, len: usize) -> Vec<u8> {
        let inode = self.entries.get(path).and_then(|it| self.inodes.get(it));
        let Some(data) = inode.map(|inode| &inode.data) else {
            return Vec::new();
        };
        let mut bytes = vec![0; len.min(data.len().saturating_sub(index(offset)))];
        data.read(index(offset), &mut bytes);
        bytes
    }

    pub(super) fn flip(&mut self, inode: u64, offset: u64, bit: u8) -> bool {
        let Some(inode) = self.inodes.get_mut(&inode) else {
            return false;
        };
        Self::settle(inode);
        let mask = 1 << (bit % 8);
        let at = index(offset);
        if at >= inode.data.len() {
            return false;
        }
        for image in [&mut inode.data, &mut inode.durable] {
            image.edit(at, at + 1, |byte| byte[0] ^= mask);
        }
        true
    }

    /// As [`State::fork`], without a copy: nobody may use this one any more.
    pub(super) fn after_kill(&mut self) -> Self {
        let inodes = std::mem::take(&mut self.inodes);
        Self {
            inodes,
            ..self.fork()
        }
    }

    pub(super) fn fork(&self) -> Self {
        Self {
            inodes: self.inodes.clone(),
            next_inode: self.next_inode,
            entries: self.entries.clone(),
            durable_entries: self.durable_entries.clone(),
            dirs: self.dirs.clone(),
            durable_dirs: self.durable_dirs.clone(),
            unreadable: self.unreadable.clone(),
            bad: self.bad.clone(),
            used: self.used,
            refused: self.refused,
            slowness: self.slowness,
            random: self.random,
            ..Self::new(0, self.capacity)
        }
    }

    /// What the disk holds when the power comes back.
    pub(super) fn after_crash(&mut self, seed: u64) -> Self {
        let mut next = Self::new(seed, self.capacity);
        next.next_inode = self.next_inode;
        next.slowness = self.slowness;
        next.refused = self.refused;
        next.bad.clone_from(&self.bad);
        // Sometimes nothing more gets to the disk, sometimes everything, mostly some.
        let keep = match next.random(5) {
            0 => Keep::Nothing,
            1 => Keep::Everything,
            _ => Keep::Some,
        };
        next.dirs.clone_from(&self.durable_dirs);
        for dir in self.dirs.difference(&self.durable_dirs) {
            // Ordered: a parent comes before what is in it.
            if next.dirs.contains(parent(dir)) && keep.choose(&mut next) {
                next.dirs.insert(dir.clone());
            }
        }
        let names: BTreeSet<&String> = self
            .entries
            .keys()
            .chain(self.durable_entries.keys())
            .collect();
        for name in names {
            let (now, durable) = (self.entries.get(name), self.durable_entries.get(name));
            let kept = if now == durable || !keep.choose(&mut next) {
                durable
            } else {
                now
            };
            if let Some(inode) = kept.filter(|_| next.dirs.contains(parent(name))) {
                next.entries.insert(name.clone(), *inode);
            }
        }
        let inodes: BTreeSet<u64> = next.entries.values().copied().collect();
        for number in inodes {
            if let Some(inode) = self.inodes.get(&number) {
                // Each file has luck of its own: how the store spreads its pages must not decide
                // what becomes of the others, as it is not the same in each process.
                let luck = next.random;
                next.random = seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
                let data = keep.image(inode, &mut next);
                next.random = luck;
                next.used += data.len() as u64;
                let durable = data.clone();
                next.inodes.insert(
                    number,
                    Inode {
                        data,
                        durable,
                        changes: Vec::new(),
                    },
                );
            }
        }
        next.durable_entries.clone_from(&next.entries);
        next.durable_dirs.clone_from(&next.dirs);
        next
    }
}

#[derive(Clone, Copy)]
enum Keep {
    Nothing,
    Some,
    Everything,
}

impl Keep {
    fn choose(self, state: &mut State) -> bool {
        match self {
            Self::Nothing => false,
            Self::Some => state.random(2) == 0,
            Self::Everything => true,
        }
    }

    /// How many of `count` changes to one thing got to the disk.
    fn count(self, state: &mut State, count: usize) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Some => index(state.random(count as u64 + 1)),
            Self::Everything => count,
        }
    }

    fn image(self, inode: &Inode, state: &mut State) -> Image {
        if inode.changes.is_empty() {
            return inode.durable.clone();
        }
        // The length after some of the changes; then each sector after some of those to it.
        let kept = self.count(state, inode.changes.len());
        let len = inode.changes[..kept]
            .iter()
            .fold(inode.durable.len() as u64, |len, change| {
                change.len_after(len)
            });
        let mut data = inode.durable.clone();
        data.set_len(index(len));
        let end = data.len() as u64;
        let mut touching: BTreeMap<u64, Vec<&Change>> = BTreeMap::new();
        for change in &inode.changes {
            let (from, to) = change.range();
            for sector in from / SECTOR..to.min(end).div_ceil(SECTOR) {
                touching.entry(sector).or_default().push(change);
            }
        }
        for (sector, changes) in touching {
            let (start, next) = (sector * SECTOR, ((sector + 1) * SECTOR).min(end));
            let kept = self.count(state, changes.len());
            data.edit(index(start), index(next), |bytes| {
                for change in &changes[..kept] {
                    change.apply_to_sector(start, bytes);
                }
            });
        }
        data
    }
}
