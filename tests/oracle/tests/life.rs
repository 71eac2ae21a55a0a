// SPDX-License-Identifier: MIT OR Apache-2.0
//! One good life of a protected VM, step by step, as the documents tell it.

use freehold_oracle::{Act, Call, Content, Done, Env, Life, Op, Outcome, Owner, State, Stray, Value, Who, World, step};
use freehold_uapi::{guest, hvc};

type Small = World<4, 1, 1, 2, 1>;

const VM: Who = Who::Slot(0);

fn host(w: &mut Small, call: Call) -> Outcome {
    step(w, &Op::Host { cpu: 0, call }, &Env::CALM)
}

fn guest(w: &mut Small, act: Act) -> Outcome {
    step(w, &Op::Guest { cpu: 0, act }, &Env::CALM)
}

fn done(outcome: Outcome) -> Done {
    assert!(outcome.refused.is_empty(), "refused: {outcome:?}");
    outcome.done.expect("it is done")
}

fn exit(outcome: Outcome) -> [Value; 4] {
    let Done::Exit(values) = done(outcome) else { panic!("no exit: {outcome:?}") };
    values
}

/// A VM that runs: pool at frame 0, RAM at guest frames 16 and 17.
fn running() -> Small {
    let mut w = Small::new(100, 16);
    done(host(&mut w, Call::VmCreate { flags: hvc::VM_PROTECTED, ipa_bits: 32, pfn: 100, count: 1 }));
    done(host(&mut w, Call::VmRange { vm: VM, gfn: 16, count: 2 }));
    done(host(&mut w, Call::VcpuCreate { vm: VM, vcpu: 0 }));
    done(host(&mut w, Call::MemDonate { vm: VM, pfn: 101, gfn: 16, count: 1, flags: 0 }));
    assert_eq!(done(host(&mut w, Call::VcpuRun { vm: VM, vcpu: 0, mmio: 0 })), Done::Entered(None));
    w
}

#[test]
fn a_page_is_given_written_shared_taken_back_and_returned_zeroed() {
    let mut w = running();
    assert_eq!(w.page(101).content, Content::Initial);
    let store = Act::Access { ipa: 16 << 12, size: 8, store: Some(7), described: true };
    assert_eq!(done(guest(&mut w, store)), Done::Allowed);
    assert_eq!(w.page(101).content, Content::Secret(0));
    let touch = Op::Touch { pfn: 101, write: false, from: Stray::User };
    assert_eq!(done(step(&mut w, &touch, &Env::CALM)), Done::Injected);

    let share = Act::Call { id: guest::MEM_SHARE, x: [16 << 12, 0, 0] };
    assert_eq!(exit(guest(&mut w, share)), [hvc::EXIT_SHARE, 16, 1, 0].map(Value::Is));
    done(host(&mut w, Call::GuestAccept { vm: VM, vcpu: 0, count: 1 }));
    assert_eq!(done(step(&mut w, &touch, &Env::CALM)), Done::Allowed);
    assert_eq!(done(host(&mut w, Call::VcpuRun { vm: VM, vcpu: 0, mmio: 0 })), Done::Entered(Some((0, 1))));

    assert_eq!(exit(guest(&mut w, Act::Interrupt))[0], Value::Is(hvc::EXIT_IRQ));
    done(host(&mut w, Call::VmDestroy { vm: VM }));
    assert!(host(&mut w, Call::VmReclaim { vm: VM, pfn: 100, count: 1 }).permits(hvc::GUEST_FRAMES_LEFT, [0; 4]));
    done(host(&mut w, Call::VmReclaim { vm: VM, pfn: 101, count: 1 }));
    assert_eq!((w.page(101).owner, w.page(101).content), (Owner::Host, Content::Zero));
    done(host(&mut w, Call::VmReclaim { vm: VM, pfn: 100, count: 1 }));
    assert_eq!(w.vm(0).life, Life::Free);
    assert!(host(&mut w, Call::VmDestroy { vm: VM }).permits(hvc::STALE_HANDLE, [0; 4]));
}

#[test]
fn a_refused_call_leaves_the_world_as_it_was() {
    let mut w = running();
    let before = w;
    let call = Call::MemDonate { vm: VM, pfn: 102, gfn: 16, count: 3, flags: 0 };
    let outcome = host(&mut w, call);
    assert_eq!(w, before);
    assert!(outcome.permits(hvc::GFN_MAPPED, [0; 4]) && outcome.permits(hvc::NOT_MEMORY, [0; 4]));
    assert!(!outcome.permits(hvc::SUCCESS, [3, 0, 0, 0]) && !outcome.permits(hvc::FOREIGN, [0; 4]));
}
