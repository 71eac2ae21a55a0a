// SPDX-License-Identifier: MIT OR Apache-2.0
//! `el2` takes a revocable frame away from a guest because the host's kernel strayed into it (D8).
//!
//! Keeps I3 and I4: the guest loses the frame, the host gets zeros, and the guest frame is poisoned so
//! that the guest never silently reads something else there. Frozen frames are not revocable.

use crate::batch::Granules;
use crate::debt::Settled;
use crate::{Claim, Guest, Host, Life, Machine, Pfn, Refused, State};

/// A frame that may be taken away.
#[derive(Debug)]
#[must_use = "nothing has changed until `commit`"]
pub struct Checked<'w, 'm> {
    host: &'w mut Host<'m>,
    guest: &'w mut Guest,
}

/// Decides whether the frame at which the host faulted may be taken from this guest.
///
/// # Errors
/// `WrongState` if there is no VM; `NotMemory`; `HostOwned` if the host has the frame (the access
/// should be made again); `Foreign` if it is not this guest's, or not revocable.
pub fn check<'w, 'm>(
    host: &'w mut Host<'m>,
    guest: &'w mut Guest,
    frame: Claim<Pfn>,
) -> Result<Checked<'w, 'm>, Refused> {
    let vm = guest.vm();
    guest.in_life(&[Life::Building, Life::Running, Life::Dying])?;
    let pfn = frame.examine();
    let gfn = match host.ledger.state(pfn).ok_or(Refused::NotMemory)? {
        State::Private { vm: owner, gfn, revocable: true } if owner == vm => gfn,
        State::Private { .. } | State::Pool { .. } => return Err(Refused::Foreign),
        State::El2 => return Err(Refused::El2Owned),
        State::Host | State::Lent(_) | State::Shared { .. } | State::NoMap => {
            return Err(Refused::HostOwned);
        }
    };
    host.batch.clear();
    let _ = host.batch.push(pfn, gfn);
    Ok(Checked { host, guest })
}

impl Checked<'_, '_> {
    /// Takes the frame away and gives it to the host, zeroed.
    pub fn commit(self, m: &mut impl Machine) {
        let vm = self.guest.vm();
        let Host { map, ledger, space, batch, .. } = self.host;
        let Some(body) = &mut self.guest.body else { return };
        let lost: Granules<'_> = batch.granules();
        let settled = if body.life == Life::Dying {
            // No CPU knows a dying VM's translations, and its tables are not edited any more.
            Settled::unreached(lost)
        } else {
            let debt = body.space.unmap(lost, true, m);
            body.space.settle(debt, vm, m)
        };
        for frame in settled.iter() {
            m.scrub(frame.granule().pfn());
            ledger.give(&frame, State::Host, m);
            body.owned = body.owned.saturating_sub(1);
        }
        space.map_back(lost, map, m);
    }
}
