// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask test`: the suites that CI runs, one line per case, and one summary line at the end.
//!
//! Nothing is skipped but what `skips` lists with its reason, and a suite far beyond its budget fails.

pub(crate) mod boot;
pub(crate) mod cited;
pub(crate) mod fuzz;
mod guests;
mod kvm;
mod life;
mod miri;
mod model;
mod peer;
mod report;
mod skips;
mod trace;
mod unit;
mod watch;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::builds::{self, Parts, Watched};
use crate::env::Env;
use crate::setup::{self, Tools};
use crate::{Usage, audit, bench, kernel, lint, mutants, ui};
use report::Report;

/// What the user may choose.
#[derive(clap::Args)]
pub(crate) struct TestArgs {
    /// Suites to run [default: all of CI's]
    #[arg(value_name = "SUITE")]
    suites: Vec<String>,
    /// Lists suites and cases, runs nothing
    #[arg(long)]
    list: bool,
    /// Runs only cases whose name contains NAME
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Adds what is too long for CI
    #[arg(long)]
    long: bool,
    /// The result as JSON on stdout
    #[arg(long)]
    json: bool,
    /// The host's kernel: Debian's, or for life and guest-memfd the one of `xtask kernel --debug`
    #[arg(long, value_parser = ["stock", "debug"], default_value = "stock")]
    kernel: String,
}

impl TestArgs {
    fn on_debug(&self) -> bool {
        self.kernel == "debug"
    }

    /// The whole of one suite.
    pub(crate) fn only(suite: &str) -> Self {
        let kernel = "stock".to_owned();
        Self { suites: vec![suite.to_owned()], list: false, filter: None, long: false, json: false, kernel }
    }
}

/// How one case came out.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case", tag = "verdict", content = "detail")]
pub(crate) enum Verdict {
    /// As it must be.
    Passed,
    /// Not so; the text says what and, for a boot, where its log is.
    Failed(String),
    /// Not run, for a reason that `skips` lists.
    Skipped(String),
}

/// One case, afterwards.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Item {
    /// `suite/case`
    pub name: String,
    /// How it came out.
    #[serde(flatten)]
    pub verdict: Verdict,
}

impl Item {
    /// A case that passes if `problem` is none.
    pub(crate) fn new(name: impl Into<String>, problem: Option<String>) -> Self {
        Self { name: name.into(), verdict: problem.map_or(Verdict::Passed, Verdict::Failed) }
    }
}

/// What a piece of work needs to know.
pub(crate) struct Context<'c> {
    /// Directories.
    pub env: &'c Env,
    /// Tools; only where a suite boots something.
    pub boot: Option<(Tools, Parts)>,
    /// The debug el2s; only where a suite boots them.
    pub watched: Option<Watched>,
    /// What the user picked.
    pub filter: Option<&'c str>,
}

type Run = Box<dyn Fn(&Context<'_>) -> Result<Vec<Item>> + Send + Sync>;

/// A piece of work that yields one case or several.
pub(crate) struct Work {
    name: String,
    run: Run,
    /// Whether its cases can be picked one by one, so that a filter reaches inside.
    inner_filter: bool,
    long: bool,
    /// On which of the host's kernels it makes sense.
    kernels: Kernels,
}

/// Kernels of the host's that a piece of work is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernels {
    /// Debian's.
    Stock,
    /// The one that watches itself.
    Debug,
    /// Either.
    Both,
}

impl Kernels {
    fn has(self, debug: bool) -> bool {
        self == Self::Both || (self == Self::Debug) == debug
    }
}

