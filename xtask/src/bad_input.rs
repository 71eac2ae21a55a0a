// SPDX-License-Identifier: MIT OR Apache-2.0
//! Input that el2 must refuse with one line: cut bundles, damaged and impossible device trees, the wrong level.
//!
//! The device tree is QEMU's own, edited; a few instructions in front of el2 stand for the boot loader, so that the tree
//! reaches it exactly as it was edited.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::fdt::{Node, Tree};
use crate::image;
use crate::qemu::{Machine, Read, Running};
use crate::test::{Context, Item, Work, boot};

/// From power on to the refusal.
const LIMIT: Duration = Duration::from_secs(60);
/// How long el2 must be silent after it.
const SILENCE: Duration = Duration::from_secs(1);
/// How el2 says that it stops.
const STOP: &str = "freehold: stop: ";
const IMAGE_AT: u64 = 0x4020_0000;
const INITRD_AT: u64 = 0x4a00_0000;
const DTB_AT: u64 = 0x4e00_0000;
const LOADER_AT: u64 = 0x4f00_0000;

/// What is wrong, and words of the line that must say so.
struct Bad {
    name: &'static str,
    says: &'static [&'static str],
    spoil: Spoil,
}

enum Spoil {
    /// Changes the bundle.
    Bundle(fn(&mut Vec<u8>)),
    /// Changes the device tree.
    Tree(fn(&mut Tree)),
    /// Changes the device tree's bytes.
    Blob(fn(&mut Vec<u8>)),
    /// Starts at EL1.
    NoEl2,
}

fn all() -> Vec<Bad> {
    let bad = |name, says, spoil| Bad { name, says, spoil };
    vec![
        bad("boot/bad-bundle-cut", &["trailer"], Spoil::Bundle(|b| b.truncate(b.len() - 4096))),
        bad(
            "boot/bad-payload-magic",
            &["payload", "Image"],
            Spoil::Bundle(|b| {
                let at = payload_offset(b);
                b[at + 0x38] ^= 1;
            }),
        ),
        bad("boot/bad-payload-oversized", &["payload", "size"], Spoil::Bundle(|b| b[0x40 + 24 + 6] = 0x7f)),
        bad("boot/bad-manifest", &["manifest"], Spoil::Bundle(|b| b[0x40] ^= 1)),
        bad("boot/bad-not-el2", &["EL2"], Spoil::NoEl2),
        bad("boot/bad-dtb-magic", &["DTB"], Spoil::Blob(|b| b[0] ^= 1)),
        bad(
            "boot/bad-dtb-structure",
            &["DTB"],
            Spoil::Blob(|b| {
                let at = u32::from_be_bytes([b[8], b[9], b[10], b[11]]) as usize;
                b[at + 3] = 0x77;
            }),
        ),
        bad("boot/bad-dtb-no-memory", &["memory"], Spoil::Tree(|t| t.root.children.retain(|n| !n.is("memory")))),
        bad("boot/bad-dtb-no-psci", &["PSCI"], Spoil::Tree(|t| t.root.children.retain(|n| !n.is("psci")))),
        bad("boot/bad-dtb-too-many-cpus", &["CPU"], Spoil::Tree(more_cpus)),
        bad("boot/bad-dtb-too-many-banks", &["bank"], Spoil::Tree(more_banks)),
        bad(
            "boot/bad-too-little-ram",
            &["RAM is too small"],
            Spoil::Tree(|t| {
                for memory in t.root.children.iter_mut().filter(|n| n.is("memory")) {
                    memory.set("reg", &cells(&[0x4000_0000, 48 << 20]));
                }
            }),
        ),
        bad("boot/bad-initrd-over-el2", &["initrd"], Spoil::Tree(|t| initrd_at(t, IMAGE_AT, IMAGE_AT + 0x1000))),
        // Its last page alone, and el2 whole.
        bad(
            "boot/bad-initrd-into-el2",
            &["initrd"],
            Spoil::Tree(|t| initrd_at(t, IMAGE_AT - 0x10_0000, IMAGE_AT + 0x1000)),
        ),
        bad("boot/bad-initrd-around-el2", &["initrd"], Spoil::Tree(|t| initrd_at(t, IMAGE_AT - 0x10_0000, INITRD_AT))),
    ]
}

