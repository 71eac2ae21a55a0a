// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host looks for a Linux guest's secret: by its kernel, by the VMM's own mapping, and in all of RAM from outside.

use std::os::unix::fs::FileExt as _;

use freehold_uapi::hvc;

use crate::hostile::{Hostile, How, runs};
use crate::kill::hold_still;
use crate::report::{Step, line};

/// Frames that the kernel tries to read, spread over all that it cannot reach.
const TRIES: usize = 64;

/// Looks while the guest that the VMM `process` runs keeps its secret.
pub(super) fn at_memory(step: Step, process: u32, masked: &str) -> Result<(), String> {
    let hostile = Hostile::open()?;
    let Some((secret, mask)) = masked.split_once(' ') else { return Err(format!("a secret told as {masked:?}")) };
    line(&format!("{{\"secret_masked\":\"{secret}\",\"mask\":\"{mask}\"}}"));
    let foreign = hostile.unreachable();
    for part in runs(&foreign).split(',').collect::<Vec<_>>().chunks(32) {
        line(&format!("{{\"unreachable\":\"{}\"}}", part.join(",")));
    }
    by_kernel(step, &hostile, &foreign);
    let (pages, control) = by_mapping(process)?;
    step.same("tools: proc-mem-reads-the-vmm", true, control);
    step.judged("proc-mem-reads-guest-memory", "no page", pages, pages.are_closed());
    line(&format!("{{\"scan\":\"alive\",\"step\":\"{}\"}}", step.0));
    hold_still();
    Ok(())
}

/// The host's kernel loads from the guest's frames by its linear map: each load faults, and the host lives.
fn by_kernel(step: Step, hostile: &Hostile, foreign: &[u64]) {
    let own = hostile.alloc(0).map(|frame| (hostile.access(frame, How::Linear, None).0, hostile.free(frame)));
    let works = own.as_ref().is_ok_and(|(load, free)| load == "done" && free.is_ok());
    step.judged("tools: kernel-reads-its-own", "done", format!("{own:?}"), works);
    let before = hostile.counter(hvc::COUNTER_HOST_FAULTS, 0);
    let tried = foreign.iter().step_by((foreign.len() / TRIES).max(1));
    let met: Vec<String> = tried.map(|frame| hostile.access(*frame, How::Linear, None).0).collect();
    let faults = hostile.counter(hvc::COUNTER_HOST_FAULTS, 0) - before;
    let refused = met.iter().filter(|met| *met == "EFAULT").count();
    let held = refused == met.len() && refused >= TRIES && faults >= refused as u64;
    let seen = format!("{refused} of {} loads EFAULT, {faults} faults", met.len());
    step.judged("kernel-reads-guest-memory", "every load EFAULT, each a fault that el2 took", seen, held);
}

/// Pages of a guest's memory that its VMM's mapping gave to another process, and that it did not.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pages {
    read: usize,
    refused: usize,
}

impl Pages {
    /// As of a protected guest: none.
    pub(super) const fn are_closed(self) -> bool {
        self.read == 0 && self.refused >= TRIES
    }

    /// As of an ordinary one: all.
    pub(super) const fn are_open(self) -> bool {
        self.refused == 0 && self.read >= TRIES
    }
}

impl std::fmt::Display for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} pages read, {} refused", self.read, self.refused)
    }
}

/// The VMM's mapping of its guest's memory, from another process; and whether that can read the VMM's own.
pub(super) fn by_mapping(process: u32) -> Result<(Pages, bool), String> {
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).map_err(|e| e.to_string())?;
    let memory = std::fs::File::open(format!("/proc/{process}/mem")).map_err(|e| e.to_string())?;
    let (mut pages, mut control) = (Pages::default(), false);
    for map in maps.lines() {
        let Some((start, end)) = map.split(' ').next().and_then(|range| range.split_once('-')) else { continue };
        let number = |text| u64::from_str_radix(text, 16).map_err(|e| e.to_string());
        let (start, end) = (number(start)?, number(end)?);
        if !map.contains("guest_memfd") {
            control |= map.contains("[heap]") && memory.read_at(&mut [0; 8], start).is_ok();
            continue;
        }
        for page in (start..end).step_by(usize::try_from((end - start) / TRIES as u64).map_err(|e| e.to_string())?) {
            match memory.read_at(&mut [0; 8], page) {
                Ok(_) => pages.read += 1,
                Err(_) => pages.refused += 1,
            }
        }
    }
    Ok((pages, control))
}
