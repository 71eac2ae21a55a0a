// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random calls from several threads, every one of them judged.

use std::cell::Cell;
use std::println;
use std::sync::atomic::{AtomicU64, Ordering};

use freehold_el2::calls::Stop;
use freehold_uapi::{guest, hvc::*};
use freehold_virt::vcpu::Trap;

use super::rig::{CARVE_OUT, Fake, GUEST_RAM, NO_MAP, RAM, Rig, aborts, be};
use crate::fault::Fault;

pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn pfn(&mut self) -> u64 {
        match self.below(24) {
            0 => CARVE_OUT + self.below(512),
            1 => NO_MAP + self.below(6),
            2 => self.next(),
            3 => 1 << (28 + self.below(36)),
            4 => u64::MAX - self.below(4),
            5 => self.below(RAM),
            _ => RAM + self.below(256),
        }
    }

    fn gfn(&mut self) -> u64 {
        match self.below(24) {
            0 => self.next(),
            1 => self.below(1 << 30),
            2 => u64::MAX - self.below(4),
            _ => GUEST_RAM + self.below(64),
        }
    }

    fn count(&mut self) -> u64 {
        match self.below(24) {
            0 => 0,
            1 => self.next(),
            2 => 513,
            3 => 40 + self.below(30),
            4 => 4096,
            5 => u64::MAX - self.below(3),
            _ => 1 + self.below(4),
        }
    }

    fn handle(&mut self, rig: &Rig) -> u64 {
        let live = rig.handles();
        match self.below(24) {
            0 => self.next(),
            1 => (1 + self.below(12)) << 16 | self.below(3),
            _ if live.is_empty() => 0,
            _ => live[usize::try_from(self.below(live.len() as u64)).unwrap()],
        }
    }
}

/// Guest calls that are about neither memory nor a start.
const QUICK: [u64; 13] = [
    guest::PSCI_CPU_OFF as u64,
    guest::PSCI_CPU_SUSPEND as u64,
    guest::PSCI_SYSTEM_OFF as u64,
    guest::PSCI_SYSTEM_RESET as u64,
    guest::PSCI_SYSTEM_RESET2 as u64,
    guest::VENDOR_FEATURES as u64,
    guest::HYP_MEMINFO as u64,
    guest::MMIO_GUARD_INFO as u64,
    guest::PSCI_VERSION as u64,
    guest::PSCI_FEATURES as u64,
    guest::PSCI_AFFINITY_INFO as u64,
    guest::TRNG_VERSION as u64,
    0xC600_0050,
];

/// Calls by which a guest says what of its devices it lets its host see; more often than the others the one that opens.
const OF_DEVICES: [u64; 4] = [
    guest::MMIO_GUARD_ENROLL as u64,
    guest::MMIO_GUARD_MAP as u64,
    guest::MMIO_GUARD_MAP as u64,
    guest::MMIO_GUARD_UNMAP as u64,
];

std::thread_local! {
    /// What the guest of this thread has done about its devices last, and its external aborts before that.
    static LAST: Cell<Option<(usize, u64)>> = const { Cell::new(None) };
    /// How often it did each of [`OF_DEVICES`], and then how often what it reached for was its own abort.
    static GUARD: Cell<[u64; 5]> = const { Cell::new([0; 5]) };
}

/// A guest goes on: what came of what it did last is counted.
fn count(registers: &Fake) {
    let came = match LAST.take() {
        Some((4, before)) if aborts() > before => 4,
        Some((call @ 0..4, _)) if registers.x[0] == 0 => call,
        _ => return,
    };
    GUARD.set(core::array::from_fn(|n| GUARD.get()[n] + u64::from(n == came)));
}

