// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host that goes on as another kernel by kexec, over VMs that live: they end first, and what comes next has every frame
//! (I8), without a word of theirs (I4).

pub(crate) mod crash;
mod load;

use std::os::fd::AsRawFd;

use freehold_uapi::hvc;
use freehold_uapi::ioctl::KVM_CREATE_VCPU;
use kvm_ioctls::VmFd;

use crate::cycles::at_stage;
use crate::gmem::converted;
use crate::guest_memfd::fuse::Fuse;
use crate::hostile::{Hostile, runs};
use crate::kill::{hold_still, holder, tell_scanner};
use crate::machine::{Machine, Plan, VM_TYPE, open, set_plain};
use crate::proto;
use crate::report::{Step, line};
use crate::sys::{self, Mapping, errno_name, ioctl_value};

const BEFORE: Step = Step("kexec-from");
const AFTER: Step = Step("kexec-into");
/// VMs that live when the machine goes over.
const VMS: u64 = 6;

/// A protected guest that runs, another one with a conversion that waits for a page in a pipe, a third that waits to take such
/// a page back, and an ordinary one: then the machine goes over. Comes back only if it does not.
pub(crate) fn leave() -> Result<(), String> {
    let hostile = Hostile::open()?;
    load::next("fh.job=kexec-from", "fh.job=kexec-into")?;
    let mut child = holder()?;
    tell_scanner(BEFORE, &mut child, &hostile)?;
    let mut ordinary = Machine::new(Plan { boot: proto::BOOT_NO_SHARE, ordinary: true, ..Plan::default() })?;
    ordinary.boot()?;
    let waits = Machine::new(Plan::default())?;
    let (reader, writer) = sys::pipe();
    let held = sys::vmsplice(&writer, waits.ram.at(0), 4096);
    BEFORE.same("a page in a pipe", "4096", sys::outcome(held));
    let notified = converted(waits.gmem.to_private_notify(0, proto::RAM_MIN, 0));
    BEFORE.same("a conversion that waits", "EINPROGRESS at 0x0", notified);
    let (mut unshares, stage) = at_stage("unsharing")?;
    BEFORE.same("a guest that takes a page back, and waits", "unsharing", stage.trim());
    let (refused, slow) = Refused::new()?;
    refused.watched()?;
    // Control: these are VMs, and their memory is out of reach.
    BEFORE.same("VMs that live", VMS, hostile.counter(hvc::COUNTER_VMS, 0));
    BEFORE.same("frames out of the host's reach: some", true, !hostile.unreachable().is_empty());
    line(&format!("{{\"scan\":\"alive\",\"step\":\"{}\"}}", BEFORE.0));
    hold_still();
    // SAFETY: one command, without an argument; what follows it is another kernel.
    unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_KEXEC) };
    let error = errno_name(std::io::Error::last_os_error().raw_os_error().unwrap_or(0));
    let _ = unshares.kill();
    drop((ordinary, waits, reader, writer, child, slow));
    Err(format!("the machine did not go over: {error}"))
}

/// The machine goes down while one VM's first run waits for memory that is served late: whoever comes for another VM, which
/// has not been ended yet, is told so.
struct Refused {
    /// Its first run waits, in a thread of its own.
    busy: Option<Machine>,
    /// Ended behind the other: it is younger.
    other: VmFd,
    fuse: Fuse,
}

impl Refused {
    fn new() -> Result<(Self, Mapping), String> {
        let fuse = Fuse::new(vec![0; 8])?;
        let file = fuse.open()?;
        let _ = file.try_clone().map(std::fs::File::from).and_then(|file| file.metadata());
        let slow = Mapping::mapped(4096, libc::MAP_PRIVATE, file.as_raw_fd()).map_err(errno_name)?;
        let busy = Machine::new(Plan { boot: proto::BOOT_NO_SHARE, ..Plan::default() })?;
        set_plain(&busy.vm, 1, proto::RAM_BASE + proto::RAM_MIN, 4096, slow.at(0)).map_err(errno_name)?;
        let other = open()?.create_vm_with_type(VM_TYPE).map_err(|e| errno_name(e.errno()))?;
        Ok((Self { busy: Some(busy), other, fuse }, slow))
    }

    /// Starts the run, and a thread that asks the other VM for what it has until it is refused for good.
    fn watched(mut self) -> Result<(), String> {
        self.fuse.hold(true);
        let mut busy = self.busy.take().ok_or("no machine")?;
        std::thread::spawn(move || {
            let _ = busy.boot();
            // Whatever came of it: it goes with this machine.
            std::mem::forget(busy);
        });
        BEFORE.same("a VM's first run waits for memory", 1, self.fuse.in_flight());
        let asked = ioctl_value(&self.other, KVM_CREATE_VCPU, 0);
        BEFORE.same("another VM's vCPU", true, asked.is_ok());
        std::thread::spawn(move || {
            let mut seen = libc::EEXIST;
            while seen == libc::EEXIST {
                seen = ioctl_value(&self.other, KVM_CREATE_VCPU, 0).err().unwrap_or(0);
            }
            BEFORE.same("the machine goes down: another VM is refused", "ESHUTDOWN", errno_name(seen));
            self.fuse.hold(false);
            std::mem::forget(self);
        });
        Ok(())
    }
}

/// In the kernel that came next, before its driver is there.
pub(crate) fn arrive() -> Result<(), String> {
    let hostile = Hostile::open()?;
    AFTER.same("VMs that live", 0, hostile.counter(hvc::COUNTER_VMS, 0));
    AFTER.same("frames that EL2 says are not the host's", 0, hostile.counter(hvc::COUNTER_FOREIGN_FRAMES, 0));
    AFTER.same("frames out of the host's reach", "", runs(&hostile.unreachable()));
    line(&format!("{{\"scan\":\"dead\",\"step\":\"{}\"}}", AFTER.0));
    hold_still();
    Ok(())
}
