// SPDX-License-Identifier: MIT OR Apache-2.0
//! The relay against a firmware that records what it was told.

use core::sync::atomic::AtomicU64;
use std::collections::VecDeque;
use std::vec::Vec;

use super::*;

#[derive(Default)]
struct Fake {
    calls: Vec<[u64; 4]>,
    started: Vec<(u64, usize)>,
    suspended: Vec<(SuspendKind, u64, usize)>,
    on_results: VecDeque<i64>,
    answer: [u64; 4],
    busy: bool,
    quiesced: u32,
    reopened: u32,
    lacks: Option<u64>,
}

impl Firmware for Fake {
    fn call(&mut self, x: [u64; 4]) -> [u64; 4] {
        if x[0] == 0x8400_000A && self.lacks == Some(x[1]) {
            return [u64::MAX, 0, 0, 0];
        }
        self.calls.push(x);
        self.answer
    }
    fn cpu_on(&mut self, target: Affinity, cpu: usize) -> i64 {
        self.started.push((target.get(), cpu));
        self.on_results.pop_front().unwrap_or(0)
    }
    fn suspend(&mut self, kind: SuspendKind, power_state: u64, cpu: usize) -> i64 {
        self.suspended.push((kind, power_state, cpu));
        0
    }
    fn quiesce(&mut self) -> bool {
        self.quiesced += 1;
        !self.busy
    }
    fn reopen(&mut self) {
        self.reopened += 1;
    }
}

fn slots() -> Vec<Slot<AtomicU64>> {
    [0u64, 1, 0x100, 0x1_0000_0000]
        .into_iter()
        .map(|m| Slot::off(Affinity::of_mpidr(m | 1 << 31), || AtomicU64::new(0)))
        .collect()
}

fn relay(slots: &[Slot<AtomicU64>]) -> Relay<'_, AtomicU64> {
    let relay = Relay::new(slots, Platform::default(), false);
    relay.booted(0);
    relay
}

const ON: u64 = 0xC400_0003;
const OFF: u64 = 0x8400_0002;
const SUSPEND: u64 = 0xC400_0001;

#[test]
fn an_entry_point_of_the_host_never_reaches_firmware() {
    let s = slots();
    let r = relay(&s);
    let mut fw = Fake::default();
    assert_eq!(r.smc(0, 0, [ON, 1, 0xdead_0000, 7], &mut fw), Reply::Status(0));
    assert_eq!(fw.started, [(1, 1)]);
    assert!(fw.calls.is_empty());
    assert_eq!(r.arrive(1), Some(Entry { pc: 0xdead_0000, context: 7 }));
    let _ = r.smc(1, 0, [SUSPEND, 1 << 16, 0xbeef_0000, 9], &mut fw);
    let _ = r.smc(1, 0, [0xC400_000E, 0xbeef_0000, 9, 0], &mut fw);
    let _ = r.smc(1, 0, [0xC400_000C, 0xbeef_0000, 9, 0], &mut fw);
    assert_eq!(
        fw.suspended,
        [(SuspendKind::Cpu, 1 << 16, 1), (SuspendKind::System, 0, 1), (SuspendKind::Default, 0, 1)]
    );
    assert!(fw.calls.is_empty());
    assert_eq!(r.arrive(1), Some(Entry { pc: 0xbeef_0000, context: 9 }));
}

#[test]
fn narrow_cpu_on_cuts_its_arguments() {
    let s = slots();
    let r = relay(&s);
    let mut fw = Fake::default();
    let junk = 0xffff_ffff_0000_0000;
    assert_eq!(r.smc(0, 0, [0x8400_0003, junk | 1, junk | 0x1000, junk | 5], &mut fw), Reply::Status(0));
    assert_eq!(r.arrive(1), Some(Entry { pc: 0x1000, context: 5 }));
}

