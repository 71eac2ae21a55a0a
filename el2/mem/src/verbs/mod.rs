// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every way in which memory changes hands, one file each.
//!
//! Each verb has a `check`, which reads everything and changes nothing, and returns a `Checked` that
//! holds both locks' contents; and a `commit`, which can not fail. What `check` reserved is reserved
//! by that borrow: nobody else can spend the pool meanwhile, and dropping `Checked` gives it up.
//! Inside `commit` the order is the proof order: unreachable, settled, re-owned, reachable again.

pub mod el2_return_host;
pub mod el2_revoke_guest;
pub mod guest_relinquish;
pub mod guest_share_host;
pub mod guest_unshare_host;
pub mod host_donate_el2;
pub mod host_donate_guest;
pub mod host_reclaim;
pub mod host_share_guest;
pub mod host_unshare_guest;

use crate::ports::Broken;
use crate::{Claim, GfnRun, Granule, Guest, Host, Ledger, Life, Machine, Refused, State, VmSlot};

/// Frames between two looks for pending interrupts.
const STRIDE: u64 = 32;

/// The same where each frame is measured, which takes a hundred times as long.
const MEASURED_STRIDE: u64 = 4;

/// Whether to stop after `done` frames, because a look at the right moment found an interrupt.
fn paused(done: u64, stride: u64, pause: &mut impl FnMut() -> bool) -> bool {
    done != 0 && done.is_multiple_of(stride) && pause()
}

/// Who sees a frame that a protected guest owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owned {
    /// The guest alone.
    Private { revocable: bool },
    /// The host too.
    Shared { revocable: bool },
}

impl Owned {
    /// Whether the guest alone sees it.
    const fn is_private(self) -> Result<(), Refused> {
        match self {
            Self::Private { .. } => Ok(()),
            Self::Shared { .. } => Err(Refused::Shared),
        }
    }

    /// Whether the host sees it too.
    const fn is_shared(self) -> Result<(), Refused> {
        match self {
            Self::Shared { .. } => Ok(()),
            Self::Private { .. } => Err(Refused::NotShared),
        }
    }

    const fn revocable(self) -> bool {
        match self {
            Self::Private { revocable } | Self::Shared { revocable } => revocable,
        }
    }
}

/// Gathers the frames behind a run that a running protected guest named, if each of them is as `wanted`.
fn gather_owned(
    host: &mut Host<'_>,
    guest: &mut Guest,
    run: Claim<GfnRun>,
    wanted: impl Fn(Owned) -> Result<(), Refused>,
    m: &impl Machine,
) -> Result<(), Refused> {
    let vm = guest.vm();
    let body = guest.in_life(&[Life::Running])?;
    body.owns()?;
    host.gather_guest(&run.examine(), |gfn| body.backing(gfn, m))?;
    host.batch.granules().iter().try_for_each(|granule| wanted(owned(&host.ledger, granule, vm, m)))
}

/// Reads who sees a frame that the guest's tables map; the ledger must agree that it is the guest's.
fn owned(ledger: &Ledger<'_>, granule: Granule, vm: VmSlot, m: &impl Machine) -> Owned {
    match ledger.state(granule.pfn()) {
        Some(State::Private { vm: owner, gfn, revocable }) if owner == vm && gfn == granule.gfn() => {
            Owned::Private { revocable }
        }
        Some(State::Shared { vm: owner, gfn, revocable }) if owner == vm && gfn == granule.gfn() => {
            Owned::Shared { revocable }
        }
        _ => m.fatal(Broken::OneOwner),
    }
}
