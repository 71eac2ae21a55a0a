// SPDX-License-Identifier: MIT OR Apache-2.0
//! A thread whose sleeps make things happen.

use crate::file::{Thread, Wake};
use std::cell::{Cell, RefCell};

/// A thread; each of its sleeps runs the next thing of its script, and then it may be signalled.
#[derive(Default)]
pub(super) struct Sleeper<'a> {
    pub(super) script: RefCell<Vec<Box<dyn FnOnce() + 'a>>>,
    pub(super) clock: Cell<u64>,
    pub(super) signal_at: Cell<Option<u32>>,
    pub(super) sleeps: Cell<u32>,
    pub(super) killed: Cell<bool>,
    /// Looks at whether it is killed until it is.
    pub(super) kill_after: Cell<Option<u32>>,
    /// What others do when it next lets them run.
    pub(super) lets_run: RefCell<Option<Box<dyn FnOnce() + 'a>>>,
}

impl<'a> Sleeper<'a> {
    /// Sleeps through these, in order.
    pub(super) fn of(script: Vec<Box<dyn FnOnce() + 'a>>) -> Self {
        let mut script = script;
        script.reverse();
        Self { script: RefCell::new(script), ..Self::default() }
    }
}

impl Thread for Sleeper<'_> {
    fn now(&self) -> u64 {
        self.clock.get()
    }

    fn pause(&self, micros: u32) -> Wake {
        assert!((10..=1000).contains(&micros));
        self.sleeps.set(self.sleeps.get() + 1);
        assert!(self.sleeps.get() < 10_000, "waits for ever");
        self.clock.set(self.clock.get() + 1);
        let next = self.script.borrow_mut().pop();
        if let Some(next) = next {
            next();
        }
        if self.signal_at.get() == Some(self.sleeps.get()) {
            Wake::Interrupted
        } else {
            Wake::Elapsed
        }
    }

    fn breathe(&self) {
        let next = self.lets_run.take();
        if let Some(next) = next {
            next();
        }
    }

    fn dying(&self) -> bool {
        match self.kill_after.get() {
            Some(0) => self.killed.set(true),
            Some(left) => self.kill_after.set(Some(left - 1)),
            None => {}
        }
        self.killed.get()
    }
}