#[test]
fn a_cpu_is_started_once() {
    let s = slots();
    let r = relay(&s);
    let mut fw = Fake::default();
    assert_eq!(r.smc(0, 0, [ON, 0x100, 0x1000, 1], &mut fw), Reply::Status(0));
    assert_eq!(r.smc(0, 0, [ON, 0x100, 0x2000, 2], &mut fw), Reply::Status(code::ON_PENDING));
    assert_eq!(r.arrive(2), Some(Entry { pc: 0x1000, context: 1 }), "the second call changed nothing");
    assert_eq!(r.smc(0, 0, [ON, 0x100, 0x2000, 2], &mut fw), Reply::Status(code::ALREADY_ON));
    assert_eq!(r.smc(0, 0, [ON, 0, 0x2000, 2], &mut fw), Reply::Status(code::ALREADY_ON), "the boot CPU");
    assert_eq!(fw.started, [(0x100, 2)], "the CPU that was named, and once");
}

/// Firmware on a machine whose CPUs are faster than the call that starts them.
struct Eager<'s>(&'s [Slot<AtomicU64>], Option<Entry>);

impl Firmware for Eager<'_> {
    fn call(&mut self, _: [u64; 4]) -> [u64; 4] {
        [0; 4]
    }
    fn cpu_on(&mut self, _: Affinity, cpu: usize) -> i64 {
        self.1 = Relay::new(self.0, Platform::default(), false).arrive(cpu);
        code::SUCCESS
    }
    fn suspend(&mut self, _: SuspendKind, _: u64, _: usize) -> i64 {
        code::DENIED
    }
    fn quiesce(&mut self) -> bool {
        true
    }
    fn reopen(&mut self) {}
}

#[test]
fn a_cpu_that_arrives_at_once_finds_where_it_goes() {
    let s = slots();
    let mut fw = Eager(&s, None);
    assert_eq!(relay(&s).smc(0, 0, [ON, 1, 0x1000, 7], &mut fw), Reply::Status(code::SUCCESS));
    assert_eq!(fw.1, Some(Entry { pc: 0x1000, context: 7 }));
}

#[test]
fn return_codes_are_those_of_the_standard() {
    use code::*;
    let all = [SUCCESS, NOT_SUPPORTED, INVALID_PARAMETERS, DENIED, ALREADY_ON, ON_PENDING, INVALID_ADDRESS];
    assert_eq!(all, [0, -1, -2, -3, -4, -5, -9]);
}

#[test]
fn power_off_and_reset_are_not_asked_for_first() {
    // Both are mandatory, also where firmware is too old to be asked which functions it has.
    for id in [0x8400_0008, 0x8400_0009] {
        let s = slots();
        let mut fw = Fake { lacks: Some(id), ..Fake::default() };
        let _ = relay(&s).smc(0, 0, [id, 0, 0, 0], &mut fw);
        assert_eq!((fw.quiesced, fw.calls.len()), (1, 1));
        assert_eq!(fw.calls[0][0], id);
    }
}

#[test]
fn a_refused_start_leaves_the_cpu_off() {
    let s = slots();
    let r = relay(&s);
    let mut fw = Fake { on_results: [-6].into(), ..Fake::default() };
    assert_eq!(r.smc(0, 0, [ON, 1, 0x1000, 1], &mut fw), Reply::Status(-6));
    assert_eq!(r.arrive(1), None);
    assert_eq!(r.smc(0, 0, [ON, 1, 0x1000, 1], &mut fw), Reply::Status(0));
}

#[test]
fn unknown_cpus_and_odd_entries_are_refused() {
    let s = slots();
    let r = relay(&s);
    let mut fw = Fake::default();
    for target in [2, 1 << 31, 1 << 63, u64::MAX, 0x1_0000_0001] {
        assert_eq!(r.smc(0, 0, [ON, target, 0x1000, 0], &mut fw), Reply::Status(code::INVALID_PARAMETERS));
    }
    for pc in [1, 2, 0x1003] {
        assert_eq!(r.smc(0, 0, [ON, 1, pc, 0], &mut fw), Reply::Status(code::INVALID_ADDRESS));
        assert_eq!(r.smc(0, 0, [SUSPEND, 1 << 16, pc, 0], &mut fw), Reply::Status(code::INVALID_ADDRESS));
    }
    assert!(fw.started.is_empty() && fw.suspended.is_empty());
}

