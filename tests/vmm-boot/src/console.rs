// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's serial port, and the key that leaves it.

use std::collections::VecDeque;
use std::io::Write;

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};

use crate::layout;

/// Ctrl-]: the user wants out.
pub const QUIT: u8 = 0x1d;
/// Registers of a 16550.
const REGISTERS: u64 = 8;

/// A 16550 on a page of the guest's, and what the user typed faster than the guest reads.
#[derive(Debug)]
pub struct Console<T: Trigger, W: Write> {
    port: Serial<T, NoEvents, W>,
    typed: VecDeque<u8>,
}

/// Why an access was not served as a port would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// The interrupt was refused.
    Interrupt,
    /// Nobody takes the output.
    Output,
}

impl<T: Trigger, W: Write> Console<T, W> {
    /// A port that writes to `out` and interrupts by `trigger`.
    pub fn new(trigger: T, out: W) -> Self {
        Self { port: Serial::new(trigger, out), typed: VecDeque::new() }
    }

    /// The register at a guest address, if it is the port's.
    fn register(address: u64) -> Option<u8> {
        let offset = address.checked_sub(layout::SERIAL)?;
        if offset < REGISTERS { u8::try_from(offset).ok() } else { None }
    }

    /// Serves a load; all ones where nothing is.
    ///
    /// # Errors
    /// If an interrupt is refused.
    pub fn load(&mut self, address: u64, data: &mut [u8]) -> Result<(), Wrong> {
        data.fill(0xff);
        let (Some(register), Some(byte)) = (Self::register(address), data.first_mut()) else { return Ok(()) };
        *byte = self.port.read(register);
        // A wider load sees the one register that it names.
        data.iter_mut().skip(1).for_each(|byte| *byte = 0);
        self.feed()
    }

    /// Serves a store; nothing happens where nothing is.
    ///
    /// # Errors
    /// If the output or an interrupt is refused.
    pub fn store(&mut self, address: u64, data: &[u8]) -> Result<(), Wrong> {
        let (Some(register), Some(byte)) = (Self::register(address), data.first()) else { return Ok(()) };
        self.port.write(register, *byte).map_err(|error| match error {
            vm_superio::serial::Error::Trigger(_) => Wrong::Interrupt,
            vm_superio::serial::Error::IOError(_) | vm_superio::serial::Error::FullFifo => Wrong::Output,
        })
    }

    /// Takes what the user typed; false if the user wants out, and nothing after that key counts.
    ///
    /// # Errors
    /// If an interrupt is refused.
    pub fn type_in(&mut self, keys: &[u8], escape: bool) -> Result<bool, Wrong> {
        let until = keys.iter().position(|key| escape && *key == QUIT);
        self.typed.extend(&keys[..until.unwrap_or(keys.len())]);
        self.feed()?;
        Ok(until.is_none())
    }

    /// Gives the port as much of what was typed as it has room for.
    fn feed(&mut self) -> Result<(), Wrong> {
        let room = self.port.fifo_capacity().min(self.typed.len());
        if room == 0 {
            return Ok(());
        }
        let keys: Vec<u8> = self.typed.drain(..room).collect();
        self.port.enqueue_raw_bytes(&keys).map(drop).map_err(|_| Wrong::Interrupt)
    }

    /// Where the output went.
    pub fn out(&mut self) -> &mut W {
        self.port.writer_mut()
    }
}

/// What was printed: to be put out by whole lines where nobody watches, and each byte at once where somebody does.
#[derive(Debug)]
pub struct Lines {
    at_once: bool,
    kept: Vec<u8>,
    /// So much of it from the start on is to be put out.
    ready: usize,
}

/// The longest line that is kept back.
const LONGEST: usize = 4096;

impl Lines {
    /// Nothing yet; `at_once` where a user reads it.
    #[must_use]
    pub fn new(at_once: bool) -> Self {
        Self { at_once, kept: Vec::new(), ready: 0 }
    }

