// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask bench`: what things cost in instructions, on Freehold and on the kernel's own protected KVM, booted by
//! this command on the same emulated machine.
//!
//! Guarantees that every figure comes from this run, and that two runs of the same files give the same integers.

mod baseline;
mod marks;
mod plot;
mod profile;
mod report;
mod rows;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::builds::{self, Parts};
use crate::env::Env;
use crate::qemu::{Counted, Machine, Running};
use crate::setup::Tools;
use crate::test::{Context, Item, Work};
use crate::{Usage, session, setup, ui};
use baseline::Baseline;
use marks::Marks;
use report::Column;

/// Rows of which zeroing and maintenance are told apart.
const LEAN: [u64; 2] = [rows::marked::end(rows::marked::DONATE_512), rows::marked::end(rows::marked::RECLAIM_512)];

/// The bytes of a carve-out, from the line of el2's that names it.
fn kept(line: &str) -> Option<u64> {
    let range = line.strip_prefix("freehold: carve-out ")?.split(' ').find(|word| word.starts_with("0x"))?;
    let (first, last) = range.split_once('-')?;
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    Some(number(last)? + 1 - number(first)?)
}

/// Bytes of a program that are loaded from its file.
fn loaded(elf: &[u8]) -> Result<u64> {
    use object::{Object as _, ObjectSegment as _};
    Ok(object::File::parse(elf)?.segments().map(|segment| segment.file_range().1).sum())
}

/// What the user may choose.
#[derive(clap::Args)]
pub(crate) struct BenchArgs {
    /// Only this CPU
    #[arg(long, value_name = "CPU", value_parser = CPUS)]
    cpu: Option<String>,
    /// Where EL2's instructions of rows go, by function: the rows' numbers in tests/guest/src/rows.rs
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    profile: Vec<u64>,
    /// Fails if a row is more than 2 % worse than docs/performance-baseline.json, and does not look at targets
    #[arg(long)]
    check: bool,
    /// Makes this run the baseline, and writes the tables and pictures of docs/performance.md
    #[arg(long, conflicts_with_all = ["check", "cpu"])]
    accept: bool,
}

const CPUS: [&str; 2] = ["max", "cortex-a72"];
/// A boot, and everything that is measured, on a loaded machine.
const LIMIT: Duration = Duration::from_secs(600);

/// What is booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    /// Freehold under Debian's kernel.
    Freehold,
    /// Debian's newer kernel with its own protected KVM.
    Peer,
    /// Debian's kernel for Freehold's host by itself, which has no EL2.
    Plain,
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Self::Freehold => "freehold",
            Self::Peer => "peer",
            Self::Plain => "plain",
        }
    }
}

/// Runs the rows, prints the table, and writes `target/bench.json`.
///
/// # Errors
/// [`Usage`] for a row that is not there; otherwise if something does not build, boot or end whole.
pub(crate) fn run(env: &Env, args: &BenchArgs) -> Result<ExitCode> {
    let tools = setup::ensure(env)?;
    let parts = builds::all(env, &tools, &[])?;
    let plugin = ui::stage("build count", |_| builds::counter(env))?;
    let bench = Bench { env, tools: &tools, parts: &parts, plugin };
    let cpu = args.cpu.as_deref();
    if !args.profile.is_empty() {
        return bench.profile(&args.profile, cpu.unwrap_or(CPUS[0]));
    }
    let mut columns = Vec::new();
    for cpu in CPUS.into_iter().filter(|name| cpu.is_none_or(|wanted| wanted == *name)) {
        columns.push(bench.column(cpu)?);
    }
    print!("{}", report::table(&columns));
    let versions = bench.versions()?;
    let json = env.out.with_file_name("bench.json");
    crate::image::write_whole(&json, report::json(&columns, &versions).as_bytes())?;
    println!("{}", env.shown(&json));
    let now = Baseline::new(&columns, &versions);
    if args.accept {
        now.write(env)?;
        report::document(env, &columns, &versions)?;
    }
    if args.check {
        let was = Baseline::committed(env)?;
        let worse = worse(&was, &now);
        worse.iter().for_each(|line| println!("worse: {line}"));
        if worse.is_empty() && was.is_alike(&now) {
            println!(
                "none of {} rows is more than {} % worse than the baseline",
                now.rows.len(),
                baseline::TOLERANCE / 10
            );
        }
        return Ok(ExitCode::from(u8::from(!worse.is_empty())));
    }
    Ok(ExitCode::from(u8::from(report::missed(&columns))))
}

