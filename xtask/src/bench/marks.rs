// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the plugin wrote, as rounds of rows and as calls.
//!
//! Guarantees that a file that does not end whole, or whose marks do not alternate, is an error and no figure.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};

/// Counters of a mark, or what lies between two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Instructions at EL0.
    pub user: u64,
    /// Of the host's kernel.
    pub kernel: u64,
    /// Of the payload.
    pub guest: u64,
    /// At EL2.
    pub el2: u64,
    /// Returns from EL2.
    pub entries: u64,
    /// TLB invalidations that other CPUs hear of.
    pub broadcasts: u64,
    /// Lines of the data cache that EL2 maintained by address.
    pub lines: u64,
    /// `DC ZVA`.
    pub zeros: u64,
    /// What who marked the end knew.
    pub value: u64,
}

impl Counts {
    fn parse(words: &[&str]) -> Result<Self> {
        let number = |at: usize| -> Result<u64> { Ok(words.get(at).context("a short line")?.parse()?) };
        Ok(Self {
            value: number(0)?,
            user: number(1)?,
            kernel: number(2)?,
            guest: number(3)?,
            el2: number(4)?,
            entries: number(5)?,
            broadcasts: number(6)?,
            lines: number(7)?,
            zeros: number(8)?,
        })
    }

    fn since(self, begin: Self) -> Self {
        Self {
            user: self.user - begin.user,
            kernel: self.kernel - begin.kernel,
            guest: self.guest - begin.guest,
            el2: self.el2 - begin.el2,
            entries: self.entries - begin.entries,
            broadcasts: self.broadcasts - begin.broadcasts,
            lines: self.lines - begin.lines,
            zeros: self.zeros - begin.zeros,
            value: self.value,
        }
    }

    /// All instructions.
    pub(super) fn all(&self) -> u64 {
        self.user + self.kernel + self.guest + self.el2
    }
}

/// The calls with one number: how many, and the fewest instructions that one took at EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Calls {
    pub times: u64,
    pub least: u64,
}

/// Everything that one machine did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    rounds: BTreeMap<u64, Vec<Counts>>,
    calls: BTreeMap<u64, Calls>,
    /// The counters at the first mark of a row.
    first: BTreeMap<u64, Counts>,
    /// Executions of addresses of EL2 in rows that were profiled, by the label of their ends.
    pub profile: BTreeMap<u64, BTreeMap<u64, u64>>,
    /// Of these rows EL2's instructions outside of zeroing and maintenance, in a round.
    pub lean: BTreeMap<u64, u64>,
    /// Bytes of RAM that EL2 keeps.
    pub memory: u64,
    /// Bytes of EL2 that are loaded.
    pub image: u64,
}