    /// Whether something is to be put out.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        self.ready != 0
    }

    /// Takes what is to be put out.
    pub fn take(&mut self) -> Vec<u8> {
        self.kept.drain(..std::mem::take(&mut self.ready)).collect()
    }

    /// Takes also what was kept back.
    pub fn take_all(&mut self) -> Vec<u8> {
        self.ready = 0;
        std::mem::take(&mut self.kept)
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.kept.extend(bytes);
        if self.at_once || self.kept.len() - self.ready >= LONGEST || bytes.contains(&b'\n') {
            self.ready = self.kept.len();
        }
        Ok(bytes.len())
    }

    /// The port asks for it after each byte.
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    const DATA: u64 = layout::SERIAL;
    const ENABLE: u64 = layout::SERIAL + 1;
    const STATUS: u64 = layout::SERIAL + 5;

    #[derive(Clone, Default)]
    struct Count(Rc<Cell<u32>>, bool);

    impl Trigger for Count {
        type E = ();

        fn trigger(&self) -> Result<(), ()> {
            self.0.set(self.0.get() + 1);
            if self.1 { Err(()) } else { Ok(()) }
        }
    }

    fn console() -> (Console<Count, Vec<u8>>, Count) {
        let count = Count::default();
        (Console::new(count.clone(), Vec::new()), count)
    }

    fn load(console: &mut Console<Count, Vec<u8>>, address: u64) -> u8 {
        let mut byte = [0];
        console.load(address, &mut byte).unwrap();
        byte[0]
    }

    #[test]
    fn what_lies_outside_reads_as_ones_and_keeps_nothing() {
        let (mut console, count) = console();
        for address in [0, DATA - 1, DATA + 8, u64::MAX] {
            console.store(address, &[b'x'; 8]).unwrap();
            let mut data = [0; 8];
            console.load(address, &mut data).unwrap();
            assert_eq!(data, [0xff; 8]);
        }
        assert!(console.out().is_empty());
        assert_eq!(count.0.get(), 0);
    }

    #[test]
    fn stores_come_out_and_loads_of_any_width_see_one_register() {
        let (mut console, _) = console();
        for byte in b"ok" {
            console.store(DATA, &[*byte, 0, 0, 0]).unwrap();
        }
        assert_eq!(console.out(), b"ok");
        let mut wide = [0xaa; 4];
        console.load(STATUS, &mut wide).unwrap();
        assert_eq!(wide, [0x60, 0, 0, 0]);
    }

    #[test]
    fn more_than_the_port_holds_is_kept_and_arrives_in_order() {
        let (mut console, count) = console();
        console.store(ENABLE, &[1]).unwrap();
        let keys: Vec<u8> = (0..200u16).map(|i| (i % 100) as u8).collect();
        assert_eq!(console.type_in(&keys, false), Ok(true));
        assert_eq!(count.0.get(), 1, "one edge for what came at once");
        let mut got = Vec::new();
        while load(&mut console, STATUS) & 1 != 0 {
            got.push(load(&mut console, DATA));
        }
        assert_eq!(got, keys);
    }

    #[test]
    fn the_quit_key_ends_and_hides_what_follows_but_only_on_a_terminal() {
        let (mut console, _) = console();
        assert_eq!(console.type_in(&[b'a', QUIT, b'b'], true), Ok(false));
        assert_eq!((load(&mut console, DATA), load(&mut console, STATUS) & 1), (b'a', 0));
        assert_eq!(console.type_in(&[QUIT], false), Ok(true));
        assert_eq!(load(&mut console, DATA), QUIT);
    }

    #[test]
    fn a_refused_interrupt_is_told() {
        let mut console = Console::new(Count(Rc::default(), true), Vec::new());
        assert_eq!(console.store(ENABLE, &[2]), Err(Wrong::Interrupt));
        console.store(ENABLE, &[0]).unwrap();
        assert_eq!(console.store(ENABLE, &[1]), Ok(()));
        assert_eq!(console.type_in(b"x", false), Err(Wrong::Interrupt));
    }

    #[test]
    fn lines_come_out_whole_where_nobody_watches() {
        let mut lines = Lines::new(false);
        lines.write_all(b"one").unwrap();
        assert!(!lines.is_ready());
        assert!(lines.take().is_empty());
        lines.write_all(b"\ntw").unwrap();
        lines.write_all(b"o").unwrap();
        assert!(lines.is_ready());
        assert_eq!(lines.take(), b"one\ntw");
        assert!(!lines.is_ready(), "once");
        lines.write_all(&[b'x'; LONGEST - 1]).unwrap();
        assert_eq!(lines.take().len(), LONGEST);
        lines.write_all(b"rest").unwrap();
        assert_eq!(lines.take_all(), b"rest");
        assert!(lines.take_all().is_empty());
    }

    #[test]
    fn each_byte_comes_out_at_once_where_somebody_watches() {
        let mut lines = Lines::new(true);
        for byte in b"ok" {
            lines.write_all(&[*byte]).unwrap();
            assert!(lines.is_ready());
            assert_eq!(lines.take(), [*byte]);
        }
    }
}
