// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who starts a vCPU and who is woken; what a controller does is `vgic`'s to test.

use std::vec::Vec;

use super::*;
use crate::psci::Entry;
use crate::registers::fake::Fake;
use freehold_uapi::guest;

const NOW: u64 = 1000;
const TIMERS: Timers = Timers { cntv: Timer::new(), cntp: Timer::new() };
/// `ICH_VMCR_EL2` of a guest that takes everything.
const OPEN: u64 = 0xff00_0003;

fn vcpu(n: u64) -> VcpuIndex {
    VcpuIndex::decode(n).unwrap()
}

/// The board of a VM of three vCPUs with a controller, which its guest has opened for SGIs 0–15 and SPI 40.
fn board() -> Board {
    let mut board = Board::new();
    (0..3).for_each(|n| board.add_vcpu(vcpu(n)));
    board.declare(Window::new(0x1000, 0x2000, 40).unwrap());
    let mut store = |ipa, value| assert_eq!(board.store(ipa, Width::Word, value), Some(Kicks::NONE));
    store(0x100_0000, 3);
    store(0x100_0104, 1 << 8);
    for n in 0..3 {
        store(0x200_0014 + (n << 17), 0);
        store(0x201_0100 + (n << 17), 0xffff);
    }
    board
}

/// What a vCPU that enters on CPU number `cpu` is loaded with.
fn enter(board: &mut Board, vcpu: VcpuIndex, cpu: usize) -> Result<Lists, Exit> {
    let mut lists = Lists::EMPTY;
    board.enter(vcpu, (cpu, 4), TIMERS, NOW, &mut lists).map(|()| lists)
}

/// The call `id` with x1–x3, made by vCPU `me`; and its registers then.
fn call(board: &mut Board, me: u64, id: u32, x: [u64; 3]) -> (Option<(Next, Kicks)>, Fake) {
    let mut r = Fake::new();
    r.x[0] = id.into();
    r.x[1..4].copy_from_slice(&x);
    (board.power_call(vcpu(me), &mut r), r)
}

const fn wakes(sleepers: u8) -> Kicks {
    Kicks { cpus: 0, sleepers }
}

#[test]
fn the_window_is_where_it_was_declared() {
    assert_eq!(Board::new().window(), None);
    assert_eq!(board().window(), Window::new(0x1000, 0x2000, 40).ok());
}

#[test]
fn what_is_no_load_or_store_of_the_frames_meets_an_external_abort() {
    const FAR: u64 = 0xffff_8000_1234_0abc;
    const DATA: u64 = 0x24 << 26 | 1 << 25;
    const FETCH: u64 = 0x20 << 26 | 1 << 25;
    const WALK: u64 = 1 << 7;
    const STORE: u64 = 1 << 6;
    let board = board();
    let abort = |board: &Board, esr, ipa: u64, pstate| {
        let mut r = Fake { pstate, ..Fake::new() };
        let trap = Trap { esr, far: FAR, hpfar: ipa >> 12 << 4 };
        let is_here = board.holds(trap.address());
        if is_here {
            r.inject_external(trap);
        }
        let others = Fake { injected: Vec::new(), ..r.clone() };
        assert_eq!(others, Fake { pstate, ..Fake::new() }, "the access is not stepped over");
        (is_here, r.injected)
    };
    // Translation faults of any level: where the walk was is not the other level's.
    for (trap, told) in [
        (DATA | 7, 0x24 << 26 | 1 << 25 | 0x10),
        (DATA | STORE | 4, 0x24 << 26 | 1 << 25 | 1 << 6 | 0x10),
        (DATA | WALK | STORE | 7, 0x24 << 26 | 1 << 25 | 1 << 6 | 0x10),
        (DATA | WALK | 1 << 8 | STORE | 6, 0x24 << 26 | 1 << 25 | 1 << 8 | 1 << 6 | 0x10),
        // What else a syndrome may say of an access.
        (DATA | 0x1ff_fe3f & !(1 << 8 | WALK), 0x24 << 26 | 1 << 25 | 0x10),
        (FETCH | 7, 0x20 << 26 | 1 << 25 | 0x10),
        (FETCH | WALK | 7, 0x20 << 26 | 1 << 25 | 0x10),
    ] {
        for (pstate, told) in [(0, told), (0x3c0, told), (0x3c4, told | 1 << 26), (0x3c5, told | 1 << 26)] {
            let given = (true, Vec::from([(told, Some(FAR))]));
            assert_eq!(abort(&board, trap, 0x100_0000, pstate), given, "{trap:#x} {pstate:#x}");
        }
    }
    for here in [0x100_0000, 0x100_f000, 0x200_0000, 0x201_0000, 0x205_f000] {
        assert!(abort(&board, DATA | 7, here, 0x3c5).0, "{here:#x}");
    }
    for beside in [0, 0xff_f000, 0x101_0000, 0x1ff_f000, 0x206_0000] {
        assert_eq!(abort(&board, DATA | 7, beside, 0x3c5), (false, Vec::new()), "{beside:#x}");
    }
    assert_eq!(abort(&Board::new(), DATA | 7, 0x100_0000, 0x3c5), (false, Vec::new()), "there is no controller");
}

