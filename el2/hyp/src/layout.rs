// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where el2's own memory lies, and what must not lie over it.
//!
//! Guarantees that a carve-out is whole 2 MB blocks inside one bank and touches nothing that the host
//! was handed. Does not know what the carve-out is used for.

use crate::bundle::BLOCK;
use crate::stop::Stop;
use core::ops::Range;

/// A range of physical addresses.
pub type Span = Range<u64>;

/// Whether two ranges share a byte.
pub fn overlap(a: &Span, b: &Span) -> bool {
    a.start < b.end && b.start < a.end && !a.is_empty() && !b.is_empty()
}

/// Whether `outer` holds all of `inner`.
pub fn contains(outer: &Span, inner: &Span) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

fn block_down(address: u64) -> u64 {
    address & !BLOCK.wrapping_sub(1)
}

/// Rounds up to a whole block; `None` at the end of the address space.
pub fn block_up(address: u64) -> Option<u64> {
    address.checked_next_multiple_of(BLOCK)
}

/// Cuts the lowest piece that no hole touches off the front of `rest`; `None` when nothing is left.
pub fn cut_front<'h>(rest: &mut Span, holes: impl Iterator<Item = &'h Span> + Clone) -> Option<Span> {
    // Each turn passes at least one hole for good.
    while let Some(hole) = holes.clone().find(|hole| hole.start <= rest.start && rest.start < hole.end) {
        rest.start = hole.end;
    }
    if rest.is_empty() {
        return None;
    }
    let end = holes.map(|hole| hole.start).filter(|start| *start > rest.start).min().unwrap_or(rest.end).min(rest.end);
    let piece = rest.start..end;
    rest.start = end;
    Some(piece)
}

/// Least RAM that a host is started with, its kernel's memory included.
pub const LEAST_HOST_RAM: u64 = 128 << 20;

/// Checks that enough RAM is left for a host once el2 has its carve-outs.
///
/// # Errors
/// A `Stop` that says how much would be left.
pub fn check_left(banks: &[Span], carve_outs: &[Span]) -> Result<(), Stop> {
    let sum = |spans: &[Span]| spans.iter().fold(0u64, |sum, s| sum.saturating_add(s.end.saturating_sub(s.start)));
    let left = sum(banks).saturating_sub(sum(carve_outs));
    if left < LEAST_HOST_RAM {
        return Err(Stop::with("too little RAM for a host (128 MiB are needed)", "bytes left", left));
    }
    Ok(())
}

/// Finds the highest `size` bytes, in whole blocks of one bank, that no range of `taken` touches.
pub fn place_high(banks: &[Span], taken: &[Span], size: u64) -> Option<Span> {
    let size = block_up(size)?;
    banks.iter().filter_map(|bank| place_in(bank, taken, size)).max_by_key(|span| span.start)
}

fn place_in(bank: &Span, taken: &[Span], size: u64) -> Option<Span> {
    let mut end = block_down(bank.end);
    // Each turn moves `end` below one more range of `taken`.
    for _ in 0..=taken.len() {
        let start = end.checked_sub(size)?;
        if start < bank.start {
            return None;
        }
        let candidate = start..end;
        match taken.iter().filter(|range| overlap(range, &candidate)).map(|range| range.start).min() {
            Some(below) => end = block_down(below),
            None => return Some(candidate),
        }
    }
    None
}

/// Checks that what the host was handed lies in RAM and not over what the bundle occupies.
///
/// # Errors
/// A `Stop` that names the part.
pub fn check_handed(what: Handed, span: &Span, banks: &[Span], bundle: &Span) -> Result<(), Stop> {
    if overlap(span, bundle) {
        return Err(Stop::with(what.over_bundle(), "address", span.start));
    }
    if !banks.iter().any(|bank| contains(bank, span)) {
        return Err(Stop::with(what.outside(), "address", span.start));
    }
    Ok(())
}

/// A part that the boot loader hands over beside the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handed {
    /// The initial RAM disk.
    Initrd,
    /// The device tree.
    Dtb,
}

