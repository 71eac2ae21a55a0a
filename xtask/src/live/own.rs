// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every write to el2's own tables, from the first to the host's last word, as the debug stub sees it happen.
//!
//! The released el2 has nothing for this: the stub watches the memory of its tables, a frame at a time, and stops the
//! machine in front of each store there; which word it changes is seen behind it. Valid descriptors never change, and
//! once the host runs nothing does. What was seen must add up to what stands in memory at the end, so that no store was
//! missed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use object::{Object as _, ObjectSymbol as _};

use super::gdb::{Gdb, Stop};
use crate::builds;
use crate::qemu::{Machine, Read, Running};
use crate::test::boot::{image, log};
use crate::test::{Context, Item};

pub(super) const NAME: &str = "boot/own-tables";
const LIMIT: Duration = Duration::from_secs(600);
/// Where QEMU puts an arm64 `Image`.
const BASE: u64 = 0x4020_0000;
/// The end of the tables' mangled name.
const STORE: &str = "3mmu5STORE";
/// What the stub names as stored to begins with a watched piece, of which each is a table.
const FRAME: u64 = 4096;
const VALID: u64 = 1;
/// A map of 2 GiB, an image with guards, and devices takes more stores than this.
const LEAST: usize = 50;

/// The tables as their stores have made them.
#[derive(Debug, Default)]
struct Own {
    words: BTreeMap<u64, u64>,
    stores: usize,
    host_runs: bool,
    wrong: Vec<String>,
}

impl Own {
    /// A frame of tables as it is behind one store to it, and as the stores before have made it.
    fn store(&mut self, first: u64, words: &[u64]) {
        self.stores += 1;
        let mut changed = 0;
        for (at, new) in (first..).step_by(8).zip(words) {
            let old = self.words.get(&at).copied().unwrap_or(0);
            if old == *new {
                continue;
            }
            changed += 1;
            self.words.insert(at, *new);
            if old & VALID != 0 {
                self.wrong.push(format!("{old:#x} at {at:#x} was valid, and became {new:#x}"));
            }
            if self.host_runs {
                self.wrong.push(format!("{new:#x} was stored at {at:#x} while the host ran"));
            }
        }
        if changed > 1 {
            self.wrong.push(format!("{changed} words of {first:#x} changed by one store"));
        }
    }

    /// What the stores do not account for.
    fn missed(&self, first: u64, words: &[u64]) -> Option<String> {
        (first..).step_by(8).zip(words).find_map(|(at, word)| {
            let must = self.words.get(&at).copied().unwrap_or(0);
            (must != *word).then(|| format!("{word:#x} stands at {at:#x}, and the stores seen say {must:#x}"))
        })
    }
}

pub(super) fn case(context: &Context<'_>) -> Result<Vec<Item>> {
    let own = watch(context)?;
    let mut wrong = own.wrong;
    if own.stores < LEAST {
        wrong.push(format!("only {} stores were seen", own.stores));
    }
    crate::ui::note(&format!("{NAME}: {} stores, {} descriptors", own.stores, own.words.len()));
    Ok(vec![Item::new(NAME, (!wrong.is_empty()).then(|| wrong.join("\n")))])
}

fn watch(context: &Context<'_>) -> Result<Own> {
    let (tools, parts) = context.boot.as_ref().context("nothing was built to boot")?;
    let file = std::fs::read(builds::el2_elf(context.env)?)?;
    let elf = object::File::parse(&*file)?;
    let find = |which: &dyn Fn(&str) -> bool| elf.symbols().find(|symbol| symbol.name().is_ok_and(which));
    let early = find(&|name| name == "freehold_early").context("no freehold_early")?;
    let tables = find(&|name| name.contains(STORE)).context("el2's tables have another name")?;
    let (first, bytes) = (BASE + tables.address(), tables.size());

    let socket = std::env::temp_dir().join(format!("freehold-{}-own.gdb", std::process::id()));
    let mut machine = Machine::new(image(parts)?, &parts.initramfs);
    machine.append = "fh.job=boot".to_owned();
    let stub = format!("unix:{},server=on,wait=off", socket.display());
    machine.extra.extend(["-S".to_owned(), "-no-shutdown".to_owned(), "-gdb".to_owned(), stub]);
    let mut running = Running::start(&tools.qemu, &machine, &log(context, NAME))?;
    let mut gdb = Gdb::open_stopped(&socket)?;
    let _ = std::fs::remove_file(&socket);
    // The image's memory has been zeroed when its first function runs.
    let _ = gdb.go_to(BASE + early.address(), LIMIT)?;
    let mut own = Own::default();
    ensure!(own.missed(first, &gdb.words(first, bytes)?).is_none(), "the tables are not empty at first");
    ensure!(first % FRAME == 0 && bytes % FRAME == 0, "the tables are no frames");
    for frame in (first..first + bytes).step_by(FRAME as usize) {
        gdb.watch_stores(frame, FRAME)?;
    }
    follow(&mut running, &mut gdb, &mut own)?;
    own.wrong.extend(own.missed(first, &gdb.words(first, bytes)?));
    Ok(own)
}

/// Until the host has switched the machine off, which stands still then.
fn follow(running: &mut Running, gdb: &mut Gdb, own: &mut Own) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    let mut done = false;
    gdb.go()?;
    loop {
        let stop = gdb.stopped(Duration::from_millis(50))?;
        while let Read::Line(line) = running.console.line(Instant::now()) {
            own.host_runs |= line.contains("Booting Linux on physical CPU");
            done |= line.contains("@fh ") && line.contains("\"done\"");
        }
        match stop {
            Some(Stop { cpu, watched: Some(frame), level }) => {
                gdb.past_store(&cpu, frame, FRAME)?;
                // Another level's address may be the same number.
                if level == 2 {
                    own.store(frame, &gdb.words(frame, FRAME)?);
                }
                gdb.go()?;
            }
            Some(Stop { watched: None, .. }) => {
                ensure!(done && own.host_runs, "the machine stands still, and the host's job is not done");
                return Ok(());
            }
            None => ensure!(Instant::now() < deadline, "the host never came to its end"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_or_comes_late_or_was_not_seen_is_found() {
        let mut own = Own::default();
        own.store(0x1000, &[0x403, 0]);
        own.store(0x1000, &[0x403, 0]);
        own.store(0x1000, &[0x403, 0x803]);
        assert_eq!(own.wrong, [""; 0]);
        assert_eq!(own.stores, 3);
        assert_eq!(own.missed(0x1000, &[0x403, 0x803, 0]), None);
        assert!(own.missed(0x1000, &[0x403, 0x803, 1]).is_some());
        own.store(0x1000, &[0x402, 0x803]);
        assert_eq!(own.wrong.len(), 1, "it was valid");
        own.store(0x2000, &[0xc03, 0x1003]);
        assert_eq!(own.wrong.len(), 2, "two at once");
        own.host_runs = true;
        own.store(0x3000, &[0x403]);
        assert_eq!(own.wrong.len(), 3, "late");
    }
}
