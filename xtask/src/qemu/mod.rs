// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine under test: QEMU with its console kept in a log, and never left behind.
//!
//! A machine dies with the value that stands for it, and with this program, however it ends.

mod console;
mod qmp;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

pub(crate) use console::{Console, Read};
pub(crate) use qmp::Qmp;

use crate::cmd;
use crate::fdt::{Node, Tree};

/// What to boot, on what.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// QEMU's name of the CPU.
    pub cpu: String,
    /// CPUs.
    pub smp: u32,
    /// MiB of RAM.
    pub memory: u32,
    /// Version of the interrupt controller.
    pub gic: u32,
    /// Whether the CPUs have EL2.
    pub el2: bool,
    /// `-kernel`
    pub kernel: Option<PathBuf>,
    /// `-initrd`
    pub initrd: Option<PathBuf>,
    /// The kernel's command line, beyond what every boot has.
    pub append: String,
    /// More arguments.
    pub extra: Vec<String>,
    /// What it executes is counted.
    pub counted: Option<Counted>,
}

/// One instruction is one nanosecond, nothing is left to chance, and a plugin counts.
#[derive(Clone, Debug)]
pub(crate) struct Counted {
    /// The plugin.
    pub plugin: PathBuf,
    /// Where it writes.
    pub out: PathBuf,
    /// The labels at the end of what is profiled.
    pub profile: Vec<u64>,
}

impl Counted {
    /// The arguments beside those of any machine.
    fn arguments(&self) -> Vec<String> {
        let profile: String = self.profile.iter().map(|label| format!(",profile={label}")).collect();
        let plugin = format!("{},out={}{profile}", self.plugin.display(), self.out.display());
        let pairs = [
            ("-icount", "shift=0,sleep=off"),
            ("-seed", "1"),
            ("-rtc", "base=2026-01-01,clock=vm"),
            ("-plugin", plugin.as_str()),
        ];
        pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value.to_owned()]).collect()
    }
}

impl Machine {
    /// A `virt` machine with EL2, GICv3 and 2 GiB that boots `kernel` with `initrd`.
    pub(crate) fn new(kernel: &Path, initrd: &Path) -> Self {
        Self {
            cpu: "max".to_owned(),
            smp: 4,
            memory: 2048,
            gic: 3,
            el2: true,
            kernel: Some(kernel.to_path_buf()),
            initrd: Some(initrd.to_path_buf()),
            append: String::new(),
            extra: Vec::new(),
            counted: None,
        }
    }

    /// The kernel's whole command line.
    pub(crate) fn command_line(&self) -> String {
        let fixed = if self.counted.is_some() { "nokaslr norandmaps " } else { "" };
        let line = format!("console=ttyAMA0 earlycon panic=-1 fh.smp={} {fixed}{}", self.smp, self.append);
        line.trim_end().to_owned()
    }

    /// The device tree that QEMU makes for it, through the file `through`.
    ///
    /// # Errors
    /// If QEMU does not write one.
    pub(crate) fn device_tree(&self, qemu: &Path, through: &Path) -> Result<Tree> {
        let mut arguments = self.arguments();
        for argument in arguments.iter_mut().filter(|a| a.starts_with("virt,")) {
            argument.push_str(&format!(",dumpdtb={}", through.display()));
        }
        cmd::output(Command::new(qemu).args(arguments))?;
        let blob = std::fs::read(through).context("QEMU wrote no device tree")?;
        Tree::parse(&blob).context("QEMU's own device tree")
    }

    /// Gives it a region of RAM that the device tree forbids everyone to map.
    ///
    /// # Errors
    /// If the device tree cannot be made.
    pub(crate) fn with_no_map(mut self, qemu: &Path, file: &Path) -> Result<Self> {
        let mut tree = self.device_tree(qemu, file)?;
        tree.root.children.push(no_map_regions());
        crate::image::write_whole(file, &tree.bytes())?;
        self.extra.extend(["-dtb".to_owned(), file.display().to_string()]);
        Ok(self)
    }

    /// QEMU's arguments for it.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut all = vec!["-nodefaults".to_owned(), "-no-reboot".to_owned(), "-display".to_owned(), "none".to_owned()];
        let mut add = |name: &str, value: String| all.extend([name.to_owned(), value]);
        let el2 = if self.el2 { "on" } else { "off" };
        let fixed = if self.counted.is_some() { ",dtb-randomness=off" } else { "" };
        add("-M", format!("virt,virtualization={el2},gic-version={}{fixed}", self.gic));
        // The architected algorithm costs an emulator most of its time; which one is used is not what is tested.
        add("-cpu", if self.cpu == "max" { "max,pauth-impdef=on".to_owned() } else { self.cpu.clone() });
        add("-smp", self.smp.to_string());
        add("-m", format!("{}M", self.memory));
        let threads = if self.counted.is_some() { "single" } else { "multi" };
        add("-accel", format!("tcg,thread={threads}"));
        if let Some(kernel) = &self.kernel {
            add("-kernel", kernel.display().to_string());
            add("-append", self.command_line());
        }
        if let Some(initrd) = &self.initrd
            && self.kernel.is_some()
        {
            add("-initrd", initrd.display().to_string());
        }
        all.extend(self.counted.iter().flat_map(Counted::arguments));
        all.extend(self.extra.iter().cloned());
        all
    }
}

