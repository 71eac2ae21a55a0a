// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exits, counted by reason.

use std::fmt;

/// Why a vCPU came back to the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A load from a device.
    Load,
    /// A store to a device.
    Store,
    /// A signal.
    Signal,
    /// The guest asked for its end.
    Event,
    /// It can not go on.
    Broken,
}

const REASONS: [(Exit, &str); 5] = [
    (Exit::Load, "device loads"),
    (Exit::Store, "device stores"),
    (Exit::Signal, "signals"),
    (Exit::Event, "ends"),
    (Exit::Broken, "failures"),
];

/// Exits of one vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally([u64; REASONS.len()]);

impl Tally {
    /// Counts one.
    pub fn count(&mut self, exit: Exit) {
        let at = REASONS.iter().position(|(reason, _)| *reason == exit);
        if let Some(count) = at.and_then(|at| self.0.get_mut(at)) {
            *count += 1;
        }
    }
}

/// Exits of all vCPUs, as a table with a line for each reason that there was.
#[derive(Clone, Debug)]
pub struct Summary<'s>(pub &'s [Tally]);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<16}{:>10}", "exits", "all")?;
        for vcpu in 0..self.0.len() {
            write!(f, "{:>10}", format!("vcpu{vcpu}"))?;
        }
        for (at, (_, name)) in REASONS.iter().enumerate() {
            let counts: Vec<u64> = self.0.iter().map(|tally| tally.0[at]).collect();
            let all: u64 = counts.iter().sum();
            if all > 0 {
                write!(f, "\n{name:<16}{all:>10}")?;
                counts.iter().try_for_each(|count| write!(f, "{count:>10}"))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_names_each_reason_that_there_was() {
        let mut tallies = [Tally::default(); 2];
        for (exit, _) in REASONS.iter().filter(|(exit, _)| *exit != Exit::Broken) {
            tallies[0].count(*exit);
            tallies[1].count(*exit);
            tallies[1].count(*exit);
        }
        let text = Summary(&tallies).to_string();
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["exits", "all", "vcpu0", "vcpu1"]);
        assert_eq!(lines[1], ["device", "loads", "3", "1", "2"]);
        assert_eq!(lines.len(), REASONS.len(), "{text}");
        assert!(!text.contains("failures"));
    }
}
