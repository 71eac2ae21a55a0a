// SPDX-License-Identifier: MIT OR Apache-2.0
//! What must be so whatever was called.

use freehold_mem::State;
use freehold_model::{Answer, Label, Picture, Rig};
use freehold_uapi::hvc;

/// What a store outside RAM carries, and a store inside must not show to the host.
pub(super) const CANARY: u64 = 0x5ec2_e75e_c2e7_5ec3;

/// The machine as a whole: rights (I1 to I3), contents (I4), and what its ports complained about.
pub(super) fn sound(rig: &Rig) -> Picture {
    let complaints = rig.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
    let picture = rig.picture();
    assert_eq!(picture.judge(), Ok(()));
    for (number, frame) in picture.frames.iter().enumerate().filter(|(_, frame)| frame.host_reaches) {
        let secret = matches!(frame.label, Label::Secret { .. });
        let shared = matches!(frame.state, Some(State::Shared { .. }));
        assert!(!secret || shared, "I4: frame {number} is {:?}, and the host reads {:?}", frame.state, frame.label);
    }
    picture
}

/// Makes a call and judges its answer and what it left.
pub(super) fn call(rig: &Rig, cpu: usize, id: u32, x: [u64; 5]) -> Answer {
    let before = (rig.changes(), rig.picture());
    let answer = rig.call(cpu, id, x);
    let name = answer.name();
    assert_ne!(name, "?", "{id:#x} {x:x?} answers {:#x}", answer.status);
    match hvc::CALLS.iter().find(|call| call.id == id) {
        Some(call) => {
            let documented = answer.is_success() || call.errors.contains(&name);
            assert!(documented, "{} {x:x?} says {name}, which is not documented", call.name);
            let spare = answer.x.get(call.rets.len()..).unwrap_or(&[]);
            assert!(spare.iter().all(|x| *x == 0) || !answer.is_success(), "{} answers {:x?}", call.name, answer.x);
        }
        None => assert_eq!(name, "NOT_SUPPORTED", "{id:#x}"),
    }
    let after = sound(rig);
    if !answer.is_success() {
        assert_eq!(answer.x[1..], [0; 3], "{id:#x} {x:x?} is refused, and says more than that");
        assert!(answer.x[0] == 0 || answer.status == hvc::NEED_PAGES, "{id:#x} {x:x?} is refused with {:x?}", answer.x);
        // A run that ends in a refusal has entered its VM before: only what it is asked again for must be the same.
        if id != hvc::VCPU_RUN {
            assert_eq!(rig.changes(), before.0, "I6: {id:#x} {x:x?} says {name}, and changed something");
            assert_eq!(after, before.1, "I6: {id:#x} {x:x?} says {name}, and changed something");
        }
    }
    if id == hvc::VCPU_RUN && answer.is_success() {
        exit(&after, x[0], answer.x);
    }
    answer
}

/// D9: what an exit may say.
fn exit(picture: &Picture, handle: u64, [reason, a, b, c]: [u64; 4]) {
    let vm = picture.vms.iter().flatten().find(|vm| vm.handle == handle).expect("it ran");
    let ram = |gfn: u64| vm.ram.iter().any(|(first, count)| gfn.checked_sub(*first).is_some_and(|n| n < *count));
    let fine = match reason {
        hvc::EXIT_IRQ | hvc::EXIT_WFI | hvc::EXIT_KICKED | hvc::EXIT_OFF | hvc::EXIT_WAKE => [a, b, c] == [0; 3],
        hvc::EXIT_EOI => (32..256).contains(&a) && [b, c] == [0; 2],
        hvc::EXIT_MEM_FAULT => ram(a) && [b, c] == [0; 2],
        hvc::EXIT_MMIO if b & hvc::MMIO_WRITE == 0 => !ram(a >> 12) && b.is_power_of_two() && b <= 8 && c == 0,
        hvc::EXIT_MMIO => {
            let width = b & !hvc::MMIO_WRITE;
            !ram(a >> 12) && width.is_power_of_two() && width <= 8 && (width == 8 || c >> (8 * width) == 0)
        }
        hvc::EXIT_SHARE | hvc::EXIT_UNSHARE | hvc::EXIT_RELINQUISH => ram(a) && b != 0 && c == 0,
        hvc::EXIT_SYSTEM | hvc::EXIT_CRASH => [b, c] == [0; 2],
        _ => false,
    };
    assert!(fine, "D9: an exit says {reason} {a:#x} {b:#x} {c:#x}");
    let told = [a, b, c].contains(&CANARY);
    assert!(!told || reason == hvc::EXIT_MMIO, "D9: a store to RAM shows in exit {reason}");
}
