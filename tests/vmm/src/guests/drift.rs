// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest's clock beside the host's, by time stamps on the console.
//!
//! A stamp arrives late, never early. Of several in a row the least late one counts, at either end.

use std::time::Instant;

/// Stamps in a row, as the self-test prints them.
const ROW: usize = 10;
/// Shorter than this, what the console takes would count as drift.
const SHORTEST: f64 = 4.0;

/// Stamps: the guest's time in seconds, and the host's when it came.
#[derive(Default)]
pub(super) struct Stamps(Vec<(f64, f64)>, Option<Instant>);

impl Stamps {
    /// Takes the guest's nanoseconds, now.
    pub(super) fn take(&mut self, nanoseconds: &str) {
        let begin = *self.1.get_or_insert_with(Instant::now);
        if let Ok(time) = nanoseconds.trim().parse::<u64>() {
            self.0.push((time as f64 / 1e9, begin.elapsed().as_secs_f64()));
        }
    }

    /// Whether the clocks went alike between the first row and the last, and how.
    pub(super) fn judge(&self) -> (bool, String) {
        let least = |row: &[(f64, f64)]| row.iter().copied().min_by(|a, b| (a.1 - a.0).total_cmp(&(b.1 - b.0)));
        let ends = (self.0.len() >= 2 * ROW).then(|| (least(&self.0[..ROW]), least(&self.0[self.0.len() - ROW..])));
        let Some((Some(first), Some(last))) = ends else {
            return (false, format!("{} stamps", self.0.len()));
        };
        let (guest, host) = (last.0 - first.0, last.1 - first.1);
        let drift = (guest - host).abs() / host * 100.0;
        (host >= SHORTEST && drift < 1.0, format!("{drift:.3} % over {host:.1} s"))
    }
}
