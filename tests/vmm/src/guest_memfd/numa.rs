// SPDX-License-Identifier: MIT OR Apache-2.0
//! A machine of two nodes: where pages come from, who may not move them, and conversions beside the kernel's own balancing.

use std::sync::atomic::{AtomicBool, Ordering};

use freehold_uapi::ioctl::{GUEST_MEMFD_FLAG_MMAP, Populate};

use super::STEP;
use super::calls::{call, fd};
use super::lives::wait_for;
use super::rig::{PAGE, Rig, bytes, new_vm};
use crate::gmem::{Gmem, converted};
use crate::hostile::Hostile;
use crate::machine::{Machine, Plan, make_gmem, new_gmem};
use crate::raw::{resting, settle};
use crate::sys::{self, Mapping, errno_name, outcome};

const PAGES: u64 = 16;
const MPOL_DEFAULT: u64 = 0;
const MPOL_BIND: u64 = 2;
/// Bits of a mask of nodes, and one more, as the kernel counts them.
const NODES: u64 = 65;

/// Has this thread's memory come from `node`, or from wherever.
fn prefer(node: Option<u32>) -> Result<(), String> {
    let mask = node.map_or(0u64, |node| 1 << node);
    let (mode, at) = node.map_or((MPOL_DEFAULT, 0), |_| (MPOL_BIND, (&raw const mask) as u64));
    call(libc::SYS_set_mempolicy, &[mode, at, NODES]).map(drop).map_err(errno_name)
}

/// What move_pages(2) says of each page: its node, or the name of its errno. Moves them to `to`, if it may.
fn places(map: &Mapping, pages: u64, to: Option<i32>) -> Result<Vec<String>, String> {
    let at: Vec<*mut u8> = (0..pages).map(|page| map.at(bytes(page))).collect();
    let nodes = to.map(|to| vec![to; at.len()]);
    let mut status = vec![i32::MIN; at.len()];
    let nodes = nodes.as_ref().map_or(0, |nodes| nodes.as_ptr() as u64);
    call(libc::SYS_move_pages, &[0, pages, at.as_ptr() as u64, nodes, status.as_mut_ptr() as u64, 0])
        .map_err(errno_name)?;
    let mut said: Vec<String> =
        status.iter().map(|status| if *status < 0 { errno_name(-status) } else { format!("node {status}") }).collect();
    said.dedup();
    Ok(said)
}

fn same_places(case: &str, expected: &str, map: &Mapping) -> Result<(), String> {
    let seen = places(map, PAGES, None)?;
    STEP.same(case, format!("{:?}", [expected]), format!("{seen:?}"));
    Ok(())
}

/// Runs every part.
pub(crate) fn all() -> Result<(), String> {
    let online = std::fs::read_to_string("/sys/devices/system/node/has_memory").unwrap_or_default();
    STEP.same("numa: nodes with memory", "0-1", online.trim());
    let hostile = Hostile::open()?;
    let rest = resting(&hostile);
    for node in [0, 1] {
        from(node)?;
    }
    prefer(None)?;
    policies_of_mappings()?;
    movers()?;
    balancing()?;
    guests()?;
    settle(STEP, "numa: all is as before", &hostile, &rest);
    Ok(())
}

/// However a page comes, it is of the node that its bringer's policy says.
fn from(node: u32) -> Result<(), String> {
    let (on, case) = (format!("node {node}"), |what: &str| format!("numa: {what} on node {node}"));
    prefer(Some(node))?;
    let rig = Rig::new(PAGES)?;
    same_places(&case("stored to"), &on, &rig.map)?;
    STEP.same(&case("to private"), "0", converted(rig.gmem.to_private_now(0, rig.size())));
    STEP.same(&case("back"), "0", converted(rig.gmem.to_shared(0, rig.size())));
    STEP.same(&case("contents are kept"), "[]", format!("{:?}", rig.damaged()));
    same_places(&case("back, it is still"), &on, &rig.map)?;
    let size = PAGES * PAGE;
    let looked_at = |gmem: &Gmem| -> Result<Mapping, String> {
        // By a thread of the other node's, which brings nothing.
        prefer(Some(1 - node))?;
        let map = gmem.map(bytes(PAGES)).map_err(errno_name)?;
        for page in 0..PAGES {
            std::hint::black_box(map.load(bytes(page)));
        }
        prefer(Some(node))?;
        Ok(map)
    };
    let reserved = new_gmem(&rig.vm, size).map_err(errno_name)?;
    let done = sys::fallocate(&reserved, libc::FALLOC_FL_KEEP_SIZE, 0, size.cast_signed());
    STEP.same(&case("fallocate"), "0", outcome(done));
    same_places(&case("reserved"), &on, &looked_at(&reserved)?)?;
    let text = vec![0x5a_u8; bytes(PAGES)];
    let populated = make_gmem(&rig.vm, size, GUEST_MEMFD_FLAG_MMAP).map_err(errno_name)?;
    let ask = Populate { offset: 0, size, source: text.as_ptr() as u64, error_offset: 0, reserved: [0; 4] };
    STEP.same(&case("populate"), "0", converted(populated.populate(ask)));
    STEP.same(&case("populated, back"), "0", converted(populated.to_shared(0, size)));
    same_places(&case("populated"), &on, &looked_at(&populated)?)
}

