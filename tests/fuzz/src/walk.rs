// SPDX-License-Identifier: MIT OR Apache-2.0
//! A stage-2 walk as the hardware makes it (Arm ARM D8.3, 4 KiB granule), written apart from `el2`'s own.

/// Descriptors in a table.
pub(crate) const ENTRIES: usize = 512;

/// Level of a table, 1 to 3.
pub(crate) type Level = u8;

/// What one descriptor lets its owner reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grant {
    /// Nothing.
    Nothing,
    /// So many frames from this one on.
    Frames(u64, u64),
    /// What the table in this frame grants.
    Table(u64),
}

/// A translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reach {
    pub(crate) frame: u64,
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) execute: bool,
}

/// Reads a descriptor of a table of this level.
pub(crate) fn grant(descriptor: u64, level: Level) -> Grant {
    let output = (descriptor & 0x0000_ffff_ffff_f000) >> 12;
    match (level, descriptor & 3) {
        (1 | 2, 3) => Grant::Table(output),
        (3, 3) => Grant::Frames(output, 1),
        (1, 1) => Grant::Frames(output, 1 << 18),
        (2, 1) => Grant::Frames(output, 1 << 9),
        _ => Grant::Nothing,
    }
}

/// Walks concatenated tables from `root` on for one frame number; `word` reads memory.
pub(crate) fn walk(root: u64, bits: u32, frame: u64, word: impl Fn(u64, usize) -> u64) -> Option<Reach> {
    if frame >> (bits - 12) != 0 {
        return None;
    }
    let mut table = root + (frame >> 27);
    for level in 1..=3 {
        let shift = 9 * u32::from(3 - level);
        let descriptor = word(table, (frame >> shift) as usize % ENTRIES);
        match grant(descriptor, level) {
            Grant::Nothing => return None,
            Grant::Table(below) => table = below,
            Grant::Frames(first, count) => {
                assert!(first.is_multiple_of(count), "a block that is not aligned: {descriptor:#x}");
                assert!(descriptor & 1 << 10 != 0, "a leaf without the access flag: {descriptor:#x}");
                let [read, write, never] = [6, 7, 54].map(|bit| descriptor >> bit & 1 != 0);
                return Some(Reach { frame: first + frame % count, read, write, execute: !never });
            }
        }
    }
    None
}
