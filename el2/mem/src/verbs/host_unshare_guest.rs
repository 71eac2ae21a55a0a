// SPDX-License-Identifier: MIT OR Apache-2.0
//! Host takes frames back that it lent to an ordinary guest, which may be dying.
//!
//! Keeps I2 and I3: a loan is struck off only when no CPU can reach the frame through that guest.

use crate::{Claim, GfnRun, Guest, Host, Life, Machine, Refused, State};

/// Loans that exist and may end.
#[derive(Debug)]
#[must_use = "nothing has changed until `commit`"]
pub struct Checked<'w, 'm> {
    host: &'w mut Host<'m>,
    guest: &'w mut Guest,
}

/// Decides whether the host may end the loans behind a run of guest frames. Changes nothing.
///
/// # Errors
/// `WrongState`, also once a dying VM borrows nothing; `WrongKind`, `CountTooLarge`, `GfnOutOfRange`, `GfnNotMapped`.
pub fn check<'w, 'm>(
    host: &'w mut Host<'m>,
    guest: &'w mut Guest,
    run: Claim<GfnRun>,
    m: &impl Machine,
) -> Result<Checked<'w, 'm>, Refused> {
    let body = guest.in_life(&[Life::Building, Life::Running, Life::Dying])?;
    body.borrows()?;
    if body.life == Life::Dying && body.borrowed == 0 {
        // From here on pool frames go back, and with them the tables: they must not be walked any more.
        return Err(Refused::WrongState);
    }
    host.gather_guest(&run.examine(), |gfn| body.backing(gfn, m))?;
    for granule in host.batch.granules().iter() {
        match host.ledger.state(granule.pfn()) {
            Some(State::Lent(_)) => {}
            _ => m.fatal(crate::ports::Broken::OneOwner),
        }
    }
    Ok(Checked { host, guest })
}

impl Checked<'_, '_> {
    /// Ends the loans and says how many.
    pub fn commit(self, m: &mut impl Machine) -> u64 {
        let vm = self.guest.vm();
        let Host { ledger, batch, .. } = self.host;
        let Some(body) = &mut self.guest.body else { return 0 };
        let debt = body.space.unmap(batch.granules(), false, m);
        let settled = body.space.settle(debt, vm, m);
        for frame in settled.iter() {
            ledger.unlend(&frame, m);
            body.borrowed = body.borrowed.saturating_sub(1);
        }
        batch.granules().len()
    }
}
