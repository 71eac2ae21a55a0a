// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the specification says of each step: moves of one page, and sequences of them.

use crate::kernel::{Kernel, Spec, FIRST, GFN, PAGES, POOL};
use crate::Step;
use freehold_oracle::{apply, decide, Act, Call, Env, File as Stands, Kind, Move, Op, Owner, Pending};
use freehold_oracle::{State as _, Who};
use freehold_uapi::hvc;

fn play(spec: &mut Spec, op: Op) -> bool {
    let done = decide(spec, &op, &Env::CALM).done.is_some();
    if done {
        apply(spec, &op, &Env::CALM);
    }
    done
}

fn host(spec: &mut Spec, call: Call) -> bool {
    play(spec, Op::Host { cpu: 0, call })
}

pub(super) fn ask(spec: &mut Spec, id: u32, page: u64) -> bool {
    let ran = host(spec, Call::VcpuRun { vm: Who::Slot(0), vcpu: 0, mmio: 0 });
    if ran && spec.cpu(0).is_some() {
        play(spec, Op::Guest { cpu: 0, act: Act::Call { id, x: [(GFN + page) << 12, 0, 0] } });
        if spec.cpu(0).is_some() {
            play(spec, Op::Guest { cpu: 0, act: Act::Interrupt });
        }
    }
    ran
}

/// The machine in which everything begins: a VM that was declared, and a file without a page.
pub(super) fn first() -> Spec {
    let mut spec = Spec::new(FIRST, GFN);
    let vm = Who::Slot(0);
    assert!(host(&mut spec, Call::VmCreate { flags: hvc::VM_PROTECTED, ipa_bits: 40, pfn: POOL, count: 1 }));
    assert!(host(&mut spec, Call::VmRange { vm, gfn: GFN, count: PAGES as u64 }));
    assert!(host(&mut spec, Call::VcpuCreate { vm, vcpu: 0 }));
    spec
}

/// The page that a move is about, if it names one.
pub(super) fn named(step: &Move) -> Option<u64> {
    match *step {
        Move::Populate { pfn } | Move::Fill { pfn } | Move::Pin { pfn } | Move::Unpin { pfn } => Some(pfn - FIRST),
        Move::Drain { pfn, .. } | Move::Freeze { pfn, .. } | Move::Cancel { pfn, .. } => Some(pfn - FIRST),
        Move::Thaw { pfn } | Move::Donate { pfn, .. } | Move::Punch { pfn } => Some(pfn - FIRST),
        Move::Close { pfn } | Move::Reclaim { pfn, .. } => Some(pfn - FIRST),
        Move::Accept { .. } => None,
    }
}

/// What the guest waits for, and the page that it is about.
pub(super) fn request(spec: &Spec) -> Option<(Kind, u64)> {
    match spec.vcpu(0, 0).pending {
        Pending::Request { kind, gfn, .. } => Some((kind, u64::from(gfn) - GFN)),
        Pending::None | Pending::Load { .. } | Pending::Answer { .. } => None,
    }
}

/// All of them, or none.
fn sequence(spec: &Spec, steps: &[Move]) -> Option<Spec> {
    let mut after = *spec;
    steps.iter().all(|step| play(&mut after, Op::Driver(*step))).then_some(after)
}

/// What the specification says of a step: whether it is done, and what stands then.
pub(super) fn predict(kernel: &Kernel, step: &Step) -> (bool, Spec) {
    let before = kernel.world();
    let mut after = before;
    let done = match *step {
        Step::One(step) => {
            // Of a frozen page the specification does not know whether an attempt has it still: it is nobody else's then.
            let has = named(&step).is_some_and(|page| kernel.by(page).is_some());
            let done = !(has && matches!(step, Move::Punch { .. })) && play(&mut after, Op::Driver(step));
            // An attempt whose donation is refused is over, and puts its page back.
            if let (Move::Donate { pfn, .. }, false, true) = (step, done, has) {
                play(&mut after, Op::Driver(Move::Thaw { pfn }));
            }
            done
        }
        Step::Convert { give } => return convert(kernel, &before, give),
        Step::TakeBack(page) => {
            let (pfn, by) = (FIRST + page, u8::MAX);
            let steps = [Move::Drain { pfn, by }, Move::Freeze { pfn, by }, Move::Accept { slot: 0, vcpu: 0 }];
            let is_asked = request(&before) == Some((Kind::Unshare, page)) && before.page(pfn).file == Stands::Lent;
            let made = is_asked.then(|| sequence(&before, &steps)).flatten();
            after = made.unwrap_or(before);
            made.is_some()
        }
        Step::Ask(id, page) => ask(&mut after, id, page),
        Step::End => return end(&before),
        Step::Close => {
            for page in 0..PAGES as u64 {
                play(&mut after, Op::Driver(Move::Close { pfn: FIRST + page }));
            }
            true
        }
    };
    (done, after)
}

/// The whole file is frozen, or nothing of it; and donated in one call, or nothing of it.
fn convert(kernel: &Kernel, before: &Spec, give: bool) -> (bool, Spec) {
    let by = u8::MAX;
    let stands = |page: u64| before.page(FIRST + page).file;
    let refuses = |page: &u64| kernel.by(*page).is_some() || stands(*page) == Stands::Lent;
    if (0..PAGES as u64).any(|page| refuses(&page)) {
        return (false, *before);
    }
    let taken: Vec<u64> = (0..PAGES as u64).filter(|page| stands(*page) == Stands::Host).collect();
    let steps = |make: &dyn Fn(u64) -> Move| taken.iter().map(|page| make(FIRST + page)).collect::<Vec<_>>();
    let drained = [steps(&|pfn| Move::Drain { pfn, by }), steps(&|pfn| Move::Freeze { pfn, by })].concat();
    let Some(frozen) = sequence(before, &drained) else { return (false, *before) };
    let given = steps(&|pfn| Move::Donate { pfn, slot: 0, gfn: GFN + pfn - FIRST });
    match give.then(|| sequence(&frozen, &given)) {
        None => (true, frozen),
        Some(Some(given)) => (true, given),
        Some(None) => (false, *before),
    }
}

fn end(before: &Spec) -> (bool, Spec) {
    let mut after = *before;
    for pfn in (0..PAGES as u64).map(|page| FIRST + page) {
        if let Stands::Draining { by } = after.page(pfn).file {
            assert!(play(&mut after, Op::Driver(Move::Cancel { pfn, by })));
        }
        // What an attempt has frozen, and what is held: the VM that it was for has gone.
        if after.page(pfn).file == Stands::Frozen {
            assert!(play(&mut after, Op::Driver(Move::Thaw { pfn })));
        }
    }
    let done = host(&mut after, Call::VmDestroy { vm: Who::Slot(0) });
    for pfn in (0..PAGES as u64).map(|page| FIRST + page) {
        if matches!(after.page(pfn).owner, Owner::Guest { .. }) {
            assert!(play(&mut after, Op::Driver(Move::Reclaim { pfn, slot: 0 })));
        }
    }
    (done, after)
}
