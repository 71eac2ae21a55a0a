// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pages that root says are broken memory, or soon will be (`madvise` with `MADV_HWPOISON` and `MADV_SOFT_OFFLINE`).

use super::STEP;
use super::calls::madvise;
use super::rig::{PAGE, PAGE_BYTES, Rig, bytes, open_attempts, word};
use crate::gmem::converted;
use crate::probe::{Access, probe};
use crate::sys::{fallocate, outcome};

/// Page that is told of, of a file of 4.
const TOLD: u64 = 2;

/// Runs every part. What is broken stays so: nothing else runs after it.
pub(crate) fn all() -> Result<(), String> {
    refused()?;
    going()?;
    gone()
}

fn refused() -> Result<(), String> {
    let rig = Rig::new(4)?;
    STEP.same("broken: to private", "0", converted(rig.gmem.to_private_now(0, rig.size())));
    for (case, advice) in [("MADV_SOFT_OFFLINE", libc::MADV_SOFT_OFFLINE), ("MADV_HWPOISON", libc::MADV_HWPOISON)] {
        let done = outcome(madvise(rig.map.at(bytes(TOLD)), PAGE_BYTES, advice));
        STEP.same(&format!("{case} of a private page"), "EFAULT", done);
    }
    STEP.same("broken: to shared", "0", converted(rig.gmem.to_shared(0, rig.size())));
    STEP.same("broken: nothing has changed", "[]", format!("{:?}", rig.damaged()));
    Ok(())
}

/// The kernel would move the page elsewhere, and can not: nothing is held, nothing has changed.
fn going() -> Result<(), String> {
    let rig = Rig::new(4)?;
    let done = outcome(madvise(rig.map.at(bytes(TOLD)), PAGE_BYTES, libc::MADV_SOFT_OFFLINE));
    STEP.same("MADV_SOFT_OFFLINE", "EIO", done);
    STEP.same("MADV_SOFT_OFFLINE: at once", "0", converted(rig.gmem.to_private_now(0, rig.size())));
    STEP.same("MADV_SOFT_OFFLINE: back", "0", converted(rig.gmem.to_shared(0, rig.size())));
    STEP.same("MADV_SOFT_OFFLINE: contents are kept", "[]", format!("{:?}", rig.damaged()));
    Ok(())
}

/// The kernel marks the page and keeps a reference to it for good: a holder like another, which lets go of the offset when
/// a hole is punched there.
fn gone() -> Result<(), String> {
    let rig = Rig::new(4)?;
    let at = rig.map.at(bytes(TOLD));
    STEP.same("MADV_HWPOISON", "EBUSY", outcome(madvise(at, PAGE_BYTES, libc::MADV_HWPOISON)));
    let offset = TOLD * PAGE;
    let now = converted(rig.gmem.to_private_now(0, rig.size()));
    STEP.same("MADV_HWPOISON: at once", format!("EAGAIN at {offset:#x}"), now);
    let late = converted(rig.gmem.to_private(0, rig.size(), 300));
    STEP.same("MADV_HWPOISON: with a deadline", format!("ETIMEDOUT at {offset:#x}"), late);
    STEP.same("MADV_HWPOISON: a load, no longer mapped", "SIGBUS", probe(at, Access::Load));
    STEP.same("MADV_HWPOISON: the pages beside it", "0", converted(rig.gmem.to_private_now(0, offset)));
    STEP.same("MADV_HWPOISON: and back", "0", converted(rig.gmem.to_shared(0, offset)));
    let how = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;
    let punched = fallocate(&rig.gmem, how, offset.cast_signed(), PAGE.cast_signed());
    STEP.same("MADV_HWPOISON: a hole there", "0", outcome(punched));
    STEP.same("MADV_HWPOISON: then a load", "done", probe(at, Access::Load));
    STEP.same("MADV_HWPOISON: of another page", 0, rig.map.load(bytes(TOLD)));
    rig.map.store(bytes(TOLD), word(TOLD));
    STEP.same("MADV_HWPOISON: which converts", "0", converted(rig.gmem.to_private_now(0, rig.size())));
    STEP.same("MADV_HWPOISON: and comes back", "0", converted(rig.gmem.to_shared(0, rig.size())));
    STEP.same("MADV_HWPOISON: contents are kept", "[]", format!("{:?}", rig.damaged()));
    STEP.same("MADV_HWPOISON: as many have ended as begun", "0 of some", open_attempts(&rig.gmem));
    Ok(())
}
