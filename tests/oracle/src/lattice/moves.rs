// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every move of the driver.

use super::{Lattice, Play};
use crate::op::{Env, Move, Op};
use crate::state::State;

pub(super) fn each(l: &Lattice, s: &impl State, f: &mut impl FnMut(&Play<'_>)) {
    if l.part.attempts == 0 {
        return;
    }
    let mut play = |step| f(&Play::one(Op::Driver(step), Env::CALM));
    for pfn in l.data.clone() {
        play(Move::Populate { pfn });
        play(Move::Fill { pfn });
        if s.page(pfn).holders < l.part.holders {
            play(Move::Pin { pfn });
        }
        play(Move::Unpin { pfn });
        for by in 0..l.part.attempts {
            play(Move::Drain { pfn, by });
            play(Move::Freeze { pfn, by });
            play(Move::Cancel { pfn, by });
        }
        play(Move::Thaw { pfn });
        play(Move::Punch { pfn });
        play(Move::Close { pfn });
        for slot in 0..s.machine().slots {
            play(Move::Reclaim { pfn, slot });
            l.gfns.clone().for_each(|gfn| play(Move::Donate { pfn, slot, gfn }));
        }
    }
    for slot in 0..s.machine().slots {
        play(Move::Accept { slot, vcpu: 0 });
    }
}
