//! What one owner holds of one object: ranges that do not touch each other where their kinds are
//! equal, in order. Taking and giving back splits and joins them as fcntl(2) says.

use protocol::fs::LockKind;

/// A range that is held, its end included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) kind: LockKind,
    pub(super) pid: u32,
}

/// What is held after `[start, end]` became `new`, or was given back, and the rest stayed. `held`
/// is in order and does not overlap; so is the result.
pub(super) fn assign(
    held: &[Range],
    (start, end): (u64, u64),
    new: Option<(LockKind, u32)>,
) -> Vec<Range> {
    let left = held.iter().filter(|r| r.start < start);
    let left = left.map(|r| Range {
        end: r.end.min(start - 1),
        ..*r
    });
    let right = held.iter().filter(|r| r.end > end);
    let right = right.map(|r| Range {
        start: r.start.max(end + 1),
        ..*r
    });
    let new = new.map(|(kind, pid)| Range {
        start,
        end,
        kind,
        pid,
    });
    let mut joined: Vec<Range> = Vec::with_capacity(held.len() + 2);
    for range in left.chain(new).chain(right) {
        match joined.last_mut() {
            Some(last) if last.kind == range.kind && last.end + 1 == range.start => {
                last.end = range.end;
                // Who took it last is named for all of it.
                if new == Some(range) {
                    last.pid = range.pid;
                }
            }
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use protocol::fs::LOCK_END_MAX;

    use super::*;

    const BYTES: usize = 12;

    /// The same by a table of bytes; the last one stands for everything up to the end.
    fn slowly(table: &[Option<LockKind>; BYTES]) -> Vec<(u64, u64, LockKind)> {
        let mut ranges: Vec<(u64, u64, LockKind)> = Vec::new();
        for (at, kind) in table.iter().enumerate() {
            let Some(kind) = kind else { continue };
            let end = if at == BYTES - 1 {
                LOCK_END_MAX
            } else {
                at as u64
            };
            match ranges.last_mut() {
                Some(last) if last.2 == *kind && last.1 + 1 == at as u64 => last.1 = end,
                _ => ranges.push((at as u64, end, *kind)),
            }
        }
        ranges
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn ranges_split_and_join_as_a_table_of_bytes_does(
            steps in prop::collection::vec((0..BYTES, 0..BYTES, 0..3_u8), 1..12)
        ) {
            let mut table = [None; BYTES];
            let mut held = Vec::new();
            for (pid, (a, b, what)) in (1..).zip(steps) {
                let (from, to) = (a.min(b), a.max(b));
                let kind = match what {
                    0 => None,
                    1 => Some(LockKind::Shared),
                    _ => Some(LockKind::Exclusive),
                };
                table[from..=to].fill(kind);
                let end = if to == BYTES - 1 { LOCK_END_MAX } else { to as u64 };
                held = assign(&held, (from as u64, end), kind.map(|kind| (kind, pid)));
                let got: Vec<_> = held.iter().map(|r| (r.start, r.end, r.kind)).collect();
                prop_assert_eq!(got, slowly(&table));
                if kind.is_some() {
                    let owner = held.iter().find(|r| r.start <= from as u64 && r.end >= end);
                    prop_assert_eq!(owner.map(|r| r.pid), Some(pid));
                }
            }
        }
    }
}
