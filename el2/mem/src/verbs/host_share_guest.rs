// SPDX-License-Identifier: MIT OR Apache-2.0
//! Host lends frames to an ordinary guest: the host keeps them, the guest may reach them too.
//!
//! Keeps I2: each loan is counted in the ledger, and a frame with a loan out can not be donated.
//! Nobody loses anything, so there is no TLB debt.

use crate::guest_space::{Access, Near, Tables};
use crate::{Claim, Guest, Host, Life, Lot, Machine, Refused};

/// A loan whose every condition holds and whose table pages are in the pool.
#[derive(Debug)]
#[must_use = "nothing has changed until `commit`"]
pub struct Checked<'w, 'm> {
    host: &'w mut Host<'m>,
    guest: &'w mut Guest,
    access: Access,
}

/// Decides whether the host may lend a run. Changes nothing.
///
/// # Errors
/// `WrongState`, `WrongKind`, `CountTooLarge`; of a frame `NotMemory`, `NoMap`, `El2Owned`,
/// `AlreadyDonated`, `Foreign`, `Shared`, `LentTooOften`; of a guest frame `GfnOutOfRange`,
/// `GfnMapped`; of the pool `NeedPages`.
pub fn check<'w, 'm>(
    host: &'w mut Host<'m>,
    guest: &'w mut Guest,
    lot: Claim<Lot>,
    access: Access,
    m: &impl Machine,
) -> Result<Checked<'w, 'm>, Refused> {
    let vm = guest.vm();
    let body = guest.in_life(&[Life::Building, Life::Running])?;
    body.borrows()?;
    host.gather_lot(&lot.examine())?;
    let mut near = Near::default();
    for granule in host.batch.granules().iter() {
        host.ledger.lendable(granule.pfn(), vm)?;
        body.vacant(granule.gfn(), &mut near, m)?;
    }
    body.reserve(host.batch.granules(), m)?;
    Ok(Checked { host, guest, access })
}

impl Checked<'_, '_> {
    /// Lends the frames and says how many; fewer if `pause` finds an interrupt.
    pub fn commit(self, m: &mut impl Machine, pause: &mut impl FnMut() -> bool) -> u64 {
        let (vm, access) = (self.guest.vm(), self.access);
        let Host { ledger, space, batch, .. } = self.host;
        let Some(body) = &mut self.guest.body else { return 0 };
        let mut done = 0_u64;
        for granule in batch.granules().iter() {
            if super::paused(done, super::STRIDE, pause) {
                break;
            }
            m.settle_for_guest(granule.pfn());
            done = done.saturating_add(1);
        }
        m.settle_instructions();
        let mut near = Near::default();
        for granule in batch.granules().first(done).iter() {
            ledger.lend(granule.pfn(), m);
            let mut tables = Tables { pool: &mut body.pool, ledger, vm };
            body.space.map(granule, access, space.how, &mut tables, &mut near, m);
        }
        body.borrowed = body.borrowed.saturating_add(done);
        m.publish_tables();
        done
    }
}
