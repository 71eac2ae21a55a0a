// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ledger: for each frame of RAM, the one truth about who has it (I1).
//!
//! Guarantees that a frame which is not RAM has no owner, and that an owner changes only for a frame
//! whose TLB debt is paid ([`Ledger::give`]). It does not know what any table maps, nor what a
//! state allows: the verbs do. Lives under the host lock.

use crate::batch::Granules;
use crate::confine::confine;
use crate::debt::{Settled, Unreached};
use crate::map::Spans;
use crate::ports::{Broken, Fatal};
use crate::{Granule, Pfn, Refused, State, VmSlot};

/// The records of all frames of RAM.
#[derive(Debug)]
pub struct Ledger<'m> {
    records: &'m mut [u64],
    frames: Spans,
}

impl<'m> Ledger<'m> {
    /// Makes every frame of RAM the host's.
    pub(crate) fn new(records: &'m mut [u64], frames: Spans) -> Self {
        records.fill(State::Host.encode());
        Self { records, frames }
    }

    /// Who has the frame; `None` if it is not RAM.
    #[inline]
    pub fn state(&self, pfn: Pfn) -> Option<State> {
        self.place(pfn).and_then(|index| self.records.get(index)).map(|word| State::decode(*word))
    }

    /// Where the frame's record stands: within the records also for a CPU that only guesses that the
    /// frame is RAM. Not in line: the check of the linked image asks for its mask by name.
    #[inline(never)]
    fn place(&self, pfn: Pfn) -> Option<usize> {
        let index = self.frames.index(pfn.raw()).filter(|index| *index < self.records.len())?;
        Some(confine(index, self.records.len()))
    }

    /// Whether the host alone has the frame, so that `vm` could be given it.
    #[inline]
    pub(crate) fn host_alone(&self, pfn: Pfn, vm: VmSlot) -> Result<(), Refused> {
        match self.state(pfn).ok_or(Refused::NotMemory)? {
            State::Host => Ok(()),
            State::NoMap => Err(Refused::NoMap),
            State::El2 => Err(Refused::El2Owned),
            State::Lent(_) | State::Shared { .. } => Err(Refused::Shared),
            State::Pool { vm: owner, .. } | State::Private { vm: owner, .. } => {
                Err(if owner == vm { Refused::AlreadyDonated } else { Refused::Foreign })
            }
        }
    }

    /// Where the records of so many frames from `first` on stand. All of them are RAM if the first and the last are, and
    /// are as far apart as their numbers; at both ends it is confined.
    fn run(&self, first: Pfn, count: u64) -> Option<core::ops::RangeInclusive<usize>> {
        let (further, index) = (count.checked_sub(1)?, self.place(first)?);
        let last = if further == 0 { index } else { self.place(first.add(further)?)? };
        (last.checked_sub(index)? as u64 == further).then_some(index..=last)
    }

    /// Whether each of these frames is RAM and as `wanted`.
    #[inline]
    pub(crate) fn all(&self, frames: Granules<'_>, wanted: impl Fn(State) -> bool) -> bool {
        frames.runs().all(|(first, run)| {
            let records = self.run(first.pfn(), run.len()).and_then(|range| self.records.get(range));
            records.is_some_and(|records| records.iter().all(|word| wanted(State::decode(*word))))
        })
    }

    /// Whether the frame is the host's and may be lent once more; `None` if it is not lent yet.
    pub(crate) fn lendable(&self, pfn: Pfn, vm: VmSlot) -> Result<(), Refused> {
        match self.state(pfn) {
            Some(State::Lent(u32::MAX)) => Err(Refused::LentTooOften),
            Some(State::Lent(_)) => Ok(()),
            _ => self.host_alone(pfn, vm),
        }
    }

    /// Whether `el2` may read the frame as something that the host wrote.
    pub(crate) fn host_readable(&self, pfn: Pfn, vm: VmSlot) -> Result<(), Refused> {
        match self.state(pfn) {
            Some(State::Lent(_)) => Ok(()),
            _ => self.host_alone(pfn, vm),
        }
    }

    /// Writes the new owner of a frame that nobody can reach.
    pub(crate) fn give(&mut self, frame: &Unreached, state: State, m: &impl Fatal) {
        self.write(frame.granule().pfn(), state, m);
    }

    /// Writes the new owners of frames that nobody can reach.
    #[inline]
    pub(crate) fn give_all(&mut self, frames: &Settled<'_>, owner: impl Fn(Granule) -> State, m: &impl Fatal) {
        for (first, run) in frames.granules().runs() {
            match self.run(first.pfn(), run.len()).and_then(|range| self.records.get_mut(range)) {
                Some(records) => records.iter_mut().zip(run.iter()).for_each(|(word, to)| *word = owner(to).encode()),
                None => m.fatal(Broken::OneOwner),
            }
        }
    }