#[test]
fn the_host_starts_nobody_and_the_guest_starts_where_it_says() {
    let mut board = board();
    assert_eq!(board.arrive(vcpu(0)), Arrival::Runs);
    for _ in 0..2 {
        assert_eq!(board.arrive(vcpu(1)), Arrival::Off, "however often the host tries");
    }
    let (answer, r) = call(&mut board, 0, guest::PSCI_CPU_ON_64, [1, 0x8000, 7]);
    assert_eq!(answer, Some((Next::Resume, wakes(2))));
    assert_eq!((&r.x[..4], r.pc), (&[0; 4][..], 0x8000_0000), "the program counter is behind an HVC");
    assert_eq!(board.arrive(vcpu(1)), Arrival::Starts(Entry { pc: 0x8000, context: 7 }));
    assert_eq!(board.arrive(vcpu(1)), Arrival::Runs);
    let (answer, r) = call(&mut board, 1, guest::PSCI_CPU_ON_64, [1, 0x8000, 7]);
    assert_eq!((answer, r.x[0]), (Some((Next::Resume, Kicks::NONE)), guest::ALREADY_ON.cast_unsigned()));
}

#[test]
fn a_vcpu_whose_thread_did_not_come_yet_is_nobody_to_wake() {
    let mut board = board();
    let (answer, _) = call(&mut board, 0, guest::PSCI_CPU_ON, [2, 0x8000, 0]);
    assert_eq!(answer, Some((Next::Resume, Kicks::NONE)));
    assert!(matches!(board.arrive(vcpu(2)), Arrival::Starts(_)), "it looks when it comes");
}

#[test]
fn a_vcpu_that_is_off_sleeps_until_it_is_started_again() {
    let mut board = board();
    let (answer, _) = call(&mut board, 0, guest::PSCI_CPU_OFF, [0; 3]);
    assert_eq!(answer, Some((Next::Leave(Exit::Off), Kicks::NONE)));
    let mut quick = board.clone();
    assert_eq!(call(&mut quick, 1, guest::PSCI_CPU_ON, [0, 0, 0]).0, Some((Next::Resume, wakes(1))), "at once");
    assert_eq!(board.arrive(vcpu(0)), Arrival::Off, "the first one too");
    let (answer, _) = call(&mut board, 1, guest::PSCI_CPU_ON_64, [0, 0x4000, 1]);
    assert_eq!(answer, Some((Next::Resume, wakes(1))));
    assert_eq!(board.arrive(vcpu(0)), Arrival::Starts(Entry { pc: 0x4000, context: 1 }));
}

#[test]
fn a_vcpu_that_the_host_sets_back_is_on_or_off_from_there_and_its_thread_is_one_to_wake() {
    let mut there = board();
    there.reset(vcpu(1), true);
    assert_eq!(there.vgic().unwrap().wake(vcpu(1)), wakes(2));
    assert_eq!(there.arrive(vcpu(1)), Arrival::Runs, "and no guest has started it");
    let mut gone = board();
    gone.reset(vcpu(0), false);
    assert_eq!(gone.arrive(vcpu(0)), Arrival::Off, "the first one too");
    let (answer, _) = call(&mut gone, 1, guest::PSCI_CPU_ON_64, [0, 0x4000, 1]);
    assert_eq!(answer, Some((Next::Resume, wakes(1))));
}

