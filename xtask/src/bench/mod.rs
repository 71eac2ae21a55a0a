// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask bench`: what things cost in instructions, on Freehold and on the kernel's own protected KVM, booted by
//! this command on the same emulated machine.
//!
//! Guarantees that every figure comes from this run, and that two runs of the same files give the same integers.

mod marks;
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
use crate::{Usage, session, setup, ui};
use marks::Marks;
use report::Column;

/// What the user may choose.
#[derive(clap::Args)]
pub(crate) struct BenchArgs {
    /// Only this CPU
    #[arg(long, value_name = "CPU", value_parser = CPUS)]
    cpu: Option<String>,
    /// Where EL2's instructions of a row go, by function: the row's number in tests/guest/src/rows.rs
    #[arg(long, value_name = "ROW")]
    profile: Option<u64>,
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
    if let Some(row) = args.profile {
        return bench.profile(row, cpu.unwrap_or(CPUS[0]));
    }
    let mut columns = Vec::new();
    for cpu in CPUS.into_iter().filter(|name| cpu.is_none_or(|wanted| wanted == *name)) {
        columns.push(bench.column(cpu)?);
    }
    print!("{}", report::table(&columns));
    let json = env.out.with_file_name("bench.json");
    crate::image::write_whole(&json, report::json(&columns, &bench.versions()?).as_bytes())?;
    println!("{}", env.shown(&json));
    Ok(ExitCode::from(u8::from(report::missed(&columns))))
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
            .map(|subject| ui::stage(&format!("{} on {cpu}", subject.name()), |_| self.boot(subject, cpu, None)));
        Ok(Column::new(cpu, &freehold?, &peer?, &plain?))
    }

    fn profile(&self, row: u64, cpu: &str) -> Result<ExitCode> {
        let marks = self.boot(Subject::Freehold, cpu, Some(rows::marked::end(row)))?;
        let rounds = marks.rounds(row).len() as u64;
        if rounds == 0 {
            bail!(Usage(format!("--profile {row}: no such row")));
        }
        print!("{}", profile::shown(&std::fs::read(builds::el2_elf(self.env)?)?, &marks.profile, rounds)?);
        Ok(ExitCode::SUCCESS)
    }

    fn boot(&self, subject: Subject, cpu: &str, profile: Option<u64>) -> Result<Marks> {
        let name = format!("bench-{}-{cpu}", subject.name());
        let image = self.parts.image.as_ref().context("there is no el2 to boot")?;
        let (kernel, job) = match subject {
            Subject::Freehold => (image, "bench"),
            Subject::Peer => (&self.tools.guest_kernel, "bench kvm-arm.mode=protected"),
            Subject::Plain => (&self.tools.kernel, "bench-boot"),
        };
        let out = self.env.out.join(format!("{name}.marks"));
        let mut machine = Machine::new(kernel, &self.parts.initramfs);
        machine.cpu = if cpu == "max" { cpu.to_owned() } else { format!("{cpu},cntfrq=1000000000") };
        machine.smp = 1;
        machine.el2 = subject != Subject::Plain;
        machine.append = format!("fh.job={job}");
        machine.counted = Some(Counted { plugin: self.plugin.clone(), out: out.clone(), profile });
        let log = self.env.logs().join(format!("{name}.log"));
        let mut running = Running::start(&self.tools.qemu, &machine, &log)?;
        let outcome = session::follow(&mut running, LIMIT, |_| ())?;
        let said = outcome.failures();
        ensure!(said.is_empty(), "{name}: {}\nconsole log: {}", said.join("\n"), self.env.shown(&log));
        let text = std::fs::read_to_string(&out).with_context(|| format!("{name}: the plugin wrote nothing"))?;
        Marks::parse(&text).with_context(|| name)
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