#[test]
fn a_cpu_that_nobody_asked_for_gets_no_entry() {
    let s = slots();
    let r = relay(&s);
    assert_eq!(r.arrive(1), None);
    assert_eq!(r.arrive(99), None);
}

#[test]
fn start_of_a_cpu_on_its_way_off_waits_for_it() {
    let s = slots();
    let r = relay(&s);
    let mut fw = Fake::default();
    let _ = r.smc(0, 0, [ON, 1, 0x1000, 1], &mut fw);
    let _ = r.arrive(1);
    // The fake's CPU_OFF returns, as if refused; put the slot where the real one would leave it.
    s[1].state.store(state::LEAVING, core::sync::atomic::Ordering::SeqCst);
    fw.on_results = [code::ALREADY_ON, code::ALREADY_ON, 0].into();
    assert_eq!(r.smc(0, 0, [ON, 1, 0x4000, 4], &mut fw), Reply::Status(0));
    assert_eq!(fw.started.len(), 4);
    assert_eq!(r.arrive(1), Some(Entry { pc: 0x4000, context: 4 }));
}

#[test]
fn a_target_that_never_leaves_does_not_hang_the_caller() {
    let s = slots();
    let r = relay(&s);
    s[1].state.store(state::LEAVING, core::sync::atomic::Ordering::SeqCst);
    let mut fw = Fake { on_results: core::iter::repeat_n(code::ALREADY_ON, 20_000).collect(), ..Fake::default() };
    assert_eq!(r.smc(0, 0, [ON, 1, 0x4000, 4], &mut fw), Reply::Status(code::ALREADY_ON));
    assert!(fw.started.len() <= 10_001);
}

#[test]
fn a_refused_cpu_off_leaves_the_cpu_on() {
    let s = slots();
    let r = relay(&s);
    let mut fw = Fake { answer: [code::DENIED.cast_unsigned(), 0, 0, 0], ..Fake::default() };
    assert_eq!(r.smc(0, 0, [OFF, 0, 0, 0], &mut fw), Reply::Status(code::DENIED));
    assert_eq!(fw.calls, [[OFF, 0, 0, 0]]);
    assert_eq!(r.smc(0, 0, [ON, 0, 0x1000, 0], &mut fw), Reply::Status(code::ALREADY_ON));
}

#[test]
fn retention_keeps_the_entry_and_extended_states_are_understood() {
    let s = slots();
    let plain = relay(&s);
    let mut fw = Fake::default();
    let _ = plain.smc(0, 0, [ON, 1, 0x1000, 1], &mut fw);
    let _ = plain.arrive(1);
    assert_eq!(plain.smc(1, 0, [SUSPEND, 1 << 30, 0x2000, 2], &mut fw), Reply::Status(0));
    assert_eq!(plain.arrive(1), Some(Entry { pc: 0x1000, context: 1 }));
    let extended = Relay::new(&s, Platform::default(), true);
    assert_eq!(extended.smc(1, 0, [SUSPEND, 1 << 30, 0x2000, 2], &mut fw), Reply::Status(0));
    assert_eq!(extended.arrive(1), Some(Entry { pc: 0x2000, context: 2 }));
}

#[test]
fn power_goes_only_after_memory_is_scrubbed() {
    let s = slots();
    let r = relay(&s);
    for id in [0x8400_0008u64, 0x8400_0009, 0xC400_0012, 0xC400_0015] {
        let mut fw = Fake { busy: true, ..Fake::default() };
        assert_eq!(r.smc(0, 0, [id, 1, 2, 3], &mut fw), Reply::Status(code::DENIED));
        assert!(!fw.calls.contains(&[id, 1, 2, 3]));
        fw.busy = false;
        let _ = r.smc(0, 0, [id, 1, 2, 3], &mut fw);
        assert_eq!((fw.quiesced, fw.reopened, fw.calls.last()), (2, 1, Some(&[id, 1, 2, 3])));
    }
}

