// SPDX-License-Identifier: MIT OR Apache-2.0
//! What guests and the host's own accesses do.

use freehold_uapi::guest;

use super::{Lattice, Play, call};
use crate::op::{Act, Call, Env, Op, Stray, Who};
use crate::state::State;

pub(super) fn each(l: &Lattice, s: &impl State, f: &mut impl FnMut(&Play<'_>)) {
    touches(l, s, f);
    for vm in l.whos(s.machine().slots) {
        let run = Call::VcpuRun { vm, vcpu: 0, mmio: 7 };
        if let Some(enter) = call(s, run) {
            entries(l, s, enter, vm, f);
        }
    }
    for cpu in (0..s.machine().cpus).filter(|c| s.cpu(*c).is_some()) {
        acts(l, &mut |act, env| f(&Play::one(Op::Guest { cpu, act }, env)));
    }
}

/// A vCPU is entered: alone, or for one act, after which an interrupt makes it leave if it has not.
fn entries(l: &Lattice, s: &impl State, enter: Op, vm: Who, f: &mut impl FnMut(&Play<'_>)) {
    let Op::Host { cpu, .. } = enter else { return };
    f(&Play::one(enter, Env { irq: true, ..Env::CALM }));
    f(&Play::one(enter, Env { busy: true, ..Env::CALM }));
    if l.part.split {
        return f(&Play::one(enter, Env::CALM));
    }
    let leave = Op::Guest { cpu, act: Act::Interrupt };
    // Where it can not run, one refusal is as good as many.
    let runs = matches!(vm, Who::Slot(n) if s.vm(n).alive() && !s.vcpu(n, 0).kicked);
    if !runs {
        return f(&Play::one(enter, Env::CALM));
    }
    acts(l, &mut |act, env| {
        let play = Play::one(enter, Env::CALM).then(Op::Guest { cpu, act }, env).then(leave, Env::CALM);
        let request = matches!(act, Act::Call { id, .. } if requests(id)) && !l.part.pending;
        if request {
            let accept = Call::GuestAccept { vm, vcpu: 0, count: 1 };
            f(&play.then(Op::Host { cpu, call: accept }, Env::CALM).then(enter, Env { irq: true, ..Env::CALM }));
        } else {
            f(&play);
        }
    });
}

fn requests(id: u32) -> bool {
    matches!(id, guest::MEM_SHARE | guest::MEM_UNSHARE | guest::MEM_RELINQUISH)
}

fn acts(l: &Lattice, f: &mut impl FnMut(Act, Env<'_>)) {
    let access = |gfn: u64, store| Act::Access { ipa: gfn << 12, size: 4, store, described: true };
    for gfn in l.gfns.clone() {
        f(access(gfn, None), Env::CALM);
        f(access(gfn, Some(u64::MAX)), Env::CALM);
        f(Act::Walk { ipa: gfn << 12 }, Env::CALM);
    }
    f(Act::Interrupt, Env::CALM);
    if l.part.vcpus {
        f(access(l.outside, None), Env::CALM);
        f(access(l.outside, Some(u64::MAX)), Env::CALM);
        f(Act::Access { ipa: l.outside << 12, size: 8, store: None, described: false }, Env::CALM);
        f(Act::Walk { ipa: l.outside << 12 }, Env::CALM);
        [Act::Wfi, Act::Kicked, Act::BadState, Act::Abort].into_iter().for_each(|act| f(act, Env::CALM));
        [guest::PSCI_SYSTEM_OFF, guest::PSCI_SYSTEM_RESET]
            .into_iter()
            .for_each(|id| f(Act::Call { id, x: [0; 3] }, Env::CALM));
    }
    if l.part.requests {
        asked(l, f);
    }
    if l.part.wrong {
        questions(l, f);
    }
    if l.part.guard {
        devices(l, f);
    }
}

/// What a guest says of its devices, right and wrong, and how it reaches for them beside plain loads and stores.
fn devices(l: &Lattice, f: &mut impl FnMut(Act, Env<'_>)) {
    for id in [guest::MMIO_GUARD_INFO, guest::MMIO_GUARD_ENROLL] {
        for x in [[0; 3], [1, 0, 0], [0, 1, 0], [0, 0, 1]] {
            f(Act::Call { id, x }, Env::CALM);
        }
    }
    for gfn in l.gfns.clone() {
        let ipa = gfn << 12;
        for id in [guest::MMIO_GUARD_MAP, guest::MMIO_GUARD_UNMAP] {
            for x in [[ipa, 0, 0], [ipa | 8, 0, 0], [ipa, 1, 0], [ipa, 0, 1]] {
                f(Act::Call { id, x }, Env::CALM);
            }
        }
        f(Act::Fetch { ipa }, Env::CALM);
        for store in [None, Some(u64::MAX)] {
            f(Act::Access { ipa, size: 8, store, described: false }, Env::CALM);
            // Half of it is the next page's.
            f(Act::Access { ipa: ipa | 0xffc, size: 8, store, described: true }, Env::CALM);
        }
    }
    // Of what no guest has opened.
    f(Act::Access { ipa: l.outside << 12, size: 4, store: Some(u64::MAX), described: true }, Env::CALM);
    for id in [guest::MMIO_GUARD_MAP, guest::MMIO_GUARD_UNMAP] {
        f(Act::Call { id, x: [1 << 40, 0, 0] }, Env::CALM);
    }
}

fn asked(l: &Lattice, f: &mut impl FnMut(Act, Env<'_>)) {
    for id in [guest::MEM_SHARE, guest::MEM_UNSHARE, guest::MEM_RELINQUISH] {
        for gfn in l.gfns.clone() {
            f(Act::Call { id, x: [gfn << 12, 0, 0] }, Env::CALM);
        }
    }
    if l.part.pairs && l.part.pending {
        for id in [guest::MEM_SHARE, guest::MEM_UNSHARE] {
            f(Act::Call { id, x: [l.gfns.start << 12, 2, 0] }, Env::CALM);
        }
    }
}

fn questions(l: &Lattice, f: &mut impl FnMut(Act, Env<'_>)) {
    let ipa = l.gfns.start << 12;
    for id in [guest::MEM_SHARE, guest::MEM_UNSHARE, guest::MEM_RELINQUISH] {
        for x in [[ipa + 1, 0, 0], [l.outside << 12, 1, 0], [ipa, 1, 1], [!0xfff, 2, 0]] {
            f(Act::Call { id, x }, Env::CALM);
        }
    }
    for x in [[0; 3], [1, 0, 0], [0, 1, 0], [0, 0, 1]] {
        f(Act::Call { id: guest::HYP_MEMINFO, x }, Env::CALM);
    }
    let plain = [guest::SMCCC_VERSION, guest::VENDOR_UID, guest::VENDOR_FEATURES, guest::PSCI_VERSION, 0x8400_0013];
    plain.into_iter().for_each(|id| f(Act::Call { id, x: [0; 3] }, Env::CALM));
    for id in [guest::SMCCC_ARCH_FEATURES, guest::PSCI_FEATURES] {
        for function in [guest::SMCCC_VERSION, guest::PSCI_SYSTEM_OFF, 0x8400_0013] {
            f(Act::Call { id, x: [function.into(), 0, 0] }, Env::CALM);
        }
    }
}

fn touches(l: &Lattice, s: &impl State, f: &mut impl FnMut(&Play<'_>)) {
    if !l.part.raw && l.part.attempts > 0 {
        // An honest host touches what it has mapped or holds.
        for pfn in l.data.clone().filter(|p| s.page(*p).host_reaches()) {
            f(&Play::one(Op::Touch { pfn, write: true, from: Stray::User }, Env::CALM));
        }
        return;
    }
    for (pfn, write) in l.ram().chain(l.odd).flat_map(|p| [(p, false), (p, true)]) {
        for from in [Stray::User, Stray::KernelOnUser, Stray::Kernel] {
            f(&Play::one(Op::Touch { pfn, write, from }, Env::CALM));
        }
    }
}
