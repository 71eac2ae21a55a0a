// SPDX-License-Identifier: MIT OR Apache-2.0
//! The nth allocation of a call fails, for every n: the answer is ENOMEM or a success, what was there is as it was, and
//! the same call goes through afterwards. Needs a kernel that fails allocations on demand: `--kernel debug`.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use freehold_uapi::ioctl::*;
use kvm_ioctls::VmFd;

use super::STEP;
use super::rig::{PAGE, bytes, new_vm};
use crate::gmem::{Gmem, converted};
use crate::hostile::Hostile;
use crate::machine::{Machine, Plan, VM_TYPE, make_gmem, new_gmem, open, set_slot};
use crate::proto;
use crate::raw::{resting, settle};
use crate::sys::{self, errno_name, ioctl, ioctl_value, outcome};

/// Allocations of one call, at most.
const MOST: u32 = 2000;
const PAGES: u64 = 8;

/// Has one allocation of this thread fail.
struct Fault(File);

impl Fault {
    fn new() -> Result<Self, String> {
        // Also what may wait for memory, of any size, and without a line in the log for each.
        for (file, value) in [
            ("failslab/ignore-gfp-wait", "N"),
            ("failslab/verbose", "0"),
            ("fail_page_alloc/ignore-gfp-wait", "N"),
            ("fail_page_alloc/ignore-gfp-highmem", "N"),
            ("fail_page_alloc/min-order", "0"),
            ("fail_page_alloc/verbose", "0"),
        ] {
            std::fs::write(format!("/sys/kernel/debug/{file}"), value).map_err(|e| format!("{file}: {e}"))?;
        }
        let file = File::options().read(true).write(true).open("/proc/thread-self/fail-nth");
        file.map(Self).map_err(|e| format!("fail-nth: {e}"))
    }

    /// Runs `call` with its `nth` allocation failing; its answer, and whether it had so many.
    fn run(&self, nth: u32, call: impl FnOnce() -> String) -> Result<(String, bool), String> {
        let number = nth.to_string();
        self.0.write_at(number.as_bytes(), 0).map_err(|e| e.to_string())?;
        let answer = call();
        let mut left = [0u8; 16];
        let length = self.0.read_at(&mut left, 0).map_err(|e| e.to_string())?;
        self.0.write_at(b"0", 0).map_err(|e| e.to_string())?;
        Ok((answer, left.get(..length).unwrap_or_default().trim_ascii() == b"0"))
    }
}

/// Makes something anew for each n, calls, and has `again` look at what the call left; that says "0" too.
fn each<S>(
    case: &str,
    fault: &Fault,
    mut make: impl FnMut() -> Result<S, String>,
    mut call: impl FnMut(&mut S) -> String,
    mut again: impl FnMut(&mut S) -> String,
) -> Result<(), String> {
    let (mut failed, mut odd, mut count) = (0, Vec::new(), 0);
    for nth in 1..=MOST {
        let mut subject = make()?;
        let (answer, injected) = fault.run(nth, || call(&mut subject))?;
        if !injected {
            // Control: with nothing failing it is through.
            STEP.same(&format!("{case}: with memory"), "0", answer);
            break;
        }
        count = nth;
        if answer == "0" {
            continue;
        }
        failed += 1;
        let after = again(&mut subject);
        if !answer.contains("ENOMEM") || after != "0" {
            odd.push(format!("{nth}: {answer}, then {after}"));
        }
    }
    println!("{case}: {count} allocations, {failed} refusals");
    STEP.same(&format!("{case}: neither ENOMEM nor whole afterwards"), "[]", format!("{odd:?}"));
    STEP.judged(&format!("{case}: allocations that failed"), "1 or more", failed, failed >= 1 && count < MOST);
    Ok(())
}

/// Has the file have all of its pages.
fn reserved(gmem: &Gmem, size: u64) -> String {
    outcome(sys::fallocate(gmem, libc::FALLOC_FL_KEEP_SIZE, 0, size.cast_signed()))
}

