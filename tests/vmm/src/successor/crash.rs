// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host whose kernel dies over a VM that lives, and goes on as the one that was kept for that. Nobody told `el2`: to the
//! next kernel the VM's frames stay as far out of reach as they were (I1), and nothing of theirs is elsewhere (I4).

use freehold_uapi::hvc;

use super::load;
use crate::hostile::{Hostile, How, runs};
use crate::kill::{hold_still, holder, tell_scanner};
use crate::report::{Step, line};

const BEFORE: Step = Step("crash-from");
const AFTER: Step = Step("crash-into");

/// The kernel touches a frame of a guest that runs, and dies of it. Comes back only if it does not.
pub(crate) fn die() -> Result<(), String> {
    let hostile = Hostile::open()?;
    let mut child = holder()?;
    tell_scanner(BEFORE, &mut child, &hostile)?;
    BEFORE.same("VMs that live", 1, hostile.counter(hvc::COUNTER_VMS, 0));
    line(&format!("{{\"scan\":\"alive\",\"step\":\"{}\"}}", BEFORE.0));
    hold_still();
    let frame = *hostile.unreachable().first().ok_or("every frame is in the host's reach")?;
    // What is kept for it is out of this kernel's own reach from here on.
    load::on_crash("fh.job=crash-from", "fh.job=crash-into")?;
    std::fs::write("/proc/sys/kernel/panic_on_oops", "1").map_err(|e| e.to_string())?;
    let (what, _) = hostile.access(frame, How::Thread, None);
    let _ = child.kill();
    Err(format!("the kernel lives: {what}"))
}

/// In the kernel that came next, which knows nothing of the VM.
pub(crate) fn after() -> Result<(), String> {
    let hostile = Hostile::open()?;
    AFTER.same("VMs that live", 1, hostile.counter(hvc::COUNTER_VMS, 0));
    let foreign = hostile.counter(hvc::COUNTER_FOREIGN_FRAMES, 0);
    AFTER.judged("frames that EL2 says are not the host's", "some", foreign, foreign > 0);
    AFTER.same("frames of this kernel's own that it can not reach", "", runs(&hostile.unreachable()));
    line(&format!("{{\"scan\":\"alive\",\"step\":\"{}\"}}", AFTER.0));
    hold_still();
    Ok(())
}
