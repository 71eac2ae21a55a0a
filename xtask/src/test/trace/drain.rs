// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads a trace out of a running machine, stretch by stretch, and hands it to the checker.
//!
//! The debug el2 writes its records in a circle. The machine is stopped while a stretch is copied, so a record is whole
//! or has not got its number yet; whoever comes too late finds a number that he does not expect, and says so.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use freehold_trace::check::{Checker, Report};
use freehold_trace::record::{BYTES, Words};

use crate::qemu::{Qmp, Running};

/// What the debug el2 says first.
const PLACE: &str = "freehold: trace at ";
/// How often it is looked whether there is much to read.
const PERIOD: Duration = Duration::from_millis(200);
/// A record's size.
const RECORD: u64 = BYTES as u64;

/// Where the records are, and where they are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    at: u64,
    records: u64,
    count: u64,
}

impl Place {
    /// Out of el2's own words.
    pub(super) fn read(line: &str) -> Option<Self> {
        let (at, rest) = line.strip_prefix(PLACE)?.split_once(" bytes ")?;
        let (bytes, count) = rest.split_once(" count ")?;
        let number = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
        Some(Self { at: number(at)?, records: number(bytes)? / RECORD, count: number(count)? })
    }
}

/// Somebody who reads while the machine runs.
pub(super) struct Drain {
    over: Sender<()>,
    reader: JoinHandle<Result<Report>>,
}

impl Drain {
    /// Starts to read.
    ///
    /// # Errors
    /// If the machine's monitor does not answer.
    pub(super) fn start(running: &Running, place: Place) -> Result<Self> {
        let (over, ends) = channel();
        let reader = Reader {
            monitor: running.second_monitor()?,
            file: running.scratch("trace"),
            place,
            taken: 0,
            checker: Checker::new(),
        };
        Ok(Self { over, reader: std::thread::spawn(move || reader.run(&ends)) })
    }

    /// Reads what is left, of a machine that writes no more.
    ///
    /// # Errors
    /// If some of the trace could not be read.
    pub(super) fn finish(self) -> Result<Report> {
        drop(self.over);
        self.reader.join().map_err(|_| anyhow::anyhow!("the trace's reader died"))?
    }
}

struct Reader {
    monitor: Qmp,
    file: PathBuf,
    place: Place,
    /// Records that were read.
    taken: u64,
    checker: Checker,
}

impl Reader {
    fn run(mut self, over: &Receiver<()>) -> Result<Report> {
        loop {
            let ends = over.recv_timeout(PERIOD) != Err(RecvTimeoutError::Timeout);
            let written = written(&mut self.monitor, &self.file, self.place)?;
            if ends || written - self.taken > self.place.records / 8 {
                let left = self.stretch()?;
                anyhow::ensure!(!ends || left == 0, "the last {left} records of the trace are not whole");
            }
            if ends {
                return Ok(self.checker.finish());
            }
        }
    }

    /// Hands all records that were not read yet to the checker; how many are left from the first on that is not whole. The
    /// machine stands meanwhile: four CPUs write faster than one judges.
    fn stretch(&mut self) -> Result<usize> {
        let Self { monitor, file, place, taken, checker } = self;
        monitor.while_stopped(|monitor| {
            let written = written(monitor, file, *place)?;
            let mut stretch = Vec::new();
            for (first, count) in pieces(*taken, written, place.records)? {
                stretch.extend(memory(monitor, file, place.at + first * RECORD, count * RECORD)?);
            }
            Ok(judge(&stretch, taken, checker))
        })
    }
}

/// Hands a stretch to the checker, up to the first record that is not whole; how many are left from there on.
fn judge(stretch: &[u8], taken: &mut u64, checker: &mut Checker) -> usize {
    let (records, _) = stretch.as_chunks::<BYTES>();
    for (done, record) in records.iter().enumerate() {
        let words = words(record);
        // Somebody has taken the number and not written the record yet: an older one stands there, or none.
        if words[0] >> 24 <= *taken {
            return records.len() - done;
        }
        *taken += 1;
        checker.words(words);
    }
    0
}

/// A record as it stands in memory.
fn words(record: &[u8; BYTES]) -> Words {
    let (words, _) = record.as_chunks::<8>();
    std::array::from_fn(|n| u64::from_le_bytes(words[n]))
}

/// Where the records from `taken` to `written` stand in a circle of `records`: first and count.
fn pieces(taken: u64, written: u64, records: u64) -> Result<[(u64, u64); 2]> {
    let count = written.checked_sub(taken).context("the trace's count went back")?;
    anyhow::ensure!(count <= records, "{count} records at once do not fit into the trace's memory");
    let first = taken % records;
    let before = count.min(records - first);
    Ok([(first, before), (0, count - before)])
}

/// How many records were ever written.
fn written(monitor: &mut Qmp, file: &Path, place: Place) -> Result<u64> {
    let bytes = memory(monitor, file, place.count, 8)?;
    Ok(u64::from_le_bytes(bytes[..].try_into().context("a short answer of the monitor")?))
}

/// Physical memory, by way of `file`.
fn memory(monitor: &mut Qmp, file: &Path, at: u64, size: u64) -> Result<Vec<u8>> {
    if size == 0 {
        return Ok(Vec::new());
    }
    let saved = monitor.save_memory(at, size, file).and_then(|()| Ok(std::fs::read(file)?));
    let _ = std::fs::remove_file(file);
    let saved = saved?;
    anyhow::ensure!(saved.len() as u64 == size, "the monitor saved {} of {size} bytes", saved.len());
    Ok(saved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_read_from_the_console() {
        let place = Place { at: 0x4020_0000, records: 1 << 20, count: 0x4001_0000 };
        assert_eq!(Place::read("freehold: trace at 0x40200000 bytes 0x2000000 count 0x40010000"), Some(place));
        assert_eq!(Place::read("freehold: trace at 40200000 bytes 0x2000000 count 0x40010000"), None);
        assert_eq!(Place::read("freehold: trace at 0x40200000 bytes 0x2000000"), None);
        assert_eq!(Place::read("freehold: el2 0.1.0"), None);
    }

    #[test]
    fn a_stretch_goes_round_the_circle_and_not_over_itself() {
        assert_eq!(pieces(0, 3, 8).unwrap(), [(0, 3), (0, 0)]);
        assert_eq!(pieces(14, 19, 8).unwrap(), [(6, 2), (0, 3)]);
        assert_eq!(pieces(16, 24, 8).unwrap(), [(0, 8), (0, 0)]);
        assert!(pieces(16, 25, 8).is_err(), "overwritten before it was read");
        assert!(pieces(16, 15, 8).is_err());
    }
}