/// What firmware keeps for itself of 2 GiB of RAM: 2 MiB near the end, and three frames at the very end, where `el2` would
/// have its own tables. Not a part of a frame: Linux itself does not boot with one.
fn no_map_regions() -> Node {
    let two = 2u32.to_be_bytes();
    let region = |(start, size): (u64, u64)| {
        let mut region = Node { name: format!("firmware@{start:x}"), ..Node::default() };
        region.set("reg", &[start, size].map(u64::to_be_bytes).concat());
        region.set("no-map", &[]);
        region
    };
    let children = [(0xb000_0000, 2 << 20), (0xbfff_d000, 0x3000)].map(region).to_vec();
    let mut parent = Node { name: "reserved-memory".to_owned(), children, ..Node::default() };
    parent.set("#address-cells", &two);
    parent.set("#size-cells", &two);
    parent.set("ranges", &[]);
    parent
}

/// A running machine. Dropping it ends it.
pub(crate) struct Running {
    child: Child,
    /// What it prints, and what is typed.
    pub console: Console,
    /// Bytes of its RAM.
    pub memory: u64,
    qmp: PathBuf,
    /// Held by whoever has stopped its CPUs.
    stopper: Arc<Mutex<()>>,
}

impl Running {
    /// Starts `machine`; its console goes to `log`.
    ///
    /// # Errors
    /// If QEMU cannot be started or the log cannot be written.
    pub(crate) fn start(qemu: &Path, machine: &Machine, log: &Path) -> Result<Self> {
        let qmp = socket_path();
        let mut command = cmd::bound_to_us(qemu, "KILL");
        command.args(machine.arguments());
        command.args(["-chardev", "stdio,id=con,signal=off", "-serial", "chardev:con"]);
        for socket in [qmp.clone(), second(&qmp)] {
            command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", qemu.display()))?;
        match Console::attach(&mut child, log) {
            Ok(console) => {
                let memory = u64::from(machine.memory) << 20;
                Ok(Self { child, console, memory, qmp, stopper: Arc::default() })
            }
            Err(error) => {
                // Nothing can be done about a machine that will not die.
                let _ = child.kill();
                Err(error)
            }
        }
    }

    /// Runs `machine` with this terminal as its console, until it ends.
    ///
    /// # Errors
    /// If QEMU cannot be started or fails.
    pub(crate) fn attached(qemu: &Path, machine: &Machine) -> Result<()> {
        let mut command = cmd::bound_to_us(qemu, "KILL");
        let status = command.args(machine.arguments()).args(["-serial", "mon:stdio"]).status()?;
        anyhow::ensure!(status.success(), "QEMU failed ({status})");
        Ok(())
    }

    /// Opens the machine's monitor.
    ///
    /// # Errors
    /// If it does not answer.
    pub(crate) fn monitor(&self) -> Result<Qmp> {
        Qmp::open(&self.qmp, Arc::clone(&self.stopper))
    }

    /// Opens its other monitor, for somebody who keeps it while others come and go at the first.
    ///
    /// # Errors
    /// If it does not answer.
    pub(crate) fn second_monitor(&self) -> Result<Qmp> {
        Qmp::open(&second(&self.qmp), Arc::clone(&self.stopper))
    }

    /// A file for large and short-lived things of this machine.
    pub(crate) fn scratch(&self, kind: &str) -> PathBuf {
        self.qmp.with_extension(kind)
    }

    /// Waits until the machine has ended by itself; false if it has not within `limit`.
    pub(crate) fn ended_within(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already; a zombie would stay if it were not waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.qmp);
        let _ = std::fs::remove_file(second(&self.qmp));
    }
}

fn socket_path() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // Not below the work tree: a socket's path is at most 107 bytes.
    std::env::temp_dir().join(format!("freehold-{}-{number}.qmp", std::process::id()))
}

fn second(socket: &Path) -> PathBuf {
    socket.with_extension("qmp2")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_dies_with_its_value() {
        let log = std::env::temp_dir().join(format!("xtask-qemu-{}.log", std::process::id()));
        // Any program that does not end by itself stands for QEMU here; it ignores its arguments.
        let script = log.with_extension("sh");
        std::fs::write(&script, "#!/bin/sh\nexec sleep 1000\n").unwrap();
        cmd::output(Command::new("chmod").arg("+x").arg(&script)).unwrap();
        let machine = Machine::new(Path::new("k"), Path::new("i"));
        let running = Running::start(&script, &machine, &log).unwrap();
        let process = PathBuf::from(format!("/proc/{}", running.child.id()));
        assert!(process.exists());
        drop(running);
        assert!(!process.exists());
        std::fs::remove_file(log).unwrap();
        std::fs::remove_file(script).unwrap();
    }
}
