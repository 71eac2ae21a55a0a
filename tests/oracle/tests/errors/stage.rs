// SPDX-License-Identifier: MIT OR Apache-2.0
//! A world in which each documented error is one wrong argument, or one forged record, away.

use freehold_oracle::{
    Call, Content, Env, Kind, Life, Mark, Op, Owner, Page, Pending, Power, State as _, Vcpu, VcpuLife, Who,
};
use freehold_oracle::{World, decide};
use freehold_uapi::hvc::{self, Record};

/// Eleven frames, five slots of two vCPUs and four guest frames each.
pub(crate) type Stage = World<11, 5, 2, 4, 2>;

pub(crate) const EL2: u64 = 0x4_0000;
pub(crate) const NO_MAP: u64 = EL2 + 1;
pub(crate) const NOT_MEMORY: u64 = EL2 + 2;
/// The host's, and with the next one a run of two.
pub(crate) const HOST: u64 = EL2 + 3;
/// The host's, lent to the ordinary VM.
pub(crate) const BORROWED: u64 = EL2 + 5;
/// Of [`OPEN`]: its memory, and its pool.
pub(crate) const ITS: u64 = EL2 + 6;
/// Of [`RAN`]: private, and shared with the host.
pub(crate) const PRIVATE: u64 = EL2 + 7;
pub(crate) const LENT: u64 = EL2 + 8;
/// Of [`DYING`]: its memory, and its pool.
pub(crate) const LEFT: u64 = EL2 + 9;
pub(crate) const POOL: u64 = EL2 + 10;
/// Beyond every number of a frame.
pub(crate) const HUGE: u64 = u64::MAX;

pub(crate) const GFN: u64 = 0x100;
/// Of [`OPEN`]: a guest frame whose page was taken by force, and one without a page.
pub(crate) const POISONED: u64 = GFN + 1;
pub(crate) const VACANT: u64 = GFN + 2;
/// A guest frame that is no RAM.
pub(crate) const OUTSIDE: u64 = GFN + 100;

/// A protected VM that never ran, one that did, one that is being taken apart, an ordinary one.
pub(crate) const OPEN: Who = Who::Slot(0);
pub(crate) const RAN: Who = Who::Slot(1);
pub(crate) const DYING: Who = Who::Slot(2);
pub(crate) const ORDINARY: Who = Who::Slot(3);

/// What is asked, and what nobody can predict about it.
pub(crate) struct Asked {
    pub(crate) call: Call,
    pub(crate) env: Env<'static>,
}

impl From<Call> for Asked {
    fn from(call: Call) -> Self {
        Self { call, env: Env { slot: 4, ..Env::CALM } }
    }
}

/// The call needs more pool pages than anybody has.
pub(crate) fn short(call: Call) -> Asked {
    Asked { call, env: Env { need: 99, slot: 4, ..Env::CALM } }
}

/// A list of these records, donated.
pub(crate) fn listed(records: &[Record]) -> Asked {
    list(OPEN, HOST, records.len() as u64, 0, records)
}

/// The same, and each number of the call.
pub(crate) fn list(vm: Who, list: u64, records: u64, flags: u64, content: &[Record]) -> Asked {
    let env = Env { list: Box::leak(content.into()), ..Env::CALM };
    Asked { call: Call::MemDonateList { vm, list, records, flags }, env }
}

pub(crate) fn stage() -> Stage {
    let mut w = Stage::new(EL2, GFN);
    w.machine.ordinary = true;
    let page = |owner| Page { owner, content: Content::Public, ..Page::default() };
    let guest = |slot, gfn: u64| page(Owner::Guest { slot, gfn: u32::try_from(gfn).unwrap() });
    w.set_page(EL2, page(Owner::El2));
    w.set_page(NO_MAP, page(Owner::NoMap));
    w.set_page(NOT_MEMORY, page(Owner::NotMemory));
    w.set_page(BORROWED, Page { borrows: 1, ..page(Owner::Host) });
    w.set_page(ITS, guest(0, GFN));
    w.set_page(PRIVATE, guest(1, GFN));
    w.set_page(LENT, Page { lent: true, ..guest(1, GFN + 1) });
    w.set_page(LEFT, guest(2, GFN));
    w.set_page(POOL, page(Owner::Pool { slot: 2 }));
    w.set_mark(0, POISONED, Mark::Poisoned);
    w.set_mark(3, GFN, Mark::Borrow { pfn: BORROWED, write: true, exec: false });
    for (slot, life, guest) in [(0, Life::Open, 1), (1, Life::Ran, 2), (2, Life::Dying, 1), (3, Life::Open, 0)] {
        let vm = w.vm(slot);
        let protected = slot != 3;
        w.set_vm(slot, freehold_oracle::Vm { life, protected, ipa_bits: 32, pool: 1, free: 4, guest, ..vm });
        w.add_range(slot, GFN, 4);
        let life = if life == Life::Ran { VcpuLife::Ran } else { VcpuLife::Ready };
        w.set_vcpu(slot, 0, Vcpu { life, power: Power::On, ..Vcpu::default() });
    }
    w.vms[3].borrowed = 1;
    w.vms[4].used = true;
    w
}

/// The guest of [`RAN`] asks for something about two guest frames.
pub(crate) fn asks(w: &mut Stage, kind: Kind, gfn: u64) {
    w.vcpus[1][0].pending = Pending::Request { kind, gfn: u32::try_from(gfn).unwrap(), count: 2 };
}

/// A vCPU of this VM is on some CPU.
pub(crate) fn runs(w: &mut Stage, slot: usize) {
    w.vcpus[slot][0].running = true;
}

/// What the specification says of it.
pub(crate) fn said(w: &Stage, asked: &Asked) -> freehold_oracle::Outcome {
    decide(w, &Op::Host { cpu: 0, call: asked.call }, &asked.env)
}

/// A handle that is wrong: none, or of a VM that has ended.
pub(crate) const NEVER: Who = Who::Never;
pub(crate) const ENDED: Who = Who::Slot(4);

/// Counts that no run may have.
pub(crate) const MANY: u64 = hvc::MAX_RUN + 1;
