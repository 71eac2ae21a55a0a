// SPDX-License-Identifier: MIT OR Apache-2.0
//! The life of a VM's second vCPU, as the specification alone tells it: its guest starts it, and nobody else.

use freehold_oracle::{Act, Call, Done, Env, Life, Op, Outcome, Power, State as _, Value, Who, World, step};
use freehold_uapi::{guest, hvc};

const PFN: u64 = 0x4_0000;
const VM: Who = Who::Slot(0);

type Two = World<4, 1, 2, 2, 2>;

fn host(w: &mut Two, cpu: u8, call: Call) -> Outcome {
    step(w, &Op::Host { cpu, call }, &Env::CALM)
}

fn run(w: &mut Two, cpu: u8, vcpu: u64) -> Option<Done> {
    host(w, cpu, Call::VcpuRun { vm: VM, vcpu, mmio: 0 }).done
}

fn calls(w: &mut Two, cpu: u8, id: u32, x: [u64; 3]) -> Outcome {
    step(w, &Op::Guest { cpu, act: Act::Call { id, x } }, &Env::CALM)
}

const fn exit(reason: u64) -> Option<Done> {
    Some(Done::Exit([Value::Is(reason), Value::Is(0), Value::Is(0), Value::Is(0)]))
}

const fn answered(x0: u64) -> Option<Done> {
    Some(Done::Answered([Value::Is(x0), Value::Is(0), Value::Is(0), Value::Is(0)]))
}

fn two() -> Two {
    let mut w = Two::new(PFN, 0x100);
    let create = Call::VmCreate { flags: hvc::VM_PROTECTED, ipa_bits: 32, pfn: PFN, count: 4 };
    assert!(host(&mut w, 0, create).done.is_some());
    for vcpu in 0..2 {
        assert!(host(&mut w, 0, Call::VcpuCreate { vm: VM, vcpu }).done.is_some());
    }
    w
}

#[test]
fn no_run_of_the_hosts_starts_it() {
    let mut w = two();
    let before = w;
    assert_eq!(run(&mut w, 0, 1), exit(hvc::EXIT_OFF));
    assert_eq!(w, before, "and it does not begin the VM");
    assert_eq!(run(&mut w, 0, 0), Some(Done::Entered(None)));
    assert_eq!(run(&mut w, 1, 1), exit(hvc::EXIT_OFF));
    assert_eq!(w.vm(0).life, Life::Ran);
}

#[test]
fn its_guest_starts_it_once_and_switches_it_off() {
    let mut w = two();
    let _ = run(&mut w, 0, 0);
    let state = |w: &mut Two| calls(w, 0, guest::PSCI_AFFINITY_INFO_64, [1, 0, 0]).done;
    let on = |w: &mut Two| calls(w, 0, guest::PSCI_CPU_ON_64, [1, 0x1000, 7]);
    assert_eq!(state(&mut w), answered(1));
    assert_eq!(on(&mut w).done, answered(0));
    assert_eq!(state(&mut w), answered(2));
    assert!(on(&mut w).refused.has(guest::ON_PENDING));
    assert_eq!(run(&mut w, 1, 1), Some(Done::Entered(None)));
    assert_eq!(state(&mut w), answered(0));
    assert!(on(&mut w).refused.has(guest::ALREADY_ON));
    assert_eq!(calls(&mut w, 1, guest::PSCI_CPU_OFF, [0; 3]).done, exit(hvc::EXIT_OFF));
    assert_eq!((w.vcpu(0, 1).power, w.vcpu(0, 1).running), (Power::Off, false));
    assert_eq!(run(&mut w, 1, 1), exit(hvc::EXIT_OFF));
    assert_eq!(on(&mut w).done, answered(0), "and on again");
    assert_eq!(run(&mut w, 1, 1), Some(Done::Entered(None)));
}

#[test]
fn the_first_one_is_like_the_others_once_it_went_off() {
    let mut w = two();
    let _ = run(&mut w, 0, 0);
    let _ = calls(&mut w, 0, guest::PSCI_CPU_ON_64, [1, 0x1000, 7]);
    let _ = run(&mut w, 1, 1);
    assert_eq!(calls(&mut w, 0, guest::PSCI_CPU_OFF, [0; 3]).done, exit(hvc::EXIT_OFF));
    assert_eq!(run(&mut w, 0, 0), exit(hvc::EXIT_OFF));
    assert_eq!(calls(&mut w, 1, guest::PSCI_CPU_ON, [1 << 32, 0x1000, 7]).done, answered(0), "32 bits of it count");
    assert_eq!(run(&mut w, 0, 0), Some(Done::Entered(None)));
}

#[test]
fn suspension_waits_and_the_rest_is_as_written() {
    let mut w = two();
    let _ = run(&mut w, 0, 0);
    assert_eq!(calls(&mut w, 0, guest::PSCI_MIGRATE_INFO_TYPE, [0; 3]).done, answered(2));
    assert_eq!(calls(&mut w, 0, guest::PSCI_CPU_SUSPEND_64, [1 << 16, 0, 0]).done, exit(hvc::EXIT_WFI));
    let random = calls(&mut w, 0, guest::TRNG_RND_64, [64, 0, 0]);
    assert_eq!(random.done, None, "nobody runs there any more");
    let _ = run(&mut w, 0, 0);
    let random = calls(&mut w, 0, guest::TRNG_RND_64, [64, 0, 0]);
    assert!(random.done.is_some() && random.refused.has(guest::NOT_SUPPORTED));
}
