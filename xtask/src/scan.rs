// SPDX-License-Identifier: MIT OR Apache-2.0
//! Looks for a guest's secret in all of the machine's RAM, from outside of the machine.
//!
//! The guest tells its secret only masked, so that no copy of it is made by telling it. Alive, it may stand only in
//! frames that the host cannot reach; afterwards nowhere.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use memchr::memmem;
use serde_json::Value;

use crate::qemu::Running;
use crate::session::Case;

/// Where the `virt` machine has its RAM.
const RAM_BASE: u64 = 0x4000_0000;
const CHUNK: u64 = 64 << 20;

/// What the job told so far.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    masked: Vec<u64>,
    mask: Vec<u64>,
    unreachable: Vec<(u64, u64)>,
    carve_outs: Vec<(u64, u64)>,
}

impl Facts {
    /// Takes one line of the job; a scan that it asks for is made, and becomes a case.
    ///
    /// # Errors
    /// If a number cannot be read.
    pub(crate) fn take(&mut self, value: &Value, machine: &mut Running) -> Result<Option<Case>> {
        let text = |name: &str| value.get(name).and_then(Value::as_str);
        if let (Some(masked), Some(mask)) = (text("secret_masked"), text("mask")) {
            (self.masked, self.mask) = (words(masked)?, words(mask)?);
            // Another guest, other frames.
            self.unreachable.clear();
        }
        if let Some(list) = text("unreachable") {
            self.unreachable.extend(ranges(list)?);
        }
        if let Some(list) = text("carveouts") {
            self.carve_outs = ranges(list)?;
        }
        let of_step = |case: Case| Case { step: text("step").unwrap_or("8").to_owned(), ..case };
        match text("scan") {
            Some("alive") => Ok(Some(of_step(self.scan(machine, true)))),
            Some("dead") => Ok(Some(of_step(self.scan(machine, false)))),
            Some(other) => bail!("a job asks for an unknown scan `{other}`"),
            None => Ok(None),
        }
    }

    /// What of the secret is in RAM when the job has ended.
    pub(crate) fn at_the_end(&self, machine: &mut Running, step: &str) -> Case {
        Case { step: step.to_owned(), ..self.scan(machine, false) }
    }

    /// Looks, and judges; a scan that cannot be made is a case that did not hold.
    fn scan(&self, machine: &mut Running, alive: bool) -> Case {
        let hits = self.secret().and_then(|secret| hits_in_ram(machine, &secret));
        // The job waits for this line, or goes on by itself after a while.
        let told = machine.console.send("fh-scanned");
        let hits = hits.and_then(|hits| told.map(|()| hits));
        match hits {
            Ok(hits) => self.judge(&hits, alive),
            Err(error) => Case { seen: format!("no scan: {error:#}"), held: false, ..self.judge(&[], alive) },
        }
    }

    fn secret(&self) -> Result<Vec<[u8; 8]>> {
        if self.masked.is_empty() || self.masked.len() != self.mask.len() {
            bail!("a job asks for a scan before it told the masked secret");
        }
        Ok(self.masked.iter().zip(&self.mask).map(|(a, b)| (a ^ b).to_le_bytes()).collect())
    }

    fn judge(&self, hits: &[u64], alive: bool) -> Case {
        let (allowed, astray): (Vec<u64>, Vec<u64>) =
            hits.iter().partition(|at| alive && self.is_unreachable(**at >> 12));
        let mut seen = format!("{} in frames out of the host's reach", allowed.len());
        if let Some(first) = astray.first() {
            seen = format!("{seen}, {} elsewhere, the first at {first:#x}", astray.len());
        } else {
            seen.push_str(", none elsewhere");
        }
        let (case, expected, found) = if alive {
            ("ram-scan-alive", "some in frames out of the host's reach, none elsewhere", !allowed.is_empty())
        } else {
            seen = if hits.is_empty() { "nowhere".to_owned() } else { seen };
            ("ram-scan-dead", "nowhere", true)
        };
        Case {
            step: "8".to_owned(),
            case: case.to_owned(),
            expected: expected.to_owned(),
            seen,
            held: found && astray.is_empty(),
            at: 0.0,
        }
    }

    fn is_unreachable(&self, frame: u64) -> bool {
        self.unreachable.iter().chain(&self.carve_outs).any(|(first, last)| (*first..=*last).contains(&frame))
    }
}

