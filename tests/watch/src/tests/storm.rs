// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random calls from several threads, every one of them judged.

use freehold_el2::calls::Stop;
use freehold_uapi::{guest, hvc::*};
use freehold_virt::vcpu::Trap;

use super::rig::{CARVE_OUT, GUEST_RAM, NO_MAP, RAM, Rig, be};
use crate::watcher::Fault;

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

/// Guest calls that are answered at once.
const QUICK: [u64; 7] = [
    guest::VENDOR_FEATURES as u64,
    guest::HYP_MEMINFO as u64,
    guest::PSCI_VERSION as u64,
    guest::PSCI_FEATURES as u64,
    guest::PSCI_AFFINITY_INFO as u64,
    guest::TRNG_VERSION as u64,
    0xC600_0050,
];

/// One random call; whether it succeeded.
pub(super) fn one(rig: &Rig, r: &mut Random) -> bool {
    let id = BASE + u32::try_from(r.below(20)).unwrap();
    let vm = r.handle(rig);
    let vcpu = match r.below(12) {
        0 => r.next(),
        1 => r.below(3),
        _ => 0,
    };
    let register = if r.below(2) == 0 { REG_PC } else { r.below(40) };
    let rare = if r.below(16) == 0 { r.next() } else { u64::from(r.below(4) == 0) };
    let arguments = match id {
        VM_CREATE if rig.handles().len() > 4 => [0; 5],
        VM_CREATE if r.below(8) == 0 => [rare, r.below(70), r.pfn(), r.count(), 0],
        VM_CREATE => [u64::from(r.below(8) != 0), 32 + r.below(9), r.pfn(), 4 + r.below(12), 0],
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
            call = QUICK[usize::try_from(hpfar >> 4).unwrap_or(0) % QUICK.len()];
        }
        let started = call == 0xC400_0003;
        let x = [call, if started { r.below(4) } else { (GUEST_RAM + r.below(64)) << 12 }, r.below(3), 0];
        rig.next(move |registers| {
            registers.x[..4].copy_from_slice(&x);
            let esr = match esr & 3 {
                0 => 0x16 << 26,
                1 => 0x24 << 26 | 1 << 24 | 6,
                _ => esr,
            };
            Stop::Trap(Trap { esr, far, hpfar })
        });
    }
    rig.want(r.below(8) == 0);
    if r.below(32) == 0 {
        rig.touch(RAM + r.below(256), r.below(2) == 0);
    }
    rig.call(id, &arguments)[0] == 0
}

fn storm(threads: usize, calls: u64) {
    let rig = &Rig::new(Fault::None);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                be(thread);
                let mut r = Random(0x9e37_79b9_7f4a_7c15 ^ (thread as u64) << 40);
                let good = (0..calls).filter(|_| one(rig, &mut r)).count() as u64;
                assert!(good * 40 > calls, "{good} of {calls} succeeded: the storm hits nothing");
            });
        }
    });
}

#[test]
fn random_calls_do_what_the_specification_says() {
    storm(1, 100_000);
}

#[test]
fn random_calls_of_several_cpus_do_so_too() {
    storm(4, 30_000);
}
