// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random calls from several threads: nothing panics, and everything can be taken back (I7, I8).

use freehold_uapi::hvc::*;
use freehold_virt::vcpu::Trap;

use super::rig::{CARVE_OUT, GUEST_RAM, NO_MAP, RAM, Rig, name};
use crate::calls::{Platform, Stop};

struct Random(u64);

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
            _ => RAM + self.below(256),
        }
    }

    fn gfn(&mut self) -> u64 {
        if self.below(24) == 0 { self.next() } else { GUEST_RAM + self.below(64) }
    }

    fn count(&mut self) -> u64 {
        match self.below(24) {
            0 => 0,
            1 => self.next(),
            2 => 513,
            _ => 1 + self.below(4),
        }
    }

    fn handle(&mut self) -> u64 {
        if self.below(24) == 0 { self.next() } else { (1 + self.below(12)) << 16 | self.below(3) }
    }
}

/// One random call; its status.
fn one(rig: &Rig, r: &mut Random) -> (u32, i64) {
    let id = BASE + u32::try_from(r.below(20)).unwrap();
    let vm = r.handle();
    let arguments = match id {
        VM_CREATE => [u64::from(r.below(4) != 0), 36 + r.below(5), r.pfn(), 4 + r.below(12), 0],
        VM_RANGE => [vm, GUEST_RAM, 64, 0, 0],
        VM_RECLAIM | POOL_TOPUP => [vm, r.pfn(), r.count(), 0, 0],
        VCPU_SET_REG => [vm, r.below(2), r.below(40) * (1 + r.below(6)), r.next(), 0],
        VCPU_CREATE | VCPU_GET_REG | VCPU_RUN | VCPU_KICK => [vm, r.below(2), r.below(40), 0, 0],
        MEM_DONATE | MEM_SHARE => [vm, r.pfn(), r.gfn(), r.count(), r.below(5) / 4],
        MEM_DONATE_LIST => {
            let list = RAM + 5 * 512 + r.below(4);
            for n in 0..4 {
                let record = Record::new(r.pfn(), r.gfn(), r.count());
                rig.memory.write(list, 2 * n, record.pfn);
                rig.memory.write(list, 2 * n + 1, record.gfn_count);
            }
            [vm, list, 1 + r.below(5), 0, 0]
        }
        VM_GIC => [vm, 16 * r.below(64), 16 * r.below(64), 0, 0],
        VM_IRQ => [vm, r.below(300), r.below(2), 0, 0],
        MEM_UNSHARE => [vm, r.gfn(), r.count(), 0, 0],
        GUEST_ACCEPT => [vm, r.below(2), r.count(), 0, 0],
        // Rarely, so that VMs live long enough.
        VM_DESTROY if r.below(8) != 0 => [0; 5],
        _ => [vm, r.next(), r.next(), r.next(), r.next()],
    };
    if id == VCPU_RUN {
        let (esr, far, hpfar) = (r.next() & 0xffff_ffff, r.next(), r.gfn() << 4);
        let call = [0xC600_0003, 0xC600_0004, 0xC600_0009][usize::try_from(r.below(3)).unwrap()];
        let x = [call, (GUEST_RAM + r.below(64)) << 12, r.below(3), 0];
        rig.next(move |registers| {
            registers.x[..4].copy_from_slice(&x);
            let esr = if esr & 1 == 0 { 0x16 << 26 } else { esr };
            Stop::Trap(Trap { esr, far, hpfar })
        });
    }
    (id, rig.call(id, &arguments).0)
}

fn storm(threads: u64, calls: u64) {
    let rig = &Rig::new();
    let before = rig.everything().1[0].clone();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let mut r = Random(0x9e37_79b9_7f4a_7c15 ^ thread << 40);
                let mut good = 0u64;
                for _ in 0..calls {
                    let (id, status) = one(rig, &mut r);
                    good += u64::from(status == SUCCESS);
                    assert_ne!(name(status), "?");
                    if let Some(call) = CALLS.iter().find(|call| call.id == id) {
                        let documented = status == SUCCESS || call.errors.contains(&name(status));
                        assert!(documented, "{} says {}", call.name, name(status));
                    }
                }
                assert!(good * 25 > calls, "{good} of {calls} succeeded: the storm hits nothing");
            });
        }
    });
    // Take everything apart, without knowing what there is.
    for handle in rig.vms().handles() {
        let _ = rig.call(VM_DESTROY, &[handle.encode()]);
        for gfn in GUEST_RAM..GUEST_RAM + 64 {
            let _ = rig.call(MEM_UNSHARE, &[handle.encode(), gfn, 1]);
        }
        for _ in 0..2 {
            for frame in RAM..CARVE_OUT {
                let _ = rig.call(VM_RECLAIM, &[handle.encode(), frame, 1]);
            }
        }
    }
    assert_eq!(rig.vms().count(), 0);
    let resting = |text: &str| text.split("splits").next().map(str::to_owned);
    assert_eq!(resting(&rig.everything().1[0]), resting(&before));
}

#[test]
fn random_calls_change_nothing_that_cannot_be_undone() {
    storm(1, 60_000);
}

#[test]
fn random_calls_of_several_cpus_do_neither() {
    storm(4, 15_000);
}
