// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each invariant finds a step that breaks it: a state that lies to the step, or an outcome that was tampered with.

use freehold_oracle::invariant::{Broken, change, driven, exit, standing};
use freehold_oracle::{
    Act, Call, Content, Debts, Done, Env, File, Machine, Mark, Move, Op, Outcome, Owner, Page, State, Statuses, Stray,
    Value, Vcpu, Vm, Who, World, step,
};
use freehold_uapi::{guest, hvc};

type Small = World<6, 2, 1, 2, 1>;

/// What goes wrong between the step and the records.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// A guest frame that is backed seems free.
    BackingUnseen,
    /// A loan to the host never ends in the record.
    LentStays,
    /// What lay in a page stays in it when its owner changes.
    NoScrub,
    /// References to a page go unseen.
    HoldersUnseen,
    /// A page's leaving is not counted.
    GuestsUncounted,
    /// A vCPU's leaving is not written down.
    RunsOn,
    /// That a guest guards its devices goes unseen.
    GuardUnseen,
    /// Every guest frame outside RAM seems open.
    AllOpen,
    /// A VM's RAM goes unseen.
    RamUnseen,
}

/// A world behind a fault.
struct Faulty {
    world: Small,
    fault: Fault,
}

impl State for Faulty {
    fn machine(&self) -> Machine {
        self.world.machine()
    }
    fn page(&self, pfn: u64) -> Page {
        let page = self.world.page(pfn);
        if self.fault == Fault::HoldersUnseen { Page { holders: 0, ..page } } else { page }
    }
    fn set_page(&mut self, pfn: u64, mut page: Page) {
        let old = self.world.page(pfn);
        match self.fault {
            Fault::LentStays => page.lent |= old.lent,
            Fault::NoScrub if page.owner != old.owner => page.content = old.content,
            Fault::HoldersUnseen => page.holders = old.holders,
            Fault::None | Fault::BackingUnseen | Fault::NoScrub | Fault::GuestsUncounted | Fault::RunsOn => {}
            Fault::GuardUnseen | Fault::AllOpen | Fault::RamUnseen => {}
        }
        self.world.set_page(pfn, page);
    }
    fn backing(&self, slot: u8, gfn: u64) -> Option<u64> {
        if self.fault == Fault::BackingUnseen { None } else { self.world.backing(slot, gfn) }
    }
    fn mark(&self, slot: u8, gfn: u64) -> Mark {
        if self.fault == Fault::AllOpen { Mark::Device } else { self.world.mark(slot, gfn) }
    }
    fn set_mark(&mut self, slot: u8, gfn: u64, mark: Mark) {
        self.world.set_mark(slot, gfn, mark);
    }
    fn vm(&self, slot: u8) -> Vm {
        let vm = self.world.vm(slot);
        Vm { guarded: vm.guarded && self.fault != Fault::GuardUnseen, ..vm }
    }
    fn set_vm(&mut self, slot: u8, vm: Vm) {
        let guest =
            if self.fault == Fault::GuestsUncounted { vm.guest.max(self.world.vm(slot).guest) } else { vm.guest };
        self.world.set_vm(slot, Vm { guest, ..vm });
    }
    fn range(&self, slot: u8, n: u8) -> Option<(u64, u64)> {
        self.world.range(slot, n).filter(|_| self.fault != Fault::RamUnseen)
    }
    fn add_range(&mut self, slot: u8, gfn: u64, count: u64) {
        self.world.add_range(slot, gfn, count);
    }
    fn clear_slot(&mut self, slot: u8) {
        self.world.clear_slot(slot);
    }
    fn vcpu(&self, slot: u8, vcpu: u8) -> Vcpu {
        self.world.vcpu(slot, vcpu)
    }
    fn set_vcpu(&mut self, slot: u8, vcpu: u8, record: Vcpu) {
        let running = record.running || self.fault == Fault::RunsOn && self.world.vcpu(slot, vcpu).running;
        self.world.set_vcpu(slot, vcpu, Vcpu { running, ..record });
    }
    fn cpu(&self, cpu: u8) -> Option<(u8, u8)> {
        self.world.cpu(cpu)
    }
    fn set_cpu(&mut self, cpu: u8, runs: Option<(u8, u8)>) {
        self.world.set_cpu(cpu, runs);
    }
}

