// SPDX-License-Identifier: MIT OR Apache-2.0
//! The launch measurement through the calls, against a verifier that was written from its document.

use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::vec::Vec;

use freehold_attest::{Start, Transcript, Wrong, verify};
use freehold_mem::PAGE_SIZE;
use freehold_uapi::{guest, hvc::*};
use freehold_virt::vcpu::Trap;

use super::rig::{GUEST_FRAMES, GUEST_RAM, RAM, Rig};
use crate::calls::Stop;

const MEMORY: u64 = RAM + 512;
const NONCE: [u64; 4] = [0x1111, 0x2222, 0x3333, u64::MAX];

fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// What a frame holds.
fn page(rig: &Rig, frame: u64) -> Vec<u8> {
    bytes(&(0..512).map(|index| rig.memory.read(frame, index)).collect::<Vec<_>>())
}

/// Writes something of its own to each of so many frames.
fn fill(rig: &Rig, first: u64, count: u64) {
    for frame in first..first + count {
        [0, 7, 8, 300, 511].into_iter().for_each(|index| rig.memory.write(frame, index, frame << 32 | (index + 1)));
    }
}

/// The report that the guest gets.
fn report(rig: &Rig, vm: u64) -> Vec<u8> {
    let (sender, receiver) = mpsc::channel();
    rig.next(|r| {
        r.x[0] = guest::ATTEST.into();
        r.x[1..5].copy_from_slice(&NONCE);
        r.pc += 4;
        Stop::Trap(Trap { esr: 0x16 << 26, far: 0, hpfar: 0 })
    });
    rig.next(move |r| {
        sender.send(r.x[..10].to_vec()).unwrap();
        Stop::Interrupt
    });
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
    let x = receiver.recv().unwrap();
    assert_eq!(x[0], 0);
    bytes(&x[1..])
}

fn judge(rig: &Rig, vm: u64, transcript: Transcript, start: &Start) -> Result<(), Wrong> {
    verify(&report(rig, vm), bytes(&NONCE).as_slice().try_into().unwrap(), &transcript.start(start))
}

/// What [`Rig::vm`] makes.
fn start() -> Start {
    let ranges = [(GUEST_RAM * PAGE_SIZE, GUEST_FRAMES * PAGE_SIZE)].into();
    Start { ipa_bits: 40, vcpus: 1, registers: [0, 0x3c5, 0, 0, 0, 0], gic: None, ranges }
}

#[test]
fn a_guest_can_prove_what_it_started_from() {
    let rig = Rig::new();
    let vm = rig.yes(VM_CREATE, &[VM_PROTECTED, 36, RAM, 16]);
    fill(&rig, MEMORY, 20);
    rig.yes(VM_RANGE, &[vm, GUEST_RAM, 64]);
    rig.yes(MEM_DONATE, &[vm, MEMORY + 4, GUEST_RAM + 9, 3, 0]);
    // What comes between pages is told at the end, whenever it was said.
    rig.yes(VCPU_CREATE, &[vm, 0]);
    for (register, value) in [(REG_PC, 0x8000_0000), (REG_X0, 10), (REG_X1, 11), (REG_X2, 12), (REG_X3, 13)] {
        rig.yes(VCPU_SET_REG, &[vm, 0, register, value]);
    }
    rig.yes(VM_GIC, &[vm, 0x100, 0x200]);
    rig.yes(VM_RANGE, &[vm, 0, 16]);
    for (index, (pfn, gfn, count)) in (0..).zip([(MEMORY + 1, 4, 2), (MEMORY + 10, GUEST_RAM, 1)]) {
        rig.memory.write(MEMORY, 2 * index, pfn);
        rig.memory.write(MEMORY, 2 * index + 1, gfn | (count - 1) << 52);
    }
    assert_eq!(rig.yes(MEM_DONATE_LIST, &[vm, MEMORY, 2, DONATE_REVOCABLE]), 3);
    rig.yes(VM_GIC, &[vm, 0x300, 0x400]);
    let mut transcript = Transcript::new();
    for (frame, gfn) in [(4, GUEST_RAM + 9), (5, GUEST_RAM + 10), (6, GUEST_RAM + 11), (1, 4), (2, 5), (10, GUEST_RAM)]
    {
        transcript.page(gfn * PAGE_SIZE, &page(&rig, MEMORY + frame));
    }
    let start = Start {
        ipa_bits: 36,
        vcpus: 1,
        registers: [0x8000_0000, 0x3c5, 10, 11, 12, 13],
        gic: Some([0x30_0000, 0x40_0000]),
        ranges: [(GUEST_RAM << 12, 64 << 12), (0, 16 << 12)].into(),
    };
    assert_eq!(judge(&rig, vm, transcript.clone(), &start), Ok(()));
    let other = Start { registers: [0x8000_0004, 0x3c5, 10, 11, 12, 13], ..start };
    assert_eq!(judge(&rig, vm, transcript, &other), Err(Wrong::Digest), "control");
}