/// The addresses of all words of `secret`, with every CPU stopped: in all of its RAM, or it is no scan.
fn hits_in_ram(machine: &Running, secret: &[[u8; 8]]) -> Result<Vec<u64>> {
    let file = machine.scratch("ram");
    let mut monitor = machine.monitor()?;
    let found = monitor.while_stopped(|monitor| {
        monitor.save_memory(RAM_BASE, machine.memory, &file)?;
        let saved = std::fs::metadata(&file).context("QEMU saved no RAM")?.len();
        anyhow::ensure!(saved == machine.memory, "QEMU saved {saved} of {} bytes of RAM", machine.memory);
        hits_in_file(&file, secret)
    });
    // The copy holds a test's secret only; it is large, though.
    let _ = std::fs::remove_file(&file);
    found
}

fn hits_in_file(file: &Path, secret: &[[u8; 8]]) -> Result<Vec<u64>> {
    let mut ram = File::open(file).context("QEMU saved no RAM")?;
    let mut hits = Vec::new();
    let mut chunk = vec![0u8; CHUNK as usize];
    let mut address = RAM_BASE;
    loop {
        let mut length = 0;
        while length < chunk.len() {
            match ram.read(&mut chunk[length..])? {
                0 => break,
                count => length += count,
            }
        }
        hits.extend(hits_in(&chunk[..length], secret).map(|at| address + at as u64));
        if length < chunk.len() {
            return Ok(hits);
        }
        address += length as u64;
    }
}

/// Where a word of the secret stands: at any byte, for a copy need not be aligned.
fn hits_in<'a>(bytes: &'a [u8], secret: &'a [[u8; 8]]) -> impl Iterator<Item = usize> + 'a {
    secret.iter().flat_map(move |word| memmem::find_iter(bytes, word))
}

fn words(list: &str) -> Result<Vec<u64>> {
    list.split(',').map(|w| u64::from_str_radix(w.trim(), 16).context("a secret's word is no hex number")).collect()
}

fn ranges(list: &str) -> Result<Vec<(u64, u64)>> {
    let frame = |text: &str| u64::from_str_radix(text.trim(), 16).with_context(|| format!("no frame number: {text}"));
    list.split(',')
        .filter(|part| !part.trim().is_empty())
        .map(|part| match part.split_once('-') {
            Some((first, last)) => Ok((frame(first)?, frame(last)?)),
            None => frame(part).map(|only| (only, only)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            masked: vec![0x1111],
            mask: vec![0x0101],
            unreachable: ranges("40a3b-40a3c,45000").unwrap(),
            carve_outs: ranges("40200-402ff").unwrap(),
        }
    }

    #[test]
    fn frame_lists_are_read() {
        assert_eq!(ranges("40a3b-40a3c,45000").unwrap(), [(0x40a3b, 0x40a3c), (0x45000, 0x45000)]);
        assert_eq!(ranges("").unwrap(), []);
        assert!(ranges("zz").is_err());
    }

    #[test]
    fn the_secret_is_the_masked_one_without_its_mask() {
        assert_eq!(facts().secret().unwrap(), [0x1010u64.to_le_bytes()]);
        assert!(Facts::default().secret().is_err());
    }

    #[test]
    fn alive_the_secret_must_be_somewhere_and_only_out_of_reach() {
        let facts = facts();
        assert!(facts.judge(&[0x4500_0010, 0x4020_0000], true).held);
        assert!(!facts.judge(&[0x4500_0010, 0x5000_0000], true).held);
        assert!(!facts.judge(&[], true).held, "a scan that finds nothing proves nothing");
    }

    #[test]
    fn dead_the_secret_is_nowhere_not_even_out_of_reach() {
        let facts = facts();
        assert!(facts.judge(&[], false).held);
        assert!(!facts.judge(&[0x4500_0010], false).held);
    }

    #[test]
    fn words_are_found_at_any_byte() {
        let mut ram = vec![0u8; 64];
        ram[13..21].copy_from_slice(&0x1234_5678_9abc_def0u64.to_le_bytes());
        let hits: Vec<usize> = hits_in(&ram, &[0x1234_5678_9abc_def0u64.to_le_bytes()]).collect();
        assert_eq!(hits, [13]);
    }
}