const VM: Who = Who::Slot(0);

fn host(call: Call) -> Op {
    Op::Host { cpu: 0, call }
}

fn donate(pfn: u64, gfn: u64) -> Op {
    host(Call::MemDonate { vm: VM, pfn, gfn, count: 1, flags: 0 })
}

fn run() -> Op {
    host(Call::VcpuRun { vm: VM, vcpu: 0, mmio: 0 })
}

fn act(act: Act) -> Op {
    Op::Guest { cpu: 0, act }
}

fn ask(id: u32) -> Op {
    act(Act::Call { id, x: [16 << 12, 0, 0] })
}

fn accept() -> Op {
    host(Call::GuestAccept { vm: VM, vcpu: 0, count: 1 })
}

/// A VM with a pool (frame 0), two guest frames of RAM and a vCPU.
fn created() -> Vec<Op> {
    vec![
        host(Call::VmCreate { flags: hvc::VM_PROTECTED, ipa_bits: 32, pfn: 0, count: 1 }),
        host(Call::VmRange { vm: VM, gfn: 16, count: 2 }),
        host(Call::VcpuCreate { vm: VM, vcpu: 0 }),
    ]
}

/// Frame 1 is the guest's 16, which it has written to; it has left.
fn written() -> Vec<Op> {
    let store = act(Act::Access { ipa: 16 << 12, size: 8, store: Some(1), described: true });
    let leave = act(Act::Interrupt);
    [created(), vec![donate(1, 16), run(), store, leave]].concat()
}

/// It is lent to the host.
fn lent() -> Vec<Op> {
    [written(), vec![run(), ask(guest::MEM_SHARE), accept()]].concat()
}

/// The first invariant that a sequence of operations breaks.
fn broken_by(ops: &[Op], fault: Fault, tamper: impl Fn(&mut Outcome)) -> Option<Broken> {
    let mut state = Faulty { world: Small::new(0, 16), fault };
    for op in ops {
        let before = state.world;
        let mut outcome = step(&mut state, op, &Env::CALM);
        tamper(&mut outcome);
        let found = change(&before, op, &outcome, &state.world).and_then(|()| standing(&state.world));
        let driver = if ops.iter().any(|o| matches!(o, Op::Driver(_))) { driven(&state.world) } else { Ok(()) };
        if let Err(broken) = found.and(driver) {
            return Some(broken);
        }
    }
    None
}

/// The sequence breaks this invariant under the fault, and none without it.
fn finds(rule: u8, ops: &[Op], fault: Fault) -> &'static str {
    assert_eq!(broken_by(ops, Fault::None, |_| ()), None, "the sequence itself is at fault");
    let broken = broken_by(ops, fault, |_| ()).expect("a broken invariant");
    assert_eq!(broken.rule, rule, "{broken:?}");
    broken.what
}

fn tampered(rule: u8, ops: &[Op], tamper: impl Fn(&mut Outcome)) -> &'static str {
    assert_eq!(broken_by(ops, Fault::None, |_| ()), None, "the sequence itself is at fault");
    let broken = broken_by(ops, Fault::None, tamper).expect("a broken invariant");
    assert_eq!(broken.rule, rule, "{broken:?}");
    broken.what
}

#[test]
fn i1_finds_two_frames_behind_one_guest_frame() {
    let ops = [created(), vec![donate(1, 16), donate(2, 16)]].concat();
    assert_eq!(finds(1, &ops, Fault::BackingUnseen), "two frames back one guest frame");
}

#[test]
fn i1_finds_a_frame_that_never_was_the_hosts() {
    let mut before = Small::new(0, 16);
    before.pages[5].owner = Owner::El2;
    let mut after = before;
    after.pages[5].owner = Owner::Host;
    let op = Op::Touch { pfn: 5, write: false, from: Stray::User };
    let broken = change(&before, &op, &Outcome::done(Done::Allowed), &after).expect_err("it changed hands");
    assert_eq!((broken.rule, broken.at), (1, 5));
}