#[test]
fn an_identifier_may_carry_the_hint_and_nothing_else() {
    let mut board = board();
    let mut r = Fake::new();
    r.x[0] = u64::from(guest::PSCI_VERSION | 1 << 16);
    assert_eq!(board.power_call(vcpu(0), &mut r), Some((Next::Resume, Kicks::NONE)));
    assert_eq!(r.x[0], 0x1_0001);
    for id in [u64::from(guest::PSCI_VERSION | 1 << 17), u64::from(guest::SMCCC_VERSION), 0] {
        r.x[0] = id;
        assert_eq!(board.power_call(vcpu(0), &mut r), None, "{id:#x}");
    }
}

#[test]
fn a_suspended_vcpu_waits_as_for_wfi_and_then_finds_success() {
    let mut board = board();
    let (answer, r) = call(&mut board, 0, guest::PSCI_CPU_SUSPEND_64, [1 << 16, 0x8000, 7]);
    assert_eq!(answer, Some((Next::Leave(Exit::Wfi(0)), Kicks::NONE)));
    assert_eq!((r.x[0], r.pc), (0, 0x8000_0000));
}

#[test]
fn switching_the_machine_off_never_returns() {
    for (id, exit) in [
        (guest::PSCI_SYSTEM_OFF, Exit::SystemOff),
        (guest::PSCI_SYSTEM_RESET, Exit::SystemReset(false)),
        (guest::PSCI_SYSTEM_RESET2, Exit::SystemReset(true)),
        (guest::PSCI_SYSTEM_RESET2_64, Exit::SystemReset(true)),
    ] {
        let (answer, r) = call(&mut board(), 0, id, [0; 3]);
        assert_eq!(answer, Some((Next::Leave(exit), Kicks::NONE)));
        assert_eq!((r.x[0], r.pc), (id.into(), 0x7fff_fffc), "whoever runs on meets the call again");
    }
}

/// vCPU 1 waits by WFI.
fn asleep() -> Board {
    let mut board = board();
    assert_eq!(board.idle(vcpu(1), OPEN, TIMERS, NOW), Some(Exit::Wfi(0)));
    board
}

#[test]
fn a_sleeping_vcpu_is_named_once_whoever_wakes_it() {
    const SGI1R: Access = Access { register: SGI1, rt: 5, read: false };
    let mut board = asleep();
    let mut r = Fake::new();
    r.x[5] = 3 << 24 | 1 << 1;
    let mut send = |board: &mut Board| board.system_register(vcpu(0), SGI1R, &mut r, &mut Timer::new(), NOW);
    assert_eq!(send(&mut board), Some(wakes(2)));
    assert_eq!(send(&mut board), Some(Kicks::NONE), "it was told");
    assert_eq!(board.idle(vcpu(1), OPEN, TIMERS, NOW), None, "it has something");
    let mut board = asleep();
    let spi = Intid::spi(40).unwrap();
    assert_eq!(board.store(0x100_6140, Width::Double, 1), Some(Kicks::NONE));
    assert_eq!(board.vgic().unwrap().set_spi(spi, true), wakes(2));
}

#[test]
fn a_kick_reaches_a_vcpu_in_its_guest_and_leaves_a_sleeper_to_the_host() {
    let mut board = asleep();
    assert_eq!(board.kick(vcpu(1)), Kicks::NONE);
    assert_eq!(board.vgic().unwrap().wake(vcpu(1)), wakes(2), "it is still to be woken");
    let mut lists = enter(&mut board, vcpu(1), 3).unwrap();
    assert!(!board.is_told(vcpu(1)));
    assert_eq!(board.kick(vcpu(1)), Kicks { cpus: 1 << 3, sleepers: 0 });
    assert_eq!([0, 1, 2].map(|n| board.is_told(vcpu(n))), [false, true, false], "an interrupt is on its way");
    assert_eq!(board.kick(vcpu(1)), Kicks::NONE, "once");
    assert_eq!(board.leave(vcpu(1), &mut lists), Kicks::NONE);
    assert!(!board.is_told(vcpu(1)));
    assert_eq!(board.kick(vcpu(1)), Kicks::NONE, "it is out");
}