/// One piece of work per kind of bad input.
pub(crate) fn works() -> Vec<Work> {
    let work = |bad: Bad| {
        Work::new(bad.name, move |context| {
            let problem = refused(context, &bad)?;
            Ok(vec![Item::new(bad.name, problem)])
        })
    };
    all().into_iter().map(work).collect()
}

/// Boots with `bad`; none if el2 said what it must and nothing of the host ran.
fn refused(context: &Context<'_>, bad: &Bad) -> Result<Option<String>> {
    let (tools, parts) = context.boot.as_ref().context("nothing was built to boot")?;
    let dir = context.env.out.join("bad-input").join(bad.name.replace('/', "-"));
    std::fs::create_dir_all(&dir)?;
    let machine = machine(&tools.qemu, boot::image(parts)?, &parts.initramfs, bad, &dir)?;
    let log = boot::log(context, bad.name);
    let mut running = Running::start(&tools.qemu, &machine, &log)?;
    let lines = lines_until_stop(&mut running);
    drop(running);
    std::fs::remove_dir_all(&dir)?;
    Ok(judge(&lines, bad).map(|what| format!("{what}\nconsole log: {}", context.env.shown(&log))))
}

fn judge(lines: &[String], bad: &Bad) -> Option<String> {
    if let Some(host) = lines.iter().find(|l| l.contains("Booting Linux")) {
        return Some(format!("the host ran: {host}"));
    }
    let stops: Vec<&String> = lines.iter().filter(|l| l.starts_with(STOP)).collect();
    let stop = match stops.as_slice() {
        [] => return Some(format!("no line `{STOP}...`")),
        [only] => *only,
        several => return Some(format!("{} lines `{STOP}...`: {several:?}", several.len())),
    };
    if lines.last() != Some(stop) {
        return Some(format!("more lines follow it: {:?}", lines.last()));
    }
    let lower = stop.to_lowercase();
    if !stop.contains(" at ") {
        return Some(format!("it does not say where: {stop}"));
    }
    let missing: Vec<_> = bad.says.iter().filter(|w| !lower.contains(&w.to_lowercase())).collect();
    (!missing.is_empty()).then(|| format!("`{stop}` does not speak of {missing:?}"))
}

fn lines_until_stop(running: &mut Running) -> Vec<String> {
    let mut deadline = Instant::now() + LIMIT;
    let mut lines = Vec::new();
    while let Read::Line(line) = running.console.line(deadline) {
        if line.contains("Booting Linux") {
            lines.push(line);
            break;
        }
        if line.starts_with(STOP) {
            // It stopped: nothing may follow.
            deadline = Instant::now() + SILENCE;
        }
        if !line.is_empty() {
            lines.push(line);
        }
    }
    lines
}

/// A machine without a boot loader: the bundle, the initrd, the tree and a few instructions stand in its RAM.
fn machine(qemu: &Path, bundle: &Path, initramfs: &Path, bad: &Bad, dir: &Path) -> Result<Machine> {
    let mut machine = Machine::new(bundle, initramfs);
    machine.cpu = "cortex-a72".to_owned();
    machine.smp = 2;
    if matches!(bad.spoil, Spoil::NoEl2) {
        machine.el2 = false;
        return Ok(machine);
    }
    let mut tree = machine.device_tree(qemu, &dir.join("own.dtb"))?;
    initrd_at(&mut tree, INITRD_AT, INITRD_AT + std::fs::metadata(initramfs)?.len());
    if let Spoil::Tree(change) = bad.spoil {
        change(&mut tree);
    }
    let mut blob = tree.bytes();
    if let Spoil::Blob(change) = bad.spoil {
        change(&mut blob);
    }
    let mut image = bundle.to_path_buf();
    if let Spoil::Bundle(change) = bad.spoil {
        let mut bytes = std::fs::read(bundle)?;
        change(&mut bytes);
        image = dir.join("bundle.img");
        image::write_whole(&image, &bytes)?;
    }
    let (dtb, loader) = (dir.join("tree.dtb"), dir.join("loader.bin"));
    image::write_whole(&dtb, &blob)?;
    image::write_whole(&loader, &loader_code())?;
    machine.kernel = None;
    let places = [(image, IMAGE_AT), (initramfs.to_path_buf(), INITRD_AT), (dtb, DTB_AT), (loader, LOADER_AT)];
    for (file, address) in places {
        let one = format!("loader,file={},addr={address:#x},force-raw=on", file.display());
        machine.extra.extend(["-device".to_owned(), one]);
    }
    machine.extra.extend(["-device".to_owned(), format!("loader,addr={LOADER_AT:#x},cpu-num=0")]);
    Ok(machine)
}

