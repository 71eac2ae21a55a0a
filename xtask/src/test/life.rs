// SPDX-License-Identifier: MIT OR Apache-2.0
//! Life of the module and of VMs: the main job and the other jobs on the host, one case per line that they report.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::boot::{image, log};
use super::{Context, Item, Kernels, Work, cited};
use crate::builds;
use crate::qemu::{Machine, Running};
use crate::session::{self, Outcome};
use crate::steps::{self, Status};

const LIMIT: Duration = Duration::from_secs(300);
/// The main job has a Linux guest.
const LINUX: Duration = Duration::from_secs(900);
const HOUR: Duration = Duration::from_secs(3600);

/// A job and the machine that it runs on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    /// The piece that it is.
    pub name: &'static str,
    file: &'static str,
    cpu: &'static str,
    /// Debian's kernel by itself, with or without EL2 in the CPUs.
    pub stock: Option<bool>,
    /// Some RAM that the device tree forbids to map.
    no_map: bool,
    /// With memory for tags (MTE).
    tags: bool,
    /// Its memory and its CPUs are two nodes.
    nodes: bool,
    /// With a disk on PCI, which reaches memory by itself.
    disk: bool,
    /// With what the host goes on as by kexec.
    successor: bool,
    /// More of the command line.
    append: &'static str,
    /// How long it may take.
    pub limit: Duration,
    /// Too long for CI.
    pub long: bool,
    /// The host's kernels that it is for.
    kernels: Kernels,
}

impl Job {
    fn is_traced(&self) -> bool {
        self.stock.is_none() && !self.successor && self.kernels != Kernels::Debug
    }

    /// The machine that boots `kernel` and does it.
    pub(super) fn machine(&self, context: &Context<'_>, kernel: &Path) -> Result<Machine> {
        let (tools, parts) = context.boot.as_ref().context("nothing was built to boot")?;
        let mut machine = Machine::new(kernel, &parts.initramfs);
        machine.cpu = self.cpu.to_owned();
        machine.el2 = self.stock.unwrap_or(true);
        machine.append = format!("fh.job={} fh.release=6.12{}", self.file, self.append);
        if self.successor {
            machine.initrd = Some(builds::with_successor(context.env, tools)?);
        }
        if self.tags {
            machine.extra.extend(["-M", "mte=on"].map(str::to_owned));
        }
        if self.nodes {
            machine.extra.extend(two_nodes(machine.memory));
        }
        if self.disk {
            let file = context.env.out.join(format!("{}.disk", self.name.replace('/', "-")));
            machine.extra.extend(disk(&file)?);
        }
        if !self.no_map {
            return Ok(machine);
        }
        machine.with_no_map(&tools.qemu, &context.env.out.join(format!("{}.dtb", self.file)))
    }
}

/// QEMU's arguments for two nodes, each with half of the memory and of the four CPUs.
fn two_nodes(memory: u32) -> impl Iterator<Item = String> {
    [("0", "0-1"), ("1", "2-3")].into_iter().flat_map(move |(node, cpus)| {
        let backend = format!("memory-backend-ram,id=node{node},size={}M", memory / 2);
        let node = format!("node,nodeid={node},cpus={cpus},memdev=node{node}");
        ["-object".to_owned(), backend, "-numa".to_owned(), node]
    })
}

/// QEMU's arguments for a disk of zeros in that file, which ends four requests a second.
fn disk(file: &Path) -> Result<[String; 4]> {
    std::fs::File::create(file)?.set_len(1 << 20)?;
    let drive = format!("if=none,id=disk,format=raw,file={},throttling.iops-total=4", file.display());
    Ok(["-drive".to_owned(), drive, "-device".to_owned(), "virtio-blk-pci,drive=disk".to_owned()])
}

const fn job(name: &'static str, file: &'static str) -> Job {
    Job {
        name,
        file,
        cpu: "max",
        stock: None,
        no_map: false,
        tags: false,
        nodes: false,
        disk: false,
        successor: false,
        append: "",
        limit: LIMIT,
        long: false,
        kernels: Kernels::Both,
    }
}

const fn without_el2(name: &'static str, cpu: &'static str, at_el2: bool) -> Job {
    Job { cpu, stock: Some(at_el2), kernels: Kernels::Stock, ..job(name, "noel2") }
}

/// What `cargo xtask run` shows, and more of it.
const MAIN: Job = Job { limit: LINUX, kernels: Kernels::Stock, ..job("life/main", "boot,main") };