/// What is active is in the priorities of whoever is in its guest: it has to look anew.
#[test]
fn a_vcpu_in_its_guest_is_told_of_what_becomes_active() {
    const ISACTIVER: u64 = 0x201_0300 + (1 << 17);
    let mut board = board();
    assert_eq!(board.store(ISACTIVER, Width::Word, 1 << 4), Some(Kicks::NONE), "it is out");
    let _lists = enter(&mut board, vcpu(1), 3).unwrap();
    assert_eq!(board.store(ISACTIVER, Width::Word, 1 << 5), Some(Kicks { cpus: 1 << 3, sleepers: 0 }));
}

/// In every bank at once: as many as there are list registers are put there.
#[test]
fn what_is_active_everywhere_is_loaded_as_far_as_there_is_room() {
    let mut board = board();
    let _ = board.store(0x201_0300, Width::Word, 1 << 5).unwrap();
    for bank in 1..8 {
        let _ = board.store(0x100_0300 + 4 * bank, Width::Word, 1 << 8).unwrap();
    }
    let mut lists = enter(&mut board, vcpu(0), 0).unwrap();
    assert_eq!(lists.entries().iter().filter(|entry| **entry >> 62 == 2).count(), 4, "{:x?}", lists.entries());
}

/// The guest of vCPU 0 has ended SPI 40, whose wire is high.
fn ended() -> Board {
    let mut board = board();
    let spi = Intid::spi(40).unwrap();
    board.vgic().unwrap().resample(spi, true);
    let _ = board.vgic().unwrap().set_spi(spi, true);
    let mut lists = enter(&mut board, vcpu(0), 0).unwrap();
    lists.entries().iter_mut().for_each(|entry| *entry &= !(3 << 62));
    let _ = board.leave(vcpu(0), &mut lists);
    board
}

#[test]
fn nobody_enters_or_sleeps_before_the_host_has_heard_of_an_end() {
    let told = Exit::Ended(Intid::spi(40).unwrap());
    let mut board = ended();
    assert_eq!(enter(&mut board, vcpu(1), 0).err(), Some(told), "whoever comes next");
    assert!(enter(&mut board, vcpu(1), 0).is_ok(), "once");
    assert_eq!(ended().idle(vcpu(1), OPEN, TIMERS, NOW), Some(told));
    assert_eq!(ended().rest(Exit::Off), told);
    let (answer, _) = call(&mut ended(), 0, guest::PSCI_CPU_OFF, [0; 3]);
    assert_eq!(answer, Some((Next::Leave(told), Kicks::NONE)));
    let mut board = ended();
    board.vgic().unwrap().resample(Intid::spi(40).unwrap(), false);
    assert_eq!(board.rest(Exit::Off), Exit::Off, "it does not want to any more");
}

#[test]
fn vcpus_may_be_made_in_any_order() {
    let mut board = Board::new();
    board.add_vcpu(vcpu(2));
    board.add_vcpu(vcpu(0));
    let (answer, _) = call(&mut board, 0, guest::PSCI_CPU_ON, [2, 0, 0]);
    assert!(answer.is_some());
    assert!(matches!(board.arrive(vcpu(2)), Arrival::Starts(_)));
    // One that was left out is not there, like those beyond the last.
    for missing in [1, 3] {
        for id in [guest::PSCI_CPU_ON, guest::PSCI_AFFINITY_INFO] {
            let (_, r) = call(&mut board, 0, id, [missing, 0, 0]);
            assert_eq!(r.x[0], guest::INVALID_PARAMETERS.cast_unsigned(), "{missing}");
        }
        assert_eq!(board.arrive(vcpu(missing)), Arrival::Off);
    }
}

const fn on(compare: u64) -> Timer {
    Timer::of_registers(1, compare)
}

const fn masked(compare: u64) -> Timer {
    Timer::of_registers(3, compare)
}

const OFF: Timer = Timer::new();
const VIRTUAL: u64 = 1 << 27;
const PHYSICAL: u64 = 1 << 30;

/// The board on which vCPU 0 has enabled these private interrupts.
fn enabled(bits: u64) -> Board {
    let mut board = board();
    for (ipa, value) in [(0x201_0180, u64::MAX), (0x201_0100, bits)] {
        assert_eq!(board.store(ipa, Width::Word, value), Some(Kicks::NONE));
    }
    board
}

