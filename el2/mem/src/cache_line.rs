// SPDX-License-Identifier: MIT OR Apache-2.0
//! How far apart the addresses are that maintenance of the data cache names.
//!
//! Guarantees that no line of any data cache of the system lies between two of them: a step that is too long would leave
//! lines of a scrubbed frame behind, which come over it later (I4). It knows what registers say, not how they are read.

/// CTR_EL0.DminLine: logarithm of the words in the smallest line of all data and unified caches. Arm ARM D24.2.36.
#[inline(always)]
const fn words_in_a_line(ctr: u64) -> u64 {
    ctr >> 16 & 0xf
}

/// Bytes of the smallest line of all data caches, as CTR_EL0 says it.
#[must_use]
#[inline(always)]
pub const fn smallest_line(ctr: u64) -> usize {
    4 << words_in_a_line(ctr)
}

/// The same, if DC ZVA zeroes just as much, as DCZID_EL0 says it: BS is counted as lines are, and DZP, the bit above, says
/// that there is no DC ZVA. Arm ARM D24.2.45.
#[must_use]
#[inline(always)]
pub const fn line_zeroed_at_once(ctr: u64, dczid: u64) -> Option<usize> {
    if dczid & 0x1f == words_in_a_line(ctr) { Some(smallest_line(ctr)) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fields beside DminLine, all clear and all set: IminLine, L1Ip, ERG, CWG, IDC, DIC, TminLine.
    const BESIDE: [u64; 3] = [0, !(0xf << 16), 0x8444_c004 & !(0xf << 16)];

    #[test]
    fn a_line_is_as_long_as_its_words() {
        let bytes = [
            4,
            8,
            16,
            32,
            64,
            128,
            256,
            512,
            1 << 10,
            2 << 10,
            4 << 10,
            8 << 10,
            16 << 10,
            32 << 10,
            64 << 10,
            128 << 10,
        ];
        for (kind, bytes) in (0..).zip(bytes) {
            for beside in BESIDE {
                assert_eq!(smallest_line(beside | kind << 16), bytes, "DminLine {kind}, else {beside:#x}");
            }
        }
    }

    #[test]
    fn what_is_zeroed_at_once_is_a_line_or_nothing() {
        for kind in 0..16 {
            for dczid in 0..64 {
                for beside in BESIDE {
                    let ctr = beside | kind << 16;
                    // Bit 5 and above are nobody's.
                    let same = dczid & 0x10 == 0 && dczid & 0xf == kind;
                    assert_eq!(
                        line_zeroed_at_once(ctr, dczid),
                        same.then(|| smallest_line(ctr)),
                        "{ctr:#x} {dczid:#x}"
                    );
                }
            }
        }
    }
}