impl Marks {
    /// Reads a file's text.
    ///
    /// # Errors
    /// If it is not whole.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut marks = Self::default();
        let mut open: Option<(u64, Counts)> = None;
        for line in text.lines() {
            marks.line(line, &mut open).with_context(|| format!("the plugin's line `{line}`"))?;
        }
        ensure!(text.ends_with('\n') && open.is_none(), "the plugin's file is cut off");
        ensure!(!marks.rounds.is_empty(), "the plugin saw no mark");
        Ok(marks)
    }

    /// Adds the rounds of a row that another machine did.
    pub(super) fn take(&mut self, row: u64, other: &Self) {
        self.rounds.entry(row).or_default().extend(other.rounds(row));
    }

    fn line(&mut self, line: &str, open: &mut Option<(u64, Counts)>) -> Result<()> {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["mark", label, rest @ ..] => {
                let (label, counts) = (hex(label)?, Counts::parse(rest)?);
                let row = label >> 1;
                match (label & 1, open.take()) {
                    (0, None) => {
                        self.first.entry(row).or_insert(counts);
                        *open = Some((row, counts));
                    }
                    (1, Some((begun, since))) if begun == row => {
                        self.rounds.entry(row).or_default().push(counts.since(since));
                    }
                    (_, was) => bail!("not the other end of {was:?}"),
                }
            }
            ["call", number, times, least, _, _] => {
                let (times, least) = (times.parse::<u64>()?, least.parse::<u64>()?);
                let calls = self.calls.entry(hex(number)?).or_insert(Calls { times: 0, least: u64::MAX });
                calls.times += times;
                calls.least = calls.least.min(least);
            }
            ["at", label, address, times] => {
                let of = self.profile.entry(hex(label)?).or_default();
                *of.entry(hex(address)?).or_insert(0) += times.parse::<u64>()?;
            }
            _ => bail!("not understood"),
        }
        Ok(())
    }

    /// The rounds of a row, in order of what they cost in all.
    pub(super) fn rounds(&self, row: u64) -> Vec<Counts> {
        let mut rounds = self.rounds.get(&row).cloned().unwrap_or_default();
        rounds.sort_by_key(|counts| (counts.all(), counts.value));
        rounds
    }

    /// The round in the middle.
    pub(super) fn median(&self, row: u64) -> Option<Counts> {
        let rounds = self.rounds(row);
        rounds.get(rounds.len() / 2).copied()
    }

    /// What calls with this number took.
    pub(super) fn calls(&self, number: u64) -> Option<Calls> {
        self.calls.get(&number).copied()
    }

    /// All that was counted from power on to the first mark of a row.
    pub(super) fn until(&self, row: u64) -> Option<Counts> {
        self.first.get(&row).copied()
    }
}

fn hex(text: &str) -> Result<u64> {
    Ok(u64::from_str_radix(text.trim_start_matches("0x"), 16)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "mark 0x4 0 1 2 3 4 5 6 7 8\ncall 0xc6000080 2 50 70 120\nmark 0x5 9 2 4 6 8 6 6 7 8\n\
                       mark 0x4 0 2 4 6 8 6 6 7 8\nmark 0x5 9 3 4 6 8 6 6 7 8\n";

    #[test]
    fn a_round_is_what_lies_between_its_marks() {
        let marks = Marks::parse(TWO).unwrap();
        let expected = Counts { user: 1, kernel: 2, guest: 3, el2: 4, entries: 1, value: 9, ..Counts::default() };
        assert_eq!(marks.rounds(2), [Counts { user: 1, value: 9, ..Counts::default() }, expected]);
        assert_eq!(marks.median(2), Some(expected));
        assert_eq!(expected.all(), 10);
        assert_eq!(marks.calls(0xc600_0080), Some(Calls { times: 2, least: 50 }));
        assert_eq!(marks.until(2).map(|c| c.all()), Some(10));
        assert_eq!(marks.median(3), None);
    }

    #[test]
    fn a_row_of_another_machine_is_added() {
        let (mut marks, other) =
            (Marks::parse(TWO).unwrap(), Marks::parse(&TWO.replace("0x4", "0x6").replace("0x5", "0x7")).unwrap());
        marks.take(3, &other);
        assert_eq!((marks.rounds(3), marks.rounds(2).len()), (other.rounds(3), 2));
    }

    #[test]
    fn what_is_not_whole_is_no_figure() {
        for bad in [
            "",
            "mark 0x4 0 1 2 3 4 5 6 7 8\n",
            "mark 0x5 0 1 2 3 4 5 6 7 8\n",
            "mark 0x4 0 1 2 3 4 5 6 7 8\nmark 0x4 0 1 2 3 4 5 6 7 8\n",
            "mark 0x4 0 1 2 3 4 5 6 7 8\nmark 0x7 0 1 2 3 4 5 6 7 8\n",
            "mark 0x4 0 1 2\n",
            "mark 0x4 0 1 2 3 4 5 6 7 8\nmark 0x5 0 1 2 3 4 5 6 7 8",
            "what\n",
        ] {
            assert!(Marks::parse(bad).is_err(), "{bad}");
        }
    }
}
