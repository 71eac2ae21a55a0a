// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every host call but the entry of a guest.

use freehold_uapi::hvc::{self, Record};

use super::{Lattice, Play, call};
use crate::op::{Call, Env, Who};
use crate::record::Life;
use crate::state::State;

/// A count that is too large, and one that leaves the number space.
const HUGE: [u64; 2] = [hvc::MAX_RUN + 1, u64::MAX];
/// More pool pages than any pool has.
const SHORT: u64 = 1 << 20;

/// Plays one call.
fn play(s: &impl State, f: &mut impl FnMut(&Play<'_>), which: Call, env: Env<'_>) {
    if let Some(op) = call(s, which) {
        f(&Play::one(op, env));
    }
}

pub(super) fn each(l: &Lattice, s: &impl State, f: &mut impl FnMut(&Play<'_>)) {
    for vm in l.whos(s.machine().slots) {
        life(l, s, vm, f);
        vcpus(l, s, vm, f);
        reclaims(l, s, vm, f);
        if l.part.raw {
            donations(l, s, vm, f);
            lists(l, s, vm, f);
            loans(l, s, vm, f);
            accepts(l, s, vm, f);
        }
    }
    creations(l, s, f);
    if l.part.gic {
        let never = [Who::Ended, Who::Never];
        (0..s.machine().slots).map(Who::Slot).chain(never).for_each(|vm| interrupts(s, vm, f));
    }
    if l.part.wrong {
        questions(s, f);
    }
}

fn interrupts(s: &impl State, vm: Who, f: &mut impl FnMut(&Play<'_>)) {
    for (distributor, redistributors) in [(0x10, 0x40), (0x11, 0x40), (0x10, 0x48), (1 << 20, 0x40), (0x10, u64::MAX)] {
        play(s, f, Call::VmGic { vm, distributor, redistributors }, Env::CALM);
    }
    for (intid, level) in [(32, 0), (32, 1), (255, 3), (31, 1), (256, 1), (32, 4), (u64::MAX, 0)] {
        play(s, f, Call::VmIrq { vm, intid, level }, Env::CALM);
    }
}

fn questions(s: &impl State, f: &mut impl FnMut(&Play<'_>)) {
    play(s, f, Call::Version, Env::CALM);
    play(s, f, Call::Unknown { id: hvc::GUEST_ACCEPT + 100 }, Env::CALM);
    for counter in (0..20).chain([u64::MAX]) {
        for index in [0, 1, 2, u64::MAX] {
            play(s, f, Call::Counter { counter, index }, Env::CALM);
        }
    }
}

fn creations(l: &Lattice, s: &impl State, f: &mut impl FnMut(&Play<'_>)) {
    let free = |slot: &u8| s.vm(*slot).life == Life::Free;
    let slots = s.machine().slots;
    // Where no slot is free the call is refused whatever the slot.
    let none = (0..slots).all(|n| !free(&n)).then_some(0);
    for slot in (0..slots).filter(free).chain(none) {
        let env = Env { slot, ..Env::CALM };
        let create = |flags, ipa_bits, pfn, count| Call::VmCreate { flags, ipa_bits, pfn, count };
        for pfn in l.pools() {
            for count in [1, 2] {
                play(s, f, create(hvc::VM_PROTECTED, 32, pfn, count), env);
            }
            play(s, f, create(hvc::VM_PROTECTED, 32, pfn, 1), Env { need: SHORT, ..env });
            play(s, f, create(0, 32, pfn, 1), env);
            if l.part.pools {
                play(s, f, create(hvc::VM_PROTECTED, 32, pfn, 1), Env { need: 1, ..env });
            }
        }
        if l.part.wrong {
            let pfn = l.pool.start;
            l.odd.iter().for_each(|p| play(s, f, create(hvc::VM_PROTECTED, 40, *p, 1), env));
            [31, 41, u64::MAX].iter().for_each(|b| play(s, f, create(hvc::VM_PROTECTED, *b, pfn, 1), env));
            HUGE.iter().chain(&[0]).for_each(|n| play(s, f, create(hvc::VM_PROTECTED, 32, pfn, *n), env));
            play(s, f, create(3, 32, pfn, 1), env);
            play(s, f, create(hvc::VM_PROTECTED, 32, u64::MAX, 1), env);
        }
    }
}

fn life(l: &Lattice, s: &impl State, vm: Who, f: &mut impl FnMut(&Play<'_>)) {
    play(s, f, Call::VmDestroy { vm }, Env::CALM);
    for (gfn, count) in l.ranges {
        play(s, f, Call::VmRange { vm, gfn: *gfn, count: *count }, Env::CALM);
    }
    for pfn in l.pools() {
        play(s, f, Call::PoolTopup { vm, pfn, count: 1 }, Env::CALM);
    }
    if l.part.wrong {
        let ranges = [(l.outside, 0), (1 << 28, 1), (u64::MAX, 1), (0, u64::MAX), (l.gfns.start, 1 << 30)];
        ranges.iter().for_each(|(gfn, count)| play(s, f, Call::VmRange { vm, gfn: *gfn, count: *count }, Env::CALM));
        let topup = |pfn, count| Call::PoolTopup { vm, pfn, count };
        l.odd.iter().for_each(|p| play(s, f, topup(*p, 1), Env::CALM));
        HUGE.iter().chain(&[0]).for_each(|n| play(s, f, topup(l.pool.start, *n), Env::CALM));
        play(s, f, topup(u64::MAX, 1), Env::CALM);
    }
}

fn vcpus(l: &Lattice, s: &impl State, vm: Who, f: &mut impl FnMut(&Play<'_>)) {
    play(s, f, Call::VcpuCreate { vm, vcpu: 0 }, Env::CALM);
    play(s, f, Call::VcpuCreate { vm, vcpu: 0 }, Env { need: SHORT, ..Env::CALM });
    if l.part.pools {
        play(s, f, Call::VcpuCreate { vm, vcpu: 0 }, Env { need: 1, ..Env::CALM });
    }
    if l.part.vcpus {
        play(s, f, Call::VcpuKick { vm, vcpu: 0 }, Env::CALM);
    }
    if l.part.wrong {
        let over = u64::from(s.machine().vcpus);
        [over, 512, u64::MAX].iter().for_each(|v| wrong_vcpu(s, vm, *v, f));
    }
    if l.part.wrong || l.part.ordinary {
        let set = |reg, value| Call::VcpuSetReg { vm, vcpu: 0, reg, value };
        let values = [(0, 7), (3, 7), (4, 7), (32, 8), (32, 7), (33, 0x3c5), (33, 0x3c9), (34, 0), (u64::MAX, 0)];
        values.iter().for_each(|(reg, value)| play(s, f, set(*reg, *value), Env::CALM));
        for reg in [0, 3, 4, 32, 33, 34, u64::MAX] {
            play(s, f, Call::VcpuGetReg { vm, vcpu: 0, reg }, Env::CALM);
        }
    }
}

fn wrong_vcpu(s: &impl State, vm: Who, vcpu: u64, f: &mut impl FnMut(&Play<'_>)) {
    play(s, f, Call::VcpuCreate { vm, vcpu }, Env::CALM);
    play(s, f, Call::VcpuSetReg { vm, vcpu, reg: 0, value: 0 }, Env::CALM);
    play(s, f, Call::VcpuGetReg { vm, vcpu, reg: 34 }, Env::CALM);
    play(s, f, Call::VcpuRun { vm, vcpu, mmio: 0 }, Env::CALM);
    play(s, f, Call::VcpuKick { vm, vcpu }, Env::CALM);
    play(s, f, Call::GuestAccept { vm, vcpu, count: 1 }, Env::CALM);
}

fn reclaims(l: &Lattice, s: &impl State, vm: Who, f: &mut impl FnMut(&Play<'_>)) {
    let reclaim = |pfn, count| Call::VmReclaim { vm, pfn, count };
    // The driver takes guests' pages by a move of its own.
    for pfn in l.pools() {
        play(s, f, reclaim(pfn, 1), Env::CALM);
        if l.part.pairs {
            play(s, f, reclaim(pfn, 2), Env::CALM);
            play(s, f, reclaim(pfn, 2), Env { done: 1, ..Env::CALM });
        }
    }
    if l.part.wrong {
        l.odd.iter().for_each(|p| play(s, f, reclaim(*p, 1), Env::CALM));
        HUGE.iter().chain(&[0]).for_each(|n| play(s, f, reclaim(l.pool.start, *n), Env::CALM));
        play(s, f, reclaim(u64::MAX, 1), Env::CALM);
    }
}

fn donations(l: &Lattice, s: &impl State, vm: Who, f: &mut impl FnMut(&Play<'_>)) {
    let donate = |pfn, gfn, count, flags| Call::MemDonate { vm, pfn, gfn, count, flags };
    let flags = if l.part.revocable { 0..2 } else { 0..1 };
    for (pfn, gfn) in l.ram().flat_map(|p| l.gfns.clone().map(move |g| (p, g))) {
        flags.clone().for_each(|n| play(s, f, donate(pfn, gfn, 1, n), Env::CALM));
        if l.part.pools {
            play(s, f, donate(pfn, gfn, 1, 0), Env { need: 1, ..Env::CALM });
        }
    }
    if l.part.pairs {
        for pfn in l.ram() {
            play(s, f, donate(pfn, l.gfns.start, 2, 0), Env::CALM);
            play(s, f, donate(pfn, l.gfns.start, 2, 0), Env { done: 1, ..Env::CALM });
        }
    }
    let (pfn, gfn) = (l.data.start, l.gfns.start);
    play(s, f, donate(pfn, gfn, 1, 0), Env { need: SHORT, ..Env::CALM });
    if l.part.wrong {
        l.odd.iter().for_each(|p| play(s, f, donate(*p, gfn, 1, 0), Env::CALM));
        let numbers = [(pfn, l.outside, 1, 0), (pfn, 1 << 28, 1, 0), (pfn, 1 << 41, 1, 0), (pfn, u64::MAX, 1, 0)];
        numbers.iter().for_each(|(p, g, n, b)| play(s, f, donate(*p, *g, *n, *b), Env::CALM));
        HUGE.iter().chain(&[0]).for_each(|n| play(s, f, donate(pfn, gfn, *n, 0), Env::CALM));
        play(s, f, donate(u64::MAX, gfn, 1, 0), Env::CALM);
        play(s, f, donate(pfn, gfn, 1, 2), Env::CALM);
    }
}

fn lists(l: &Lattice, s: &impl State, vm: Who, f: &mut impl FnMut(&Play<'_>)) {
    let list = l.data.end.saturating_sub(1);
    let give = |list, records, flags| Call::MemDonateList { vm, list, records, flags };
    let (pfn, gfn) = (l.data.start, l.gfns.start);
    if l.part.pairs {
        let two = |p: u64, q: u64| [Record::new(p, gfn, 1), Record::new(q, gfn.saturating_add(1), 1)];
        for (p, q) in l.data.clone().flat_map(|p| l.ram().map(move |q| (p, q))) {
            play(s, f, give(list, 2, 0), Env { list: &two(p, q), ..Env::CALM });
        }
        play(s, f, give(list, 2, 0), Env { list: &two(pfn, list), done: 1, ..Env::CALM });
        let same_gfn = [Record::new(pfn, gfn, 1), Record::new(list, gfn, 1)];
        play(s, f, give(list, 2, 0), Env { list: &same_gfn, ..Env::CALM });
    }
    if l.part.wrong {
        let sound = [Record::new(pfn, gfn, 1)];
        let env = Env { list: &sound, ..Env::CALM };
        l.odd.iter().for_each(|p| play(s, f, give(*p, 1, 0), env));
        l.ram().for_each(|p| play(s, f, give(p, 1, 0), env));
        for (records, flags) in [(0, 0), (hvc::MAX_RECORDS + 1, 0), (u64::MAX, 0), (1, 2)] {
            play(s, f, give(list, records, flags), env);
        }
        play(s, f, give(list, 1, 0), Env { need: SHORT, ..env });
        l.odd.iter().for_each(|p| {
            play(s, f, give(list, 1, 0), Env { list: &[Record::new(*p, gfn, 1)], ..Env::CALM });
        });
        let runs = [(pfn, gfn, 513), (pfn, gfn, 4096), (u64::MAX, gfn, 1), (pfn, l.outside, 1), (pfn, 1 << 40, 1)];
        for (p, g, n) in runs {
            play(s, f, give(list, 1, 0), Env { list: &[Record::new(p, g, n)], ..Env::CALM });
        }
    }
}

fn loans(l: &Lattice, s: &impl State, vm: Who, f: &mut impl FnMut(&Play<'_>)) {
    let share = |pfn, gfn, count, flags| Call::MemShare { vm, pfn, gfn, count, flags };
    let unshare = |gfn, count| Call::MemUnshare { vm, gfn, count };
    let (pfn, gfn) = (l.data.start, l.gfns.start);
    if l.part.ordinary {
        for (p, g) in l.ram().flat_map(|p| l.gfns.clone().map(move |g| (p, g))) {
            (0..2).for_each(|flags| play(s, f, share(p, g, 1, flags), Env::CALM));
        }
        l.gfns.clone().for_each(|g| play(s, f, unshare(g, 1), Env::CALM));
        play(s, f, share(pfn, gfn, 2, hvc::SHARE_EXEC), Env::CALM);
        play(s, f, unshare(gfn, 2), Env::CALM);
        play(s, f, share(pfn, gfn, 1, 0), Env { need: SHORT, ..Env::CALM });
    }
    if l.part.wrong {
        l.odd.iter().for_each(|p| play(s, f, share(*p, gfn, 1, 0), Env::CALM));
        let runs =
            [(pfn, l.outside, 1, 0), (pfn, gfn, 0, 0), (pfn, gfn, 513, 0), (u64::MAX, gfn, 1, 0), (pfn, gfn, 1, 4)];
        runs.iter().for_each(|(p, g, n, b)| play(s, f, share(*p, *g, *n, *b), Env::CALM));
        let runs = [(l.outside, 1), (gfn, 0), (gfn, 513), (u64::MAX, 1), (gfn, 1)];
        runs.iter().for_each(|(g, n)| play(s, f, unshare(*g, *n), Env::CALM));
    }
}

fn accepts(l: &Lattice, s: &impl State, vm: Who, f: &mut impl FnMut(&Play<'_>)) {
    let counts: &[u64] = if l.part.wrong { &[1, 2, 0, 3, u64::MAX] } else { &[1, 2] };
    for count in counts {
        play(s, f, Call::GuestAccept { vm, vcpu: 0, count: *count }, Env::CALM);
    }
    play(s, f, Call::GuestAccept { vm, vcpu: 0, count: 2 }, Env { done: 1, ..Env::CALM });
}
