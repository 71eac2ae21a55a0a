// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who starts a vCPU and who is woken; what a controller does is `vgic`'s to test.

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
    assert_eq!(board.kick(vcpu(1)), Kicks { cpus: 1 << 3, sleepers: 0 });
    assert_eq!(board.kick(vcpu(1)), Kicks::NONE, "once");
    assert_eq!(board.leave(vcpu(1), &mut lists), Kicks::NONE);
    assert_eq!(board.kick(vcpu(1)), Kicks::NONE, "it is out");
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
    let (_, r) = call(&mut board, 0, guest::PSCI_CPU_ON, [3, 0, 0]);
    assert_eq!(r.x[0], guest::INVALID_PARAMETERS.cast_unsigned());
}