/// What is worse than the baseline; nothing where that was counted with other programs, which it says.
fn worse(was: &Baseline, now: &Baseline) -> Vec<String> {
    let worse = was.worse(now);
    if was.is_alike(now) {
        return worse;
    }
    ui::note(&format!("the baseline was counted with {:?}, now it is {:?}", was.versions, now.versions));
    worse.iter().for_each(|line| ui::note(&format!("not judged: {line}")));
    Vec::new()
}

/// The pieces of the suite: some of Freehold's figures against the baseline, in CI; with `--long` all of them, and that
/// they are the same twice.
pub(crate) fn works() -> Vec<Work> {
    vec![Work::new("bench/quick", quick), Work::new("bench/max", twice).only_long()]
}

impl<'b> Bench<'b> {
    fn of(context: &'b Context<'_>) -> Result<Self> {
        let (tools, parts) = context.boot.as_ref().context("nothing was built to boot")?;
        Ok(Self { env: context.env, tools, parts, plugin: builds::counter(context.env)? })
    }

    /// Freehold's figures, and which of the baseline's are better.
    fn judged(&self, case: &str, marks: &Marks, was: &Baseline) -> Result<Item> {
        let column = Column::new(CPUS[0], marks, &Marks::default(), &Marks::default());
        let now = Baseline::new(std::slice::from_ref(&column), &self.versions()?);
        let worse = worse(was, &now);
        let lost =
            (!worse.is_empty()).then(|| format!("{}\n`cargo xtask bench --accept` takes them", worse.join("\n")));
        Ok(Item::new(case, lost))
    }
}

fn quick(context: &Context<'_>) -> Result<Vec<Item>> {
    let bench = Bench::of(context)?;
    let marks = bench.boot(Subject::Freehold, CPUS[0], "bench-quick", &[], 1)?;
    let was = Baseline::committed(context.env)?.only(&rows::QUICK);
    Ok(vec![bench.judged("bench/quick-is-no-worse", &marks, &was)?])
}

fn twice(context: &Context<'_>) -> Result<Vec<Item>> {
    let bench = Bench::of(context)?;
    let [first, second] = [(); 2].map(|()| bench.whole(Subject::Freehold, CPUS[0]));
    let (first, second) = (first?, second?);
    let differ = (first != second).then(|| "two runs differ".to_owned());
    let no_worse = bench.judged("bench/max-is-no-worse", &first, &Baseline::committed(context.env)?)?;
    Ok(vec![Item::new("bench/max-is-repeatable", differ), no_worse])
}

struct Bench<'b> {
    env: &'b Env,
    tools: &'b Tools,
    parts: &'b Parts,
    plugin: PathBuf,
}