/// What mbind(2) says of a mapping is not looked at: the policy of the thread that touches a page is.
fn policies_of_mappings() -> Result<(), String> {
    let vm = new_vm()?;
    let gmem = new_gmem(&vm, PAGES * PAGE).map_err(errno_name)?;
    let map = gmem.map(bytes(PAGES)).map_err(errno_name)?;
    let mask = 1u64 << 1;
    let arguments = [map.at(0) as u64, PAGES * PAGE, MPOL_BIND, (&raw const mask) as u64, NODES, 0];
    STEP.same("numa: mbind of a mapping", "0", outcome(call(libc::SYS_mbind, &arguments)));
    prefer(Some(0))?;
    for page in 0..PAGES {
        map.store(bytes(page), page);
    }
    prefer(None)?;
    same_places("numa: mbind, and a thread of another node", "node 0", &map)
}

/// move_pages(2) and migrate_pages(2) leave pages where they are, and hold none.
fn movers() -> Result<(), String> {
    prefer(Some(0))?;
    let rig = Rig::new(PAGES)?;
    // Control: a page that may move does.
    let other = Mapping::anonymous(bytes(PAGES), false).map_err(errno_name)?;
    for page in 0..PAGES {
        other.store(bytes(page), page);
    }
    prefer(None)?;
    let moved = places(&other, PAGES, Some(1))?;
    STEP.same("numa: move_pages of other memory", "[\"node 1\"]", format!("{moved:?}"));
    let moved = places(&rig.map, PAGES, Some(1))?;
    STEP.judged(
        "numa: move_pages",
        "an error for each",
        format!("{moved:?}"),
        !moved.iter().any(|m| m.starts_with("node")),
    );
    same_places("numa: moved, it is still", "node 0", &rig.map)?;
    let (zero, one) = (1u64, 2u64);
    let arguments = [0, NODES, (&raw const zero) as u64, (&raw const one) as u64];
    let stayed = call(libc::SYS_migrate_pages, &arguments);
    STEP.judged("numa: migrate_pages", "an answer", outcome(stayed), stayed.is_ok());
    same_places("numa: migrated, it is still", "node 0", &rig.map)?;
    STEP.same("numa: nobody holds it", "0", converted(rig.gmem.to_private_now(0, rig.size())));
    STEP.same("numa: back", "0", converted(rig.gmem.to_shared(0, rig.size())));
    STEP.same("numa: contents are kept", "[]", format!("{:?}", rig.damaged()));
    Ok(())
}

/// Faults by which the kernel learnt which node touches what.
fn hints() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("numa_hint_faults ")?.trim().parse().ok()).unwrap_or(0)
}

/// The kernel takes mappings away for a moment to see who touches a page, and would move it there.
fn balancing() -> Result<(), String> {
    const ROUNDS: u64 = 40;
    std::fs::write("/proc/sys/kernel/numa_balancing", "1").map_err(|e| format!("numa_balancing: {e}"))?;
    let rig = Rig::new(PAGES)?;
    let (stop, before) = (AtomicBool::new(false), hints());
    let sink = sys::memfd(PAGE).map_err(errno_name)?;
    let sink = sys::owned(sink.into());
    let failed = std::thread::scope(|scope| {
        for cpu in 0..4 {
            let (stop, rig, sink) = (&stop, &rig, &sink);
            scope.spawn(move || {
                sys::pin_to(cpu);
                let mut page = 0;
                while !stop.load(Ordering::Relaxed) {
                    page = (page + 1) % PAGES;
                    // A private page is EFAULT here, and no signal.
                    let _ = call(libc::SYS_pwrite64, &[fd(sink), rig.map.at(bytes(page)) as u64, 8, 0]);
                }
            });
        }
        let looked = wait_for(|| hints() > before);
        STEP.same("numa: the kernel balances", true, looked);
        let mut failed = Vec::new();
        for _ in 0..ROUNDS {
            let there = converted(rig.gmem.to_private(0, rig.size(), 120_000));
            let back = converted(rig.gmem.to_shared(0, rig.size()));
            if there != "0" || back != "0" {
                failed.push((there, back));
            }
        }
        stop.store(true, Ordering::Relaxed);
        failed
    });
    STEP.same("numa: conversions that failed meanwhile", "[]", format!("{failed:?}"));
    STEP.same("numa: balanced, contents are kept", "[]", format!("{:?}", rig.damaged()));
    Ok(())
}

/// A guest whose memory is one node's runs on a CPU of the other.
fn guests() -> Result<(), String> {
    for (node, cpu) in [(0, 3), (1, 0)] {
        prefer(Some(node))?;
        let mut machine = Machine::new(Plan::default())?;
        prefer(None)?;
        machine.gmem.to_private(0, Plan::default().private, 0).map_err(|(error, _)| errno_name(error))?;
        sys::pin_to(cpu);
        let boot = machine.boot()?;
        STEP.same(&format!("numa: a guest of node {node} on CPU {cpu}"), 1, boot.hash_ok);
    }
    Ok(())
}