#[test]
fn no_vm_ends_for_a_reset_that_firmware_does_not_know() {
    let s = slots();
    let r = relay(&s);
    for id in [0xC400_0012u64, 0xC400_0015] {
        let mut fw = Fake { lacks: Some(id), ..Fake::default() };
        assert_eq!(r.smc(0, 0, [id, 1, 2, 3], &mut fw), Reply::Status(code::NOT_SUPPORTED));
        assert_eq!((fw.quiesced, fw.calls.len()), (0, 0));
    }
}

#[test]
fn a_cpu_that_is_refused_to_leave_while_it_is_started_still_arrives() {
    let s = slots();
    let r = relay(&s);
    let mut fw = Fake::default();
    let _ = r.smc(0, 0, [ON, 1, 0x1000, 1], &mut fw);
    let _ = r.arrive(1);
    // Another CPU owns the slot when CPU 1 asks to leave, is refused, and asks again.
    s[1].state.store(state::PENDING, core::sync::atomic::Ordering::SeqCst);
    let mut refusing = Fake { answer: [code::DENIED.cast_unsigned(), 0, 0, 0], ..Fake::default() };
    for _ in 0..2 {
        assert_eq!(r.smc(1, 0, [OFF, 0, 0, 0], &mut refusing), Reply::Status(code::DENIED));
        assert_eq!(s[1].state.load(core::sync::atomic::Ordering::SeqCst), state::PENDING);
    }
    assert!(r.arrive(1).is_some());
    // And one that is asleep while its slot says that it is leaving.
    s[1].state.store(state::LEAVING, core::sync::atomic::Ordering::SeqCst);
    let _ = r.smc(1, 0, [SUSPEND, 1 << 16, 0x2000, 2], &mut fw);
    assert_eq!(r.arrive(1), Some(Entry { pc: 0x2000, context: 2 }));
}

#[test]
fn features_hide_what_is_denied_and_add_the_version() {
    let s = slots();
    let r = relay(&s);
    let mut fw = Fake { answer: [0; 4], ..Fake::default() };
    let mut ask = |id: u64| r.smc(0, 0, [0x8400_000A, id, 0, 0], &mut fw);
    assert_eq!(ask(0x8000_0000), Reply::Status(0));
    assert_eq!(ask(ON), Reply::Status(0));
    assert_eq!(ask(0x8400_0013), Reply::Status(-1), "MEM_PROTECT");
    assert_eq!(ask(0xC400_0020), Reply::Status(-1), "SDEI");
    assert_eq!(ask(0xC600_0080), Reply::Status(-1));
    assert_eq!(fw.calls.len(), 1);
}

#[test]
fn version_is_answered_and_forwarded_calls_keep_their_results() {
    let s = slots();
    let r = relay(&s);
    let mut fw = Fake { answer: [1, 2, 3, 4], ..Fake::default() };
    assert_eq!(r.smc(0, 0, [0x8000_0000, 0, 0, 0], &mut fw), Reply::Status(0x1_0002));
    assert_eq!(r.smc(0, 0, [0x8400_0050, 0, 0, 0], &mut fw), Reply::Results([1, 2, 3, 4]));
    assert_eq!(r.smc(0, 0, [0xC600_0080, 0, 0, 0], &mut fw), Reply::Status(-1), "told before the relay is asked");
    assert_eq!(r.smc(0, 0, [0xC400_0021, 0, 0, 0], &mut fw), Reply::Status(-1));
}

#[test]
fn no_smc_panics() {
    let s = slots();
    let r = relay(&s);
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    let mut fw = Fake::default();
    for _ in 0..if cfg!(miri) { 300 } else { 100_000 } {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let id = 0x8000_0000 | x & 0x7f00_003f;
        let _ = r.smc((x >> 32) as usize % 6, 0, [id, x >> 3, x, !x], &mut fw);
    }
}
