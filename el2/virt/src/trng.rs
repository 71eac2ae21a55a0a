// SPDX-License-Identifier: MIT OR Apache-2.0
//! True random numbers for a guest: the TRNG interface of SMCCC (Arm DEN0098), version 1.0.
//!
//! Guarantees that a guest never gets numbers that the host chose: they come from a source that the host does not
//! control, which is the CPU, or the interface is not there. Nothing is kept of what was given.

const VERSION: u64 = 0x8400_0050;
const FEATURES: u64 = 0x8400_0051;
const UUID: u64 = 0x8400_0052;
const RND32: u64 = 0x8400_0053;
const RND64: u64 = 0xc400_0053;

const NOT_SUPPORTED: u64 = (-1i64).cast_unsigned();
const INVALID_PARAMETERS: u64 = (-2i64).cast_unsigned();
const NO_ENTROPY: u64 = (-3i64).cast_unsigned();

/// Names this back end: the source of a machine under `el2`.
const BACK_END: [u64; 4] = [0x23f7_81d4, 0x4c1e_90ab, 0x9b4d_6f02, 0x70c5_3e18];

/// Serves the call `id`; `None` if it is none of this interface. Without a source the interface is not there. A source
/// gives 64 fresh random bits, or none if there are none now.
#[inline(never)]
pub fn serve(id: u64, x1: u64, source: Option<impl FnMut() -> Option<u64>>) -> Option<[u64; 4]> {
    if !matches!(id, VERSION | FEATURES | UUID | RND32 | RND64) {
        return None;
    }
    let Some(source) = source else { return Some([NOT_SUPPORTED, 0, 0, 0]) };
    Some(match id {
        VERSION => [0x1_0000, 0, 0, 0],
        FEATURES if matches!(x1 & 0xffff_ffff, VERSION | FEATURES | UUID | RND32 | RND64) => [0; 4],
        FEATURES => [NOT_SUPPORTED, 0, 0, 0],
        UUID => BACK_END,
        RND32 => random(x1 & 0xffff_ffff, 32, source),
        _ => random(x1, 64, source),
    })
}

/// `bits` random bits in up to three registers of this width, the lowest in x3.
fn random(bits: u64, width: u64, mut source: impl FnMut() -> Option<u64>) -> [u64; 4] {
    if bits == 0 || bits > width.saturating_mul(3) {
        return [INVALID_PARAMETERS, 0, 0, 0];
    }
    let mut words = [0; 3];
    let mut left = bits;
    for word in &mut words {
        let take = left.min(width);
        if take != 0 {
            let Some(fresh) = source() else { return [NO_ENTROPY, 0, 0, 0] };
            *word = fresh & u64::MAX.unbounded_shr(64u64.saturating_sub(take) as u32);
        }
        left = left.saturating_sub(take);
    }
    let [low, middle, high] = words;
    [0, high, middle, low]
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_SOURCE: Option<fn() -> Option<u64>> = None;

    /// With a source that gives all ones, so many times.
    fn call_with(mut left: u32, id: u64, x1: u64) -> Option<[u64; 4]> {
        let ones = move || {
            left = left.checked_sub(1)?;
            Some(u64::MAX)
        };
        serve(id, x1, Some(ones))
    }

    fn call(id: u64, x1: u64) -> Option<[u64; 4]> {
        call_with(3, id, x1)
    }

    #[test]
    fn errors_are_the_standards() {
        assert_eq!([NOT_SUPPORTED, INVALID_PARAMETERS, NO_ENTROPY].map(u64::cast_signed), [-1, -2, -3]);
    }

    #[test]
    fn without_a_source_nothing_is_there() {
        for id in [VERSION, FEATURES, UUID, RND32, RND64] {
            assert_eq!(serve(id, 1, NO_SOURCE), Some([NOT_SUPPORTED, 0, 0, 0]), "{id:#x}");
        }
        for id in [0x8400_004f, 0x8400_0054, 0xc400_0050, 0xc400_0052, 0, u64::MAX, 1 << 32 | VERSION] {
            assert_eq!(serve(id, 1, NO_SOURCE), None, "{id:#x}");
            assert_eq!(call(id, 1), None, "{id:#x}");
        }
    }

    #[test]
    fn an_exhausted_source_gives_no_part_of_a_number() {
        for have in 0..3 {
            assert_eq!(call_with(have, RND64, 192), Some([NO_ENTROPY, 0, 0, 0]));
        }
        assert_eq!(call_with(1, RND64, 64), Some([0, 0, 0, u64::MAX]), "no more is drawn than asked for");
    }

    #[test]
    fn counts_out_of_range_are_refused() {
        for (id, counts) in [(RND32, [0, 97, 0xffff_ffff, 1 << 32]), (RND64, [0, 193, 1 << 32, u64::MAX])] {
            for count in counts {
                assert_eq!(call(id, count), Some([INVALID_PARAMETERS, 0, 0, 0]), "{id:#x} {count}");
            }
        }
    }

    #[test]
    fn so_many_bits_and_no_more() {
        for bits in 1..=192 {
            let [status, high, middle, low] = call(RND64, bits).unwrap();
            let ones = [low, middle, high].map(u64::count_ones);
            assert_eq!((status, u64::from(ones.iter().sum::<u32>())), (0, bits));
            assert_eq!(low.trailing_ones() + if bits > 64 { middle.trailing_ones() } else { 0 }, bits.min(128) as u32);
        }
        for bits in 1..=96 {
            let [status, high, middle, low] = call(RND32, bits).unwrap();
            assert!([high, middle, low].iter().all(|word| *word <= u64::from(u32::MAX)));
            assert_eq!((status, [high, middle, low].map(u64::count_ones).iter().sum::<u32>()), (0, bits as u32));
        }
    }

    #[test]
    fn it_says_what_it_is() {
        assert_eq!(call(VERSION, 9), Some([0x1_0000, 0, 0, 0]));
        assert_eq!(call(UUID, 9), Some(BACK_END));
        assert_ne!(BACK_END[0], 0xffff_ffff);
        assert_eq!(call(FEATURES, RND64), Some([0; 4]));
        assert_eq!(call(FEATURES, 0x8400_0054), Some([NOT_SUPPORTED, 0, 0, 0]));
    }
}
