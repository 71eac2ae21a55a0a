// SPDX-License-Identifier: MIT OR Apache-2.0
//! `el2` returns pool frames of a dying VM to the host, zeroed; with the last one the slot is free.
//!
//! Keeps I8: nothing of the VM is left then. Waits for the guest's own frames to go first, because the
//! VM's tables, which stand in the pool, are what says which frames an ordinary VM borrows.

use crate::debt::Settled;
use crate::{Claim, Guest, Host, Life, Machine, PfnRun, Refused, State};

/// Pool frames of the dying VM.
#[derive(Debug)]
#[must_use = "nothing has changed until `commit`"]
pub struct Checked<'w, 'm> {
    host: &'w mut Host<'m>,
    guest: &'w mut Guest,
}

/// What went back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Returned {
    /// How many frames.
    pub done: u64,
    /// Whether the VM is gone and its slot free.
    pub freed: bool,
}

/// Decides whether a run of pool frames may go back. Changes nothing.
///
/// # Errors
/// `WrongState` unless the VM is dying; `GuestFramesLeft`; `CountTooLarge`; of a frame `NotMemory`,
/// `NoMap`, `El2Owned`, `HostOwned`, `Foreign`.
pub fn check<'w, 'm>(
    host: &'w mut Host<'m>,
    guest: &'w mut Guest,
    run: Claim<PfnRun>,
) -> Result<Checked<'w, 'm>, Refused> {
    let vm = guest.vm();
    let body = guest.in_life(&[Life::Dying])?;
    if body.owned != 0 || body.borrowed != 0 {
        return Err(Refused::GuestFramesLeft);
    }
    host.gather_run(&run.examine())?;
    for granule in host.batch.granules().iter() {
        match host.ledger.state(granule.pfn()).ok_or(Refused::NotMemory)? {
            State::Pool { vm: owner, .. } if owner == vm => {}
            State::Private { .. } | State::Shared { .. } | State::Pool { .. } => {
                return Err(Refused::Foreign);
            }
            State::Host | State::Lent(_) => return Err(Refused::HostOwned),
            State::El2 => return Err(Refused::El2Owned),
            State::NoMap => return Err(Refused::NoMap),
        }
    }
    Ok(Checked { host, guest })
}

impl Checked<'_, '_> {
    /// Gives the frames back, zeroed; fewer if `pause` finds an interrupt.
    pub fn commit(self, m: &mut impl Machine, pause: &mut impl FnMut() -> bool) -> Returned {
        let Host { map, ledger, space, batch, .. } = self.host;
        let Some(body) = &mut self.guest.body else { return Returned { done: 0, freed: true } };
        let settled = Settled::unreached(batch.granules());
        let mut done = 0_u64;
        for frame in settled.iter() {
            if super::paused(done, super::STRIDE, pause) {
                break;
            }
            m.scrub(frame.granule().pfn());
            ledger.give(&frame, State::Host, m);
            body.pool.forget();
            done = done.saturating_add(1);
        }
        space.map_back(settled.first(done).granules(), map, m);
        let freed = body.pool.total() == 0;
        if freed {
            self.guest.body = None;
        }
        Returned { done, freed }
    }
}
