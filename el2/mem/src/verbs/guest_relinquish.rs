// SPDX-License-Identifier: MIT OR Apache-2.0
//! A protected guest gives private frames back to the host for good: the host gets zeros.
//!
//! Keeps I3 and I4. The guest frames are empty afterwards and can be backed anew, with zeros.

use crate::{Claim, GfnRun, Guest, Host, Machine, Refused, State};

/// Frames that the guest may give back.
#[derive(Debug)]
#[must_use = "nothing has changed until `commit`"]
pub struct Checked<'w, 'm> {
    host: &'w mut Host<'m>,
    guest: &'w mut Guest,
}

/// Decides whether the guest may give a run back. Changes nothing.
///
/// # Errors
/// `WrongState`, `WrongKind`, `CountTooLarge`, `GfnOutOfRange`, `GfnNotMapped`, `GfnPoisoned`, `Shared`.
pub fn check<'w, 'm>(
    host: &'w mut Host<'m>,
    guest: &'w mut Guest,
    run: Claim<GfnRun>,
    m: &impl Machine,
) -> Result<Checked<'w, 'm>, Refused> {
    super::gather_owned(host, guest, run, super::Owned::is_private, m)?;
    Ok(Checked { host, guest })
}

impl Checked<'_, '_> {
    /// Gives the frames back, zeroed, and says how many.
    pub fn commit(self, m: &mut impl Machine) -> u64 {
        let vm = self.guest.vm();
        let Host { map, ledger, space, batch, .. } = self.host;
        let Some(body) = &mut self.guest.body else { return 0 };
        let debt = body.space.unmap(batch.granules(), false, m);
        let settled = body.space.settle(debt, vm, m);
        for frame in settled.iter() {
            m.scrub(frame.granule().pfn());
            ledger.give(&frame, State::Host, m);
            body.owned = body.owned.saturating_sub(1);
        }
        space.map_back(batch.granules(), map, m);
        batch.granules().len()
    }
}