    /// Lends a frame of the host's once more. Nobody loses anything, so there is no debt. Not in line, so that the check
    /// of the linked image finds by name who may stop the machine.
    #[inline(never)]
    pub(crate) fn lend(&mut self, pfn: Pfn, m: &impl Fatal) {
        let times = match self.state(pfn) {
            Some(State::Host) => Some(1),
            Some(State::Lent(times)) => times.checked_add(1),
            _ => None,
        };
        match times {
            Some(times) => self.write(pfn, State::Lent(times), m),
            None => m.fatal(Broken::OneOwner),
        }
    }

    /// Takes back one loan of a frame that the borrower can not reach any more.
    pub(crate) fn unlend(&mut self, frame: &Unreached, m: &impl Fatal) {
        let pfn = frame.granule().pfn();
        match self.state(pfn) {
            Some(State::Lent(1)) => self.write(pfn, State::Host, m),
            Some(State::Lent(times)) => self.write(pfn, State::Lent(times.saturating_sub(1)), m),
            _ => m.fatal(Broken::OneOwner),
        }
    }

    /// Writes a record without a change of owner, or at boot.
    pub(crate) fn write(&mut self, pfn: Pfn, state: State, m: &impl Fatal) {
        match self.place(pfn).and_then(|index| self.records.get_mut(index)) {
            Some(record) => *record = state.encode(),
            None => m.fatal(Broken::OneOwner),
        }
    }
}

#[cfg(test)]
impl Ledger<'_> {
    /// The same over words of its own.
    pub(crate) fn twin(&self) -> Ledger<'static> {
        Ledger { records: self.records.to_vec().leak(), frames: self.frames }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Batch;
    use crate::{Gfn, MemoryMap, PfnRun};
    use std::vec;

    struct Never;
    impl Fatal for Never {
        fn fatal(&self, what: Broken) -> ! {
            panic!("{what:?}")
        }
    }

    /// Two banks, of the frames 8-15 and 20-31, of which one is not the host's.
    fn ledger() -> Ledger<'static> {
        let mut map = MemoryMap::new(32).unwrap();
        map.add_bank(PfnRun::decode(20, 12).unwrap()).unwrap();
        map.add_bank(PfnRun::decode(8, 8).unwrap()).unwrap();
        let mut ledger = Ledger::new(vec![0; 20].leak(), map.frames());
        ledger.write(Pfn::new(30).unwrap(), State::El2, &Never);
        ledger
    }

    #[test]
    fn frames_are_looked_at_one_by_one_also_where_they_follow_each_other() {
        let ledger = ledger();
        for first in 0..40 {
            for count in 1..20 {
                let mut words = [0; 20];
                let mut batch = Batch::new(&mut words);
                let frames = || first..first + count;
                frames().for_each(|pfn| batch.push(Pfn::new(pfn).unwrap(), Gfn::new(5).unwrap()).unwrap());
                let are_hosts = ledger.all(batch.granules(), |state| state == State::Host);
                let each = frames().all(|pfn| matches!(pfn, 8..=15 | 20..=29 | 31));
                assert_eq!(are_hosts, each, "{count} from {first}");
            }
        }
    }

    #[test]
    fn owners_go_to_the_frames_that_are_named_and_to_no_other() {
        let mut ledger = ledger();
        let (mut words, vm) = ([0; 8], VmSlot::new(3).unwrap());
        let mut batch = Batch::new(&mut words);
        let named = [(20, 7), (21, 9), (22, 1), (15, 2), (9, 3), (8, 4)];
        named.into_iter().for_each(|(pfn, gfn)| batch.push(Pfn::new(pfn).unwrap(), Gfn::new(gfn).unwrap()).unwrap());
        let owner = |gfn| State::Private { vm, gfn, revocable: false };
        ledger.give_all(&Settled::unreached(batch.granules()), |granule| owner(granule.gfn()), &Never);
        for pfn in (8..16).chain(20..32) {
            let gfn = named.iter().find(|(named, _)| *named == pfn).map(|(_, gfn)| Gfn::new(*gfn).unwrap());
            let before = if pfn == 30 { State::El2 } else { State::Host };
            assert_eq!(ledger.state(Pfn::new(pfn).unwrap()), Some(gfn.map_or(before, owner)), "{pfn}");
        }
    }
}
