// SPDX-License-Identifier: MIT OR Apache-2.0
//! A machine that is reset over a VM that lives: in RAM, which a reset leaves as it is, no word of the guest's is left (I4).
//!
//! The look at RAM is made from outside, where the machine stands still in place of the reset.

use std::process::{Child, Command};

use freehold_uapi::hvc;

use crate::hostile::Hostile;
use crate::kill::{hold_still, holder, tell_scanner};
use crate::report::{Step, line};
use crate::sys::errno_name;

/// How it comes to that.
#[derive(Clone, Copy)]
pub(crate) enum How {
    /// By the system call: every driver is told before.
    Reboot,
    /// By the key: nobody is.
    Key,
}

/// A guest runs; then the machine is reset. Comes back only if it is not.
pub(crate) fn leave(how: How) -> Result<(), String> {
    let step = Step(match how {
        How::Reboot => "reboot",
        How::Key => "reset",
    });
    let hostile = Hostile::open()?;
    let mut child = holder()?;
    tell_scanner(step, &mut child, &hostile)?;
    // Control: the same look finds it while the guest lives.
    line(&format!("{{\"scan\":\"alive\",\"step\":\"{}\"}}", step.0));
    hold_still();
    step.same("its VMM lives", true, matches!(child.try_wait(), Ok(None)));
    step.same("VMs that live", 1, hostile.counter(hvc::COUNTER_VMS, 0));
    step.same("frames that are its", true, hostile.counter(hvc::COUNTER_FOREIGN_FRAMES, 0) > 0);
    let clean = format!(". /jobs/lib.sh; fh_kernel_clean {}", step.0);
    let _ = Command::new("sh").args(["-c", &clean]).status();
    line("{\"done\":true}");
    let error = reset(how);
    end(child);
    Err(format!("the machine goes on: {error}"))
}

fn reset(how: How) -> String {
    match how {
        How::Reboot => {
            // SAFETY: one command, without an argument; nothing of this machine is kept.
            unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_RESTART) };
            errno_name(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
        }
        How::Key => std::fs::write("/proc/sysrq-trigger", "b")
            .map_or_else(|error| error.to_string(), |()| "no reset".to_owned()),
    }
}

fn end(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}