/// A run begins with a call about a device, most often of a place outside RAM; at times the device is reached for then.
fn of_devices(rig: &Rig, r: &mut Random) {
    let which = usize::try_from(r.below(4)).unwrap();
    let page = if r.below(8) == 0 { r.gfn() } else { 0x9000 + r.below(6) };
    let x1 = if which == 0 { 0 } else { page << 12 };
    let x2 = u64::from(r.below(16) == 0);
    rig.next(move |registers| {
        LAST.set(Some((which, 0)));
        registers.x[..4].copy_from_slice(&[OF_DEVICES[which], x1, x2, 0]);
        Stop::Trap(Trap { esr: 0x16 << 26, far: 0, hpfar: 0 })
    });
    let hpfar = (0x9000 + r.below(6)) << 4;
    if r.below(3) != 0 {
        rig.then(move |registers| {
            count(registers);
            LAST.set(Some((4, aborts())));
            Stop::Trap(Trap { esr: 0x24 << 26 | 1 << 24 | 6, far: 0, hpfar })
        });
    }
}

/// Ends a VM and takes all of it back, as far as other CPUs let it: else dying VMs soon fill every slot that is tried.
fn sweep(rig: &Rig, vm: u64) {
    for gfn in GUEST_RAM..GUEST_RAM + 64 {
        rig.call(MEM_UNSHARE, &[vm, gfn, 1]);
    }
    rig.call(VM_DESTROY, &[vm]);
    for pfn in (RAM..RAM + 340).chain(RAM..RAM + 340) {
        if rig.call(VM_RECLAIM, &[vm, pfn, 1])[0].cast_signed() == STALE_HANDLE {
            return;
        }
    }
}

/// One random call; whether it succeeded.
pub(super) fn one(rig: &Rig, r: &mut Random) -> bool {
    let id = if r.below(3) == 0 { VCPU_RUN } else { BASE + u32::try_from(r.below(20)).unwrap() };
    let vm = r.handle(rig);
    if rig.handles().len() > 4 && r.below(16) == 0 {
        sweep(rig, vm);
    }
    let vcpu = match r.below(12) {
        0 => r.next(),
        1..4 => r.below(3),
        _ => 0,
    };
    let register = if r.below(2) == 0 { REG_PC } else { r.below(40) };
    let rare = if r.below(16) == 0 { r.next() } else { u64::from(r.below(4) == 0) };
    let arguments = match id {
        VM_CREATE if rig.handles().len() > 4 => [0; 5],
        VM_CREATE if r.below(8) == 0 => [rare, r.below(70), r.pfn(), r.count(), 0],
        VM_CREATE => [u64::from(r.below(8) != 0), 32 + r.below(9), r.pfn(), 9 + r.below(12), 0],
        VM_RANGE if r.below(4) == 0 => [vm, r.gfn(), r.count(), 0, 0],
        VM_RANGE => [vm, GUEST_RAM, 64, 0, 0],
        VM_RECLAIM | POOL_TOPUP => [vm, r.pfn(), r.count(), 0, 0],
        VCPU_SET_REG => [vm, vcpu, register, r.next(), 0],
        VCPU_CREATE | VCPU_GET_REG | VCPU_RUN | VCPU_KICK => [vm, vcpu, r.below(40), 0, 0],
        MEM_DONATE | MEM_SHARE => [vm, r.pfn(), r.gfn(), r.count(), rare],
        MEM_DONATE_LIST => {
            let list = RAM + 5 * 512 + r.below(4);
            for n in 0..4 {
                let record = Record::new(r.pfn(), r.gfn(), r.count());
                rig.board.memory.write(list, 2 * n, record.pfn);
                rig.board.memory.write(list, 2 * n + 1, record.gfn_count);
            }
            let at = if r.below(12) == 0 { r.pfn() } else { list };
            [vm, at, if r.below(12) == 0 { r.next() } else { 1 + r.below(5) }, rare, 0]
        }
        VM_GIC => [vm, r.gfn() & !(r.below(32)), r.gfn() & !15, 0, 0],
        VM_IRQ => [vm, r.below(300), r.below(3), 0, 0],
        MEM_UNSHARE => [vm, r.gfn(), r.count(), 0, 0],
        GUEST_ACCEPT => [vm, vcpu, r.count(), 0, 0],
        // Rarely, so that VMs live long enough.
        VM_DESTROY if r.below(8) != 0 => [0; 5],
        _ => [vm, r.next(), r.next(), r.next(), r.next()],
    };
    if id == VCPU_RUN {
        let (esr, far, hpfar) = (r.next() & 0xffff_ffff, r.next(), r.gfn() << 4);
        let mut call = [0xC600_0003, 0xC600_0004, 0xC600_0009, 0xC400_0003][usize::try_from(r.below(4)).unwrap()];
        if far.is_multiple_of(6) {
            call = QUICK[usize::try_from(far >> 8).unwrap_or(0) % QUICK.len()];
        }
        let of_cpus = call & 0xff00_0000 == 0xC400_0000 || call & 0xff00_0000 == 0x8400_0000;
        if r.below(8) == 0 {
            call = [0xC600_0006, 0xC600_0007, 0xC600_0008][usize::try_from(r.below(3)).unwrap()];
        }
        let x1 = if call == 0xC600_0006 {
            0
        } else if of_cpus {
            r.below(4)
        } else {
            (GUEST_RAM + r.below(if far & 3 == 0 { 64 } else { 6 })) << 12
        };
        let x2 = if of_cpus { 4 * r.below(2) } else { r.below(3) };
        let x = [call | r.below(2) << 16, x1, if r.below(16) == 0 { r.next() } else { x2 }, 0];
        let begins = r.below(3) == 0;
        if begins {
            of_devices(rig, r);
        }
        // Further calls of the same turn.
        let more = r.below(3);
        for turn in 0..=more {
            let act = move |registers: &mut Fake| {
                count(registers);
                registers.x[..4].copy_from_slice(&x);
                registers.x[usize::try_from(esr >> 16 & 31).unwrap().min(30)] = far;
                let esr = match esr >> (4 * turn) & 15 {
                    0..6 => 0x16 << 26,
                    6..11 => 0x24 << 26 | 1 << 24 | 6 | esr & 0x00df_0140,
                    11 if far.is_multiple_of(4) => (0x20 | esr & 4) << 26 | 0x0f | esr & 0x01df_01c0,
                    11..15 => 0x01 << 26,
                    _ => esr,
                };
                Stop::Trap(Trap { esr, far, hpfar })
            };
            if turn == 0 && !begins { rig.next(act) } else { rig.then(act) }
        }
    }
    rig.want(r.below(8) == 0);
    if r.below(256) == 0 {
        rig.touch(RAM + r.below(256), r.below(2) == 0);
    }
    LAST.set(None);
    let answer = rig.call(id, &arguments);
    if answer[0] == 0 && r.below(8) != 0 {
        follow(rig, r, id, arguments, answer);
    }
    answer[0] == 0
}

