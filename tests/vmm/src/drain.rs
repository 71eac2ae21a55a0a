// SPDX-License-Identifier: MIT OR Apache-2.0
//! Step 7 of the main job: a conversion waits for whoever holds a page (I5), says so, and completes when it is let go.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::gmem::{Gmem, converted};
use crate::machine::{Machine, Plan};
use crate::probe::{Access, probe};
use crate::proto;
use crate::report::Step;
use crate::sys::{self, outcome};

const STEP: Step = Step("7");
const PATIENCE: Duration = Duration::from_secs(20);
/// How long something must not happen before a test believes that it does not.
const STILL: Duration = Duration::from_millis(400);

extern "C" fn nothing(_signal: i32) {}

/// Waits until a conversion of the file is pending; its offset, or why not.
fn until_pending(gmem: &Gmem) -> String {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        match gmem.pending() {
            Ok(state) if state.pending == 1 && state.tries > 0 => return format!("pending at {:#x}", state.offset),
            Ok(_) => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => return sys::errno_name(error),
        }
    }
    "not pending".to_string()
}

/// Puts one page into a pipe, by reference; the ends.
fn hold(machine: &Machine, offset: u64) -> (OwnedFd, OwnedFd) {
    let (reader, writer) = sys::pipe();
    let at = machine.ram.at(usize::try_from(offset).expect("small"));
    STEP.same("vmsplice holds the page", "4096", outcome(sys::vmsplice(&writer, at, 4096)));
    (reader, writer)
}

/// Reads the held page out of the pipe.
fn drain(reader: &OwnedFd) -> Vec<u8> {
    let mut out = vec![0u8; 4096];
    let got = sys::read_to(reader, out.as_mut_ptr(), out.len());
    out.truncate(usize::try_from(got.unwrap_or(0)).unwrap_or(0));
    out
}

fn fill(machine: &Machine, offset: u64, seed: u64) {
    for at in (offset..offset + 4096).step_by(8) {
        machine.ram.store(usize::try_from(at).expect("small"), proto::pattern(seed, proto::RAM_BASE + at));
    }
}

fn is_pattern(bytes: &[u8], offset: u64, seed: u64) -> bool {
    bytes.len() == 4096
        && bytes
            .chunks(8)
            .zip((offset..).step_by(8))
            .all(|(word, at)| word == proto::pattern(seed, proto::RAM_BASE + at).to_le_bytes())
}

/// Runs the step: first before the VM's first run, then the guest's own MEM_UNSHARE.
pub(crate) fn drains() -> Result<(), String> {
    let mut machine = before_first_run()?;
    unshare_waits(&mut machine)
}

fn before_first_run() -> Result<Machine, String> {
    let mut machine = Machine::new(Plan::default())?;
    let page = proto::SHARE_BASE - proto::RAM_BASE + 5 * proto::GRANULE;
    fill(&machine, page, 7);
    let (reader, _writer) = hold(&machine, page);
    STEP.same(
        "convert now, page held",
        format!("EAGAIN at {page:#x}"),
        converted(machine.gmem.to_private_now(0, proto::RAM_MIN)),
    );
    let at = machine.ram.at(usize::try_from(page).expect("small"));
    STEP.same("after it the host may map the page again", "done", probe(at, Access::Load));
    STEP.same(
        "convert with a deadline, page held",
        format!("ETIMEDOUT at {page:#x}"),
        converted(machine.gmem.to_private(0, proto::RAM_MIN, 100)),
    );
    let gmem = Arc::clone(&machine.gmem);
    let ended = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&ended);
    let waiter = std::thread::spawn(move || {
        let result = gmem.to_private(0, proto::RAM_MIN, 0);
        flag.store(true, Ordering::SeqCst);
        result
    });
    STEP.same("convert-waits", format!("pending at {page:#x}"), until_pending(&machine.gmem));
    std::thread::sleep(STILL);
    STEP.same("it still waits", false, ended.load(Ordering::SeqCst));
    STEP.same("drained pipe has the contents", true, is_pattern(&drain(&reader), page, 7));
    let result = waiter.join().unwrap_or(Err((0, 0)));
    STEP.same("let go: it completes", "0", converted(result));
    STEP.same("pending afterwards", "Ok(0)", format!("{:?}", machine.gmem.pending().map(|p| p.pending)));
    machine.boot()?;
    let checked = machine.command(proto::CMD_CHECK, [proto::RAM_BASE + page, 4096, 7])?;
    STEP.same("guest reads the right contents", 0, checked[0]);
    Ok(machine)
}

fn unshare_waits(machine: &mut Machine) -> Result<(), String> {
    let page = proto::SHARE_BASE - proto::RAM_BASE;
    fill(machine, page, 9);
    let (reader, _writer) = hold(machine, page);
    let gmem = Arc::clone(&machine.gmem);
    let ram = Arc::clone(&machine.ram);
    let ended = AtomicBool::new(false);
    // SAFETY: all zeroes is a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as *const () as usize;
    // SAFETY: a handler that does nothing; without SA_RESTART, so that it interrupts KVM_RUN.
    unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
    let before = machine.interruptions;
    let result = std::thread::scope(|scope| {
        let (tell, told) = std::sync::mpsc::channel();
        let ended = &ended;
        let machine = &mut *machine;
        let vcpu = scope.spawn(move || {
            // SAFETY: asks for this thread's own identity.
            let _ = tell.send(unsafe { libc::pthread_self() } as usize);
            let result = machine.command(proto::CMD_UNSHARE, [proto::SHARE_BASE, 1, 0]);
            ended.store(true, Ordering::SeqCst);
            result
        });
        let thread = told.recv().unwrap_or(0) as libc::pthread_t;
        STEP.same("unshare-waits", format!("pending at {page:#x}"), until_pending(&gmem));
        std::thread::sleep(STILL);
        STEP.same("unshare still waits", false, ended.load(Ordering::SeqCst));
        for _ in 0..3 {
            // SAFETY: the thread is alive: it is joined below.
            unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
            std::thread::sleep(Duration::from_millis(50));
        }
        STEP.same("after signals it waits on", format!("pending at {page:#x}"), until_pending(&gmem));
        STEP.same("unshare has not returned", false, ended.load(Ordering::SeqCst));
        STEP.same("drained pipe has the shared contents", true, is_pattern(&drain(&reader), page, 9));
        vcpu.join().unwrap_or_else(|_| Err("the vCPU's thread died".to_string()))
    })?;
    STEP.same("let go: unshare returns", "[0, 1]", format!("{:?}", &result[..2]));
    let interrupted = machine.interruptions - before;
    STEP.judged("signals reached KVM_RUN meanwhile", "1 or more", interrupted, interrupted >= 1);
    let checked = machine.command(proto::CMD_CHECK, [proto::SHARE_BASE, 4096, 9])?;
    STEP.same("guest reads what was there", 0, checked[0]);
    let at = ram.at(usize::try_from(page).expect("small"));
    STEP.same("the host can not any more", "SIGBUS", probe(at, Access::Load));
    Ok(())
}
