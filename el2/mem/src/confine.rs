// SPDX-License-Identifier: MIT OR Apache-2.0
//! A bound that holds even while the CPU speculates past the check of it.
//!
//! Guarantees that an index which came from a lower exception level, once confined, stays within its
//! table also on a mispredicted path, so that no load there depends on where the caller aimed it. The
//! mask is arithmetic on the index itself, without a branch or a condition flag to predict. It is no
//! check: that comes first, and decides the answer.

use core::hint::black_box;

/// The index if it is below `bound`, else 0. `bound` is at most `isize::MAX`.
#[inline(always)]
pub const fn confine(index: usize, bound: usize) -> usize {
    // The compiler must neither use what an earlier check told it, nor turn the mask into a branch.
    let index = black_box(index);
    let inside = !((index | bound.wrapping_sub(1).wrapping_sub(index)).cast_signed() >> (usize::BITS - 1));
    index & black_box(inside.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::confine;

    #[test]
    fn what_is_within_the_bound_stays_and_all_else_is_zero() {
        for bound in [0, 1, 2, 3, 32, 64, 1000, isize::MAX.cast_unsigned()] {
            for near in [0, 1, bound.wrapping_sub(2), bound.wrapping_sub(1), bound, bound + 1] {
                for index in [near, near | 1 << 63, !near] {
                    assert_eq!(confine(index, bound), if index < bound { index } else { 0 }, "{index:#x} {bound:#x}");
                }
            }
        }
    }
}