/// What a host that wants its guests to get on does next.
fn follow(rig: &Rig, r: &mut Random, id: u32, [vm, vcpu, ..]: [u64; 5], [_, a, b, c, _]: [u64; 5]) {
    match (id, a) {
        (VM_CREATE, vm) => {
            rig.call(VM_RANGE, &[vm, GUEST_RAM, 64]);
            if r.below(4) == 0 {
                rig.call(VM_GIC, &[vm, 0x1000, 0x1040]);
            }
            (0..3).for_each(|vcpu| _ = rig.call(VCPU_CREATE, &[vm, vcpu]));
            (0..6).for_each(|n| _ = rig.call(MEM_DONATE, &[vm, RAM + r.below(256), GUEST_RAM + n, 1]));
        }
        (VCPU_RUN, EXIT_MEM_FAULT) => {
            let give = if r.below(4) == 0 { MEM_SHARE } else { MEM_DONATE };
            rig.call(give, &[vm, RAM + r.below(256), b, 1 + r.below(3), u64::from(r.below(8) == 0)]);
        }
        (VCPU_RUN, EXIT_SHARE) => {
            rig.call(GUEST_ACCEPT, &[vm, vcpu, c]);
            rig.next(move |registers| {
                registers.x[..4].copy_from_slice(&[guest::MEM_UNSHARE.into(), b << 12, c, 0]);
                Stop::Trap(Trap { esr: 0x16 << 26, far: 0, hpfar: 0 })
            });
            rig.call(VCPU_RUN, &[vm, vcpu]);
            rig.call(GUEST_ACCEPT, &[vm, vcpu, c]);
        }
        (VCPU_RUN, EXIT_UNSHARE | EXIT_RELINQUISH) => _ = rig.call(GUEST_ACCEPT, &[vm, vcpu, c]),
        _ => {}
    }
}

