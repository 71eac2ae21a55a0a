// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ledger: for each frame of RAM, the one truth about who has it (I1).
//!
//! Guarantees that a frame which is not RAM has no owner, and that an owner changes only for a frame
//! whose TLB debt is paid ([`Ledger::give`]). It does not know what any table maps, nor what a
//! state allows: the verbs do. Lives under the host lock.

use crate::confine::confine;
use crate::debt::Unreached;
use crate::map::Banks;
use crate::ports::{Broken, Fatal};
use crate::{Pfn, Refused, State, VmSlot};

/// The records of all frames of RAM.
#[derive(Debug)]
pub struct Ledger<'m> {
    records: &'m mut [u64],
    banks: Banks,
}

impl<'m> Ledger<'m> {
    /// Makes every frame of RAM the host's.
    pub(crate) fn new(records: &'m mut [u64], banks: Banks) -> Self {
        records.fill(State::Host.encode());
        Self { records, banks }
    }

    /// Who has the frame; `None` if it is not RAM.
    pub fn state(&self, pfn: Pfn) -> Option<State> {
        self.place(pfn).and_then(|index| self.records.get(index)).map(|word| State::decode(*word))
    }

    /// Where the frame's record stands: within the records also for a CPU that only guesses that the
    /// frame is RAM.
    fn place(&self, pfn: Pfn) -> Option<usize> {
        let index = self.banks.index(pfn).filter(|index| *index < self.records.len())?;
        Some(confine(index, self.records.len()))
    }

    /// Whether the host alone has the frame, so that `vm` could be given it.
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
        Ledger { records: self.records.to_vec().leak(), banks: self.banks }
    }
}
