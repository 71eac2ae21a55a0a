// SPDX-License-Identifier: MIT OR Apache-2.0
//! A protected guest lends its own frames to the host: both reach them, the guest still owns them.
//!
//! The only way in which contents of a private frame reach the host (I4). Knows nothing of the call
//! by which the guest asked; whoever calls this has the guest's request.

use crate::debt::Settled;
use crate::{Claim, GfnRun, Guest, Host, Machine, Refused, State};

/// Frames that the guest may lend.
#[derive(Debug)]
#[must_use = "nothing has changed until `commit`"]
pub struct Checked<'w, 'm> {
    host: &'w mut Host<'m>,
    guest: &'w mut Guest,
}

/// Decides whether the guest may lend a run. Changes nothing.
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
    /// Lends the frames and says how many.
    pub fn commit(self, m: &mut impl Machine) -> u64 {
        let vm = self.guest.vm();
        let Host { map, ledger, space, batch, .. } = self.host;
        // The guest keeps its reach and the host had none: nothing is owed.
        let settled = Settled::unreached(batch.granules());
        for frame in settled.iter() {
            let gfn = frame.granule().gfn();
            let revocable = super::owned(ledger, frame.granule(), vm, m).revocable();
            ledger.give(&frame, State::Shared { vm, gfn, revocable }, m);
        }
        space.map_back(batch.granules(), map, m);
        batch.granules().len()
    }
}
