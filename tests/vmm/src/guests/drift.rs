// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest's clock beside the host's, by stamps on the console.
//!
//! A stamp arrives late on a loaded machine. It carries the counter, which host and guest share: so many ticks must be
//! as long for the one as for the other. That the counter is shared is looked at too.

use std::arch::asm;
use std::time::Instant;

/// Shorter than this, an interruption in the middle of a stamp would count.
const SHORTEST: f64 = 4.0;

struct Stamp {
    guest: f64,
    guest_ticks: u64,
    host: f64,
    host_ticks: u64,
}

/// The stamps so far.
#[derive(Default)]
pub(super) struct Stamps(Vec<Stamp>, Option<(Instant, u64)>);

fn counter() -> u64 {
    let ticks: u64;
    // SAFETY: reads a register that user space may read.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) ticks, options(nomem, nostack)) };
    ticks
}

impl Stamps {
    /// Notes when the guest began.
    pub(super) fn begin(&mut self) {
        self.1 = Some((Instant::now(), counter()));
    }

    /// Takes the guest's nanoseconds and ticks, now.
    pub(super) fn take(&mut self, text: &str) {
        let Some((begin, _)) = self.1 else { return };
        let mut numbers = text.split_whitespace().map_while(|n| n.parse::<u64>().ok());
        if let (Some(time), Some(guest_ticks)) = (numbers.next(), numbers.next()) {
            let (host, host_ticks) = (begin.elapsed().as_secs_f64(), counter());
            self.0.push(Stamp { guest: time as f64 / 1e9, guest_ticks, host, host_ticks });
        }
    }

    /// Whether the clocks went alike between the first stamp and the last, and how.
    pub(super) fn judge(&self) -> (bool, String) {
        let (Some(first), Some(last), Some((_, begin))) = (self.0.first(), self.0.last(), self.1) else {
            return (false, "no stamps".to_owned());
        };
        let shared = self.0.iter().all(|stamp| (begin..=stamp.host_ticks).contains(&stamp.guest_ticks));
        let guest = (last.guest - first.guest) / last.guest_ticks.saturating_sub(first.guest_ticks).max(1) as f64;
        let host = (last.host - first.host) / last.host_ticks.saturating_sub(first.host_ticks).max(1) as f64;
        let (drift, over) = ((guest / host - 1.0).abs() * 100.0, last.guest - first.guest);
        let what = format!("{drift:.3} % over {over:.1} s, one counter: {shared}");
        (shared && over >= SHORTEST && drift < 1.0, what)
    }
}
