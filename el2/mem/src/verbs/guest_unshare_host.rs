// SPDX-License-Identifier: MIT OR Apache-2.0
//! A protected guest takes frames back that it lent to the host: the host loses them, contents stay.
//!
//! Keeps I2 and I3. That nobody in the host holds a reference any more (I5) is the driver's to ensure
//! before it accepts the guest's request; a host that lies about it loses the mapping all the same.

use crate::{Claim, GfnRun, Guest, Host, Machine, Refused, State};

/// Frames that the guest may take back.
#[derive(Debug)]
#[must_use = "nothing has changed until `commit`"]
pub struct Checked<'w, 'm> {
    host: &'w mut Host<'m>,
    guest: &'w mut Guest,
}

/// Decides whether the guest may take a run back. Changes nothing.
///
/// # Errors
/// `WrongState`, `WrongKind`, `CountTooLarge`, `GfnOutOfRange`, `GfnNotMapped`, `GfnPoisoned`,
/// `NotShared`.
pub fn check<'w, 'm>(
    host: &'w mut Host<'m>,
    guest: &'w mut Guest,
    run: Claim<GfnRun>,
    m: &impl Machine,
) -> Result<Checked<'w, 'm>, Refused> {
    super::gather_owned(host, guest, run, super::Owned::is_shared, m)?;
    Ok(Checked { host, guest })
}

impl Checked<'_, '_> {
    /// Takes the frames back and says how many.
    pub fn commit(self, m: &mut impl Machine) -> u64 {
        let vm = self.guest.vm();
        let Host { ledger, space, batch, .. } = self.host;
        let debt = space.unmap(batch.granules(), m);
        let settled = space.settle(debt, m);
        // What the host left in caches must not be written back over the guest's uncached stores, nor be
        // executed instead of what the guest finds now.
        batch.granules().iter().for_each(|granule| m.settle_for_guest(granule.pfn()));
        m.settle_instructions();
        for frame in settled.iter() {
            let gfn = frame.granule().gfn();
            let revocable = super::owned(ledger, frame.granule(), vm, m).revocable();
            ledger.give(&frame, State::Private { vm, gfn, revocable }, m);
        }
        batch.granules().len()
    }
}
