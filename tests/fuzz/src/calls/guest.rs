// SPDX-License-Identifier: MIT OR Apache-2.0
//! One guest that does anything, and a driver that answers its exits as one would, most often.

use freehold_mem::{GuestView, State};
use freehold_model::{Act, Picture, VmView};
use freehold_uapi::hvc;

use super::judge::{CANARY, Court};
use super::pick::Step;
use super::{FIRST_WATCHED, GFN, GFNS, STEP, devices, host};

/// A VM that runs, and what its last exit asked for.
pub(super) struct Session<'c, 'r> {
    court: &'c mut Court<'r>,
    vm: u64,
    answer: u64,
}

impl<'c, 'r> Session<'c, 'r> {
    /// A VM with RAM, of which a third is backed, next to another that only exists.
    pub(super) fn new(court: &'c mut Court<'r>) -> Self {
        let mut session = Self { court, vm: 0, answer: 0 };
        session.begin();
        session
    }

    fn begin(&mut self) {
        let base = self.court.rig.first_frame() + FIRST_WATCHED;
        for pool in [base + 40, base] {
            self.vm = self.must(hvc::VM_CREATE, [hvc::VM_PROTECTED, 32, pool, 8, 0]);
            self.must(hvc::VM_RANGE, [self.vm, GFN, GFNS, 0, 0]);
            self.must(hvc::VCPU_CREATE, [self.vm, 0, 0, 0, 0]);
            self.must(hvc::MEM_DONATE, [self.vm, pool + 8, GFN + 4, 4, 0]);
        }
    }

    fn must(&mut self, id: u32, x: [u64; 5]) -> u64 {
        let answer = self.court.call(0, id, x, false);
        assert!(answer.is_success(), "{id:#x} {x:x?}: {}", answer.name());
        answer.x[0]
    }

    fn view(picture: &Picture, vm: u64) -> Option<&VmView> {
        picture.vms.iter().flatten().find(|view| view.handle == vm)
    }

    /// The guest does something and runs; the driver answers. Says whether the guest is still there.
    pub(super) fn step(&mut self, bytes: &[u8; STEP]) -> bool {
        let step = Step::decode(bytes);
        let picture = self.court.rig.picture();
        let gfn = step.gfn(&picture, self.vm, |view| match step.verb >> 6 {
            0 => matches!(view, GuestView::Absent(_)),
            _ => matches!(view, GuestView::Mapped(_)),
        });
        let acts = [act(step, gfn), Act::Interrupt];
        let acts = [host::secrets(&picture, self.vm), acts[..1 + usize::from(step.flag(0))].to_vec()].concat();
        let before = Self::view(&picture, self.vm).map(|vm| vm.gfns.clone());
        let ran = self.court.run(0, [self.vm, 0, self.answer], &acts, false);
        // Nothing that a guest does by itself moves memory: the host must first say yes.
        let picture = self.court.rig.picture();
        assert_eq!(Self::view(&picture, self.vm).map(|vm| vm.gfns.clone()), before, "a run moved memory");
        if !ran.is_success() {
            assert!(matches!(ran.name(), "WRONG_STATE" | "DENIED"), "{}", ran.name());
            if ran.name() == "WRONG_STATE" {
                // It crashed before, and stays so: everything begins anew.
                self.court.reset();
                self.begin();
            }
            return false;
        }
        if ran.x[0] == hvc::EXIT_OFF {
            // Only another vCPU could start it again.
            self.court.reset();
            self.begin();
            return true;
        }
        self.answer = step.edge();
        self.drive(step, ran.x);
        true
    }

    /// What a driver does after an exit; at times it does nothing, or asks for too much.
    fn drive(&mut self, step: Step, [reason, a, count, _]: [u64; 4]) {
        if step.flag(1) {
            return;
        }
        let picture = self.court.rig.picture();
        match reason {
            hvc::EXIT_MEM_FAULT => {
                let pfn = step.pfn(self.court.rig, &picture, |state| state == State::Host);
                let _ = self.court.call(1, hvc::MEM_DONATE, [self.vm, pfn, a, 1, 0], false);
            }
            hvc::EXIT_SHARE | hvc::EXIT_UNSHARE | hvc::EXIT_RELINQUISH => {
                let count = if step.flag(2) { step.count() } else { count };
                let _ = self.court.call(1, hvc::GUEST_ACCEPT, [self.vm, 0, count, 0, 0], false);
            }
            _ if step.flag(3) => {
                let _ = self.court.call(1, hvc::VCPU_KICK, [self.vm, 0, 0, 0, 0], false);
            }
            _ => {}
        }
    }
}

/// Identifiers that a guest may know, and their neighbours.
fn call_id(step: Step) -> u64 {
    let base =
        [0x8000_0000_u64, 0x8600_0000, 0x8600_FF01, 0xC600_0000, 0x8400_0000, 0xC400_0000, 0xC600_0080, 0xC500_0000];
    base[usize::from(step.frame) % base.len()] + u64::from(step.raw & 31)
}

fn act(step: Step, gfn: u64) -> Act {
    match step.verb % 32 {
        _ if step.is_of_devices() => devices::act(step),
        0..5 => host::act(step, gfn),
        5..18 => {
            let id = [0xC600_0003, 0xC600_0004, 0xC600_0009][usize::from(step.verb) % 3];
            let count = if step.flag(4) { step.count() } else { 1 };
            Act::Hvc { imm: 0, x: [id, gfn << 12, if step.verb % 3 == 2 { 0 } else { count }, 0] }
        }
        18..22 => {
            let x = [call_id(step), step.edge(), step.count(), u64::from(step.more >> 6)];
            Act::Hvc { imm: 0, x: devices::watched(x) }
        }
        22 => Act::Hvc { imm: step.raw, x: [call_id(step), gfn << 12, 1, CANARY] },
        23..26 => {
            Act::Trap { esr: u64::from(step.place & 63) << 26 | u64::from(step.raw) | u64::from(step.frame) << 16 }
        }
        26..29 => host::access(step, gfn << 12 | 8, step.flag(5)),
        29 => host::access(step, 0x900_0000 + u64::from(step.raw), step.flag(5)),
        _ => Act::Fetch { ipa: gfn << 12 },
    }
}
