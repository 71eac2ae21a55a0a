// SPDX-License-Identifier: MIT OR Apache-2.0
//! QEMU's debug stub: the system registers of each CPU, and physical memory as it is.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// Bytes that one packet asks for.
const CHUNK: u64 = 1024;

/// How long the stub may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why the machine stands still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stop {
    /// The CPU that came there, by the stub's name.
    pub(super) cpu: String,
    /// The first of the watched bytes that are stored to.
    pub(super) watched: Option<u64>,
    /// Its exception level.
    pub(super) level: u64,
}

/// A connection; the machine stands still from its beginning until it is told to go.
pub(super) struct Gdb {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    registers: BTreeMap<String, u32>,
}

impl Gdb {
    /// Stops the machine and learns which registers there are.
    pub(super) fn open(socket: &Path) -> Result<Self> {
        let writer = UnixStream::connect(socket).context("cannot reach QEMU's debug stub")?;
        writer.set_read_timeout(Some(PATIENCE))?;
        let reader = BufReader::new(writer.try_clone()?);
        let mut gdb = Self { reader, writer, registers: BTreeMap::new() };
        gdb.ask("qSupported:xmlRegisters=aarch64")?;
        let description = gdb.file("target.xml")?;
        for part in description.split("href=\"").skip(1) {
            let name = part.split('"').next().unwrap_or_default();
            let text = gdb.file(name)?;
            gdb.registers.extend(registers(&text));
        }
        // The core registers carry no numbers: x0 to x30, sp, pc, cpsr.
        for (name, number) in [("sp", 31), ("pc", 32), ("cpsr", 33)] {
            gdb.registers.entry(name.to_owned()).or_insert(number);
        }
        ensure!(gdb.registers.contains_key("TTBR0_EL2"), "the stub names no TTBR0_EL2");
        gdb.expect_ok("Qqemu.PhyMemMode:1")?;
        Ok(gdb)
    }

    /// Connects to a machine that was started with `-S` and may not have opened its stub yet.
    pub(super) fn open_stopped(socket: &Path) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        while !socket.exists() {
            ensure!(Instant::now() < deadline, "QEMU opened no debug stub");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self::open(socket)
    }

    /// Lets the machine go until the instruction at `address` is the next.
    pub(super) fn go_to(&mut self, address: u64, limit: Duration) -> Result<Stop> {
        self.expect_ok(&format!("Z1,{address:x},4"))?;
        self.go()?;
        let stop = self.stopped(limit)?.with_context(|| format!("nothing came to {address:#x}"))?;
        self.expect_ok(&format!("z1,{address:x},4"))?;
        Ok(stop)
    }

    /// Lets one CPU carry out one instruction.
    pub(super) fn step(&mut self, cpu: &str) -> Result<()> {
        self.send(&format!("vCont;s:{cpu}"))?;
        ensure!(self.stopped(PATIENCE)?.is_some(), "{cpu} does not step");
        Ok(())
    }

    /// Has the machine stop in front of each store to these bytes: the stub of an Arm machine does not stop behind it, and
    /// without [`past_store`](Self::past_store) the same store is met again for ever.
    pub(super) fn watch_stores(&mut self, address: u64, bytes: u64) -> Result<()> {
        self.expect_ok(&format!("Z2,{address:x},{bytes:x}"))
    }

    /// Lets the CPU that stopped in front of a store to these bytes carry it out.
    pub(super) fn past_store(&mut self, cpu: &str, address: u64, bytes: u64) -> Result<()> {
        self.forget_stores(address, bytes)?;
        self.step(cpu)?;
        self.watch_stores(address, bytes)
    }

    /// Takes that back.
    pub(super) fn forget_stores(&mut self, address: u64, bytes: u64) -> Result<()> {
        self.expect_ok(&format!("z2,{address:x},{bytes:x}"))
    }

