// SPDX-License-Identifier: MIT OR Apache-2.0
//! One step: the same call to `freehold_mem` and to the naive map, and their answers compared.

use freehold_mem::verbs::{
    el2_return_host, el2_revoke_guest, guest_relinquish, guest_share_host, guest_unshare_host, host_donate_el2,
    host_donate_guest, host_reclaim, host_share_guest, host_unshare_guest,
};
use freehold_mem::{Access, Claim, GfnRun, Kind, Life, Lot, Pfn, PfnRun, Refused};

use super::naive::{self, Owner, Run};
use super::pick::{PLACES, Step};
use super::{STEP, World};
use crate::machine::BASE;

/// Where the records of a list stand, most often.
const LIST: u64 = BASE + 40;

type Answer = Result<u64, Refused>;

fn alive(vm: Option<&naive::Vm>) -> bool {
    vm.is_some_and(|vm| vm.life == Life::Building || vm.life == Life::Running)
}

fn owning(vm: Option<&naive::Vm>) -> bool {
    alive(vm) && vm.is_some_and(|vm| vm.kind != Kind::Ordinary)
}

fn ordinary(vm: Option<&naive::Vm>) -> bool {
    vm.is_some_and(|vm| vm.kind == Kind::Ordinary)
}

fn running(vm: Option<&naive::Vm>) -> bool {
    owning(vm) && vm.is_some_and(|vm| vm.life == Life::Running)
}

fn dying(vm: Option<&naive::Vm>) -> bool {
    vm.is_some_and(|vm| vm.life == Life::Dying)
}

/// Verbs that a step can name.
const VERBS: u8 = 19;

/// Which VM a verb needs.
fn wants(verb: u8) -> fn(Option<&naive::Vm>) -> bool {
    match verb {
        0 => |vm| vm.is_none(),
        1 => |vm| vm.is_some_and(|vm| vm.life == Life::Building),
        4..=7 => owning,
        8 | 9 => |vm| alive(vm) && ordinary(vm),
        10 => ordinary,
        11..=13 => running,
        14 => |vm| vm.is_some(),
        16 | 17 => dying,
        _ => alive,
    }
}

