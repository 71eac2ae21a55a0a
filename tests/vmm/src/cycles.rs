// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lives of memory and of VMs off the main path: sharing in ranges, relinquishing, VMs side by side, ends at every stage
//! and in every order (I2, I4, I8).

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::gmem::converted;
use crate::hostile::{Hostile, runs};
use crate::machine::{Machine, Plan};
use crate::probe::{Access, probe};
use crate::proto;
use crate::raw::{resting, settle};
use crate::report::Step;
use crate::sys::{self, outcome};

const STEP: Step = Step("cycles");
const PAGES: u64 = 4;
/// A VMM that is killed, its guest and all of their memory are gone by then, on a machine that is emulated.
const GONE: Duration = Duration::from_secs(10);

/// Runs every part.
pub(crate) fn all() -> Result<(), String> {
    let hostile = Hostile::open()?;
    let rest = resting(&hostile);
    ranges()?;
    relinquish()?;
    settle(STEP, "after sharing and relinquishing", &hostile, &rest);
    side_by_side();
    settle(STEP, "after three VMs at once", &hostile, &rest);
    host_manners()?;
    settle(STEP, "after the host's manners", &hostile, &rest);
    orders(&hostile, &rest)?;
    stages(&hostile, &rest)?;
    STEP.same("all frames in reach", "", runs(&hostile.unreachable()));
    Ok(())
}

fn offset(page: u64) -> usize {
    usize::try_from(page - proto::RAM_BASE).expect("small")
}

/// The guest shares and unshares several pages with one call each.
fn ranges() -> Result<(), String> {
    let (mut machine, _) = Machine::booted(Plan { boot: proto::BOOT_NO_SHARE, ..Plan::default() })?;
    let pages = proto::SHARE_BASE + 8 * proto::GRANULE;
    let last = pages + (PAGES - 1) * proto::GRANULE;
    machine.command(proto::CMD_FILL, [pages, PAGES * proto::GRANULE, 3])?;
    STEP.same("before sharing the host reads", "SIGBUS", probe(machine.ram.at(offset(pages)), Access::Load));
    let shared = machine.command(proto::CMD_SHARE, [pages, PAGES, 0])?;
    STEP.same("share 4 pages", "[0, 4]", format!("{:?}", &shared[..2]));
    STEP.same("the host reads the last", proto::pattern(3, last), machine.ram.load(offset(last)));
    STEP.same("and not the next", "SIGBUS", probe(machine.ram.at(offset(last) + 4096), Access::Load));
    machine.ram.store(offset(last), 0x1234_5678);
    let load = machine.command(proto::CMD_LOAD, [last, 0, 0])?;
    STEP.same("the guest reads what the host wrote", 0x1234_5678, load[0]);
    let taken = machine.command(proto::CMD_UNSHARE, [pages, PAGES, 0])?;
    STEP.same("unshare 4 pages", "[0, 4]", format!("{:?}", &taken[..2]));
    STEP.same("after it the host reads", "SIGBUS", probe(machine.ram.at(offset(pages)), Access::Load));
    let checked = machine.command(proto::CMD_CHECK, [pages, proto::GRANULE, 3])?;
    STEP.same("the guest's contents are kept", 0, checked[0]);
    Ok(())
}

