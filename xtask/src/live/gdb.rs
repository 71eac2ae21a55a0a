// SPDX-License-Identifier: MIT OR Apache-2.0
//! QEMU's debug stub: the system registers of each CPU, and physical memory as it is.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

/// Bytes that one packet asks for.
const CHUNK: u64 = 1024;

/// A connection; as long as it is open, the machine stands still.
pub(super) struct Gdb {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    registers: BTreeMap<String, u32>,
}

impl Gdb {
    /// Stops the machine and learns which registers there are.
    pub(super) fn open(socket: &Path) -> Result<Self> {
        let writer = UnixStream::connect(socket).context("cannot reach QEMU's debug stub")?;
        writer.set_read_timeout(Some(Duration::from_secs(60)))?;
        let reader = BufReader::new(writer.try_clone()?);
        let mut gdb = Self { reader, writer, registers: BTreeMap::new() };
        gdb.ask("qSupported:xmlRegisters=aarch64")?;
        let description = gdb.file("target.xml")?;
        for part in description.split("href=\"").skip(1) {
            let name = part.split('"').next().unwrap_or_default();
            let text = gdb.file(name)?;
            gdb.registers.extend(registers(&text));
        }
        ensure!(gdb.registers.contains_key("TTBR0_EL2"), "the stub names no TTBR0_EL2");
        gdb.expect_ok("Qqemu.PhyMemMode:1")?;
        Ok(gdb)
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
        let bytes = bytes(&self.ask(&format!("p{number:x}"))?)?;
        let word: [u8; 8] = bytes.try_into().ok().with_context(|| format!("{name} is not 64 bits wide"))?;
        Ok(u64::from_le_bytes(word))
    }

    /// A frame of physical memory.
    pub(super) fn frame(&mut self, number: u64) -> Result<Vec<u64>> {
        let mut all = Vec::new();
        for at in (0..4096).step_by(CHUNK as usize) {
            let address = (number << 12) + at;
            all.extend(bytes(&self.ask(&format!("m{address:x},{CHUNK:x}"))?)?);
        }
        ensure!(all.len() == 4096, "frame {number:#x} cannot be read");
        Ok(all.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().unwrap_or_default())).collect())
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
        let sum = packet.bytes().fold(0u8, u8::wrapping_add);
        self.writer.write_all(format!("${packet}#{sum:02x}").as_bytes())?;
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
    }
}