/// Runs every part.
pub(crate) fn all() -> Result<(), String> {
    let fault = Fault::new()?;
    let hostile = Hostile::open()?;
    let rest = resting(&hostile);
    creations(&fault)?;
    contents(&fault)?;
    conversions(&fault)?;
    a_guest(&fault)?;
    settle(STEP, "starved: all is as before", &hostile, &rest);
    Ok(())
}

fn creations(fault: &Fault) -> Result<(), String> {
    let vm = |kvm: &mut kvm_ioctls::Kvm| {
        kvm.create_vm_with_type(VM_TYPE).map_or_else(|error| errno_name(error.errno()), |_| "0".to_owned())
    };
    each("starved: a VM", fault, open, vm, vm)?;
    let file = |vm: &mut VmFd| new_gmem(vm, PAGES * PAGE).map_or_else(errno_name, |_| "0".to_owned());
    each("starved: a file", fault, new_vm, file, file)?;
    // The call alone: a mapping of its run page that fails later does not take it back, as KVM's does not.
    let vcpu = |vm: &mut VmFd| match ioctl_value(vm, KVM_CREATE_VCPU, 0) {
        Ok(fd) => {
            drop(sys::owned(fd));
            "0".to_owned()
        }
        Err(error) => errno_name(error),
    };
    each("starved: a vCPU", fault, new_vm, vcpu, vcpu)
}

fn contents(fault: &Fault) -> Result<(), String> {
    let vm = new_vm()?;
    let size = PAGES * PAGE;
    let reserve = |gmem: &mut Gmem| reserved(gmem, size);
    each("starved: fallocate", fault, || new_gmem(&vm, size).map_err(errno_name), reserve, reserve)?;
    let text = vec![0x5a_u8; bytes(PAGES)];
    let private = || make_gmem(&vm, size, GUEST_MEMFD_FLAG_MMAP).map_err(errno_name);
    let ask = Populate { offset: 0, size, source: text.as_ptr() as u64, error_offset: 0, reserved: [0; 4] };
    // One page that the call that failed had left there would be EEXIST.
    let populate = |gmem: &mut Gmem| converted(gmem.populate(ask));
    each("starved: populate", fault, private, populate, populate)
}

fn conversions(fault: &Fault) -> Result<(), String> {
    let size = 2 * PAGES * PAGE;
    let bound = || {
        let vm = new_vm()?;
        let gmem = new_gmem(&vm, size).map_err(errno_name)?;
        set_slot(&vm, 0, proto::RAM_BASE, size, &gmem, 0).map_err(errno_name)?;
        // What has no frame needs nothing.
        match reserved(&gmem, size).as_str() {
            "0" => Ok((vm, gmem)),
            error => Err(format!("fallocate: {error}")),
        }
    };
    let now = |(_, gmem): &mut (VmFd, Gmem)| converted(gmem.to_private_now(0, size));
    each("starved: convert what a slot has", fault, bound, now, now)?;
    let attributes = |(vm, _): &mut (VmFd, Gmem)| {
        let attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE;
        let mut ask = MemoryAttributes { address: proto::RAM_BASE, size, attributes, flags: 0 };
        outcome(ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &mut ask))
    };
    each("starved: attributes", fault, bound, attributes, attributes)
}

/// Its first run, and the pages that it touches until it asks for a command.
fn a_guest(fault: &Fault) -> Result<(), String> {
    let boot = |machine: &mut Machine| match machine.boot() {
        Ok(boot) if boot.hash_ok == 1 => "0".to_owned(),
        Ok(boot) => format!("hash {}", boot.hash_ok),
        Err(error) => error,
    };
    // Private from the start: what the program does not fill comes by touches.
    let populated = || {
        Machine::populated(Plan::default(), |gmem, _, program| {
            let mut padded = program.to_vec();
            padded.resize(padded.len().next_multiple_of(bytes(1)), 0);
            let (size, source) = (padded.len() as u64, padded.as_ptr() as u64);
            let ask = Populate { offset: 0, size, source, error_offset: 0, reserved: [0; 4] };
            gmem.populate(ask).map_err(|(error, at)| format!("populate: {} at {at:#x}", errno_name(error)))
        })
    };
    each("starved: a guest that boots", fault, populated, boot, boot)
}