/// The guest gives a page back for good: the host finds zeros, and so does the guest when it comes again.
fn relinquish() -> Result<(), String> {
    let (mut machine, _) = Machine::booted(Plan { boot: proto::BOOT_NO_SHARE, ..Plan::default() })?;
    let page = proto::SHARE_BASE + 16 * proto::GRANULE;
    machine.command(proto::CMD_FILL, [page, proto::GRANULE, 5])?;
    let given = machine.command(proto::CMD_RELINQUISH, [page, 0, 0])?;
    STEP.same("relinquish", 0, given[0]);
    let seen = machine.ram.copy_out(offset(page), 4096);
    STEP.same("the host finds zeros", true, seen.iter().all(|byte| *byte == 0));
    machine.ram.store(offset(page), 0x6c65_6674);
    let zeros = machine.command(proto::CMD_ZERO, [page, proto::GRANULE, 0])?;
    STEP.same("the guest, again, finds zeros", 0, zeros[0]);
    STEP.same("then the host can not read", "SIGBUS", probe(machine.ram.at(offset(page)), Access::Load));
    let punch = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;
    let at = i64::try_from(offset(page)).expect("small");
    STEP.same("punching it while private", "EBUSY", outcome(sys::fallocate(&*machine.gmem, punch, at, 4096)));
    machine.command(proto::CMD_RELINQUISH, [page, 0, 0])?;
    STEP.same("punching it when relinquished", "0", outcome(sys::fallocate(&*machine.gmem, punch, at, 4096)));
    Ok(())
}

/// Three VMs, each with a secret of its own, on as many threads.
fn side_by_side() {
    let ran: Vec<Result<[u64; 2], String>> = std::thread::scope(|scope| {
        let one = || {
            let (mut machine, boot) = Machine::booted(Plan::default())?;
            for _ in 0..8 {
                machine
                    .command(proto::CMD_FP, [8, 0, 0])
                    .and_then(|r| if r[0] == 0 { Ok(()) } else { Err("FP".into()) })?;
                machine.command(proto::CMD_WFI, [1, 0, 0])?;
            }
            Ok(boot.secret)
        };
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("died".to_string()))).collect()
    });
    STEP.judged("three VMs at once", "all run", format!("{ran:x?}"), ran.iter().all(Result::is_ok));
    let distinct = ran[0] != ran[1] && ran[1] != ran[2] && ran[0] != ran[2];
    STEP.same("their secrets differ", true, distinct);
}

/// With a live VM the host does not hibernate, and a CPU under a running vCPU may go and come back.
fn host_manners() -> Result<(), String> {
    let (mut machine, _) = Machine::booted(Plan::default())?;
    let asleep = std::fs::write("/sys/power/state", "disk").map_err(|e| e.raw_os_error().unwrap_or(0));
    STEP.judged("hibernation with a live VM", "refused", format!("{asleep:?}"), asleep.is_err());
    let log = Command::new("dmesg").output().map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&log.stdout).contains("freehold: no hibernation while protected VMs");
    STEP.same("and the driver says why", true, said);
    let last = sys::cpus() - 1;
    if last > 0 {
        let online = format!("/sys/devices/system/cpu/cpu{last}/online");
        let ran = std::thread::scope(|scope| {
            let machine = &mut machine;
            let (tell, told) = std::sync::mpsc::channel();
            let vcpu = scope.spawn(move || {
                sys::pin_to(last);
                for turn in 0..40 {
                    machine.command(proto::CMD_SPIN, [2_000_000, 0, 0])?;
                    machine.command(proto::CMD_STATE, [2, 0, 0])?;
                    if turn == 2 {
                        let _ = tell.send(());
                    }
                }
                Ok::<(), String>(())
            });
            let _ = told.recv();
            let gone = std::fs::write(&online, "0").map_err(|e| e.to_string());
            STEP.same("its CPU goes offline", "Ok(())", format!("{gone:?}"));
            let back = std::fs::write(&online, "1").map_err(|e| e.to_string());
            STEP.same("and comes back", "Ok(())", format!("{back:?}"));
            vcpu.join().unwrap_or_else(|_| Err("died".to_string()))
        });
        STEP.same("the vCPU goes on", "Ok(())", format!("{ran:?}"));
    }
    let copies = machine.command(proto::CMD_SECRET, [0; 3])?;
    STEP.same("the guest is unharmed", 0, copies[2]);
    Ok(())
}

