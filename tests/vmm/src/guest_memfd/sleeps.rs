// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine goes to sleep over conversions that wait, until a device of the hostile module refuses, and no VM begins while
//! its memory may be put to disk (C13).

use std::sync::atomic::{AtomicBool, Ordering};

use kvm_ioctls::VmFd;

use super::STEP;
use super::convert::shown;
use super::lives::{undone, wait_for, waiting};
use super::rig::{PAGE, Rig, bytes, in_pipe, new_vm, until_pending};
use crate::gmem::converted;
use crate::machine::{Machine, Plan, open};
use crate::proto;
use crate::sys::errno_name;

const STATE: &str = "/sys/power/state";
const HOSTILE: &str = "/sys/module/fh_hostile/parameters";

/// Runs every part.
pub(super) fn all() -> Result<(), String> {
    slept()?;
    to_disk()
}

fn set(path: &str, value: &str) -> Result<(), String> {
    std::fs::write(path, value).map_err(|e| format!("{path}: {e}"))
}

/// What the kernel answers to a write.
fn answer(path: &str, value: &str) -> String {
    match std::fs::write(path, value) {
        Ok(()) => "0".to_owned(),
        Err(error) => errno_name(error.raw_os_error().unwrap_or(0)),
    }
}

/// Processes stop, and devices sleep too in the second round, over a conversion that waits without an end, one with a
/// deadline, one that nobody waits for, and a guest that runs.
fn slept() -> Result<(), String> {
    let (mut machine, _) = Machine::booted(Plan { boot: proto::BOOT_NO_SHARE, ..Plan::default() })?;
    let area = proto::SHARE_BASE + 8 * proto::GRANULE;
    machine.command(proto::CMD_FILL, [area, proto::GRANULE, 3])?;
    for (level, stage) in [("processes", "1"), ("devices", "2")] {
        let case = format!("asleep ({level})");
        let (endless, timed, notified) = (Rig::new(4)?, Rig::new(4)?, Rig::new(4)?);
        let [first, second, third] = [&endless, &timed, &notified].map(|rig| in_pipe(rig.map.at(bytes(1))));
        let waits = waiting(&endless, &first, 0);
        let waits_until = waiting(&timed, &second, 100_000);
        let begun = converted(notified.gmem.to_private_notify(0, notified.size(), 0));
        STEP.same(&format!("{case}: notify"), "EINPROGRESS at 0x1000", begun);
        let refused = count("sleeps_refused");
        set(&format!("{HOSTILE}/awake_at"), stage)?;
        let over = AtomicBool::new(false);
        let (slept, spun) = std::thread::scope(|scope| {
            let runner = scope.spawn(|| {
                let mut spun = 0;
                while !over.load(Ordering::Relaxed) {
                    machine.command(proto::CMD_SPIN, [100_000, 0, 0])?;
                    spun += 1;
                }
                Ok::<u32, String>(spun)
            });
            let slept = answer(STATE, "freeze");
            over.store(true, Ordering::Relaxed);
            (slept, runner.join().unwrap_or_else(|_| Err("died".to_owned())))
        });
        set(&format!("{HOSTILE}/awake_at"), "0")?;
        let slept = format!("{slept}, {} refused", count("sleeps_refused") - refused);
        STEP.same(&format!("{case}: the machine has slept so far"), "EBUSY, 1 refused", slept);
        STEP.same(&format!("{case}: its guest runs on"), "Ok", spun.map_or_else(|why| why, |_| "Ok".to_owned()));
        let checked = machine.command(proto::CMD_CHECK, [area, proto::GRANULE, 3])?;
        STEP.same(&format!("{case}: the guest's contents"), 0, checked[0]);
        STEP.same(&format!("{case}: awake, it waits again"), "pending at 0x1000", until_pending(&endless.gmem));
        STEP.same(&format!("{case}: awake, with a deadline: EINTR"), "exit 11", waits_until.end());
        undone(&case, &timed);
        STEP.same(&format!("{case}: awake, notify goes on"), "pending at 0x1000", until_pending(&notified.gmem));
        drop((first, third));
        STEP.same(&format!("{case}: let go, it is through"), "exit 10", waits.end());
        STEP.same(&format!("{case}: let go, poll"), true, notified.gmem.polls_in(60_000));
        STEP.same(&format!("{case}: let go, the outcome"), "0x0+0x4000: 0 at 0x0", shown(&notified.gmem));
        STEP.same(&format!("{case}: let go, back"), "0", converted(notified.gmem.to_shared(0, 4 * PAGE)));
        STEP.same(&format!("{case}: nothing has changed"), "[]", format!("{:?}", notified.damaged()));
        drop(second);
    }
    Ok(())
}

/// A number of the hostile module's.
fn count(what: &str) -> u64 {
    let text = std::fs::read_to_string(format!("{HOSTILE}/{what}")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// How often its notifier, the last that is asked, has held a sleep that begins.
fn held() -> u64 {
    count("sleeps_held")
}

fn ordinary_vm() -> Result<VmFd, String> {
    open()?.create_vm().map_err(|e| errno_name(e.errno()))
}

fn created(vm: Result<VmFd, String>) -> String {
    vm.map_or_else(|why| why, |_| "0".to_owned())
}

/// Whether memory may be put to disk is asked first, and processes are stopped later: no VM comes between. The machine does
/// not hibernate here; the hostile module, which is asked last, holds the question open and then says no.
fn to_disk() -> Result<(), String> {
    let hold = format!("{HOSTILE}/hold_sleep");
    let before = held();
    set(&hold, "Y")?;
    let asleep = std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| {
            // The last file of another case may not have gone yet: that one is refused by the driver.
            let mut seen = String::new();
            wait_for(|| {
                seen = answer(STATE, "disk");
                held() > before
            });
            seen
        });
        STEP.same("to disk: every VM has gone, and nobody says no", true, wait_for(|| held() > before));
        STEP.same("to disk: a protected VM meanwhile", "CREATE_VM: EBUSY", created(new_vm()));
        STEP.same("to disk: an ordinary one", "EBUSY", created(ordinary_vm()));
        let _ = set(&hold, "N");
        sleeper.join().unwrap_or_default()
    });
    STEP.same("to disk: refused in the end", "EAGAIN", asleep);
    STEP.same("to disk: a VM afterwards", "0", created(new_vm()));
    // And the driver's own no, with a VM that is there or a file that outlived it, leaves nothing behind.
    let rig = Rig::new(1)?;
    STEP.same("to disk, over a VM and its file", "EBUSY", answer(STATE, "disk"));
    let file = rig.orphaned("to disk, over a file");
    STEP.same("to disk, over a file", "EBUSY", answer(STATE, "disk"));
    STEP.same("to disk, over a file: a VM afterwards", "0", created(new_vm()));
    drop(file);
    Ok(())
}
