// SPDX-License-Identifier: MIT OR Apache-2.0
//! `freehold-vmm run`: boots a Linux kernel in a VM, with its console on the terminal.
//!
//! What the guest finds is decided by `freehold-vmm-boot`; here are KVM, threads and the terminal.

mod output;
mod terminal;
mod vcpu;
mod vm;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use clap::Parser as _;
use clap::error::ErrorKind;
use freehold_vmm_boot::args::{Args, End, FAILED, WRONG};
use freehold_vmm_boot::tally::Summary;
use freehold_vmm_boot::{image, layout};

/// Why there is no guest: the VMM's exit status, and what it says.
struct Refusal(u8, String);

/// Runs a guest; the VMM's exit status.
pub(crate) fn run(arguments: impl Iterator<Item = OsString>) -> u8 {
    let args = match Args::try_parse_from(std::iter::once("freehold-vmm run".into()).chain(arguments)) {
        Ok(args) => args,
        Err(error) => return not_understood(&error),
    };
    match boot(&args) {
        Ok(end) => end.status(),
        Err(Refusal(status, why)) => {
            eprintln!("freehold-vmm: {why}");
            status
        }
    }
}

fn not_understood(error: &clap::Error) -> u8 {
    let text = error.to_string();
    if error.kind() == ErrorKind::DisplayHelp {
        print!("{text}");
        return 0;
    }
    let said: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    eprintln!("freehold-vmm: {}", said.join(" ").trim_start_matches("error: "));
    WRONG
}

fn boot(args: &Args) -> Result<End, Refusal> {
    let wrong = |path: &Path, why: String| Refusal(WRONG, format!("{}: {why}", path.display()));
    let read = |path: &Path| std::fs::read(path).map_err(|e| wrong(path, e.to_string()));
    let kernel = image::read(read(&args.kernel)?).map_err(|why| wrong(&args.kernel, why.to_string()))?;
    let initrd = args.initrd.as_deref().map(read).transpose()?;
    let size = initrd.as_ref().map(|bytes| bytes.len() as u64);
    let layout = layout::place(args.mem, &kernel, size).map_err(|why| Refusal(WRONG, why.to_string()))?;
    let failed = |why| Refusal(FAILED, why);
    let mut vm = vm::Vm::new(args, layout).map_err(failed)?;
    vm.load(&kernel.bytes, initrd.as_deref(), &args.cmdline).map_err(failed)?;
    drop((kernel, initrd));
    vm.finish().map_err(failed)?;
    let begin = Instant::now();
    let (tallies, end) = vcpu::run_all(vm).map_err(failed)?;
    let seconds = begin.elapsed().as_secs_f64();
    // At once: others may write to the same place.
    let summary = format!("freehold-vmm: {}, after {seconds:.1} s\n{}\n", said(&end), Summary(&tallies));
    let _ = std::io::stderr().write_all(summary.as_bytes());
    judged(end)
}

fn judged(end: vcpu::Ended) -> Result<End, Refusal> {
    match end {
        vcpu::Ended::By(end, _) => Ok(end),
        vcpu::Ended::Failed(why) => Err(Refusal(FAILED, why)),
    }
}

/// What a user would read, and the status, if this exit of vCPU 1 ended a VM: for what no guest can bring about.
pub(crate) fn would_say(exit: &kvm_ioctls::VcpuExit<'_>) -> String {
    let end = vcpu::broken(1, exit);
    let line = said(&end);
    match judged(end) {
        Ok(end) => format!("{}: {line}", end.status()),
        Err(Refusal(status, why)) => format!("{status}: {line}; {why}"),
    }
}

fn said(end: &vcpu::Ended) -> String {
    match end {
        vcpu::Ended::By(End::PowerOff, _) => "the guest switched itself off".to_owned(),
        vcpu::Ended::By(End::Reset, _) => "the guest asked for a reset".to_owned(),
        vcpu::Ended::By(End::Crash, why) => format!("the guest crashed: {why}"),
        vcpu::Ended::By(End::Quit, why) => format!("ended by {why}"),
        vcpu::Ended::Failed(_) => "the VM can not be run on".to_owned(),
    }
}
