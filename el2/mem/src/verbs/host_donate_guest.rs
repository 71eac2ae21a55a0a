// SPDX-License-Identifier: MIT OR Apache-2.0
//! Host donates frames to a protected guest: the host loses them, the guest alone has them.
//!
//! Keeps I1, I3, and the donation half of I9: after the first run a frame is zeroed before the guest
//! can see it. Knows nothing of measurement, but calls `measure` for each frame whose contents stay,
//! when the host can not write to it any more and the guest can not yet.

use crate::guest_space::{Access, Near, Tables};
use crate::{Claim, Gfn, Guest, Host, Kind, Life, Lot, Machine, Pfn, Refused, State};

/// A donation whose every condition holds and whose table pages are in the pool.
#[derive(Debug)]
#[must_use = "nothing has changed until `commit`"]
pub struct Checked<'w, 'm> {
    host: &'w mut Host<'m>,
    guest: &'w mut Guest,
    revocable: bool,
}

/// Decides whether the host may give a run. Changes no ownership.
///
/// # Errors
/// `WrongState`, `WrongKind`, `CountTooLarge`; of a frame `NotMemory`, `NoMap`, `El2Owned`,
/// `AlreadyDonated`, `Foreign`, `Shared`; of a guest frame `GfnOutOfRange`, `GfnMapped`, `GfnPoisoned`;
/// of the pool `NeedPages`.
pub fn check<'w, 'm>(
    host: &'w mut Host<'m>,
    guest: &'w mut Guest,
    lot: Claim<Lot>,
    revocable: bool,
    m: &impl Machine,
) -> Result<Checked<'w, 'm>, Refused> {
    guest.in_life(&[Life::Building, Life::Running])?.owns()?;
    host.gather_lot(&lot.examine())?;
    decide(host, guest, revocable, m)
}

/// As [`check`], for the records in a frame of the host's, which is copied once.
///
/// # Errors
/// As [`check`], `CountTooLarge` of all records together; also `ZeroCount`, `Overflow` and `Twice` of the records, and
/// what is wrong with the list's own frame.
pub fn check_list<'w, 'm>(
    host: &'w mut Host<'m>,
    guest: &'w mut Guest,
    list: Claim<Pfn>,
    records: u64,
    revocable: bool,
    m: &impl Machine,
) -> Result<Checked<'w, 'm>, Refused> {
    guest.in_life(&[Life::Building, Life::Running])?.owns()?;
    host.gather_list(list.examine(), records, guest.vm(), m)?;
    decide(host, guest, revocable, m)
}

fn decide<'w, 'm>(
    host: &'w mut Host<'m>,
    guest: &'w mut Guest,
    revocable: bool,
    m: &impl Machine,
) -> Result<Checked<'w, 'm>, Refused> {
    let vm = guest.vm();
    let body = guest.in_life(&[Life::Building, Life::Running])?;
    let mut near = Near::default();
    // Frame by frame only to say what is wrong.
    let is_free = host.ledger.all(host.batch.granules(), |state| matches!(state, State::Host));
    for granule in host.batch.granules().iter() {
        if !is_free {
            host.ledger.host_alone(granule.pfn(), vm)?;
        }
        body.vacant(granule.gfn(), &mut near, m)?;
    }
    body.reserve(host.batch.granules(), m)?;
    Ok(Checked { host, guest, revocable })
}

impl Checked<'_, '_> {
    /// Moves the frames and says how many; fewer if `pause` finds an interrupt, and then the rest is
    /// the host's as before. Not in line: the check of the linked image knows by name who may stop the machine.
    #[inline(never)]
    pub fn commit(
        self,
        m: &mut impl Machine,
        pause: &mut impl FnMut() -> bool,
        measure: &mut impl FnMut(Gfn, Pfn),
    ) -> u64 {
        let (vm, revocable) = (self.guest.vm(), self.revocable);
        let Host { map, ledger, space, batch, .. } = self.host;
        let Some(body) = &mut self.guest.body else { return 0 };
        let zero = body.kind == Kind::Protected && body.life == Life::Running;
        let stride = if zero { super::STRIDE } else { super::MEASURED_STRIDE };
        let debt = space.unmap(batch.granules(), m);
        let settled = space.settle(debt, m);
        let mut done = 0_u64;
        for granule in batch.granules().iter() {
            if super::paused(done, stride, pause) {
                break;
            }
            let (pfn, gfn) = (granule.pfn(), granule.gfn());
            if zero {
                m.scrub(pfn);
            } else {
                // Before `measure`: a clean cache line may hide what the host wrote past the cache, and what is measured
                // must be what the guest will find.
                m.settle_for_guest(pfn);
                measure(gfn, pfn);
            }
            done = done.saturating_add(1);
        }
        // Before the first is mapped: another vCPU could execute what the host had left in a frame.
        m.settle_instructions();
        let mut near = Near::default();
        let given = settled.first(done);
        ledger.give_all(&given, |granule| State::Private { vm, gfn: granule.gfn(), revocable }, m);
        let mut tables = Tables { pool: &mut body.pool, ledger, vm };
        for granule in given.granules().iter() {
            body.space.map(granule, Access::ALL, space.how, &mut tables, &mut near, m);
        }
        body.owned = body.owned.saturating_add(done);
        space.map_back(settled.after(done), map, m);
        done
    }
}