impl Handed {
    fn over_bundle(self) -> &'static str {
        match self {
            Self::Initrd => "initrd lies over the carve-out or the bundled kernel",
            Self::Dtb => "DTB lies over the carve-out or the bundled kernel",
        }
    }

    fn outside(self) -> &'static str {
        match self {
            Self::Initrd => "initrd lies outside RAM",
            Self::Dtb => "DTB lies outside RAM",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: u64 = 1 << 20;

    #[test]
    fn a_bank_is_used_down_to_its_first_byte() {
        let bank = 64 * M..68 * M;
        assert_eq!(place_high(std::slice::from_ref(&bank), &[], 4 * M), Some(bank.clone()));
        assert_eq!(place_high(std::slice::from_ref(&bank), &[], 4 * M + 1), None);
    }

    #[test]
    fn the_highest_free_blocks_of_any_bank_are_taken() {
        let banks = [0..100 * M, 200 * M..300 * M + 4096];
        assert_eq!(place_high(&banks, &[], 3 * M), Some(296 * M..300 * M));
    }

    #[test]
    fn what_the_host_was_handed_is_avoided() {
        let banks = [0..100 * M];
        let taken = [99 * M..100 * M, 90 * M..96 * M + 1, 5 * M..7 * M];
        assert_eq!(place_high(&banks, &taken, 2 * M), Some(96 * M - 8 * M..90 * M));
        assert_eq!(place_high(&banks, &[99 * M..100 * M, 90 * M..96 * M], 2 * M), Some(96 * M..98 * M));
    }

    #[test]
    fn no_room_is_no_place() {
        assert_eq!(place_high(&[0..M], &[], 1), None);
        assert_eq!(place_high(&[], &[], 1), None);
        assert_eq!(place_high(&[0..10 * M], &[0..1, 4 * M..5 * M, 8 * M..9 * M], 4 * M), None);
        assert_eq!(place_high(&[0..10 * M], &[], u64::MAX), None);
    }

    #[test]
    fn a_bank_smaller_than_a_block_above_its_aligned_end_is_no_place() {
        let start = 2 * M - 4096;
        assert_eq!(place_high(&[start..2 * M + 4096], &[], M), None);
    }

    #[test]
    fn placed_range_never_touches_a_taken_one() {
        // Every pair of taken ranges over a small bank, against a brute-force search.
        let banks = [0..16 * M];
        for a in 0..16 {
            for b in 0..16 {
                let taken = [a * M..(a + 1) * M, b * M..(b + 2) * M];
                let brute = (0..=7)
                    .rev()
                    .map(|n| n * BLOCK..n * BLOCK + 2 * BLOCK)
                    .filter(|c| c.end <= 16 * M)
                    .find(|c| !taken.iter().any(|t| overlap(t, c)));
                assert_eq!(place_high(&banks, &taken, 2 * BLOCK), brute, "{a} {b}");
            }
        }
    }

    fn pieces(mut rest: Span, holes: &[Span]) -> Vec<Span> {
        core::iter::from_fn(|| cut_front(&mut rest, holes.iter())).collect()
    }

    #[test]
    fn no_piece_of_a_bank_touches_a_hole() {
        assert_eq!(pieces(0..10, &[]), [0..10]);
        assert_eq!(pieces(0..10, &[0..2, 4..6, 5..7, 9..12]), [2..4, 7..9]);
        assert_eq!(pieces(0..10, &[0..10]), []);
        assert_eq!(pieces(3..10, &[0..5, 4..20]), []);
        assert_eq!(pieces(0..10, &[20..30, 3..3]), [0..3, 3..10]);
    }

    #[test]
    fn a_machine_whose_host_would_starve_is_refused() {
        let carve_outs = [0..2 * M, 129 * M..131 * M];
        assert_eq!(check_left(&[0..132 * M], &carve_outs), Ok(()));
        assert!(check_left(&[0..131 * M], &carve_outs).unwrap_err().what().starts_with("too little RAM"));
    }

    #[test]
    fn initrd_over_the_bundle_or_outside_ram_is_refused() {
        let banks = [0..100 * M];
        let bundle = 10 * M..60 * M;
        assert_eq!(check_handed(Handed::Initrd, &(60 * M..70 * M), &banks, &bundle), Ok(()));
        let what = |span| check_handed(Handed::Initrd, &span, &banks, &bundle).unwrap_err().what();
        assert!(what(59 * M..70 * M).contains("over the carve-out"));
        assert!(what(0..100 * M).contains("over the carve-out"));
        assert!(what(99 * M..101 * M).contains("outside RAM"));
    }
}
