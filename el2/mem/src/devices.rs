// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which guest frames outside RAM a guest lets its accesses reach.
//!
//! Keeps the guest's half of D9: once it guards, what it has not opened can not be told to the host. Runs that touch are one.

use core::num::NonZeroU32;

use crate::few::Few;
use crate::guest::Body;
use crate::{Gfn, GfnRun, Guest, Life, Refused};

/// Runs that a guest may have open.
pub const MAX_DEVICES: usize = 32;

/// First guest frame and count: each VM slot has room for all of them.
type Run = (u32, NonZeroU32);

/// What one guest has said of its devices.
#[derive(Debug)]
pub(crate) struct Devices {
    guarded: bool,
    /// # Invariants
    /// No two of them touch.
    open: Few<Run, MAX_DEVICES>,
}

impl Devices {
    /// Of a guest that has said nothing.
    pub(crate) const fn new() -> Self {
        Self { guarded: false, open: Few::new() }
    }

    /// The runs, each from its first guest frame to the one behind its last.
    fn runs(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.open.iter().map(|(from, count)| (from, from.saturating_add(count.get())))
    }

    /// The runs with this one open, or without it; `None` if they are too many.
    fn with(&self, run: GfnRun, open: bool) -> Option<Few<Run, MAX_DEVICES>> {
        let mut all = Few::new();
        let mut add = |from: u32, to: u32| match NonZeroU32::new(to.saturating_sub(from)) {
            Some(count) => all.push((from, count)),
            None => true,
        };
        let (mut start, mut end) = (u32::try_from(run.start().raw()).ok()?, u32::try_from(run.end()).ok()?);
        let mut fits = true;
        for (from, to) in self.runs() {
            if open && from <= end && start <= to {
                (start, end) = (start.min(from), end.max(to));
            } else {
                // What is before the run, and what is behind it.
                fits = fits && add(from, to.min(start.max(from))) && add(from.max(end.min(to)), to);
            }
        }
        (fits && (!open || add(start, end))).then_some(all)
    }
}

impl Guest {
    /// From here on the guest's accesses outside RAM reach what it has opened, and nothing else.
    pub fn guard(&mut self) {
        self.body.iter_mut().for_each(|body| body.devices.guarded = true);
    }

    /// Opens a run outside RAM to the guest's accesses, or shuts it.
    ///
    /// # Errors
    /// `WrongState` unless the VM runs, `RamOverlap`, `TooManyRanges`.
    pub fn set_open(&mut self, run: GfnRun, open: bool) -> Result<(), Refused> {
        let body = self.in_life(&[Life::Running])?;
        if body.meets_ram(run) {
            return Err(Refused::RamOverlap);
        }
        body.devices.open = body.devices.with(run, open).ok_or(Refused::TooManyRanges)?;
        Ok(())
    }

    /// Whether the guest guards its devices, and this is neither RAM nor open.
    #[inline]
    pub fn bars(&self, at: Option<Gfn>) -> bool {
        self.body.as_ref().is_some_and(|body| body.devices.guarded) && self.shuts(at)
    }

    #[inline(never)]
    fn shuts(&self, at: Option<Gfn>) -> bool {
        let is_open =
            |body: &Body, gfn: u64| body.devices.runs().any(|(from, to)| (from.into()..to.into()).contains(&gfn));
        let reaches = |body: &Body, gfn: Gfn| body.is_ram(gfn) || is_open(body, gfn.raw());
        self.body.as_ref().is_some_and(|body| !at.is_some_and(|gfn| reaches(body, gfn)))
    }
}