const JOBS: [Job; 28] = [
    Job { no_map: true, ..job("life/hvc-refusals", "hvc-refusals") },
    Job { append: " fh.calls=10000", ..job("life/hvc-fuzz", "hvc-fuzz") },
    Job { append: " fh.calls=100000", limit: HOUR, long: true, ..job("life/hvc-fuzz-100000", "hvc-fuzz") },
    job("life/ioctls", "ioctls"),
    // A kernel without MTE, as the trimmed one is, maps no memory as tagged, and the control reads no tag.
    Job { tags: true, kernels: Kernels::Stock, ..job("life/tags", "tags") },
    job("life/attest", "attest"),
    job("life/cycles", "cycles"),
    Job { append: " fh.rounds=10000", limit: HOUR, long: true, ..job("life/rounds", "rounds") },
    job("life/vgic", "vgic"),
    job("life/ordinary", "ordinary"),
    job("life/plain", "plain"),
    job("life/pinned", "pinned"),
    Job { cpu: "cortex-a76", ..job("life/pinned-a76", "pinned") },
    Job { disk: true, kernels: Kernels::Stock, ..job("life/direct", "direct") },
    Job { disk: true, cpu: "cortex-a76", kernels: Kernels::Stock, ..job("life/direct-a76", "direct") },
    job("life/replays", "replays"),
    Job { append: " fh.calls=10000", ..job("life/ioctl-fuzz", "ioctl-fuzz") },
    Job { append: " fh.calls=1000000", limit: HOUR, long: true, ..job("life/ioctl-fuzz-1000000", "ioctl-fuzz") },
    job("life/events", "events"),
    job("life/world-switch", "world-switch"),
    job("life/vcpus", "vcpus"),
    // It has neither random numbers nor pointer keys, and FP is all the vectors it has.
    Job { cpu: "cortex-a72", ..job("life/vcpus-a72", "vcpus") },
    // Debian's kernel dies in its own preparation for a kexec where it has 52 bits of address.
    Job { cpu: "neoverse-n1", successor: true, ..job("life/kexec", "kexec-from") },
    Job {
        cpu: "neoverse-n1",
        successor: true,
        append: " crashkernel=384M",
        kernels: Kernels::Stock,
        ..job("life/crash", "crash-from")
    },
    without_el2("life/no-el2-a72", "cortex-a72", false),
    without_el2("life/no-el2-max", "max", false),
    without_el2("life/host-at-el2-a72", "cortex-a72", true),
    without_el2("life/host-at-el2-max", "max", true),
];

/// Jobs at whose end the machine is reset, over a VM that lives.
const RESETS: [Job; 2] = [job("life/reset", "reset"), Job { limit: LINUX, long: true, ..job("life/reboot", "reboot") }];

/// Jobs of the suite `guest-memfd`.
const GUEST_MEMFD: [Job; 8] = [
    job("guest-memfd/files", "gmem-convert"),
    job("guest-memfd/holders", "gmem-holders"),
    Job { append: " mem=1024M", ..job("guest-memfd/offline", "gmem-offline") },
    Job { nodes: true, ..job("guest-memfd/numa", "gmem-numa") },
    // Windows that stay open take time, and more on a machine that is busy.
    Job { limit: LINUX, ..job("guest-memfd/wide", "gmem-wide") },
    Job { kernels: Kernels::Debug, ..job("guest-memfd/starved", "gmem-starved") },
    Job { append: " fh.seconds=60", ..job("guest-memfd/stress", "gmem-stress") },
    Job { append: " fh.seconds=600", limit: HOUR, long: true, ..job("guest-memfd/stress-600", "gmem-stress") },
];

/// The jobs that Debian's kernel runs above el2, from its boot to its end.
pub(super) fn above_el2() -> impl Iterator<Item = Job> {
    [MAIN].into_iter().chain(JOBS).chain(GUEST_MEMFD).filter(Job::is_traced)
}

/// Files, conversions, and whoever holds or maps a page.
pub(super) fn guest_memfd_works() -> Vec<Work> {
    let complains = Work::new(COMPLAINS.name, |c| complaints(c, &COMPLAINS)).on(Kernels::Debug);
    GUEST_MEMFD.into_iter().map(work).chain([complains]).collect()
}

fn work(job: Job) -> Work {
    work_by(job, other_job)
}