#[test]
fn each_page_counts_once_however_often_the_host_must_ask() {
    let (whole, cut) = (Rig::new(), Rig::new());
    let mut transcript = Transcript::new();
    for rig in [&whole, &cut] {
        fill(rig, MEMORY, 40);
    }
    (0..40).for_each(|n| transcript.page((GUEST_RAM + n) * PAGE_SIZE, &page(&whole, MEMORY + n)));
    let vm = whole.vm(RAM);
    assert_eq!(whole.yes(MEM_DONATE, &[vm, MEMORY, GUEST_RAM, 40, 0]), 40);
    assert_eq!(judge(&whole, vm, transcript.clone(), &start()), Ok(()));
    // An interrupt cuts each call short, calls are refused between them, and what was given is asked for again.
    let vm = cut.vm(RAM);
    cut.wanted.store(true, Ordering::Relaxed);
    let mut done = 0;
    while done < 40 {
        let refused = cut.no(MEM_DONATE, &[vm, MEMORY + done, GUEST_RAM + GUEST_FRAMES - 1, 2, 0]);
        assert_eq!(refused, GFN_OUT_OF_RANGE);
        let step = cut.yes(MEM_DONATE, &[vm, MEMORY + done, GUEST_RAM + done, 40 - done, 0]);
        assert_eq!(step, 4, "measured frames between two looks for interrupts");
        assert_eq!(cut.no(MEM_DONATE, &[vm, MEMORY + done, GUEST_RAM + done, 1, 0]), ALREADY_DONATED);
        done += step;
    }
    cut.wanted.store(false, Ordering::Relaxed);
    assert_eq!(judge(&cut, vm, transcript, &start()), Ok(()));
}

#[test]
fn nothing_counts_after_the_first_run_not_even_one_that_a_kick_ends() {
    let rig = Rig::new();
    let vm = rig.vm(RAM);
    fill(&rig, MEMORY, 2);
    rig.yes(MEM_DONATE, &[vm, MEMORY, GUEST_RAM, 1, 0]);
    let mut transcript = Transcript::new();
    transcript.page(GUEST_RAM * PAGE_SIZE, &page(&rig, MEMORY));
    rig.yes(VCPU_KICK, &[vm, 0]);
    assert_eq!(rig.run(vm, 0)[0], EXIT_KICKED);
    rig.yes(MEM_DONATE, &[vm, MEMORY + 1, GUEST_RAM + 1, 1, 0]);
    assert_eq!(page(&rig, MEMORY + 1), [0; 4096], "I9");
    assert_eq!(judge(&rig, vm, transcript, &start()), Ok(()));
}

#[test]
fn a_run_that_is_refused_does_not_close_it() {
    let rig = Rig::new();
    let vm = rig.vm(RAM);
    rig.busy.store(true, Ordering::Relaxed);
    assert_eq!(rig.no(VCPU_RUN, &[vm, 0, 0]), DENIED);
    rig.busy.store(false, Ordering::Relaxed);
    fill(&rig, MEMORY, 1);
    rig.yes(MEM_DONATE, &[vm, MEMORY, GUEST_RAM, 1, 0]);
    let mut transcript = Transcript::new();
    transcript.page(GUEST_RAM * PAGE_SIZE, &page(&rig, MEMORY));
    assert_eq!(judge(&rig, vm, transcript, &start()), Ok(()));
}

#[test]
fn other_vcpus_count_by_their_number_and_running_one_that_is_off_closes_nothing() {
    let rig = Rig::new();
    let vm = rig.vm(RAM);
    rig.yes(VCPU_CREATE, &[vm, 2]);
    rig.yes(VCPU_SET_REG, &[vm, 2, REG_X1, 77]);
    assert_eq!(rig.yes(VCPU_RUN, &[vm, 2, 0]), EXIT_OFF);
    fill(&rig, MEMORY, 1);
    rig.yes(MEM_DONATE, &[vm, MEMORY, GUEST_RAM, 1, 0]);
    let mut transcript = Transcript::new();
    transcript.page(GUEST_RAM * PAGE_SIZE, &page(&rig, MEMORY));
    assert_eq!(judge(&rig, vm, transcript, &Start { vcpus: 0b101, ..start() }), Ok(()));
}

#[test]
fn each_guest_hears_of_its_own_vm_and_a_new_one_of_no_former() {
    let rig = Rig::new();
    let (first, second) = (rig.vm(RAM), rig.vm(RAM + 16));
    fill(&rig, MEMORY, 1);
    rig.yes(MEM_DONATE, &[first, MEMORY, GUEST_RAM, 1, 0]);
    let mut transcript = Transcript::new();
    transcript.page(GUEST_RAM * PAGE_SIZE, &page(&rig, MEMORY));
    assert_eq!(judge(&rig, first, transcript.clone(), &start()), Ok(()));
    assert_eq!(judge(&rig, second, transcript.clone(), &start()), Err(Wrong::Digest));
    assert_eq!(judge(&rig, second, Transcript::new(), &start()), Ok(()));
    rig.end(first, &[MEMORY], RAM, 16);
    let heir = rig.vm(RAM);
    assert_eq!(judge(&rig, heir, Transcript::new(), &start()), Ok(()));
}

#[test]
fn a_page_that_was_taken_away_stays_in_it_and_can_not_be_replaced() {
    let rig = Rig::new();
    let vm = rig.vm(RAM);
    fill(&rig, MEMORY, 2);
    rig.yes(MEM_DONATE, &[vm, MEMORY, GUEST_RAM, 1, DONATE_REVOCABLE]);
    let mut transcript = Transcript::new();
    transcript.page(GUEST_RAM * PAGE_SIZE, &page(&rig, MEMORY));
    assert!(crate::calls::host_may_retry(&rig, MEMORY * PAGE_SIZE, true));
    assert_eq!(rig.no(MEM_DONATE, &[vm, MEMORY + 1, GUEST_RAM, 1, 0]), GFN_POISONED);
    assert_eq!(judge(&rig, vm, transcript, &start()), Ok(()));
}

#[test]
fn the_host_has_no_call_for_it() {
    let rig = Rig::new();
    let vm = rig.vm(RAM);
    assert_eq!(rig.no(guest::ATTEST, &[vm, 0, 0, 0]), NOT_SUPPORTED);
    let _ = rig.run(vm, 0);
    assert_eq!(rig.no(guest::ATTEST, &[vm, 0, 0, 0]), NOT_SUPPORTED);
}