    /// Lets the machine go on.
    pub(super) fn go(&mut self) -> Result<()> {
        self.send("c")
    }

    /// Waits until a machine that goes has stopped by itself; none if it has not within `limit`.
    pub(super) fn stopped(&mut self, limit: Duration) -> Result<Option<Stop>> {
        self.writer.set_read_timeout(Some(limit))?;
        let there = self.packet_begins();
        self.writer.set_read_timeout(Some(PATIENCE))?;
        if !there? {
            return Ok(None);
        }
        let answer = self.answer()?;
        let (watched, cpu) = reason(&answer).with_context(|| format!("no stop: {answer}"))?;
        let level = self.register(&cpu, "cpsr")? >> 2 & 3;
        Ok(Some(Stop { cpu, watched, level }))
    }

    /// Whether the stub says something in time, but that it has heard.
    fn packet_begins(&mut self) -> Result<bool> {
        loop {
            match self.reader.fill_buf().map(|bytes| bytes.first().copied()) {
                Ok(Some(b'$')) => return Ok(true),
                Ok(Some(_)) => self.reader.consume(1),
                Ok(None) => bail!("the stub went away"),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Stops a machine that goes.
    pub(super) fn interrupt(&mut self) -> Result<()> {
        self.writer.write_all(&[3])?;
        let stop = self.stopped(PATIENCE)?;
        ensure!(stop.is_some(), "the machine does not stop");
        Ok(())
    }

    /// The CPUs, by the stub's name.
    pub(super) fn cpus(&mut self) -> Result<Vec<String>> {
        let mut all = Vec::new();
        let mut answer = self.ask("qfThreadInfo")?;
        while let Some(list) = answer.strip_prefix('m') {
            all.extend(list.split(',').map(str::to_owned));
            answer = self.ask("qsThreadInfo")?;
        }
        Ok(all)
    }

    /// A system register of a CPU.
    pub(super) fn register(&mut self, cpu: &str, name: &str) -> Result<u64> {
        self.expect_ok(&format!("Hg{cpu}"))?;
        let number = *self.registers.get(name).with_context(|| format!("the stub names no {name}"))?;
        let mut bytes = bytes(&self.ask(&format!("p{number:x}"))?)?;
        ensure!(matches!(bytes.len(), 4 | 8), "{name} is neither 32 nor 64 bits wide");
        bytes.resize(8, 0);
        Ok(words_of(&bytes)[0])
    }

    /// Changes x0 to x30, sp (31) or pc (32) of a CPU.
    pub(super) fn set(&mut self, cpu: &str, core: u32, value: u64) -> Result<()> {
        self.expect_ok(&format!("Hg{cpu}"))?;
        self.expect_ok(&format!("P{core:x}={:016x}", value.swap_bytes()))
    }

    /// A frame of physical memory.
    pub(super) fn frame(&mut self, number: u64) -> Result<Vec<u64>> {
        self.words(number << 12, 4096)
    }

    /// The words of so many bytes of physical memory.
    pub(super) fn words(&mut self, address: u64, size: u64) -> Result<Vec<u64>> {
        let mut all = Vec::new();
        while let Some(left @ 1..) = size.checked_sub(all.len() as u64) {
            let (at, count) = (address + all.len() as u64, left.min(CHUNK));
            let part = bytes(&self.ask(&format!("m{at:x},{count:x}"))?)?;
            ensure!(part.len() as u64 == count, "memory at {at:#x} cannot be read");
            all.extend(part);
        }
        Ok(words_of(&all))
    }

    fn file(&mut self, name: &str) -> Result<String> {
        let mut text = String::new();
        loop {
            let part = self.ask(&format!("qXfer:features:read:{name}:{:x},7f0", text.len()))?;
            match part.split_at_checked(1) {
                Some(("m", more)) => text.push_str(more),
                Some(("l", more)) => return Ok(text + more),
                _ => bail!("the stub has no {name}: {part}"),
            }
        }
    }

    fn expect_ok(&mut self, packet: &str) -> Result<()> {
        let answer = self.ask(packet)?;
        ensure!(answer == "OK", "{packet}: {answer}");
        Ok(())
    }

    fn ask(&mut self, packet: &str) -> Result<String> {
        self.send(packet)?;
        self.answer()
    }

    fn send(&mut self, packet: &str) -> Result<()> {
        let sum = packet.bytes().fold(0u8, u8::wrapping_add);
        Ok(self.writer.write_all(format!("${packet}#{sum:02x}").as_bytes())?)
    }

    fn answer(&mut self) -> Result<String> {
        let mut noise = Vec::new();
        self.reader.read_until(b'$', &mut noise)?;
        let mut body = Vec::new();
        self.reader.read_until(b'#', &mut body)?;
        ensure!(body.pop() == Some(b'#'), "the stub went away");
        self.reader.read_exact(&mut [0; 2])?;
        self.writer.write_all(b"+")?;
        // `*` repeats, `}` escapes; the stub uses both in memory and files.
        Ok(String::from_utf8_lossy(&unpacked(&body)).into_owned())
    }
}

/// The stored-to address, if there is one, and the CPU, of a reason to stop: `T05thread:p1.2;watch:40298008;`.
fn reason(answer: &str) -> Option<(Option<u64>, String)> {
    let parts = || answer.strip_prefix('T')?.get(2..).map(|rest| rest.split(';'));
    let value = |key: &str| parts()?.find_map(|part| part.strip_prefix(key)?.strip_prefix(':'));
    let watched = value("watch").and_then(|at| u64::from_str_radix(at, 16).ok());
    Some((watched, value("thread")?.to_owned()))
}

fn words_of(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().unwrap_or_default())).collect()
}

fn unpacked(body: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::new();
    let mut rest = body.iter();
    while let Some(byte) = rest.next() {
        match byte {
            b'*' => {
                let times = rest.next().map_or(0, |n| n.saturating_sub(29));
                out.extend(out.last().copied().into_iter().cycle().take(times.into()));
            }
            b'}' => out.extend(rest.next().map(|b| b ^ 0x20)),
            _ => out.push(*byte),
        }
    }
    out
}

fn bytes(hex: &str) -> Result<Vec<u8>> {
    let pairs = hex.as_bytes().chunks_exact(2);
    let all: Option<Vec<u8>> = pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect();
    all.with_context(|| format!("no bytes: {hex}"))
}

/// Name and number of each register that a description lists.
fn registers(text: &str) -> impl Iterator<Item = (String, u32)> + '_ {
    let of = |element: &str, attribute: &str| {
        let (_, rest) = element.split_once(&format!("{attribute}=\""))?;
        Some(rest.split('"').next()?.to_owned())
    };
    text.split("<reg ").skip(1).filter_map(move |element| {
        let element = element.split('>').next()?;
        Some((of(element, "name")?, of(element, "regnum")?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_and_packets_are_read() {
        let text =
            "<reg name=\"TTBR0_EL2\" bitsize=\"64\" regnum=\"123\" group=\"cp_regs\"/><reg name=\"X\" regnum=\"7\"/>";
        let all: Vec<_> = registers(text).collect();
        assert_eq!(all, [("TTBR0_EL2".to_owned(), 123), ("X".to_owned(), 7)]);
        assert_eq!(unpacked(b"0* "), b"0000");
        assert_eq!(unpacked(b"a}\x03b"), b"a#b");
        assert_eq!(bytes("00ff").unwrap(), [0, 255]);
        assert!(bytes("zz").is_err());
        assert_eq!(reason("T05thread:p01.02;watch:40298008;"), Some((Some(0x4029_8008), "p01.02".to_owned())));
        assert_eq!(reason("T05thread:01;"), Some((None, "01".to_owned())));
        assert_eq!(reason("OK"), None);
    }
}
