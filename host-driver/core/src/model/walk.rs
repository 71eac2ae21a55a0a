// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random sequences of everything at once: the host's stores and holders, conversions, touches, the guest's requests.

use super::*;
use crate::convert::{empty, punch, reserve, to_private, to_shared, Mode, Nobody};
use crate::drain::Aim;
use crate::end::{doom, reclaim_pages, reclaim_pool, Pool};
use crate::exit::Request;
use crate::guest::{relinquish, share, unshare};

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

const PAGES: u64 = 24;

fn life(seed: u64) -> u64 {
    let world = world();
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (below, kernel) = (el2(&world), Kernel(world.clone()));
    pool::create(&below, &kernel, true, 40).unwrap();
    let initial = if dice.roll(2) == 0 { Initial::Host } else { Initial::Vacant };
    let file = Model::new(&world, PAGES as usize, initial.page());
    let mut held: Vec<u64> = Vec::new();
    let mut done = 0;
    world.pool_free.set(dice.roll(8));
    world.burst.set(1 + dice.roll(40));
    // What a VM has is given and taken back in runs of frames, then.
    world.adjacent.set(dice.roll(2) == 0);
    for _ in 0..200 {
        let thread = Sleeper::default();
        thread.signal_at.set(Some(1 + dice.roll(4) as u32));
        let first = dice.roll(PAGES);
        let of = Span::new(first, 1 + dice.roll(PAGES - first)).unwrap();
        let mut give = giver(&below, &kernel, &thread, of.first());
        let moved = match dice.roll(12) {
            0 | 1 => file.store(first) == HostFault::Map,
            2 if file.state(first).host_fault() == HostFault::Map => {
                file.hold(first);
                held.push(first);
                true
            }
            3 if !held.is_empty() => {
                let page = held.swap_remove(dice.roll(held.len() as u64) as usize);
                file.let_go(page);
                true
            }
            4 => to_private(&file, of, Aim::Convert, Mode::Now, &thread, &mut give).is_ok(),
            5 => to_private(&file, of, Aim::Convert, Mode::Wait, &thread, &mut Nobody).is_ok(),
            6 => {
                world.ran.set(true);
                let one = Span::one(first).unwrap();
                to_private(&file, one, Aim::Touch, Mode::Wait, &thread, &mut give).is_ok()
            }
            7 => to_shared(&file, of).is_ok(),
            // A frame that somebody holds leaves the file: the holder is the kernel's business then.
            8 if held.iter().all(|page| !(of.first()..of.end()).contains(page)) => punch(&file, of).is_ok(),
            9 => reserve(&file, of, &thread).is_ok(),
            10 => {
                *world.request.borrow_mut() = Some((BASE + first, of.count(), Request::Share));
                share(&file, of, |n| below.guest_accept(VM, 0, n)).is_ok()
            }
            11 if dice.roll(4) == 0 => {
                *world.request.borrow_mut() = Some((BASE + first, of.count(), Request::Relinquish));
                relinquish(&file, of, initial, |n| below.guest_accept(VM, 0, n)).is_ok()
            }
            11 => {
                *world.request.borrow_mut() = Some((BASE + first, of.count(), Request::Unshare));
                unshare(&file, of, &thread, |n| below.guest_accept(VM, 0, n)).is_ok()
            }
            _ => false,
        };
        done += u64::from(moved);
        file.check();
    }
    for page in held {
        file.let_go(page);
    }
    let thread = Sleeper::default();
    doom(&below, VM).unwrap();
    let all = Span::new(0, PAGES).unwrap();
    assert_eq!(reclaim_pages(&file, all, initial, &below, VM, &thread).lost, 0);
    assert_eq!(reclaim_pool(&below, &kernel, VM, &thread), Pool::Back(0));
    file.check();
    file.change(|_| file.shut(all));
    assert_eq!(empty(&file), 0);
    assert!(world.frames.borrow().is_empty(), "seed {seed}: I8");
    done
}

#[test]
fn random_lives_keep_every_rule_and_return_every_frame() {
    const LIVES: u64 = if cfg!(miri) { 4 } else { 2000 };
    let done: u64 = (1..=LIVES).map(life).sum();
    assert!(done > LIVES * 60, "too few moves succeed to mean anything: {done}");
}
