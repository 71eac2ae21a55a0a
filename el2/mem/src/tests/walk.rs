// SPDX-License-Identifier: MIT OR Apache-2.0
//! Long random walks over every verb; after each step the whole machine must be in order.

use super::rig::{GUEST_RAM, RAM, Rig, pfn};
use crate::{Kind, Life, State};

struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// First frame and frames of the window that the walk plays in: two blocks, and a bit of both.
const FROM: u64 = RAM + 512 * 5;
const WINDOW: u64 = 600;

/// A frame of the window in a state that passes, from a random place on; else any.
fn pick(rig: &Rig, dice: &mut Dice, want: impl Fn(State) -> bool) -> u64 {
    let start = dice.below(WINDOW);
    let frames = (0..WINDOW).map(|offset| FROM + (start + offset) % WINDOW);
    let found = frames.clone().find(|frame| rig.state(*frame).is_some_and(&want));
    found.filter(|_| dice.below(8) != 0).unwrap_or(FROM + start)
}

/// A guest frame of the slot that something backs; else any.
fn pick_at(rig: &Rig, dice: &mut Dice, slot: usize) -> u64 {
    let leaves = rig.leaves(slot);
    let any = GUEST_RAM - 1 + dice.below(WINDOW);
    if leaves.is_empty() || dice.below(8) == 0 { any } else { leaves[dice.below(leaves.len() as u64) as usize].0 }
}

/// A slot for which the verb may succeed, if there is one; at times any.
fn pick_slot(rig: &Rig, dice: &mut Dice, verb: u64) -> usize {
    let (start, any) = (dice.below(3) as usize, dice.below(8) == 0);
    let fits = |slot: &usize| {
        let (life, kind) = (rig.guests[*slot].life(), rig.guests[*slot].kind());
        let alive = matches!(life, Life::Building | Life::Running);
        match verb {
            0 => life == Life::Free,
            1 => life == Life::Building,
            3..=5 => alive && kind != Some(Kind::Ordinary),
            6 => alive && kind == Some(Kind::Ordinary),
            7 => kind == Some(Kind::Ordinary),
            8..=11 => life == Life::Running && kind != Some(Kind::Ordinary),
            12 | 13 => life == Life::Dying,
            _ => alive,
        }
    };
    (0..3).map(|offset| (start + offset) % 3).find(|slot| any || fits(slot)).unwrap_or(start)
}

/// One step; says whether it succeeded.
fn step(rig: &mut Rig, dice: &mut Dice) -> bool {
    let verb = dice.below(15);
    let slot = pick_slot(rig, dice, verb);
    let vm = rig.guests[slot].vm();
    let at = GUEST_RAM - 1 + dice.below(WINDOW);
    let most = if dice.below(8) == 0 { 80 } else { 4 };
    let count = 1 + dice.below(most);
    let free = pick(rig, dice, |state| state == State::Host);
    match verb {
        0 => {
            let kind = [Kind::Protected, Kind::Lazy, Kind::Ordinary][dice.below(3) as usize];
            let born = rig.birth(slot, free, count + 3, kind, 32).is_ok();
            if born {
                let ram = crate::GfnRun::decode(GUEST_RAM, WINDOW - 1).unwrap();
                rig.guests[slot].declare_ram(crate::Claim::new(ram)).unwrap();
            }
            born
        }
        1 => rig.guests[slot].start().is_ok(),
        2 => rig.top_up(slot, free, count).is_ok(),
        3 | 4 => {
            let (revocable, stop) = (dice.below(2) == 0, dice.below(2) == 0);
            rig.donate_with(slot, free, at, count, revocable, &mut || stop).is_ok()
        }
        5 => {
            let list = [(free, at, count), (FROM + dice.below(WINDOW), GUEST_RAM + dice.below(WINDOW), 1)];
            rig.donate_list(slot, RAM + 4, &list, 2).is_ok()
        }
        6 => rig.lend(slot, free, at, count, true).is_ok(),
        7 => {
            let at = pick_at(rig, dice, slot);
            rig.unlend(slot, at, 1 + dice.below(2)).is_ok()
        }
        verb @ 8..=10 => {
            let at = pick_at(rig, dice, slot);
            let count = 1 + dice.below(2);
            match verb {
                8 => rig.share(slot, at, count).is_ok(),
                9 => rig.unshare(slot, at, count).is_ok(),
                _ => rig.relinquish(slot, at, count).is_ok(),
            }
        }
        11 => {
            let frame =
                pick(rig, dice, |state| matches!(state, State::Private { vm: of, revocable: true, .. } if of == vm));
            rig.revoke(slot, frame).is_ok()
        }
        12 => {
            let frame = pick(
                rig,
                dice,
                |state| matches!(state, State::Private { vm: of, .. } | State::Shared { vm: of, .. } if of == vm),
            );
            rig.reclaim(slot, frame, 1 + dice.below(3)).is_ok()
        }
        13 => {
            let frame = pick(rig, dice, |state| matches!(state, State::Pool { vm: of, .. } if of == vm));
            rig.return_pool(slot, frame, 1).is_ok()
        }
        _ => dice.below(6) == 0 && rig.guests[slot].begin_death(&mut rig.m).is_ok(),
    }
}

/// Ends every VM, whatever it has.
fn end_all(rig: &mut Rig) {
    for slot in 0..3 {
        let _ = rig.guests[slot].begin_death(&mut rig.m);
        let frames: std::vec::Vec<u64> = rig.ram().map(crate::Pfn::raw).collect();
        if rig.guests[slot].frames().1 != 0 {
            for at in GUEST_RAM..GUEST_RAM + WINDOW + 80 {
                let Rig { host, guests, m } = rig;
                let run = crate::Claim::new(crate::GfnRun::decode(at, 1).unwrap());
                if let Ok(checked) = crate::verbs::host_unshare_guest::check(host, &mut guests[slot], run, m) {
                    checked.commit(m);
                }
            }
        }
        for verb in [true, false] {
            for frame in &frames {
                let vm = rig.guests[slot].vm();
                match rig.state(*frame).unwrap() {
                    State::Private { vm: owner, .. } | State::Shared { vm: owner, .. } if verb && owner == vm => {
                        rig.reclaim(slot, *frame, 1).unwrap();
                    }
                    State::Pool { vm: owner, .. } if !verb && owner == vm => {
                        let _ = rig.return_pool(slot, *frame, 1).unwrap();
                    }
                    _ => {}
                }
            }
        }
    }
}

#[test]
fn no_walk_breaks_an_invariant_and_all_comes_back() {
    let seeds = if cfg!(miri) { 1 } else { 4 };
    let steps = if cfg!(miri) { 20 } else { 300 };
    let mut done = 0;
    for seed in 1..=seeds {
        let mut rig = Rig::new();
        let before = rig.rest();
        for (slot, kind) in [Kind::Protected, Kind::Lazy, Kind::Ordinary].into_iter().enumerate() {
            rig.with_vm(slot, kind, FROM - 64 + slot as u64 * 16, 16);
            rig.start(slot);
        }
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15_u64.rotate_left(seed as u32));
        done += (0..steps).filter(|_| step(&mut rig, &mut dice)).count();
        end_all(&mut rig);
        assert_eq!(rig.rest(), before, "I8, seed {seed}");
        assert_eq!(rig.state(RAM), Some(State::Host));
        assert!(rig.leaks().is_empty(), "I4, {:?}", pfn(RAM));
    }
    assert!(cfg!(miri) || done * 5 > seeds as usize * steps, "only {done} steps did anything");
}
