// SPDX-License-Identifier: MIT OR Apache-2.0
//! Calls of a machine in an odd condition: while another CPU runs a guest, in streaming mode, where VMs can not run.

use std::panic::{AssertUnwindSafe, catch_unwind};

use freehold_oracle::{Act, Call, Env, Op as Said, Outcome, Who, World};
use freehold_uapi::hvc;

use crate::lockstep::{Cell, Entry, Lockstep, Taken, Tally, said};
use crate::op;
use crate::rig::Answer;

impl<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>
    Lockstep<'_, World<P, V, U, G, C>>
{
    /// A vCPU runs on another CPU, and a call is made meanwhile: what both were answered.
    pub(crate) fn during(&self, who: Who, call: Call) -> (Answer, Option<Answer>) {
        self.rig.forget_script(1);
        let registers = op::registers(&call, |who| self.handle(who));
        self.rig.call_during(hvc::VCPU_RUN, [self.handle(who), 0, 0, 0, 0], (call.id(), registers))
    }

    /// A call while the vCPU is on another CPU, whose guest is interrupted behind it.
    pub(crate) fn one_during(
        &self,
        world: &mut World<P, V, U, G, C>,
        who: Who,
        call: Call,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let (run, inner) = catch_unwind(AssertUnwindSafe(|| self.during(who, call))).map_err(said)?;
        let entry = Call::VcpuRun { vm: who, vcpu: 0, mmio: 0 };
        let outcome = match self.entered(world, 0, entry, run)? {
            Entry::Over(outcome) => outcome,
            Entry::Runs(_) => {
                let inner = inner.ok_or("the guest did not run")?;
                tally.note(self.called(world, call, &[], inner, false)?);
                self.acted(world, 0, (None, false), Act::Interrupt, run)?.outcome
            }
        };
        self.compare(world)?;
        tally.note(Taken { cell: Cell { what: "VCPU_RUN", outcome }, inner: None, done: run.is_success() });
        Ok(())
    }

    pub(crate) fn streaming(&self, world: &World<P, V, U, G, C>, who: Who, answer: Answer) -> Result<Taken, String> {
        let said = Said::Host { cpu: 0, call: Call::VcpuRun { vm: who, vcpu: 0, mmio: 0 } };
        let outcome = (self.decide)(world, &said, &Env { busy: true, ..Env::CALM });
        self.refused_as(&outcome, "VCPU_RUN", answer)
    }

    pub(crate) fn unserved(
        &self,
        mut world: World<P, V, U, G, C>,
        call: Call,
        answer: Answer,
    ) -> Result<Taken, String> {
        world.machine.slots = 0;
        let outcome = (self.decide)(&world, &Said::Host { cpu: 0, call }, &self.env(&world, &call, &[]));
        self.refused_as(&outcome, op::name(call.id()), answer)
    }

    /// It must be refused, with nothing but a status.
    #[expect(clippy::unused_self, reason = "of the two that it compares")]
    fn refused_as(&self, outcome: &Outcome, what: &'static str, answer: Answer) -> Result<Taken, String> {
        if outcome.done.is_some() || !outcome.permits(answer.status, answer.x) || answer.x != [0; 4] {
            return Err(format!("el2 answers {} {:x?}, oracle permits {outcome:x?}", answer.name(), answer.x));
        }
        Ok(Taken { cell: Cell { what, outcome: answer.name() }, inner: None, done: false })
    }
}