impl Work {
    pub(crate) fn new(
        name: impl Into<String>,
        run: impl Fn(&Context<'_>) -> Result<Vec<Item>> + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), run: Box::new(run), inner_filter: false, long: false, kernels: Kernels::Stock }
    }

    /// Too long for CI: runs with `--long` only.
    pub(crate) fn only_long(mut self) -> Self {
        self.long = true;
        self
    }

    /// For other kernels of the host's than Debian's.
    pub(crate) fn on(mut self, kernels: Kernels) -> Self {
        self.kernels = kernels;
        self
    }

    pub(crate) fn with_inner_filter(mut self) -> Self {
        self.inner_filter = true;
        self
    }
}

/// A named part of the tests, with the time that it should take on 2 CPUs.
struct Suite {
    name: &'static str,
    budget: Duration,
    /// How many pieces run at the same time.
    at_once: usize,
    boots: bool,
    works: Vec<Work>,
}

fn suites() -> Vec<Suite> {
    let suite = |name, seconds, at_once, boots, works| Suite {
        name,
        budget: Duration::from_secs(seconds),
        at_once,
        boots,
        works,
    };
    vec![
        suite("lint", 120, 1, false, lint::works()),
        suite("unit", 105, 2, false, unit::works()),
        suite("miri", 40, 1, false, miri::works()),
        suite("image", 120, 1, false, audit::works()),
        suite("model", 180, 2, false, model::works()),
        suite("mutants", 80, 1, false, mutants::works()),
        suite("fuzz", 180, 2, false, fuzz::works()),
        suite("boot", 60, 2, true, boot::works()),
        suite("life", 195, 2, true, life::works()),
        suite("watch", 120, 2, true, watch::works()),
        suite("bench", 90, 1, true, bench::works()),
        suite("guest-memfd", 360, 2, true, life::guest_memfd_works()),
        suite("guests", 240, 2, true, guests::works()),
        suite("kvm", 360, 1, true, kvm::works()),
    ]
}

/// The names of all pieces of all suites.
pub(crate) fn works() -> Vec<String> {
    suites().into_iter().flat_map(|suite| suite.works).map(|work| work.name).collect()
}

/// Set-up and build, before the first suite.
const BUILD_BUDGET: Duration = Duration::from_secs(360);

/// Runs or lists suites.
///
/// # Errors
/// [`Usage`] for an unknown suite or a filter that picks nothing; otherwise if a build fails.
pub(crate) fn run(env: &Env, args: &TestArgs) -> Result<ExitCode> {
    let chosen = choose(suites(), args)?;
    if args.list {
        list(&chosen);
        return Ok(ExitCode::SUCCESS);
    }
    let names: Vec<&str> = chosen.iter().map(|s| s.name).collect();
    ui::note(&format!("running suites: {}", names.join(", ")));
    let begin = Instant::now();
    let boot = if chosen.iter().any(|s| s.boots) {
        let tools = setup::ensure(env)?;
        let tools = if args.on_debug() { kernel::instead(env, tools)? } else { tools };
        let parts = builds::all(env, &tools, &[])?;
        Some((tools, parts))
    } else {
        None
    };
    let watched = match &boot {
        Some((tools, _)) if chosen.iter().any(|s| s.name == "watch") => Some(builds::all_watched(env, tools)?),
        Some(_) | None => None,
    };
    let mut report = Report::new(args.json);
    report.preparation(begin.elapsed(), BUILD_BUDGET);
    let context = Context { env, boot, watched, filter: args.filter.as_deref() };
    for suite in &chosen {
        report.begin(suite.name);
        let begin = Instant::now();
        run_suite(suite, &context, &mut report);
        // What is too long for CI has no budget, and neither has a kernel that watches itself.
        let budget = if args.long || args.on_debug() { Duration::MAX / 4 } else { suite.budget };
        report.end(begin.elapsed(), budget);
    }
    if report.is_empty() {
        bail!(Usage(format!("--filter {}: no case has such a name", args.filter.as_deref().unwrap_or(""))));
    }
    // A part of the tests is not the result of the whole.
    let whole = args.suites.is_empty() && args.filter.is_none();
    Ok(report.finish(env, args.long && whole))
}

/// The suites and pieces that the user asked for.
fn choose(all: Vec<Suite>, args: &TestArgs) -> Result<Vec<Suite>> {
    for name in &args.suites {
        if !all.iter().any(|s| s.name == name) {
            let known: Vec<&str> = all.iter().map(|s| s.name).collect();
            bail!(Usage(format!("no suite `{name}`; there are {}", known.join(", "))));
        }
    }
    let elsewhere = |suite: &&String| !["life", "guest-memfd"].contains(&suite.as_str());
    if args.on_debug() && (args.suites.is_empty() || args.suites.iter().any(|s| elsewhere(&s))) {
        bail!(Usage("--kernel debug is for the suites life and guest-memfd".to_owned()));
    }
    let mut chosen: Vec<Suite> =
        all.into_iter().filter(|s| args.suites.is_empty() || args.suites.iter().any(|n| n == s.name)).collect();
    for suite in &mut chosen {
        suite.works.retain(|w| w.kernels.has(args.on_debug()));
        // A piece that has the name itself is meant; only without one are the others looked into.
        let named = |w: &Work| args.filter.as_ref().is_none_or(|f| w.name.contains(f.as_str()));
        let any_named = suite.works.iter().any(named);
        suite.works.retain(|w| (named(w) || (w.inner_filter && !any_named)) && (args.long || !w.long));
    }
    chosen.retain(|s| !s.works.is_empty());
    if chosen.is_empty() {
        bail!(Usage(format!("--filter {}: no case has such a name", args.filter.as_deref().unwrap_or(""))));
    }
    Ok(chosen)
}

fn list(suites: &[Suite]) {
    for suite in suites {
        println!("{} (budget {} s)", suite.name, suite.budget.as_secs());
        for work in &suite.works {
            println!("  {}{}", work.name, if work.inner_filter { " ..." } else { "" });
        }
    }
}

/// Runs the pieces of `suite`, `at_once` of them at a time, in order.
fn run_suite(suite: &Suite, context: &Context<'_>, report: &mut Report) {
    let next = AtomicUsize::new(0);
    let report = Mutex::new(report);
    std::thread::scope(|scope| {
        for _ in 0..suite.at_once {
            scope.spawn(|| {
                while let Some(work) = suite.works.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let begin = Instant::now();
                    let items = (work.run)(context)
                        .unwrap_or_else(|error| vec![Item::new(&work.name, Some(format!("{error:#}")))]);
                    let items = items.into_iter().filter(|i| context.filter.is_none_or(|f| i.name.contains(f)));
                    let mut report = report.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    for item in items {
                        report.item(skips::judge(item), begin.elapsed());
                    }
                }
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(suites: &[&str], filter: Option<&str>) -> TestArgs {
        TestArgs {
            suites: suites.iter().map(|s| (*s).to_owned()).collect(),
            list: false,
            filter: filter.map(str::to_owned),
            long: false,
            json: false,
            kernel: "stock".to_owned(),
        }
    }

    #[test]
    fn only_jobs_of_the_host_run_on_another_kernel() {
        let on_debug = |suites: &[&str]| TestArgs { kernel: "debug".to_owned(), ..args(suites, None) };
        assert!(choose(suites(), &on_debug(&["boot"])).err().unwrap().is::<Usage>());
        assert!(choose(suites(), &on_debug(&[])).err().unwrap().is::<Usage>());
        let works = |args: &TestArgs| -> Vec<String> {
            choose(suites(), args).unwrap().iter().flat_map(|s| s.works.iter().map(|w| w.name.clone())).collect()
        };
        let on_stock = works(&args(&["guest-memfd", "life"], None));
        assert!(!on_stock.iter().any(|name| name.contains("debug-kernel")));
        let on_debug = works(&on_debug(&["guest-memfd", "life"]));
        assert!(on_debug.contains(&"guest-memfd/debug-kernel-complains".to_owned()));
        assert!(!on_debug.iter().any(|name| name.contains("no-el2") || name == "life/main"));
    }

    #[test]
    fn an_unknown_suite_is_named_with_those_that_exist() {
        let error = choose(suites(), &args(&["nonsense"], None)).err().unwrap();
        assert!(error.is::<Usage>());
        let known: Vec<&str> = suites().iter().map(|s| s.name).collect();
        assert_eq!(error.to_string(), format!("no suite `nonsense`; there are {}", known.join(", ")));
    }

    #[test]
    fn a_filter_that_picks_nothing_is_an_error() {
        let error = choose(suites(), &args(&["boot"], Some("nonsense"))).err().unwrap();
        assert!(error.is::<Usage>());
    }

    #[test]
    fn a_filter_picks_cases_by_name() {
        let chosen = choose(suites(), &args(&["boot"], Some("neoverse-v1-smp4"))).unwrap();
        let names: Vec<&str> = chosen.iter().flat_map(|s| s.works.iter().map(|w| w.name.as_str())).collect();
        assert_eq!(names, ["boot/neoverse-v1-smp4"]);
    }

    #[test]
    fn a_filter_reaches_into_pieces_only_where_no_piece_has_the_name() {
        let works = |filter| -> Vec<String> {
            let chosen = choose(suites(), &args(&["unit"], Some(filter))).unwrap();
            chosen.iter().flat_map(|s| s.works.iter().map(|w| w.name.clone())).collect()
        };
        assert_eq!(works("freehold-mem"), ["unit/freehold-mem"]);
        assert!(works("some_test_inside").len() > 1);
    }

    #[test]
    fn every_piece_of_a_suite_carries_its_name() {
        for suite in suites() {
            for work in &suite.works {
                assert!(work.name.starts_with(&format!("{}/", suite.name)), "{}", work.name);
            }
        }
    }
}
