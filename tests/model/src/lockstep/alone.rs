// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine's part of an operation, without a look at what comes of it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use freehold_oracle::{Act, Call, Stray, Who, World};
use freehold_uapi::hvc::{self, Record};

use super::{ASKS, Lockstep, said, vm_of};
use crate::op::{self, Op};
use crate::rig::{Answer, Rig};

impl<'r, const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>
    Lockstep<'r, World<P, V, U, G, C>>
{
    /// The machine alone does it.
    pub(super) fn real(&self, op: &Op) -> Answer {
        match *op {
            Op::Host(call) => self.rig.call(0, call.id(), op::registers(&call, |who| self.handle(who))),
            Op::Hurried(call) => {
                self.rig.set_wanted(true);
                let answer = self.real(&Op::Host(call));
                self.rig.set_wanted(false);
                answer
            }
            Op::List { who, frame, list: _, records, flags } => {
                self.write_list(op);
                let answer = self.rig.call(0, hvc::MEM_DONATE_LIST, [self.handle(who), frame, records, flags, 0]);
                self.overwrite_list(op);
                answer
            }
            Op::Run { who, vcpu, mmio, act } => {
                self.rig.forget_script(0);
                self.rig.script(0, &[op::act(act)]);
                self.rig.call(0, hvc::VCPU_RUN, [self.handle(who), vcpu, mmio, 0, 0])
            }
            Op::Ask { who, act } => {
                let answer = self.real(&Op::Run { who, vcpu: 0, mmio: 0, act });
                if answer.is_success() && ASKS.contains(&answer.x[0]) {
                    self.real(&Op::Host(Call::GuestAccept { vm: who, vcpu: 0, count: answer.x[2] }));
                    self.real(&Op::Run { who, vcpu: 0, mmio: 0, act: Act::Interrupt });
                }
                answer
            }
            Op::Touch { frame, write, from } => self.touch(frame, write, from),
            Op::During { who, call } => self.during(who, call).0,
            Op::Streaming(who) => {
                self.rig.set_busy(true);
                let answer = self.real(&Op::Run { who, vcpu: 0, mmio: 0, act: Act::Interrupt });
                self.rig.set_busy(false);
                answer
            }
            Op::Unserved(call) => {
                self.rig.set_serves_vms(false);
                let answer = self.real(&Op::Host(call));
                self.rig.set_serves_vms(true);
                answer
            }
        }
    }

    /// A list by its number.
    pub(crate) fn list(&self, number: usize) -> &'r [Record] {
        self.lists[number]
    }

    /// Writes the list of an operation that has one.
    pub(crate) fn write_list(&self, op: &Op) {
        if let Op::List { frame, list, .. } = *op {
            let words: Vec<u64> = self.lists[list].iter().flat_map(|r| [r.pfn, r.gfn_count]).collect();
            self.rig.host_write_words(frame, &words);
        }
    }

    /// Makes its frame one like any other of the host's again.
    pub(crate) fn overwrite_list(&self, op: &Op) {
        if let Op::List { frame, .. } = *op {
            self.rig.host_write(frame);
        }
    }

    /// One CPU's part of two operations at a time: calls, runs, and stray accesses of the kernel.
    /// A handle is looked up before either begins.
    pub(crate) fn real_on(&self, cpu: usize, op: &Op, handle: u64) -> Result<Answer, String> {
        let work = || match *op {
            Op::Host(call) => self.rig.call_only(cpu, call.id(), op::registers(&call, |_| handle)),
            Op::Run { who: _, vcpu, mmio, act } => {
                self.rig.forget_script(cpu);
                self.rig.script(cpu, &[op::act(act)]);
                self.rig.call_only(cpu, hvc::VCPU_RUN, [handle, vcpu, mmio, 0, 0])
            }
            Op::List { who: _, frame, list: _, records, flags } => {
                self.rig.call_only(cpu, hvc::MEM_DONATE_LIST, [handle, frame, records, flags, 0])
            }
            Op::Touch { frame, .. } => Answer { status: if self.rig.may_retry(cpu, frame) { 1 } else { 2 }, x: [0; 4] },
            _ => panic!("not for two CPUs"),
        };
        catch_unwind(AssertUnwindSafe(work)).map_err(said)
    }

    /// The handle that an operation names its VM by; none is zero.
    pub(crate) fn handle_of(&self, op: &Op) -> u64 {
        let slot = match op {
            Op::Host(call) => vm_of(call),
            Op::Run { who: Who::Slot(slot), .. } | Op::List { who: Who::Slot(slot), .. } => Some(*slot),
            _ => None,
        };
        slot.map_or(0, |slot| self.handle(Who::Slot(slot)))
    }

    /// The machine.
    pub(crate) const fn rig(&self) -> &'r Rig {
        self.rig
    }

    /// 0: it went through, 1: it went through after the frame was taken, 2: a fault was injected.
    fn touch(&self, frame: u64, write: bool, from: Stray) -> Answer {
        let go = || if write { self.rig.host_write(frame) } else { self.rig.host_read(frame).is_some() };
        let kernel = from == Stray::Kernel;
        let status = if go() {
            0
        } else if self.rig.host_abort(frame, kernel) {
            assert!(go(), "the access should be made again, and faults again");
            1
        } else {
            2
        };
        Answer { status, x: [0; 4] }
    }

    /// The handle by which the host names a VM.
    pub(crate) fn handle(&self, who: Who) -> u64 {
        match who {
            Who::Slot(slot) => {
                self.rig.handles().find(|(at, _)| *at == usize::from(slot)).map_or(0, |(_, handle)| handle)
            }
            // The rig was warmed up: the first VM has ended.
            Who::Ended => 1 << 16,
            Who::Never => 1 << 16 | 64,
        }
    }
}