impl Bench<'_> {
    fn column(&self, cpu: &str) -> Result<Column> {
        let [freehold, peer, plain] = [Subject::Freehold, Subject::Peer, Subject::Plain]
            .map(|subject| ui::stage(&format!("{} on {cpu}", subject.name()), |_| self.whole(subject, cpu)));
        Ok(Column::new(cpu, &freehold?, &peer?, &plain?))
    }

    /// All that a subject shows: what one CPU does, and what two do.
    fn whole(&self, subject: Subject, cpu: &str) -> Result<Marks> {
        if subject == Subject::Plain {
            return self.boot(subject, cpu, "bench-boot", &[], 1);
        }
        let mut marks = self.boot(subject, cpu, "bench", &LEAN, 1)?;
        marks.take(rows::marked::IPI, &self.boot(subject, cpu, "bench-ipi", &[], 2)?);
        Ok(marks)
    }

    /// All of them in one run; the IPI's, which takes two CPUs, has its own.
    fn profile(&self, rows: &[u64], cpu: &str) -> Result<ExitCode> {
        let (pairs, alone): (Vec<u64>, Vec<u64>) = rows.iter().partition(|row| **row == rows::marked::IPI);
        let runs = [(alone, "bench", 1), (pairs, "bench-ipi", 2)];
        for (rows, job, cpus) in runs.into_iter().filter(|(rows, ..)| !rows.is_empty()) {
            let labels: Vec<u64> = rows.iter().map(|row| rows::marked::end(*row)).collect();
            let marks = self.boot(Subject::Freehold, cpu, job, &labels, cpus)?;
            for (row, label) in rows.iter().zip(labels) {
                let rounds = marks.rounds(*row).len() as u64;
                if rounds == 0 {
                    bail!(Usage(format!("--profile {row}: no such row")));
                }
                let profile = marks.profile.get(&label).context("EL2 takes no part in it")?;
                let shown = profile::shown(&std::fs::read(builds::el2_elf(self.env)?)?, profile, rounds)?;
                print!("row {row}: {shown}");
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Runs a job on a machine with so many CPUs.
    fn boot(&self, subject: Subject, cpu: &str, job: &str, profile: &[u64], cpus: u32) -> Result<Marks> {
        let name = format!("{job}-{}-{cpu}", subject.name());
        let image = self.parts.image.as_ref().context("there is no el2 to boot")?;
        let (kernel, rest) = match subject {
            Subject::Freehold => (image, ""),
            Subject::Peer => (&self.tools.guest_kernel, " kvm-arm.mode=protected"),
            Subject::Plain => (&self.tools.kernel, ""),
        };
        let out = self.env.out.join(format!("{name}.marks"));
        let mut machine = Machine::new(kernel, &self.parts.initramfs);
        machine.cpu = if cpu == "max" { cpu.to_owned() } else { format!("{cpu},cntfrq=1000000000") };
        machine.smp = cpus;
        machine.el2 = subject != Subject::Plain;
        machine.append = format!("fh.job={job}{rest}");
        machine.counted = Some(Counted { plugin: self.plugin.clone(), out: out.clone(), profile: profile.to_vec() });
        let log = self.env.logs().join(format!("{name}.log"));
        let mut running = Running::start(&self.tools.qemu, &machine, &log)?;
        let outcome = session::follow(&mut running, LIMIT, |_| ())?;
        let said = outcome.failures();
        ensure!(said.is_empty(), "{name}: {}\nconsole log: {}", said.join("\n"), self.env.shown(&log));
        let text = std::fs::read_to_string(&out).with_context(|| format!("{name}: the plugin wrote nothing"))?;
        let mut marks = Marks::parse(&text).with_context(|| name)?;
        if subject == Subject::Freehold {
            let elf = std::fs::read(builds::el2_elf(self.env)?)?;
            for (label, profile) in marks.profile.iter().filter(|(label, _)| LEAN.contains(label)) {
                let rounds = marks.rounds(label >> 1).len() as u64;
                marks.lean.insert(*label, profile::lean(&elf, profile, rounds)?);
            }
            marks.memory = outcome.el2.iter().filter_map(|line| kept(line)).sum();
            marks.image = loaded(&elf)?;
        }
        Ok(marks)
    }

    /// What the figures depend on beside this tree.
    fn versions(&self) -> Result<Vec<(&'static str, String)>> {
        let said = |program: &std::path::Path, argument: &str| -> Result<String> {
            let mut command = std::process::Command::new(program);
            let text = crate::cmd::output(command.current_dir(&self.env.root).arg(argument))?;
            Ok(text.lines().next().unwrap_or_default().to_owned())
        };
        let peer = self.tools.guest_kernel.display().to_string();
        let peer = peer.split('/').find(|part| part.starts_with("7.")).unwrap_or("7.2").to_owned();
        Ok(vec![
            ("qemu", said(&self.tools.qemu, "--version")?),
            ("kernel", self.tools.release.clone()),
            ("peer", peer),
            ("rustc", said(std::path::Path::new("rustc"), "--version")?),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_carve_out_is_as_long_as_its_line_says() {
        let line = "freehold: carve-out 1 (ledger and tables) 0xbf600000-0xbfffffff (10 MiB)";
        assert_eq!(kept(line), Some(10 << 20));
        assert_eq!(kept("freehold: 1 CPUs, 2048 MiB RAM in 1 bank(s)"), None);
    }
}