#[test]
fn i2_finds_a_loan_that_outlives_its_owner() {
    let ops = [lent(), vec![host(Call::VmDestroy { vm: VM }), host(Call::VmReclaim { vm: VM, pfn: 1, count: 1 })]];
    assert_eq!(finds(2, &ops.concat(), Fault::LentStays), "lent or revocable, and not a guest's");
}

#[test]
fn i3_finds_a_host_translation_that_is_not_invalidated() {
    let ops = [created(), vec![donate(1, 16)]].concat();
    let what = tampered(3, &ops, |o| o.debts = Debts::default());
    assert_eq!(what, "the host lost a frame and kept its translation");
}

#[test]
fn i3_finds_a_guest_translation_that_is_not_invalidated() {
    let ops = [written(), vec![run(), ask(guest::MEM_RELINQUISH), accept()]].concat();
    let what = tampered(3, &ops, |o| o.debts.guests = 0);
    assert_eq!(what, "a VM lost a frame and kept its translation");
}

#[test]
fn i3_finds_a_vcpu_that_runs_on() {
    let ops = [created(), vec![run(), act(Act::Wfi)]].concat();
    assert_eq!(finds(3, &ops, Fault::RunsOn), "a vCPU runs on several CPUs, or unknown to them");
}

#[test]
fn i4_finds_a_frame_that_comes_back_unscrubbed() {
    let ops = [written(), vec![run(), ask(guest::MEM_RELINQUISH), accept()]].concat();
    // The pool's frame is the first that changes hands; its secret is what is missing there.
    assert_eq!(finds(4, &ops, Fault::NoScrub), "a pool frame holds no secret");
    let mut before = Small::new(0, 16);
    let guest = Page { owner: Owner::Guest { slot: 0, gfn: 16 }, content: Content::Secret(0), ..Page::default() };
    before.pages[1] = guest;
    let mut after = before;
    after.pages[1].owner = Owner::Host;
    let debts = Debts { host: true, guests: 1 };
    let outcome =
        Outcome { debts, ..Outcome::done(Done::Host([Value::Is(1), Value::Is(0), Value::Is(0), Value::Is(0)])) };
    let broken = change(&before, &accept(), &outcome, &after).expect_err("it was not scrubbed");
    assert_eq!((broken.rule, broken.what), (4, "a frame came back with what was in it"));
}

#[test]
fn i4_finds_an_exit_that_tells_what_was_stored() {
    let store = act(Act::Access { ipa: 17 << 12, size: 8, store: Some(0x5ec2e7), described: true });
    let ops = [created(), vec![run(), store]].concat();
    let what = tampered(4, &ops, |o| {
        if let Some(Done::Exit(values)) = &mut o.done {
            values[3] = Value::Is(0x5ec2e7);
        }
    });
    assert_eq!(what, "a fault on RAM says more than the guest frame");
}

/// Its guest guards: it has opened guest frame 17 and no other, of which 16 is RAM, and leaves.
fn guarded() -> Vec<Op> {
    let mut ops = created();
    ops[1] = host(Call::VmRange { vm: VM, gfn: 16, count: 1 });
    let call = |id, x| act(Act::Call { id, x });
    ops.extend([run(), call(guest::MMIO_GUARD_ENROLL, [0; 3]), call(guest::MMIO_GUARD_MAP, [17 << 12, 0, 0])]);
    ops.push(act(Act::Interrupt));
    ops
}

/// What the step, which is lied to, comes to when the guest reaches for this; and what that breaks.
fn shown(fault: Fault, ipa: u64, store: Option<u64>) -> (Option<Done>, Result<(), Broken>) {
    let mut state = Faulty { world: Small::new(0, 16), fault: Fault::None };
    guarded().iter().chain([&run()]).for_each(|op| _ = step(&mut state, op, &Env::CALM));
    assert_eq!((state.world.vms[0].guarded, state.world.marks[0]), (true, [Mark::None, Mark::Device]));
    state.fault = fault;
    let (before, op) = (state.world, act(Act::Access { ipa, size: 8, store, described: true }));
    let outcome = step(&mut state, &op, &Env::CALM);
    (outcome.done, change(&before, &op, &outcome, &state.world))
}

