// SPDX-License-Identifier: MIT OR Apache-2.0
//! What caches may still hold of a frame when it changes hands.
//!
//! Moments are event numbers: a frame that goes back to the host was zeroed after its last guest could write, cleaned
//! after that, and mapped for the host after the clean was waited for.

use super::{Findings, Rule};
use crate::record::{Barrier, Owner};
use std::collections::BTreeMap;
use std::ops::Range;

/// How far a frame is on its way to a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Settled {
    #[default]
    No,
    /// `DC CIVAC` was issued by this CPU; the host could (or not) write to it at that moment.
    Cleaning(u8, bool),
    /// It was waited for.
    Cleaned(bool),
    /// `IC IALLUIS` was issued by this CPU.
    Fetching(u8, bool),
    /// All is done.
    Ready(bool),
}

#[derive(Clone, Copy, Debug, Default)]
struct Frame {
    owner: Option<Owner>,
    vmid: u8,
    settled: Settled,
    /// `DC CVAC` was issued by this CPU.
    cleaning: Option<u8>,
    zeroed: u64,
    cleaned: u64,
    /// Since when no guest reaches it, and since when the host does again.
    guest_end: u64,
    host_begin: u64,
}

#[derive(Debug, Default)]
pub(super) struct Frames {
    all: BTreeMap<u64, Frame>,
    /// When a VM's tables went for good.
    ends: BTreeMap<u8, u64>,
    /// Frames whose maintenance is under way.
    under_way: Vec<u64>,
}

impl Frames {
    fn at(&mut self, frame: u64) -> &mut Frame {
        self.all.entry(frame).or_default()
    }

    /// Of how many frames something is kept.
    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.all.len()
    }

    pub(super) fn owner(&self, frame: u64) -> Option<Owner> {
        self.all.get(&frame).and_then(|frame| frame.owner)
    }

    pub(super) fn zero(&mut self, now: u64, frame: u64) {
        let frame = self.at(frame);
        (frame.zeroed, frame.settled, frame.cleaning) = (now, Settled::No, None);
    }

    pub(super) fn clean_invalidate(&mut self, cpu: u8, frame: u64, host_writes: bool) {
        let entry = self.at(frame);
        (entry.cleaning, entry.settled) = (Some(cpu), Settled::Cleaning(cpu, host_writes));
        self.under_way.push(frame);
    }

    pub(super) fn fetches(&mut self, cpu: u8) {
        self.step(|frame| {
            if let Settled::Cleaned(early) = frame.settled {
                frame.settled = Settled::Fetching(cpu, early);
            }
        });
    }

    pub(super) fn barrier(&mut self, now: u64, cpu: u8, barrier: Barrier) {
        match barrier {
            Barrier::SystemDone | Barrier::MaintenanceDone => {}
            Barrier::StoresVisible | Barrier::InEffect => return,
        }
        // Cleaning to the point of coherency is waited for by DSB SY: what reads there may be no CPU.
        let whole = barrier == Barrier::SystemDone;
        self.step(|frame| {
            if whole && frame.cleaning == Some(cpu) {
                (frame.cleaning, frame.cleaned) = (None, now);
            }
            frame.settled = match frame.settled {
                Settled::Cleaning(by, early) if whole && by == cpu => Settled::Cleaned(early),
                Settled::Fetching(by, early) if by == cpu => Settled::Ready(early),
                other @ (Settled::No
                | Settled::Cleaning(..)
                | Settled::Cleaned(_)
                | Settled::Fetching(..)
                | Settled::Ready(_)) => other,
            };
        });
    }

    fn step(&mut self, step: impl Fn(&mut Frame)) {
        let all = &mut self.all;
        self.under_way.retain(|frame| {
            let frame = all.entry(*frame).or_default();
            step(frame);
            frame.cleaning.is_some() || !matches!(frame.settled, Settled::No | Settled::Ready(_))
        });
    }

    /// A guest's walkers find the frame from here on. `host` says whether the host reaches it too.
    pub(super) fn guest_reaches(&mut self, frame: u64, host: bool, out: &mut Findings) {
        let settled = core::mem::take(&mut self.at(frame).settled);
        // What the host may write while it is shared is the guest's own choice.
        let kept = matches!(settled, Settled::Ready(early) if !early || host);
        out.decide(Rule::CleanBeforeGuest, kept, || format!("frame {frame:#x} goes to a guest, {settled:?}"));
    }

    pub(super) fn guest_lost(&mut self, now: u64, frame: u64) {
        self.at(frame).guest_end = now;
    }

    /// Of a frame that nothing is known of yet nothing need be: who gets it first makes `host_begin` begin anew. The
    /// host has all of the address space, gigabyte by gigabyte.
    pub(super) fn host_reaches(&mut self, now: u64, frames: Range<u64>) {
        // A block that is split or joined later changes nothing about when the host first could look.
        for (_, frame) in self.all.range_mut(frames).filter(|(_, frame)| frame.host_begin == 0) {
            frame.host_begin = now;
        }
    }

    pub(super) fn vm_ended(&mut self, now: u64, vmid: u8) {
        self.ends.insert(vmid, now);
    }

    pub(super) fn give(&mut self, frame: u64, owner: Owner, vmid: u8, out: &mut Findings) {
        let entry = self.all.entry(frame).or_default();
        let before = entry.owner.replace(owner);
        let Frame { zeroed, cleaned, guest_end, host_begin, .. } = *entry;
        let guest_end = match before {
            // What a pool frame holds is the VM's until its end: tables, registers.
            Some(Owner::Pool) => self.ends.get(&entry.vmid).copied().unwrap_or(u64::MAX),
            _ => guest_end,
        };
        entry.vmid = vmid;
        if matches!(owner, Owner::Pool | Owner::Private | Owner::El2) {
            entry.host_begin = 0;
        }
        match (before, owner) {
            (Some(Owner::Shared), Owner::Private) => {
                let settled = core::mem::take(&mut entry.settled);
                let kept = settled == Settled::Ready(false);
                out.decide(Rule::CleanBeforeGuest, kept, || {
                    format!("frame {frame:#x} is its guest's alone again, {settled:?}")
                });
            }
            (Some(Owner::Private | Owner::Pool | Owner::Shared), Owner::Host) => {
                // A frame that was shared never left the host's reach.
                let hidden = before == Some(Owner::Shared) || cleaned < host_begin;
                let kept = guest_end < zeroed && zeroed < cleaned && hidden;
                out.decide(Rule::ScrubBeforeHost, kept, || {
                    format!(
                        "frame {frame:#x} was {before:?}: guest's until {guest_end}, zeroed {zeroed}, \
                         cleaned {cleaned}, host's from {host_begin}"
                    )
                });
            }
            _ => {}
        }
    }
}