/// `ldr x0, dtb; mov x1-x3, 0; ldr x4, image; br x4`, as the kernel's boot protocol asks.
fn loader_code() -> Vec<u8> {
    let code: [u32; 6] = [0x5800_00c0, 0xaa1f_03e1, 0xaa1f_03e2, 0xaa1f_03e3, 0x5800_0084, 0xd61f_0080];
    let mut bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(DTB_AT.to_le_bytes());
    bytes.extend(IMAGE_AT.to_le_bytes());
    bytes
}

fn initrd_at(tree: &mut Tree, start: u64, end: u64) {
    if let Some(chosen) = tree.root.child("chosen") {
        chosen.set("linux,initrd-start", &cells(&[start]));
        chosen.set("linux,initrd-end", &cells(&[end]));
    }
}

fn cells(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_be_bytes()).collect()
}

fn payload_offset(bundle: &[u8]) -> usize {
    let mut bytes = [0u8; 8];
    bytes.copy_from_slice(&bundle[0x48..0x50]);
    u64::from_le_bytes(bytes) as usize
}

fn more_cpus(tree: &mut Tree) {
    let Some(cpus) = tree.root.child("cpus") else { return };
    let Some(one) = cpus.children.iter().find(|n| n.is("cpu")).cloned() else { return };
    for number in 2..1100u32 {
        let mut cpu: Node = one.clone();
        cpu.name = format!("cpu@{number:x}");
        cpu.set("reg", &(number / 16 * 0x100 + number % 16).to_be_bytes());
        cpu.set("phandle", &(0x9000 + number).to_be_bytes());
        cpus.children.push(cpu);
    }
}

fn more_banks(tree: &mut Tree) {
    let Some(memory) = tree.root.children.iter_mut().find(|n| n.is("memory")) else { return };
    let banks: Vec<u64> = (0..256u64).flat_map(|n| [0x4000_0000 + n * (8 << 20), 4 << 20]).collect();
    memory.set("reg", &cells(&banks));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_names_its_two_addresses() {
        let code = loader_code();
        assert_eq!(code.len(), 40);
        // An instruction `ldr xN, label` counts words from itself.
        for (at, label) in [(0usize, 24usize), (16, 32)] {
            let word = u32::from_le_bytes(code[at..at + 4].try_into().unwrap());
            assert_eq!((word >> 5 & 0x7_ffff) as usize * 4 + at, label);
        }
    }

    #[test]
    fn a_refusal_must_say_what_and_where_and_keep_the_host_off() {
        let bad = Bad { name: "x", says: &["DTB"], spoil: Spoil::NoEl2 };
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(judge(&lines("a\nfreehold: stop: bad dtb at offset 0x0"), &bad), None);
        assert!(judge(&lines("freehold: stop: bad dtb"), &bad).is_some());
        assert!(judge(&lines("freehold: stop: no memory at x"), &bad).is_some());
        assert!(judge(&lines("[0.0] Booting Linux on\nfreehold: stop: dtb at x"), &bad).is_some());
        assert!(judge(&lines("freehold: stop: dtb at x\nfreehold: stop: dtb at x"), &bad).is_some());
        assert!(judge(&lines("freehold: stop: dtb at x\nfreehold: starting the host"), &bad).is_some());
        assert!(judge(&[], &bad).is_some());
    }
}