#[test]
fn i4_finds_an_exit_for_what_the_guest_has_not_opened() {
    let (shut, open) = (18 << 12, 17 << 12);
    for (store, how) in [(None, 8), (Some(0x5ec2e7), 8 | hvc::MMIO_WRITE)] {
        assert_eq!(shown(Fault::None, shut, store), (Some(Done::Aborted), Ok(())), "the step itself bars it");
        let sees = |ipa| Some(Done::Exit([hvc::EXIT_MMIO, ipa, how, store.unwrap_or(0)].map(Value::Is)));
        assert_eq!(shown(Fault::None, open + 0xff8, store), (sees(open + 0xff8), Ok(())), "and shows what is open");
        for fault in [Fault::GuardUnseen, Fault::AllOpen] {
            let (done, found) = shown(fault, shut, store);
            assert_eq!(done, sees(shut));
            let broken = Broken { rule: 4, what: "the host was shown what its guest has not opened", at: 18 };
            assert_eq!(found, Err(broken), "{fault:?}");
        }
    }
}

#[test]
fn i4_finds_an_exit_for_ram() {
    let (done, found) = shown(Fault::RamUnseen, (16 << 12) + 8, Some(7));
    assert_eq!(done, Some(Done::Aborted), "a guest that guards is safe from that too");
    assert_eq!(found, Ok(()));
    let mut state = Faulty { world: Small::new(0, 16), fault: Fault::None };
    [created(), vec![run()]].concat().iter().for_each(|op| _ = step(&mut state, op, &Env::CALM));
    state.fault = Fault::RamUnseen;
    let (before, op) = (state.world, act(Act::Access { ipa: 16 << 12, size: 4, store: Some(7), described: true }));
    let outcome = step(&mut state, &op, &Env::CALM);
    let broken = change(&before, &op, &outcome, &state.world).expect_err("a store to RAM left");
    assert_eq!((broken.rule, broken.what, broken.at), (4, "an access to RAM was shown to the host", 16));
}

/// Each byte counts, not the first alone; and only of this VM's frames.
#[test]
fn i4_finds_an_access_of_which_a_byte_is_not_open() {
    let mut world = Small::new(0, 16);
    world.vms[0].guarded = true;
    world.vms[1].guarded = true;
    world.marks[0] = [Mark::Device, Mark::None];
    let at =
        |slot, ipa, how| exit(&world, slot, [hvc::EXIT_MMIO, ipa, how, 0]).map_err(|broken| (broken.rule, broken.at));
    for size in [1, 2, 4, 8] {
        for how in [size, size | hvc::MMIO_WRITE] {
            assert_eq!(at(0, (17 << 12) - size, how), Ok(()));
            assert_eq!(at(0, 16 << 12, how), Ok(()));
            assert_eq!(at(0, (17 << 12) - size + 1, how), Err((4, 17)), "its last byte");
            assert_eq!(at(0, (16 << 12) - 1, how), Err((4, 15)), "its first byte");
            assert_eq!(at(1, 16 << 12, how), Err((4, 16)), "the other VM has opened it");
        }
    }
    for how in [0, 3, 16, 1 << 63] {
        assert_eq!(at(0, 16 << 12, how).map_err(|broken| broken.0), Err(4), "{how:#x}");
    }
    assert_eq!(at(0, u64::MAX - 3, 8), Err((4, u64::MAX - 3)));
    let other = exit(&world, 0, [hvc::EXIT_MEM_FAULT, 0x99 << 12, 8, 0]);
    assert_eq!(other, Ok(()), "other exits are judged elsewhere");
}