impl World<'_> {
    /// Takes a step; says whether it was not refused.
    pub(super) fn step(&mut self, bytes: &[u8; STEP]) -> bool {
        let step = Step::decode(bytes);
        let before = (self.m.events, self.host.counters());
        let guests = self.pictures();
        let (answer, expected) = self.take(step);
        assert_eq!(answer.ok(), expected, "{step:?}: {answer:?}");
        if answer.is_err() {
            assert_eq!(
                (self.m.events, self.host.counters()),
                before,
                "I6: {step:?} was refused, and changed something"
            );
            assert_eq!(self.pictures(), guests, "I6: {step:?} was refused, and changed a VM");
        }
        self.check_caches();
        answer.is_ok()
    }

    fn take(&mut self, step: Step) -> (Answer, Option<u64>) {
        let verb = step.verb % VERBS;
        // Without a VM that fits, most steps would be refused: a VM is what they need first.
        let fits = self.naive.vms.iter().any(|vm| wants(verb)(vm.as_ref()));
        match if fits || step.wild(4) { verb } else { 0 } {
            0 => self.birth(step),
            1 => self.declare(step),
            2 => self.start(step),
            3 => self.top_up(step),
            4..=6 => self.donate(step),
            7 => self.donate_list(step),
            8 | 9 => self.lend(step),
            10 => self.unlend(step),
            11 => self.share(step),
            12 => self.unshare(step),
            13 => self.relinquish(step),
            14 => self.revoke(step),
            15 => self.die(step),
            16 => self.reclaim(step),
            17 => self.return_pool(step),
            _ => self.take_frame(step),
        }
    }

    fn birth(&mut self, step: Step) -> (Answer, Option<u64>) {
        let slot = step.slot(&self.naive, wants(0));
        let from = step.frame(&self.naive, |owner| owner == Owner::Host);
        let run = (from, if step.more >> 4 == 1 { step.count() } else { 4 + u64::from(step.more & 15) });
        let bits = if step.more >> 4 > 13 { 31 + u32::from(step.more & 15) } else { 40 };
        let kind = step.kind();
        let answer = decode(run).and_then(|claim| {
            let done = host_donate_el2::check_birth(&mut self.host, &mut self.guests[slot], claim, kind, bits)?;
            let root = from.next_multiple_of(if bits == 40 { 2 } else { 1 });
            let free = done.commit(&mut self.m);
            let vmid = self.guests[slot].vmid().raw();
            self.m.adopt(root, vmid, 1);
            if bits == 40 {
                self.m.adopt(root + 1, vmid, 1);
            }
            Ok(u64::from(free))
        });
        let expected = self.naive.birth(slot, run, kind, bits);
        if answer.is_ok() && step.more >> 4 != 2 {
            for place in PLACES {
                let said = self.guests[slot].declare_ram(Claim::new(gfns(place).expect("a run")));
                assert_eq!(said.is_ok(), self.naive.declare(slot, place).is_some());
            }
        }
        (answer, expected)
    }

    fn declare(&mut self, step: Step) -> (Answer, Option<u64>) {
        let slot = step.slot(&self.naive, wants(1));
        let run = (step.vacant(None), step.count());
        let answer = gfns(run).and_then(|run| self.guests[slot].declare_ram(Claim::new(run)).map(|()| 0));
        (answer, self.naive.declare(slot, run))
    }

    fn start(&mut self, step: Step) -> (Answer, Option<u64>) {
        let slot = step.slot(&self.naive, alive);
        let answer = self.guests[slot].start().map(|()| 0);
        let expected = self.naive.start(slot);
        self.guest_writes(slot);
        (answer, expected)
    }

    fn top_up(&mut self, step: Step) -> (Answer, Option<u64>) {
        let slot = step.slot(&self.naive, alive);
        let run = (step.frame(&self.naive, |owner| owner == Owner::Host), step.count());
        let answer = decode(run).and_then(|claim| {
            let checked = host_donate_el2::check(&mut self.host, &mut self.guests[slot], claim)?;
            Ok(u64::from(checked.commit(&mut self.m)))
        });
        (answer, self.naive.top_up(slot, run))
    }

    fn donate(&mut self, step: Step) -> (Answer, Option<u64>) {
        let slot = step.slot(&self.naive, owning);
        let from = step.frame(&self.naive, |owner| owner == Owner::Host);
        let (at, count) = (step.vacant(self.naive.vms[slot].as_ref()), step.count());
        let (revocable, stop) = (step.flag(0), step.flag(1));
        let answer = Lot::decode(from, at, count).and_then(|lot| {
            let (host, guest) = (&mut self.host, &mut self.guests[slot]);
            let checked = host_donate_guest::check(host, guest, Claim::new(lot), revocable, &self.m)?;
            Ok(checked.commit(&mut self.m, &mut || stop, &mut |_, _| {}))
        });
        let pairs = naive::frames((from, count)).zip(naive::gfns((at, count)));
        let pairs = pairs.map(|(frames, gfns)| frames.zip(gfns).collect::<Vec<_>>());
        let expected = pairs.as_ref().and_then(|pairs| self.naive.donate(slot, pairs, revocable, stop));
        self.donated(slot, pairs, expected);
        (answer, expected)
    }

    fn donate_list(&mut self, step: Step) -> (Answer, Option<u64>) {
        let slot = step.slot(&self.naive, owning);
        let first = (step.frame(&self.naive, |owner| owner == Owner::Host), step.vacant(self.naive.vms[slot].as_ref()));
        let page = if step.flag(7) { first.0 } else { LIST };
        let n = step.count().clamp(1, 4096);
        // A good second record stands behind the first; a bad one meets it, or is far away.
        let gap = if step.flag(6) { n.saturating_sub(1) } else { n };
        let second =
            (first.0.wrapping_add(gap), first.1.wrapping_add(n) & ((1 << 52) - 1), 1 + u64::from(step.more & 3));
        let records = [(first.0, first.1 & ((1 << 52) - 1), n), second, (BASE + 44, PLACES[0].0, 1)];
        let count = [0, 1, 1, 2, 2, 2, 3, 3][usize::from(step.more >> 2 & 7)];
        let (revocable, stop) = (step.flag(0), step.flag(1));
        if self.naive.owner(page).is_some_and(Owner::is_the_hosts_to_reach) {
            for (index, (pfn, gfn, n)) in records.into_iter().enumerate() {
                self.m.write(page, 2 * index, pfn);
                self.m.write(page, 2 * index + 1, gfn | (n - 1) << 52);
            }
        }
        let events = self.m.events;
        let answer = Pfn::new(page).ok_or(Refused::NotMemory).and_then(|list| {
            let (host, guest) = (&mut self.host, &mut self.guests[slot]);
            let checked = host_donate_guest::check_list(host, guest, Claim::new(list), count, revocable, &self.m)?;
            Ok(checked.commit(&mut self.m, &mut || stop, &mut |_, _| {}))
        });
        assert!(answer.is_ok() || self.m.events == events, "I6: a refused list changed something");
        let pairs = self.naive.list(page, &records, count);
        let expected = pairs.as_ref().and_then(|pairs| self.naive.donate(slot, pairs, revocable, stop));
        self.donated(slot, pairs, expected);
        self.host_forgets_list(page);
        (answer, expected)
    }

    fn lend(&mut self, step: Step) -> (Answer, Option<u64>) {
        let slot = step.slot(&self.naive, |vm| alive(vm) && ordinary(vm));
        let from = step.frame(&self.naive, |owner| matches!(owner, Owner::Host | Owner::Lent(_)));
        let (at, count) = (step.vacant(self.naive.vms[slot].as_ref()), step.count());
        let (access, stop) = (Access { write: step.flag(0), execute: step.flag(2) }, step.flag(1));
        self.m.lending = true;
        let answer = Lot::decode(from, at, count).and_then(|lot| {
            let (host, guest) = (&mut self.host, &mut self.guests[slot]);
            let checked = host_share_guest::check(host, guest, Claim::new(lot), access, &self.m)?;
            Ok(checked.commit(&mut self.m, &mut || stop))
        });
        self.m.lending = false;
        (answer, self.naive.lend(slot, (from, count), at, (access.write, access.execute), stop))
    }

    fn unlend(&mut self, step: Step) -> (Answer, Option<u64>) {
        let slot = step.slot(&self.naive, ordinary);
        let run = (step.mapped(self.naive.vms[slot].as_ref(), |_| true), step.count());
        let answer = self.unlend_run(slot, run);
        (answer, self.naive.unlend(slot, run))
    }

    pub(super) fn unlend_run(&mut self, slot: usize, run: Run) -> Answer {
        let run = Claim::new(gfns(run)?);
        let checked = host_unshare_guest::check(&mut self.host, &mut self.guests[slot], run, &self.m)?;
        Ok(checked.commit(&mut self.m))
    }

    /// A run that begins where the guest has a private, or a shared, frame.
    fn own_run(&self, slot: usize, step: Step, shared: bool) -> Run {
        let fits = |pfn| matches!(self.naive.owner(pfn), Some(Owner::Shared { .. })) == shared;
        (step.mapped(self.naive.vms[slot].as_ref(), fits), if step.flag(7) { step.count() } else { 1 })
    }

    fn share(&mut self, step: Step) -> (Answer, Option<u64>) {
        let slot = step.slot(&self.naive, running);
        let run = self.own_run(slot, step, false);
        self.m.lending = true;
        let answer = gfns(run).and_then(|run| {
            let (host, guest) = (&mut self.host, &mut self.guests[slot]);
            Ok(guest_share_host::check(host, guest, Claim::new(run), &self.m)?.commit(&mut self.m))
        });
        self.m.lending = false;
        (answer, self.naive.share(slot, run))
    }

    fn unshare(&mut self, step: Step) -> (Answer, Option<u64>) {
        let slot = step.slot(&self.naive, running);
        let run = self.own_run(slot, step, true);
        let answer = gfns(run).and_then(|run| {
            let (host, guest) = (&mut self.host, &mut self.guests[slot]);
            Ok(guest_unshare_host::check(host, guest, Claim::new(run), &self.m)?.commit(&mut self.m))
        });
        (answer, self.naive.unshare(slot, run))
    }

    fn relinquish(&mut self, step: Step) -> (Answer, Option<u64>) {
        let slot = step.slot(&self.naive, running);
        let run = self.own_run(slot, step, false);
        let back = self.behind(slot, run);
        let answer = gfns(run).and_then(|run| {
            let (host, guest) = (&mut self.host, &mut self.guests[slot]);
            Ok(guest_relinquish::check(host, guest, Claim::new(run), &self.m)?.commit(&mut self.m))
        });
        let expected = self.naive.relinquish(slot, run);
        self.came_back(back.into_iter().take(expected.unwrap_or(0) as usize));
        (answer, expected)
    }

    fn revoke(&mut self, step: Step) -> (Answer, Option<u64>) {
        let slot = step.slot(&self.naive, |vm| vm.is_some());
        let pfn =
            step.frame(&self.naive, |owner| matches!(owner, Owner::Private { vm, revocable: true, .. } if vm == slot));
        let answer = Pfn::new(pfn).ok_or(Refused::NotMemory).and_then(|claim| {
            let checked = el2_revoke_guest::check(&mut self.host, &mut self.guests[slot], Claim::new(claim))?;
            checked.commit(&mut self.m);
            Ok(1)
        });
        let expected = self.naive.revoke(slot, pfn);
        self.came_back(expected.map(|_| pfn).into_iter());
        (answer, expected)
    }

    fn die(&mut self, step: Step) -> (Answer, Option<u64>) {
        let slot = step.slot(&self.naive, alive);
        if !step.more.is_multiple_of(8) {
            // VMs should live a while: most often somebody looks at an address instead.
            self.look(step.frame(&self.naive, |_| true));
            return (Ok(0), Some(0));
        }
        (self.guests[slot].begin_death(&mut self.m).map(|()| 0), self.naive.die(slot))
    }

    fn reclaim(&mut self, step: Step) -> (Answer, Option<u64>) {
        let slot = step.slot(&self.naive, dying);
        let its = |owner| matches!(owner, Owner::Private { vm, .. } | Owner::Shared { vm, .. } if vm == slot);
        let run = (step.frame(&self.naive, its), if step.flag(7) { step.count() } else { 1 });
        let answer = self.reclaim_run(slot, run, step.flag(1));
        let expected = self.naive.reclaim(slot, run, step.flag(1));
        self.came_back(expected.into_iter().flat_map(|done| run.0..run.0 + done));
        (answer, expected)
    }

    pub(super) fn reclaim_run(&mut self, slot: usize, run: Run, stop: bool) -> Answer {
        let checked = host_reclaim::check(&mut self.host, &mut self.guests[slot], decode(run)?)?;
        Ok(checked.commit(&mut self.m, &mut || stop))
    }

    fn return_pool(&mut self, step: Step) -> (Answer, Option<u64>) {
        let slot = step.slot(&self.naive, dying);
        let run = (step.frame(&self.naive, |owner| owner == Owner::Pool(slot)), step.count());
        let answer = self.return_run(slot, run, step.flag(1));
        let expected = self.naive.return_pool(slot, run, step.flag(1));
        self.came_back(expected.into_iter().flat_map(|done| run.0..run.0 + done));
        (answer, expected)
    }

    pub(super) fn return_run(&mut self, slot: usize, run: Run, stop: bool) -> Answer {
        let checked = el2_return_host::check(&mut self.host, &mut self.guests[slot], decode(run)?)?;
        Ok(checked.commit(&mut self.m, &mut || stop).done)
    }

    fn take_frame(&mut self, step: Step) -> (Answer, Option<u64>) {
        let slot = step.slot(&self.naive, alive);
        let answer = self.guests[slot].take_frame(&mut self.host, &mut self.m).map(|_| 0);
        // It becomes a vCPU, which no table walker looks at.
        self.m.dirty = false;
        (answer, self.naive.take_frame(slot))
    }
}

fn decode((first, count): Run) -> Result<Claim<PfnRun>, Refused> {
    PfnRun::decode(first, count).map(Claim::new)
}

fn gfns((first, count): Run) -> Result<GfnRun, Refused> {
    GfnRun::decode(first, count)
}
