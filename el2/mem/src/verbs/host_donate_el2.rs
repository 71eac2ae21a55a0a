// SPDX-License-Identifier: MIT OR Apache-2.0
//! Host donates a run of frames to `el2` for one VM: as the first pool of a new VM, or as more pool.
//!
//! Keeps I1 and I3. The frames hold nothing that matters until they are taken, and are cleared then.
//! Knows nothing of what they become, save the root table of a new VM.

use crate::guest::Body;
use crate::guest_space::GuestSpace;
use crate::pool::Pool;
use crate::{Claim, Guest, Host, Kind, Life, Machine, Pfn, PfnRun, Refused};

/// A donation whose every condition holds. Dropping it changes nothing.
#[derive(Debug)]
#[must_use = "nothing has changed until `commit`"]
pub struct Checked<'w, 'm> {
    host: &'w mut Host<'m>,
    guest: &'w mut Guest,
    birth: Option<Birth>,
}

#[derive(Clone, Copy, Debug)]
struct Birth {
    kind: Kind,
    ipa_bits: u32,
    root: Pfn,
}

/// Decides whether the run may become the first pool of a VM in an empty slot.
///
/// # Errors
/// `WrongState` if the slot is taken; `BadIpaSize`; `NeedPages` if the run can not hold an aligned
/// root table; what [`check`] refuses about frames.
pub fn check_birth<'w, 'm>(
    host: &'w mut Host<'m>,
    guest: &'w mut Guest,
    run: Claim<PfnRun>,
    kind: Kind,
    ipa_bits: u32,
) -> Result<Checked<'w, 'm>, Refused> {
    if guest.life() != Life::Free {
        return Err(Refused::WrongState);
    }
    if !(32..=host.map.ipa_bits().min(40)).contains(&ipa_bits) {
        return Err(Refused::BadIpaSize);
    }
    let run = run.examine();
    gather(host, guest, &run)?;
    let frames = GuestSpace::root_frames(ipa_bits);
    let first = run.start().raw().checked_next_multiple_of(frames).unwrap_or(u64::MAX);
    let short = first.saturating_add(frames).saturating_sub(run.end());
    let root = Pfn::new(first).filter(|_| short == 0);
    let root = root.ok_or(Refused::NeedPages(u32::try_from(short).unwrap_or(u32::MAX)))?;
    Ok(Checked { host, guest, birth: Some(Birth { kind, ipa_bits, root }) })
}

/// Decides whether the run may join the pool of a living VM.
///
/// # Errors
/// `WrongState`, `CountTooLarge`, `NotMemory`, `NoMap`, `El2Owned`, `AlreadyDonated`, `Foreign`,
/// `Shared`.
pub fn check<'w, 'm>(
    host: &'w mut Host<'m>,
    guest: &'w mut Guest,
    run: Claim<PfnRun>,
) -> Result<Checked<'w, 'm>, Refused> {
    guest.in_life(&[Life::Building, Life::Running])?;
    gather(host, guest, &run.examine())?;
    Ok(Checked { host, guest, birth: None })
}

impl Checked<'_, '_> {
    /// Moves the run, and says how many frames are free in the pool now.
    pub fn commit(self, m: &mut impl Machine) -> u32 {
        let vm = self.guest.vm();
        let Host { ledger, space, batch, .. } = self.host;
        let debt = space.unmap(batch.granules(), m);
        let settled = space.settle(debt, m);
        if let Some(Birth { kind, ipa_bits, root }) = self.birth {
            let space = GuestSpace::new(root, ipa_bits);
            self.guest.body = Some(Body::new(kind, space, Pool::default()));
        }
        let Some(body) = &mut self.guest.body else { return 0 };
        for frame in settled.iter() {
            let pfn = frame.granule().pfn();
            if self.birth.is_some_and(|birth| birth.holds(pfn)) {
                body.pool.add_used(&frame, vm, ledger, m);
            } else {
                body.pool.add(&frame, vm, ledger, m);
            }
        }
        m.publish_tables();
        body.pool.free()
    }
}

impl Birth {
    /// Whether the frame is part of the root table.
    fn holds(&self, pfn: Pfn) -> bool {
        let offset = pfn.raw().checked_sub(self.root.raw());
        offset.is_some_and(|offset| offset < GuestSpace::root_frames(self.ipa_bits))
    }
}

fn gather(host: &mut Host<'_>, guest: &Guest, run: &PfnRun) -> Result<(), Refused> {
    host.gather_run(run)?;
    run.frames().try_for_each(|pfn| host.ledger.host_alone(pfn, guest.vm()))
}