fn work_by(job: Job, by: fn(&Context<'_>, &Job) -> Result<Vec<Item>>) -> Work {
    let work = Work::new(job.name, move |c| by(c, &job)).with_inner_filter().on(job.kernels);
    if job.long { work.only_long() } else { work }
}

/// The control of every clean log: a module that does what the kernel must complain of.
const COMPLAINS: Job = job("guest-memfd/debug-kernel-complains", "complains");

/// Its kinds of complaint are seen, and a log with them is not taken for a clean one.
fn complaints(context: &Context<'_>, job: &Job) -> Result<Vec<Item>> {
    let mut items = other_job(context, job)?;
    let log = items.iter_mut().find(|item| item.name.ends_with(session::KERNEL_LOG)).context("no look at the log")?;
    let missed = (log.verdict == super::Verdict::Passed).then(|| "a log with complaints passes for clean".to_owned());
    *log = Item::new(log.name.clone(), missed);
    Ok(items)
}

/// The main job and the others; one whose file is not there fails.
pub(super) fn works() -> Vec<Work> {
    let mut works = vec![Work::new(MAIN.name, main_job).with_inner_filter()];
    works.extend(JOBS.into_iter().map(work));
    works.extend(RESETS.map(|job| work_by(job, reset)));
    works
}

fn main_job(context: &Context<'_>) -> Result<Vec<Item>> {
    let name = MAIN.name;
    let (tools, parts) = context.boot.as_ref().context("nothing was built to boot")?;
    let mut machine = MAIN.machine(context, image(parts)?)?;
    machine.initrd = Some(builds::with_guest(context.env, tools, false)?);
    let mut running = Running::start(&tools.qemu, &machine, &log(context, name))?;
    let outcome = session::follow(&mut running, MAIN.limit, |_| ())?;
    let mut items = cases(context, name, &outcome);
    for step in steps::judge(&outcome, machine.smp) {
        let own = format!("{name}/step-{}", step.step);
        items.push(match step.status {
            Status::Held => Item::new(own, None),
            Status::NotYet => {
                let lacks = format!("not seen: {}", step.missing.join(", "));
                Item { name: own, verdict: super::Verdict::Skipped(lacks) }
            }
            Status::Failed => Item::new(own, Some(format!("the step failed; not seen: {}", step.missing.join(", ")))),
        });
    }
    Ok(items)
}

fn other_job(context: &Context<'_>, job: &Job) -> Result<Vec<Item>> {
    let (tools, parts) = context.boot.as_ref().context("nothing was built to boot")?;
    let kernel = if job.stock.is_some() { tools.kernel.as_path() } else { image(parts)? };
    let machine = job.machine(context, kernel)?;
    let mut running = Running::start(&tools.qemu, &machine, &log(context, job.name))?;
    // A kernel that watches itself takes its time.
    let limit = if tools.debug { job.limit * 8 } else { job.limit };
    let outcome = session::follow(&mut running, limit, |_| ())?;
    let mut items = cases(context, job.name, &outcome);
    if outcome.cases.is_empty() {
        items.push(Item::new(job.name, Some("the job reported no case".to_owned())));
    }
    Ok(items)
}

/// The machine stands still where it would be reset, and then no word of its guest's secret is in RAM.
fn reset(context: &Context<'_>, job: &Job) -> Result<Vec<Item>> {
    let (tools, parts) = context.boot.as_ref().context("nothing was built to boot")?;
    let mut machine = job.machine(context, image(parts)?)?;
    machine.extra.push("-no-shutdown".to_owned());
    let mut running = Running::start(&tools.qemu, &machine, &log(context, job.name))?;
    let limit = if tools.debug { job.limit * 8 } else { job.limit };
    let mut outcome = session::follow_job(&mut running, limit, |_| ())?;
    if outcome.problem.is_none() {
        running.monitor()?.wait_for_power_off()?;
        let scanned = outcome.facts.at_the_end(&mut running, job.file);
        outcome.cases.push(scanned);
    }
    Ok(cases(context, job.name, &outcome))
}

/// Every case of the piece that documents name has been reported.
const CITED: &str = "reports-what-documents-name";

/// One item per case, one for those that documents name, and one for the boot as a whole.
pub(super) fn cases(context: &Context<'_>, name: &str, outcome: &Outcome) -> Vec<Item> {
    let at = context.env.shown(&log(context, name));
    let mut items = Vec::new();
    for case in &outcome.cases {
        let what = format!("expected {}, seen {}\nconsole log: {at}", case.expected, case.seen);
        items.push(Item::new(format!("{name}/{}-{}", case.step, case.case), (!case.held).then_some(what)));
    }
    // What ended early has a problem of its own.
    if outcome.problem.is_none() {
        let missing = cited::missing(context.env, name, &outcome.cases).unwrap_or_else(|error| vec![error.to_string()]);
        items.push(Item::new(format!("{name}/{CITED}"), (!missing.is_empty()).then(|| missing.join("\n"))));
    }
    let problem = outcome.problem.as_ref().map(|p| format!("{p}\nconsole log: {at}"));
    items.push(Item::new(format!("{name}/runs-to-its-end"), problem));
    items
}
