// SPDX-License-Identifier: MIT OR Apache-2.0
//! Donates the pages of an attempt in batches: contiguous runs alone, scattered ones as a record list.
//!
//! Called when every page of the attempt is frozen (I5). Says how far it came; what becomes of the rest is the
//! caller's (I6: the donated prefix is exact).

use crate::convert::{Given, Giver};
use crate::drain::{Attempt, Rest};
use crate::el2::{Conduit, El2, Handle, Run};
use crate::error::Error;
use crate::file::{Book, File, Thread};
use crate::page::Span;
use crate::pool;
use freehold_uapi::hvc::{Record, MAX_RECORDS, MAX_RUN};

/// Success without progress that is believed before `el2` is.
const PATIENCE: u32 = 1000;

/// A frame of the host's that records are written to.
pub trait List {
    /// Its frame number.
    fn pfn(&self) -> u64;
    /// Writes record `index`, below `MAX_RECORDS`.
    fn put(&mut self, index: u64, record: Record);
}

/// Pages that are looked at for one list, holes included.
const REACH: u64 = MAX_RECORDS * MAX_RUN;

/// Where list frames come from.
pub trait Lists {
    /// A list frame; returned to the kernel when dropped.
    type List: List;
    /// Takes one.
    fn list(&self) -> Option<Self::List>;
}

/// Gives an attempt's pages to a VM.
pub struct ToVm<'a, C, K, T> {
    /// The hypervisor.
    pub el2: &'a El2<C>,
    /// The VM.
    pub vm: Handle,
    /// Its pool, and where list frames come from.
    pub kernel: &'a K,
    /// The calling thread.
    pub thread: &'a T,
    /// Guest frame number of the attempt's first page.
    pub gfn: u64,
}

impl<F, C, K, T> Giver<F> for ToVm<'_, C, K, T>
where
    F: File,
    C: Conduit,
    K: pool::Frames + Lists,
    T: Thread,
{
    fn give(&mut self, file: &F, attempt: &Attempt) -> Option<Given> {
        let mut count = 0;
        Some(match self.all(file, attempt, &mut count) {
            Ok(()) => Given { count, rest: Rest::Keep, error: None },
            Err(error) => Given { count, rest: Rest::Restore, error: Some(error) },
        })
    }
}

/// Runs being gathered for one call.
struct Batch {
    first: Option<(Run, u64)>,
    records: u64,
    frames: u64,
}

impl<C: Conduit, K: pool::Frames + Lists, T: Thread> ToVm<'_, C, K, T> {
    fn all<F: File>(&self, file: &F, attempt: &Attempt, count: &mut u64) -> Result<(), Error> {
        let mut list = None;
        let mut idle = 0_u32;
        let mut next = attempt.nth(file, attempt.span().first(), 0);
        while let Some(start) = next {
            if list.is_none() && attempt.total() > 1 {
                list = Some(self.kernel.list().ok_or(Error::NoMemory)?);
            }
            let batch = self.gather(file, attempt, start, list.as_mut());
            let Some((run, gfn)) = batch.first else { return Err(Error::Io) };
            let done = pool::supplied(self.el2, self.kernel, self.vm, || match &list {
                Some(list) if batch.records > 1 => self.el2.mem_donate_list(self.vm, list.pfn(), batch.records),
                Some(_) | None => self.el2.mem_donate(self.vm, run, gfn),
            })?;
            let done = done.min(batch.frames);
            *count = count.saturating_add(done);
            next = attempt.nth(file, start, done);
            idle = if done == 0 { idle.saturating_add(1) } else { 0 };
            if idle > PATIENCE {
                return Err(Error::Io);
            }
            self.thread.breathe();
            if next.is_some() && self.thread.dying() {
                return Err(Error::Interrupted);
            }
        }
        Ok(())
    }

    /// Writes the runs from `start` on into `list`, as many as fit, `MAX_RUN` frames of them: more are refused. Without a
    /// list only the first page.
    fn gather<F: File>(&self, file: &F, attempt: &Attempt, start: u64, list: Option<&mut K::List>) -> Batch {
        let mut batch = Batch { first: None, records: 0, frames: 0 };
        let mut open: Option<(Run, u64)> = None;
        let limit = if list.is_some() { MAX_RECORDS } else { 1 };
        let mut list = list;
        let mut close = |batch: &mut Batch, (run, gfn): (Run, u64)| {
            if batch.first.is_none() {
                batch.first = Some((run, gfn));
            }
            if let Some(list) = list.as_deref_mut() {
                list.put(batch.records, Record::new(run.pfn, gfn, run.count));
            }
            batch.records = batch.records.saturating_add(1);
            batch.frames = batch.frames.saturating_add(run.count);
        };
        let mut frames = 0_u64;
        // Whether the list is full.
        let mut add = |book: &Book<'_>, part: Span| {
            for page in part.pages() {
                if frames == MAX_RUN {
                    return true;
                }
                if attempt.took(book, page).is_none() {
                    continue;
                }
                let Some(pfn) = file.frame(page) else { continue };
                frames = frames.saturating_add(1);
                let gfn = self.gfn.saturating_add(page.saturating_sub(attempt.span().first()));
                if let Some((run, at)) = &mut open {
                    let joins = run.pfn.checked_add(run.count) == Some(pfn) && at.checked_add(run.count) == Some(gfn);
                    if joins {
                        run.count = run.count.saturating_add(1);
                        continue;
                    }
                    close(&mut batch, (*run, *at));
                    open = None;
                    if batch.records == limit {
                        return true;
                    }
                }
                open = Some((Run { pfn, count: 1 }, gfn));
            }
            false
        };
        let reach = attempt.span().end().saturating_sub(start).min(REACH);
        if let Some(reach) = Span::new(start, reach) {
            let _ = reach.parts(F::CHUNK).any(|part| file.change(|book| add(book, part)));
        }
        if let Some(last) = open {
            close(&mut batch, last);
        }
        batch
    }
}