#[test]
fn i5_finds_a_held_page_that_becomes_private() {
    let moves = [Move::Populate { pfn: 1 }, Move::Pin { pfn: 1 }, Move::Drain { pfn: 1, by: 0 }];
    let freeze = [Move::Freeze { pfn: 1, by: 0 }, Move::Donate { pfn: 1, slot: 0, gfn: 16 }];
    let ops: Vec<Op> = created().into_iter().chain(moves.into_iter().chain(freeze).map(Op::Driver)).collect();
    let mut held = Faulty { world: Small::new(0, 16), fault: Fault::None };
    ops.iter().for_each(|op| _ = step(&mut held, op, &Env::CALM));
    assert_eq!((held.world.pages[1].holders, held.world.pages[1].file), (1, File::Draining { by: 0 }));
    // The pin itself goes unseen with the fault, so it stands in the record from the start.
    let mut faulty = Faulty { world: held.world, fault: Fault::HoldersUnseen };
    let op = Op::Driver(Move::Freeze { pfn: 1, by: 0 });
    assert_eq!(step(&mut faulty, &op, &Env::CALM), Outcome::done(Done::Moved));
    let broken = standing(&faulty.world).expect_err("frozen and held");
    assert_eq!((broken.rule, broken.what), (5, "frozen or given, and held"));
    let before = faulty.world;
    let op = Op::Driver(Move::Donate { pfn: 1, slot: 0, gfn: 16 });
    let outcome = step(&mut faulty, &op, &Env::CALM);
    let broken = change(&before, &op, &outcome, &faulty.world).expect_err("private and held");
    assert_eq!((broken.rule, broken.what), (5, "a page became private while it was held"));
}

#[test]
fn i5_finds_books_that_lie() {
    let mut world = Small::new(0, 16);
    world.pages[2].file = File::Given;
    assert_eq!(driven(&world).map_err(|b| b.rule), Err(5));
}

#[test]
fn i6_finds_a_refusal_that_changes_something() {
    let ops = [created(), vec![donate(1, 16)]].concat();
    let refused = |o: &mut Outcome| *o = Outcome::refused(Statuses::one(hvc::FOREIGN));
    assert_eq!(tampered(6, &ops, refused), "a refusal changed something");
}

#[test]
fn i7_finds_an_operation_without_an_answer() {
    let ops = [created(), vec![donate(9, 16)]].concat();
    assert_eq!(tampered(7, &ops, |o| o.refused = Statuses::NONE), "no answer is right");
}

#[test]
fn i7_finds_a_long_call_that_makes_no_progress() {
    let ops = [created(), vec![donate(1, 16)]].concat();
    let idle = |o: &mut Outcome| {
        if let Some(Done::Host([Value::Is(1), ..])) = o.done {
            o.done = Some(Done::Host([Value::Is(0); 4]));
        }
    };
    assert_eq!(tampered(7, &ops, idle), "a long call did nothing, or too much");
}

#[test]
fn i8_finds_a_page_that_is_lost_count_of() {
    let ops = [written(), vec![run(), ask(guest::MEM_RELINQUISH), accept()]].concat();
    assert_eq!(finds(8, &ops, Fault::GuestsUncounted), "the guest frames are miscounted");
}

#[test]
fn i8_finds_a_frame_that_does_not_come_back() {
    let mut world = Small::new(0, 16);
    world.pages[3].borrows = 1;
    assert_eq!(standing(&world).map_err(|b| (b.rule, b.at)), Err((8, 3)));
}

#[test]
fn i9_finds_a_page_that_the_host_prepared_for_a_running_guest() {
    let mut state = Faulty { world: Small::new(0, 16), fault: Fault::None };
    written().iter().for_each(|op| _ = step(&mut state, op, &Env::CALM));
    assert_eq!(standing(&state.world), Ok(()));
    state.fault = Fault::NoScrub;
    let before = state.world;
    let outcome = step(&mut state, &donate(2, 17), &Env::CALM);
    let broken = change(&before, &donate(2, 17), &outcome, &state.world).expect_err("what the host wrote is read");
    assert_eq!((broken.rule, broken.what), (9, "a running guest was given what the host chose"));
    assert_eq!(standing(&state.world).map_err(|b| b.rule), Err(9));
}
