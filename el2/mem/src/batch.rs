// SPDX-License-Identifier: MIT OR Apache-2.0
//! The frames that one call is about, gathered once and then only read.
//!
//! A [`Granule`] exists only here: code outside this crate can not make one, and inside it only the
//! gathering functions of [`crate::Host`] fill a batch, under the host lock, from claims that they
//! then check. It does not outlive the lock, for it borrows from what the lock protects.

use crate::{Gfn, Pfn, Refused};

/// Bits of a guest frame number in a packed granule; the frame number stands above.
const GFN_BITS: u32 = 28;

/// A frame, and where a guest sees it or is to see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granule {
    pfn: Pfn,
    gfn: Gfn,
}

impl Granule {
    /// The frame.
    pub const fn pfn(self) -> Pfn {
        self.pfn
    }

    /// The guest frame. Zero where the call knows none.
    pub const fn gfn(self) -> Gfn {
        self.gfn
    }

    const fn pack(pfn: Pfn, gfn: Gfn) -> u64 {
        pfn.raw() << GFN_BITS | gfn.raw()
    }

    const fn unpack(word: u64) -> Self {
        Self { pfn: Pfn::from_bits(word >> GFN_BITS), gfn: Gfn::from_bits(word) }
    }
}

/// Room for the granules of one call.
#[derive(Debug)]
pub(crate) struct Batch<'m> {
    words: &'m mut [u64],
    len: usize,
}

impl<'m> Batch<'m> {
    /// Uses the words as room. There are [`MAX_FRAMES`](crate::MAX_FRAMES): more no call may name.
    pub(crate) fn new(words: &'m mut [u64]) -> Self {
        Self { words, len: 0 }
    }

    /// Forgets all granules.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// Adds a granule; `CountTooLarge` if there is no more room.
    pub(crate) fn push(&mut self, pfn: Pfn, gfn: Gfn) -> Result<(), Refused> {
        *self.words.get_mut(self.len).ok_or(Refused::CountTooLarge)? = Granule::pack(pfn, gfn);
        self.len = self.len.saturating_add(1);
        Ok(())
    }

    /// All granules.
    pub(crate) fn granules(&self) -> Granules<'_> {
        Granules(self.words.get(..self.len).unwrap_or(&[]))
    }
}

/// Granules of one call, in the order in which it named them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Granules<'b>(&'b [u64]);

impl<'b> Granules<'b> {
    /// The granules, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Granule> + Clone + use<'b> {
        self.0.iter().map(|word| Granule::unpack(*word))
    }

    /// Those that follow each other with the same `part`, by turns, and the first of each turn.
    pub(crate) fn turns(&self, part: impl Fn(Pfn) -> u64) -> impl Iterator<Item = (Granule, Self)> {
        let part = move |word: u64| part(Granule::unpack(word).pfn());
        self.parted(move |first, _, next| part(first) == part(next))
    }

    /// Runs of frames that follow each other, and the first of each run.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (Granule, Self)> {
        self.parted(|_, last, next| (next >> GFN_BITS).wrapping_sub(last >> GFN_BITS) == 1)
    }

    /// Parts in which each word follows on the part's first and on the one before it.
    #[inline]
    fn parted(&self, follows: impl Fn(u64, u64, u64) -> bool) -> impl Iterator<Item = (Granule, Self)> {
        let mut rest = self.0;
        core::iter::from_fn(move || {
            let (first, others) = rest.split_first()?;
            let mut last = *first;
            let end = others.iter().position(|next| !follows(*first, core::mem::replace(&mut last, *next), *next));
            let (part, after) = rest.split_at_checked(end.unwrap_or(others.len()).saturating_add(1))?;
            rest = after;
            Some((Granule::unpack(*first), Self(part)))
        })
    }

    /// How many there are.
    pub(crate) fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// The ones after the first `count`.
    pub(crate) fn after(&self, count: u64) -> Self {
        let from = usize::try_from(count).unwrap_or(usize::MAX);
        Self(self.0.get(from..).unwrap_or(&[]))
    }

    /// The first `count`.
    pub(crate) fn first(&self, count: u64) -> Self {
        let to = usize::try_from(count).unwrap_or(usize::MAX);
        Self(self.0.get(..to).unwrap_or(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn a_granule_survives_its_word() {
        for pfn in [0, 1, (1 << 36) - 1] {
            for gfn in [0, 1, (1 << 28) - 1] {
                let (pfn, gfn) = (Pfn::new(pfn).unwrap(), Gfn::new(gfn).unwrap());
                assert_eq!(Granule::unpack(Granule::pack(pfn, gfn)), Granule { pfn, gfn });
            }
        }
    }

    #[test]
    fn a_batch_is_parted_into_turns_and_runs_without_losing_a_granule() {
        let mut words = [0; 8];
        let mut batch = Batch::new(&mut words);
        assert_eq!(batch.granules().runs().count(), 0);
        let pfns = [510, 511, 512, 513, 513, 7, 6, 8];
        pfns.into_iter().for_each(|pfn| batch.push(Pfn::new(pfn).unwrap(), Gfn::new(3).unwrap()).unwrap());
        let said = |parts: &mut dyn Iterator<Item = (Granule, Granules<'_>)>| {
            parts.map(|(first, part)| (first.pfn().raw(), part.iter().map(|g| g.pfn().raw()).collect())).collect()
        };
        let runs: vec::Vec<(u64, vec::Vec<u64>)> = said(&mut batch.granules().runs());
        let expected = [(510, vec![510, 511, 512, 513]), (513, vec![513]), (7, vec![7]), (6, vec![6]), (8, vec![8])];
        assert_eq!(runs, expected);
        let turns: vec::Vec<(u64, vec::Vec<u64>)> = said(&mut batch.granules().turns(|pfn| pfn.raw() >> 9));
        assert_eq!(turns, [(510, vec![510, 511]), (512, vec![512, 513, 513]), (7, vec![7, 6, 8])]);
    }

    #[test]
    fn a_full_batch_takes_no_more() {
        let mut words = [0; 2];
        let mut batch = Batch::new(&mut words);
        let (pfn, gfn) = (Pfn::new(7).unwrap(), Gfn::new(9).unwrap());
        assert_eq!([(); 3].map(|()| batch.push(pfn, gfn)), [Ok(()), Ok(()), Err(Refused::CountTooLarge)]);
        assert_eq!(batch.granules().len(), 2);
        assert_eq!(batch.granules().after(1).len(), 1);
        assert_eq!(batch.granules().after(9).len(), 0);
        assert_eq!(batch.granules().first(9).len(), 2);
    }
}