#[test]
fn a_stay_ends_with_the_physical_timer_and_nothing_of_it_is_in_the_next_one() {
    let mut board = enabled(VIRTUAL | PHYSICAL);
    let mut lists = Lists::EMPTY;
    for (cntv, cntp, deadline, loaded) in [
        (OFF, OFF, None, &[][..]),
        (on(NOW + 1), OFF, None, &[]),
        (OFF, on(NOW + 1), Some(NOW + 1), &[]),
        (OFF, masked(NOW + 1), None, &[]),
        (on(NOW), on(NOW + 5), Some(NOW + 5), &[27]),
        (OFF, on(NOW), None, &[30]),
        (masked(NOW), on(NOW), None, &[30]),
        (on(NOW - 1), on(NOW - 1), None, &[27, 30]),
        (OFF, OFF, None, &[]),
    ] {
        assert_eq!(board.enter(vcpu(0), (0, 4), Timers { cntv, cntp }, NOW, &mut lists), Ok(()));
        assert_eq!(lists.deadline(), deadline, "{cntv:?} {cntp:?}");
        let numbers: Vec<u32> = lists.entries().iter().map(|entry| *entry as u32).collect();
        assert_eq!(numbers, loaded, "{cntv:?} {cntp:?}");
        lists.note(OPEN, 0, false);
        assert_eq!(lists.vmcr(), OPEN);
        assert_eq!(board.leave(vcpu(0), &mut lists), Kicks::NONE);
        lists.note(0, 0, false);
        assert_eq!(lists, Lists::EMPTY, "but for the masks");
    }
}

#[test]
fn a_wait_lasts_until_the_first_timer_that_the_guest_would_take() {
    for (cntv, cntp, bits, until) in [
        (on(3000), on(2000), VIRTUAL | PHYSICAL, 2000),
        (on(2000), on(3000), VIRTUAL | PHYSICAL, 2000),
        (on(2000), on(3000), PHYSICAL, 3000),
        (masked(2000), on(3000), VIRTUAL | PHYSICAL, 3000),
        (on(2000), OFF, VIRTUAL | PHYSICAL, 2000),
        (on(2000), on(3000), 0, 0),
        (on(NOW), on(NOW), 0, 0),
    ] {
        let exit = enabled(bits).idle(vcpu(0), OPEN, Timers { cntv, cntp }, NOW);
        assert_eq!(exit, Some(Exit::Wfi(until)), "{cntv:?} {cntp:?} {bits:#x}");
    }
    let fired = Timers { cntv: OFF, cntp: on(NOW) };
    assert_eq!(enabled(PHYSICAL).idle(vcpu(0), OPEN, fired, NOW), None);
    let mask = OPEN & 0xff_ffff;
    assert_eq!(enabled(PHYSICAL).idle(vcpu(0), mask, fired, NOW), Some(Exit::Wfi(0)), "its CPU masks it");
}

#[test]
fn a_sleeper_looks_at_its_timers_again_when_another_cpu_changes_their_interrupts() {
    const FIRE: u64 = NOW + 100;
    let waiting = Timers { cntv: on(FIRE), cntp: on(FIRE) };
    for (timer, register) in [VIRTUAL, PHYSICAL].into_iter().flat_map(|timer| [0x100, 0x380, 0x80].map(|r| (timer, r)))
    {
        let mut board = board();
        let mut store =
            |at: u64, value: u64| assert_eq!(board.store(0x203_0000 + at, Width::Word, value), Some(Kicks::NONE));
        // Of vCPU 1 it is disabled, or active, or of a group that the distributor has closed.
        match register {
            0x100 => {}
            0x380 => {
                store(0x100, timer);
                store(0x300, timer);
            }
            _ => {
                store(0x80, timer);
                store(0x100, timer);
                assert_eq!(board.store(0x100_0000, Width::Word, 1), Some(Kicks::NONE));
            }
        }
        assert_eq!(board.idle(vcpu(1), OPEN, waiting, NOW), Some(Exit::Wfi(0)), "{timer:#x} {register:#x}");
        let value = if register == 0x80 { 0 } else { timer };
        assert_eq!(board.store(0x203_0000 + register, Width::Word, value), Some(wakes(2)), "{timer:#x} {register:#x}");
        assert_eq!(board.idle(vcpu(1), OPEN, waiting, NOW), Some(Exit::Wfi(FIRE)), "{timer:#x} {register:#x}");
    }
    let mut board = board();
    assert_eq!(board.idle(vcpu(1), OPEN, waiting, NOW), Some(Exit::Wfi(0)));
    assert_eq!(board.store(0x203_0100, Width::Word, 1 << 20), Some(Kicks::NONE), "no timer's");
}