/// Ways in which a run ends, but for those that need pool pages, or an SPI that a guest of this rig ends.
const EXITS: [u64; 12] = [
    EXIT_IRQ,
    EXIT_MMIO,
    EXIT_MEM_FAULT,
    EXIT_WFI,
    EXIT_SHARE,
    EXIT_UNSHARE,
    EXIT_RELINQUISH,
    EXIT_SYSTEM,
    EXIT_CRASH,
    EXIT_KICKED,
    EXIT_WAKE,
    EXIT_OFF,
];

/// Storms of `threads` CPUs, until all that a storm is to hit was hit: at most so many. How far CPUs come between two of one
/// another's calls is the machine's to say, and so is how often one finds what it needs.
fn storm(threads: usize, calls: u64, most: u64) {
    let (mut exits, mut guard) = ([0; 24], [0; 5]);
    let hits_all = |exits: &[u64; 24], guard: &[u64; 5]| {
        guard.iter().all(|times| *times >= 20) && EXITS.iter().all(|exit| exits[usize::try_from(*exit).unwrap()] > 0)
    };
    for round in 0..most {
        if hits_all(&exits, &guard) {
            break;
        }
        let rig = &Rig::new(Fault::None);
        let all = &[const { AtomicU64::new(0) }; 5];
        std::thread::scope(|scope| {
            for thread in 0..threads {
                scope.spawn(move || {
                    be(thread);
                    let mut r = Random(0x9e37_79b9_7f4a_7c15 ^ (thread as u64) << 40 ^ round << 8);
                    let good = (0..calls).filter(|_| one(rig, &mut r)).count() as u64;
                    assert!(good * 40 > calls, "{good} of {calls} succeeded: the storm hits nothing");
                    all.iter().zip(GUARD.get()).for_each(|(all, times)| _ = all.fetch_add(times, Ordering::Relaxed));
                });
            }
        });
        exits.iter_mut().zip(&rig.exits).for_each(|(sum, times)| *sum += times.load(Ordering::Relaxed));
        guard.iter_mut().zip(all).for_each(|(sum, times)| *sum += times.load(Ordering::Relaxed));
        println!("exits: {exits:?}; enrolled, opened (two), shut, aborted: {guard:?}");
    }
    assert!(hits_all(&exits, &guard), "exits: {exits:?}; enrolled, opened (two), shut, aborted: {guard:?}");
}

#[test]
fn random_calls_do_what_the_specification_says() {
    storm(1, 60_000, 1);
}

#[test]
fn random_calls_of_several_cpus_do_so_too() {
    storm(4, 15_000, 8);
}

/// The host's own frames, and el2's: which of them are looked at is nobody's promise, for they are too many.
#[test]
fn a_list_of_too_many_frames_is_refused_as_the_specification_says() {
    let rig = &Rig::new(Fault::None);
    be(0);
    let [status, vm, ..] = rig.call(VM_CREATE, &[VM_PROTECTED, 40, RAM, 8]);
    assert_eq!([status, rig.call(VM_RANGE, &[vm, GUEST_RAM, 1024])[0]], [0, 0]);
    let list = RAM + 5 * 512;
    for (index, (pfn, gfn, count)) in (0..).zip([(RAM + 100, 0, 300), (RAM + 512, 300, 213), (CARVE_OUT, 0, 512)]) {
        let record = Record::new(pfn, GUEST_RAM + gfn, count);
        rig.board.memory.write(list, 2 * index, record.pfn);
        rig.board.memory.write(list, 2 * index + 1, record.gfn_count);
    }
    for records in [2, 3] {
        let status = rig.call(MEM_DONATE_LIST, &[vm, list, records, 0])[0];
        assert_eq!(status.cast_signed(), COUNT_TOO_LARGE, "{records} records");
    }
}
