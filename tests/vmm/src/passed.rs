// SPDX-License-Identifier: MIT OR Apache-2.0
//! A VM's descriptors in other processes: passed over a socket, and left open for another program. Whoever holds them runs
//! the guest, and the VM lives until the last of them is gone.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use freehold_uapi::hvc;

use crate::gmem::Gmem;
use crate::guest_memfd::calls::forked;
use crate::guest_memfd::files::{pass, receive};
use crate::machine::{Machine, Plan, counter, open};
use crate::proto::*;
use crate::report::Step;
use crate::sys::{Mapping, errno_name};

/// What the guest fills elsewhere, behind its program.
const AREA: u64 = RAM_BASE + RAM_MIN;
const BYTES: u64 = 4 * GRANULE;
/// Seeds of what it fills: run by the process over the socket, and by the other program.
const SEEDS: [u64; 2] = [0x50c, 0xe8ec];

/// Runs the cases.
pub(crate) fn all(step: Step) -> Result<(), String> {
    let (here, there) = std::os::unix::net::UnixDatagram::pair().map_err(|e| e.to_string())?;
    // It is there before the VM: what it has of it comes over the socket.
    let child = forked(|| match over_the_socket(&there) {
        Ok(()) => 0,
        Err(why) => {
            println!("passed: {why}");
            1
        }
    });
    let (mut machine, _) = Machine::booted(Plan { bytes: 2 * RAM_MIN, ..Plan::default() })?;
    machine.answer(CMD_FILL, [AREA, BYTES, SEEDS[0]]);
    let sent = [pass(&here, &machine.vm), pass(&here, &machine.vcpu), pass(&here, &machine.gmem)];
    step.same("passed: descriptors over a socket", "[true, true, true]", format!("{sent:?}"));
    let back = receive(&here);
    step.same("passed: the other process ran the guest", true, back.is_some());
    let checked =
        |machine: &mut Machine, seed| machine.command(CMD_CHECK, [AREA, BYTES, seed]).map(|[wrong, ..]| wrong);
    step.same("passed: the guest did as it was told there", 0, checked(&mut machine, SEEDS[0])?);

    step.same("passed: another program ran the guest", "did", in_a_program(&mut machine)?);
    step.same("passed: the guest did as it was told by it", 0, checked(&mut machine, SEEDS[1])?);

    // The other process has the VM still.
    let node = open()?;
    let vms = || format!("{:?}", counter(&node, hvc::COUNTER_VMS, 0));
    let gmem = machine.gmem.clone();
    drop(machine);
    step.same("passed: this process lets go, and the VM lives", "Ok(1)", vms());
    step.same("passed: which the other process is told", true, pass(&here, &gmem));
    drop(gmem);
    step.same("passed: it ran the guest again, and ended", "exit 0", child.end());
    step.same("passed: the VM ended with it", "Ok(0)", vms());
    Ok(())
}

fn over_the_socket(socket: &impl AsRawFd) -> Result<(), String> {
    let mut fds = [-1; 3];
    for fd in &mut fds {
        *fd = receive(socket).ok_or("no descriptor")?;
    }
    let mut machine = elsewhere(fds)?;
    fill(&mut machine, SEEDS[0])?;
    if !pass(socket, &machine.gmem) || receive(socket).is_none() {
        return Err("the other side has gone".into());
    }
    let [wrong, ..] = machine.command(CMD_CHECK, [AREA, BYTES, SEEDS[1]])?;
    if wrong == 0 { Ok(()) } else { Err(format!("{wrong} words differ")) }
}

/// What drives a guest by descriptors of its VM, its vCPU and its file that are this process' own.
fn elsewhere([vm, vcpu, gmem]: [RawFd; 3]) -> Result<Machine, String> {
    let kvm = open()?;
    let failed = |what: &str, e: i32| format!("{what}: {}", errno_name(e));
    // SAFETY: the descriptor is this process' own, and nothing else's here.
    let vm = unsafe { kvm.create_vmfd_from_rawfd(vm) }.map_err(|e| failed("the VM", e.errno()))?;
    // SAFETY: as above.
    let vcpu = unsafe { vm.create_vcpu_from_rawfd(vcpu) }.map_err(|e| failed("the vCPU", e.errno()))?;
    let bytes = kvm.get_vcpu_mmap_size().map_err(|e| failed("GET_VCPU_MMAP_SIZE", e.errno()))?;
    let run_page = Mapping::new(&vcpu, 0, bytes, libc::PROT_READ).map_err(|e| failed("mmap of the vCPU", e))?;
    let ram = Mapping::anonymous(4096, false).map_err(|e| failed("memory", e))?;
    Ok(Machine::around(vm, vcpu, Arc::new(Gmem::new(gmem)), Arc::new(ram), (run_page, bytes)))
}

fn fill(machine: &mut Machine, seed: u64) -> Result<(), String> {
    machine.command(CMD_FILL, [AREA, BYTES, seed]).map(|_| ())
}

/// Another program has copies of the descriptors that it does not close on execution.
fn in_a_program(machine: &mut Machine) -> Result<String, String> {
    let copy = |fd: &dyn AsRawFd| {
        // SAFETY: a plain number; the answer is a descriptor of ours or -1.
        let copy = unsafe { libc::dup(fd.as_raw_fd()) };
        // SAFETY: as it was just made.
        (copy >= 0).then(|| unsafe { OwnedFd::from_raw_fd(copy) }).ok_or("no descriptor")
    };
    let copies = [copy(&machine.vm)?, copy(&machine.vcpu)?, copy(&*machine.gmem)?];
    let me = std::env::current_exe().map_err(|e| e.to_string())?;
    let numbers = copies.iter().map(|fd| fd.as_raw_fd().to_string());
    let told = std::process::Command::new(me).arg("passed-fds").args(numbers).output().map_err(|e| e.to_string())?;
    Ok(String::from_utf8_lossy(&told.stdout).trim().to_owned())
}

/// The program that [`in_a_program`] starts.
pub(crate) fn executed(fds: &[u64]) -> Result<(), String> {
    let mut own = [-1; 3];
    for (own, fd) in own.iter_mut().zip(fds) {
        *own = RawFd::try_from(*fd).unwrap_or(-1);
    }
    fill(&mut elsewhere(own)?, SEEDS[1])?;
    println!("did");
    Ok(())
}