#[test]
fn a_sleeper_is_told_of_what_moves_to_the_group_that_it_takes() {
    const ONLY_GROUP_1: u64 = 0xff00_0002;
    let mut board = board();
    let spi = Intid::spi(40).unwrap();
    assert_eq!(board.store(0x100_6140, Width::Double, 1), Some(Kicks::NONE));
    assert_eq!(board.vgic().unwrap().set_spi(spi, true), Kicks::NONE);
    assert_eq!(board.idle(vcpu(1), ONLY_GROUP_1, TIMERS, NOW), Some(Exit::Wfi(0)), "it is of group 0");
    assert_eq!(board.store(0x100_0084, Width::Word, 1 << 9), Some(Kicks::NONE), "another one");
    assert_eq!(board.store(0x100_0084, Width::Word, 3 << 8), Some(wakes(2)));
    assert_eq!(board.idle(vcpu(1), ONLY_GROUP_1, TIMERS, NOW), None);
}

#[test]
fn an_sgi_reaches_the_group_that_its_register_names() {
    for (register, group, reaches) in
        [(SGI1, 1, true), (SGI1, 0, true), (SGI0, 1, false), (SGI0, 0, true), (ASGI1, 1, false), (ASGI1, 0, true)]
    {
        let mut board = asleep();
        assert_eq!(board.store(0x203_0080, Width::Word, group << 3), Some(Kicks::NONE));
        let mut r = Fake::new();
        r.x[5] = 3 << 24 | 1 << 1;
        let mut write = |read| {
            let kicks =
                board.system_register(vcpu(0), Access { register, rt: 5, read }, &mut r, &mut Timer::new(), NOW);
            (kicks, r.pc)
        };
        assert_eq!(write(true), (None, 0x8000_0000), "no load of it is served");
        let kicks = if reaches { wakes(2) } else { Kicks::NONE };
        assert_eq!(write(false), (Some(kicks), 0x8000_0004), "{register:?} {group}");
    }
}

#[test]
fn an_interrupt_is_over_when_its_cpu_says_so() {
    let mut board = enabled(1 << 3);
    let mut r = Fake::new();
    let mut write = |board: &mut Board, register, value| {
        r.x[5] = value;
        board.system_register(vcpu(0), Access { register, rt: 5, read: false }, &mut r, &mut Timer::new(), NOW)
    };
    assert_eq!(write(&mut board, SGI1, 3 << 24 | 1), Some(Kicks::NONE));
    let mut lists = enter(&mut board, vcpu(0), 0).unwrap();
    lists.entries()[0] ^= 3 << 62;
    assert_eq!(board.leave(vcpu(0), &mut lists), Kicks::NONE);
    let active = |board: &mut Board| board.load(0x201_0300, Width::Word);
    assert_eq!(active(&mut board), Some((1 << 3, Kicks::NONE)));
    assert_eq!(write(&mut board, DIR, 4), Some(Kicks::NONE));
    assert_eq!(active(&mut board), Some((1 << 3, Kicks::NONE)), "another one's end");
    assert_eq!(write(&mut board, DIR, 3), Some(Kicks::NONE));
    assert_eq!(active(&mut board), Some((0, Kicks::NONE)));
}

#[test]
fn the_physical_timers_registers_are_the_vcpus_own() {
    let mut board = board();
    let mut timer = Timer::new();
    let mut r = Fake::new();
    let mut access = |op2, read, value| {
        r.x[5] = value;
        let access = Access { register: Encoding::new(3, 3, 14, 2, op2), rt: 5, read };
        let kicks = board.system_register(vcpu(0), access, &mut r, &mut timer, NOW);
        (kicks, r.x[5])
    };
    let served = Some(Kicks::NONE);
    assert_eq!(access(2, false, NOW + 9), (served, NOW + 9));
    assert_eq!(access(1, false, 1), (served, 1));
    assert_eq!(access(2, true, 7), (served, NOW + 9));
    assert_eq!(access(0, true, 7), (served, 9));
    assert_eq!(access(1, true, 7), (served, 1));
    assert_eq!(access(3, true, 7), (None, 7), "no register of it");
    assert_eq!(timer.registers(), (1, NOW + 9));
}

