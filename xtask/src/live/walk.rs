// SPDX-License-Identifier: MIT OR Apache-2.0
//! A walker of 4K-granule tables (Arm ARM D8.3), written apart from el2's own.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 2;
const OUTPUT: u64 = 0x0000_ffff_ffff_f000;

/// Frames of physical memory by number, as far as somebody walked through them.
pub(super) type Frames = BTreeMap<u64, Vec<u64>>;

/// One mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaf {
    /// What is mapped.
    pub(super) from: u64,
    /// How many bytes.
    pub(super) size: u64,
    /// To where.
    pub(super) to: u64,
    /// The descriptor, and where it stands: frame and index.
    pub(super) word: u64,
    pub(super) at: (u64, usize),
}

/// What a walk found.
pub(super) struct Walk {
    pub(super) leaves: Vec<Leaf>,
    /// Frames of tables.
    pub(super) tables: Vec<u64>,
}

impl Walk {
    /// What an address is mapped by.
    pub(super) fn at(&self, address: u64) -> Option<&Leaf> {
        let after = self.leaves.partition_point(|leaf| leaf.from <= address);
        self.leaves.get(after.checked_sub(1)?).filter(|leaf| address - leaf.from < leaf.size)
    }
}

/// Walks `roots` concatenated tables of `level`; `read` gives the words of a frame.
pub(super) fn walk(root: u64, roots: u64, level: u32, read: &mut dyn FnMut(u64) -> Result<Vec<u64>>) -> Result<Walk> {
    let mut found = Walk { leaves: Vec::new(), tables: Vec::new() };
    let span = 512 * size_of(level);
    for table in 0..roots {
        descend(root + table, level, table * span, read, &mut found)?;
    }
    Ok(found)
}

const fn size_of(level: u32) -> u64 {
    1 << (39 - 9 * level)
}

fn descend(
    table: u64,
    level: u32,
    base: u64,
    read: &mut dyn FnMut(u64) -> Result<Vec<u64>>,
    found: &mut Walk,
) -> Result<()> {
    ensure!(!found.tables.contains(&table), "table {table:#x} is linked twice");
    found.tables.push(table);
    for (index, word) in read(table)?.into_iter().enumerate() {
        let from = base + index as u64 * size_of(level);
        if word & VALID == 0 {
            continue;
        }
        if level < 3 && word & TABLE_OR_PAGE != 0 {
            descend((word & OUTPUT) >> 12, level + 1, from, read, found)?;
            continue;
        }
        let shape = if level == 3 { word & TABLE_OR_PAGE != 0 } else { level > 0 };
        ensure!(shape, "a reserved descriptor {word:#x} at level {level} of table {table:#x}");
        let size = size_of(level);
        found.leaves.push(Leaf { from, size, to: word & OUTPUT & !(size - 1), word, at: (table, index) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_pages_and_nothing_are_told_apart() {
        let mut frames = Frames::new();
        let table = |words: &[(usize, u64)]| {
            let mut all = vec![0; 512];
            words.iter().for_each(|(index, word)| all[*index] = *word);
            all
        };
        frames.insert(1, table(&[(0, 2 << 12 | 3), (3, 0xc000_0000 | 1)]));
        frames.insert(2, table(&[(1, 3 << 12 | 3), (2, 0x40_0000 | 1)]));
        frames.insert(3, table(&[(5, 0x20_5000 | 3)]));
        let mut read = |frame: u64| Ok(frames[&frame].clone());
        let walk = walk(1, 1, 1, &mut read).unwrap();
        assert_eq!(walk.tables, [1, 2, 3]);
        let all: Vec<_> = walk.leaves.iter().map(|l| (l.from, l.size, l.to)).collect();
        assert_eq!(
            all,
            [(0x20_5000, 0x1000, 0x20_5000), (0x40_0000, 2 << 20, 0x40_0000), (0xc000_0000, 1 << 30, 0xc000_0000)]
        );
        assert!(walk.at(0x20_5fff).is_some() && walk.at(0x20_6000).is_none() && walk.at(0x1f_ffff).is_none());
    }
}
