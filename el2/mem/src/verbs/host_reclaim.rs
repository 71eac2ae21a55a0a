// SPDX-License-Identifier: MIT OR Apache-2.0
//! Host takes frames back from a dying protected guest: private and shared ones, zeroed.
//!
//! Keeps I4 and the frame half of I8. Needs no invalidation: the VM's translations went when it began
//! to die, and its tables are not edited any more. Pool frames are `el2_return_host`'s.

use crate::debt::Settled;
use crate::{Claim, Guest, Host, Life, Machine, PfnRun, Refused, State};

/// Frames of the dying guest.
#[derive(Debug)]
#[must_use = "nothing has changed until `commit`"]
pub struct Checked<'w, 'm> {
    host: &'w mut Host<'m>,
    guest: &'w mut Guest,
}

/// Decides whether the host may take a run back. Changes nothing.
///
/// # Errors
/// `WrongState` unless the VM is dying; `CountTooLarge`; of a frame `NotMemory`, `NoMap`, `El2Owned`,
/// `HostOwned`, `Foreign`; `GuestFramesLeft` if a frame is of the pool.
pub fn check<'w, 'm>(
    host: &'w mut Host<'m>,
    guest: &'w mut Guest,
    run: Claim<PfnRun>,
) -> Result<Checked<'w, 'm>, Refused> {
    let vm = guest.vm();
    guest.in_life(&[Life::Dying])?;
    host.gather_run(&run.examine())?;
    let ours =
        |state| matches!(state, State::Private { vm: owner, .. } | State::Shared { vm: owner, .. } if owner == vm);
    if host.ledger.all(host.batch.granules(), ours) {
        return Ok(Checked { host, guest });
    }
    // Frame by frame only to say what is wrong.
    for granule in host.batch.granules().iter() {
        match host.ledger.state(granule.pfn()).ok_or(Refused::NotMemory)? {
            State::Private { vm: owner, .. } | State::Shared { vm: owner, .. } if owner == vm => {}
            State::Pool { vm: owner, .. } if owner == vm => return Err(Refused::GuestFramesLeft),
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
    /// Gives the frames back, zeroed, and says how many; fewer if `pause` finds an interrupt.
    pub fn commit(self, m: &mut impl Machine, pause: &mut impl FnMut() -> bool) -> u64 {
        let Host { map, ledger, space, batch, .. } = self.host;
        let Some(body) = &mut self.guest.body else { return 0 };
        let settled = Settled::unreached(batch.granules());
        let mut done = 0_u64;
        for frame in settled.iter() {
            if super::paused(done, super::STRIDE, pause) {
                break;
            }
            m.scrub(frame.granule().pfn());
            done = done.saturating_add(1);
        }
        let back = settled.first(done);
        ledger.give_all(&back, |_| State::Host, m);
        body.owned = body.owned.saturating_sub(done);
        space.map_back(back.granules(), map, m);
        done
    }
}