#[test]
fn nothing_but_the_frames_of_the_vcpus_that_there_are_is_met() {
    let mut board = board();
    let kind = Some((0x3b, Kicks::NONE));
    for (ipa, answer) in [
        (0x100_ffe8, kind),
        (0xff_ffe8, None),
        (0x101_ffe8, None),
        (0x200_ffe8, kind),
        (0x204_ffe8, kind),
        (0x206_ffe8, None),
        (0x1ff_ffe8, None),
        (!7, None),
    ] {
        assert_eq!(board.load(ipa, Width::Word), answer, "{ipa:#x}");
        assert_eq!(board.store(ipa, Width::Word, 1), answer.map(|_| Kicks::NONE), "{ipa:#x}");
    }
    // ITLinesNumber 7, IDbits 10 less one, No1N.
    assert_eq!(board.load(0x100_0004, Width::Word), Some((0x0248_0007, Kicks::NONE)), "GICD_TYPER");
    assert_eq!(Board::new().load(0x100_ffe8, Width::Word), None, "there is none before the host says where");
}

#[test]
fn what_no_list_register_has_a_part_in_is_answered_inside_the_guest() {
    const INTO_X5: u64 = 0x24 << 26 | 1 << 25 | 1 << 24 | 2 << 22 | 5 << 16 | 7;
    const OUT_OF_X5: u64 = 0x18 << 26 | 1 << 25 | 3 << 20 | 12 << 10 | 5 << 5 | 11 << 1;
    const SGI: u64 = 3 << 24 | 1 << 1;
    let load = |ipa: u64| Trap { esr: INTO_X5, far: ipa, hpfar: ipa >> 12 << 4 };
    let register = |op2: u64| Trap { esr: OUT_OF_X5 | op2 << 17, far: 0, hpfar: 0 };
    let ask = |board: &mut Board, trap: Trap| {
        let mut r = Fake::new();
        r.x[5] = SGI;
        let answer = board.answer_at_once(vcpu(0), trap, &mut r);
        let untouched = {
            let mut fresh = Fake::new();
            fresh.x[5] = SGI;
            fresh
        };
        assert_eq!(answer.is_none(), r == untouched, "it is stepped over exactly if it is answered");
        (answer, r.x[5])
    };
    let mut board = asleep();
    assert_eq!(ask(&mut board, load(0x100_ffe8)), (Some(Kicks::NONE), 0x3b));
    assert_eq!(ask(&mut board, load(0x100_0204)), (None, SGI), "GICD_ISPENDR");
    assert_eq!(ask(&mut board, load(0xff_ffe8)), (None, SGI), "no frame");
    assert_eq!(ask(&mut board, register(1)), (None, SGI), "ICC_DIR_EL1");
    assert_eq!(ask(&mut board, register(5)), (Some(wakes(2)), SGI), "ICC_SGI1R_EL1");
    for trap in [load(0x100_ffe8), register(5)] {
        assert_eq!(ask(&mut Board::new(), trap), (None, SGI), "there is no controller");
    }
}

#[test]
fn a_turn_that_did_not_come_about_is_nobodys() {
    let mut board = Board::new();
    let [sibling, vcpu] = [vcpu(1), vcpu(0)];
    assert!(board.begin_turn(0, vcpu));
    assert!(board.begin_turn(0, vcpu));
    board.keep_turn(0, vcpu);
    assert!(!board.begin_turn(0, vcpu));
    assert!(board.begin_turn(0, sibling));
    assert!(board.begin_turn(0, vcpu), "an interrupt alone may have taken the sibling off");
    assert!(board.begin_turn(MAX_CPUS, vcpu), "a CPU that nothing is kept of");
}

#[test]
fn each_cpu_has_turns_of_its_own() {
    let mut board = Board::new();
    let [sibling, vcpu] = [vcpu(1), vcpu(0)];
    (0..MAX_CPUS).for_each(|cpu| board.keep_turn(cpu, sibling));
    for cpu in 0..MAX_CPUS {
        assert!(board.begin_turn(cpu, vcpu), "CPU {cpu} has the sibling's translations");
        board.keep_turn(cpu, vcpu);
    }
    assert!((0..MAX_CPUS).all(|cpu| !board.begin_turn(cpu, vcpu)));
}