/// The descriptors of a running VM are closed in different orders.
fn orders(hostile: &Hostile, rest: &[(&'static str, u64)]) -> Result<(), String> {
    for order in ["vm first", "file first", "mapping last"] {
        let (machine, _) = Machine::booted(Plan::default())?;
        // The run page is a mapping of the vCPU, and keeps it.
        let Machine { vm, vcpu, gmem, ram, run_page, .. } = machine;
        match order {
            "vm first" => {
                drop(vm);
                drop((vcpu, gmem, ram, run_page));
            }
            "file first" => {
                drop(gmem);
                drop((run_page, vcpu, ram, vm));
            }
            _ => {
                drop((gmem, vcpu, vm, run_page));
                settle(STEP, "ended with a mapping left", hostile, rest);
                let at = ram.at(offset(proto::SECRET_BASE));
                let seen = match probe(at, Access::Load).as_str() {
                    "done" => format!("{:#x}", ram.load(offset(proto::SECRET_BASE))),
                    fault => fault.to_string(),
                };
                STEP.judged("the mapping that is left", "SIGBUS or zeros", &seen, ["SIGBUS", "0x0"].contains(&&*seen));
                drop(ram);
            }
        }
        settle(STEP, &format!("descriptors closed, {order}"), hostile, rest);
    }
    Ok(())
}

/// A VMM is killed at each stage of its VM's life.
fn stages(hostile: &Hostile, rest: &[(&'static str, u64)]) -> Result<(), String> {
    for stage in ["created", "converted", "booted", "unsharing", "touching"] {
        let (mut child, said) = at_stage(stage)?;
        STEP.same(&format!("{stage}: got there"), stage, said.trim());
        let start = Instant::now();
        let _ = child.kill();
        let _ = child.wait();
        settle(STEP, &format!("{stage}: killed"), hostile, rest);
        let took = start.elapsed();
        STEP.judged(&format!("{stage}: killed, and gone"), "within 10 s", format!("{took:?}"), took <= GONE);
    }
    Ok(())
}

/// A child that is a VMM at that stage, and what it said when it got there: the stage's name.
pub(crate) fn at_stage(stage: &str) -> Result<(Child, String), String> {
    let me = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut vmm = Command::new(&me);
    vmm.args(["stage", stage]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = vmm.spawn().map_err(|e| format!("spawn: {e}"))?;
    let mut said = String::new();
    let out = child.stdout.take().ok_or("no pipe")?;
    let _ = BufReader::new(out).read_line(&mut said);
    Ok((child, said))
}

/// A VMM that stops at a stage and waits to be killed.
pub(crate) fn stage(name: &str) -> Result<(), String> {
    let mut machine = Machine::new(Plan { bytes: 2 * proto::RAM_MIN, ..Plan::default() })?;
    let say = || -> ! {
        println!("{name}");
        loop {
            std::thread::sleep(std::time::Duration::from_secs(60));
        }
    };
    if name != "created" {
        let result = machine.gmem.to_private(0, proto::RAM_MIN, 0);
        if result.is_err() {
            return Err(converted(result));
        }
    }
    if matches!(name, "booted" | "unsharing" | "touching") {
        machine.boot()?;
    }
    // What its guest wants back, or for the first time, while the host holds it.
    let wanted = match name {
        "unsharing" => Some((proto::CMD_UNSHARE, proto::SHARE_BASE)),
        "touching" => Some((proto::CMD_LOAD, proto::RAM_BASE + proto::RAM_MIN)),
        _ => None,
    };
    if let Some((command, page)) = wanted {
        let (_reader, writer) = sys::pipe();
        machine.ram.store(offset(page), 1);
        let held = sys::vmsplice(&writer, machine.ram.at(offset(page)), 4096);
        if held.is_err() {
            return Err(outcome(held));
        }
        let gmem = std::sync::Arc::clone(&machine.gmem);
        std::thread::scope(|scope| {
            scope.spawn(|| machine.command(command, [page, 1, 0]));
            while gmem.pending().is_ok_and(|state| state.pending == 0) {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            say()
        });
    }
    say()
}
