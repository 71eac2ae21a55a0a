// SPDX-License-Identifier: MIT OR Apache-2.0
//! apt with a configuration of its own: this machine's mirrors, plus backports and arm64, without an edit in /etc.
//! Backports are never chosen by themselves: their own priority sees to that.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::distro::Debian;
use super::modules;
use crate::{cmd, ui};

/// A private apt: its own source list and package lists, the system's keys and dpkg status.
pub(super) struct Apt {
    home: PathBuf,
    root: bool,
}

impl Apt {
    /// Writes the private configuration under `cache` and fetches the package lists.
    ///
    /// # Errors
    /// If this machine names no mirror of `debian`, or a list cannot be fetched.
    pub(super) fn prepare(cache: &Path, debian: Debian, root: bool) -> Result<Self> {
        let home = cache.join("apt");
        for dir in ["lists/partial", "cache/archives/partial", "parts", "debs"] {
            std::fs::create_dir_all(home.join(dir))?;
        }
        let sources = private_sources(&system_sources(), debian);
        if sources.is_empty() {
            bail!("apt on this machine has no `main` source of {}", debian.codename());
        }
        std::fs::write(home.join("sources.list"), sources.join("\n") + "\n")?;
        let apt = Self { home, root };
        ui::stage("package lists", |_| cmd::output(apt.command("apt-get", None).args(FOREIGN).arg("update")))?;
        Ok(apt)
    }

    /// Installs `package` on this machine, from the release `from` if given.
    pub(super) fn install(&self, package: &str, from: Option<&str>, sudo: Option<&Path>) -> Result<()> {
        let mut command = self.command("apt-get", sudo);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command.args(["-y", "--no-install-recommends", "install"]);
        if let Some(release) = from {
            command.args(["-t", release]);
        }
        ui::stage(&format!("package {package}"), |_| cmd::output(command.arg(package)))?;
        Ok(())
    }

    /// The newest stock arm64 6.12 release whose image, headers and build scripts are all there.
    pub(super) fn newest_kernel(&self) -> Result<String> {
        let mut search = self.command("apt-cache", None);
        let names = cmd::output(search.args(FOREIGN).args(["pkgnames", "linux-"]))?;
        newest_complete(&without_architecture(&names))
            .context("no complete stock 6.12 arm64 kernel in the package lists")
    }

    /// The newest stock arm64 7.2 kernel: its release, and the package that has the Image.
    pub(super) fn newest_guest_kernel(&self) -> Result<(String, String)> {
        let mut search = self.command("apt-cache", None);
        let names = cmd::output(search.args(FOREIGN).args(["pkgnames", "linux-"]))?;
        newest_image(&without_architecture(&names)).context("no stock 7.2 arm64 kernel in the package lists")
    }

    /// `package=VERSION` of the newest version that the kernel's own number begins.
    pub(super) fn version_of(&self, package: &str, number: &str) -> Result<String> {
        let mut search = self.command("apt-cache", None);
        let said = cmd::output(search.args(FOREIGN).args(["madison", package]))?;
        let version = version_in(&said, number).with_context(|| format!("no {package} of {number}"))?;
        Ok(format!("{package}={version}"))
    }

    /// The arm64 packages that `package` needs, itself among them, from the release `from` if given.
    pub(super) fn needs(&self, package: &str, from: Option<&str>) -> Result<Vec<String>> {
        let mut simulate = self.command("apt-get", None);
        // As on a machine of that kind on which nothing is installed.
        simulate.args(["-o", "Dir::State::status=/dev/null", "-o", "APT::Architecture=arm64"]);
        simulate.args(["-o", "APT::Architectures::=arm64", "-s", "--no-install-recommends"]);
        if let Some(release) = from {
            simulate.args(["-t", release]);
        }
        let said = cmd::output(simulate.args(["install", package]))?;
        let names: Vec<String> = said.lines().filter_map(to_be_unpacked).collect();
        if names.is_empty() {
            bail!("apt knows no arm64 package {package}");
        }
        Ok(names)
    }

    /// Downloads `packages` and unpacks them under `root`.
    pub(super) fn unpack(&self, packages: &[&str], root: &Path) -> Result<()> {
        let debs = self.home.join("debs");
        std::fs::remove_dir_all(&debs)?;
        std::fs::create_dir_all(&debs)?;
        std::fs::create_dir_all(root)?;
        let mut download = self.command("apt-get", None);
        download.current_dir(&debs).args(FOREIGN).arg("download").args(packages);
        ui::stage("download", |_| cmd::output(&mut download))?;
        ui::stage("unpack", |stage| {
            for entry in std::fs::read_dir(&debs)? {
                let deb = entry?.path();
                stage.say(&deb.file_name().unwrap_or_default().to_string_lossy());
                extract(&deb, root)?;
            }
            Ok(())
        })?;
        // Verified and unpacked: the archives are not needed again.
        std::fs::remove_dir_all(&debs)?;
        Ok(())
    }

    fn command(&self, program: &str, sudo: Option<&Path>) -> Command {
        let mut command = match sudo {
            Some(sudo) => {
                let mut command = Command::new(sudo);
                command.arg(program);
                command
            }
            None => Command::new(program),
        };
        command.env("LC_ALL", "C").arg("-q");
        let mut set = |name: &str, value: &Path| {
            command.arg("-o").arg(format!("{name}={}", value.display()));
        };
        set("Dir::Etc::sourcelist", &self.home.join("sources.list"));
        set("Dir::Etc::sourceparts", &self.home.join("parts"));
        set("Dir::State::Lists", &self.home.join("lists"));
        set("Dir::Cache", &self.home.join("cache"));
        if self.root || sudo.is_some() {
            // The unprivileged download user cannot write below a checkout.
            command.args(["-o", "APT::Sandbox::User=root"]);
        }
        command
    }
}

/// Lets apt see arm64 packages beside this machine's own.
const FOREIGN: [&str; 4] = ["-o", "APT::Architectures::=amd64", "-o", "APT::Architectures::=arm64"];

/// Unpacks one package; of a kernel only its boot files and the modules that are loaded.
fn extract(deb: &Path, root: &Path) -> Result<()> {
    let is_kernel = deb.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("linux-image-"));
    if !is_kernel {
        cmd::output(Command::new("dpkg-deb").arg("-x").args([deb, root]))?;
        return Ok(());
    }
    let pipe =
        "deb=$1 root=$2; shift 2; dpkg-deb --fsys-tarfile \"$deb\" | tar -x --wildcards -C \"$root\" ./boot \"$@\"";
    cmd::output(Command::new("sh").args(["-c", pipe, "sh"]).args([deb, root]).args(modules::PATTERNS))?;
    Ok(())
}

/// The first version in a list of `package | version | source`, newest first, that is `number` as Debian packaged it.
fn version_in(list: &str, number: &str) -> Option<String> {
    let versions = list.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim);
    versions.filter(|v| v.strip_prefix(number).is_some_and(|rest| rest.starts_with('-'))).map(str::to_owned).next()
}

/// One `deb` line, or one stanza's product, of this machine's sources.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    options: String,
    uri: String,
    suite: String,
}

fn system_sources() -> Vec<Source> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(dir) = std::fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(dir.filter_map(|e| Some(e.ok()?.path())));
    }
    files.sort();
    let mut sources = Vec::new();
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|e| e.to_str()) {
            Some("list") => sources.extend(text.lines().filter_map(parse_line)),
            Some("sources") => sources.extend(parse_stanzas(&text)),
            _ => {}
        }
    }
    sources
}

/// The package with a version, of one line of a simulated installation; what runs on any machine has no library in it.
fn to_be_unpacked(line: &str) -> Option<String> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(" (")?;
    let version = rest.split_whitespace().next()?;
    rest.contains("[arm64]").then(|| format!("{name}:arm64={version}"))
}

fn without_architecture(names: &str) -> Vec<&str> {
    names.lines().map(|l| l.split_once(':').map_or(l, |(n, _)| n)).collect()
}

/// Where guests' newer kernel is.
const GUESTS: &str = "trixie-backports";

/// The lines of the private list: this machine's sources of `debian`, and the backports of the same mirror.
fn private_sources(system: &[Source], debian: Debian) -> Vec<String> {
    let code = debian.codename();
    let ours = |suite: &str| suite == code || suite.strip_prefix(code).is_some_and(|s| s.starts_with('-'));
    let mut wanted: Vec<Source> = system.iter().filter(|s| ours(&s.suite)).cloned().collect();
    if let Some(mirror) = system.iter().find(|s| s.suite == code) {
        let more = debian.backports().into_iter().chain([GUESTS]);
        wanted.extend(more.map(|suite| Source { suite: suite.to_owned(), ..mirror.clone() }));
    }
    let mut lines = Vec::new();
    for s in wanted {
        let line = format!("deb [arch=amd64,arm64{}] {} {} main", s.options, s.uri, s.suite);
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines
}

fn parse_line(line: &str) -> Option<Source> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(inner) => inner.split_once(']')?,
        None => ("", rest),
    };
    let options =
        options.split_whitespace().filter(|o| !o.starts_with("arch")).fold(String::new(), |all, one| all + " " + one);
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?.to_owned(), words.next()?.to_owned());
    words.any(|w| w == "main").then_some(Source { options, uri, suite })
}

fn parse_stanzas(text: &str) -> Vec<Source> {
    let text: String = text.lines().filter(|l| !l.starts_with('#')).fold(String::new(), |all, l| all + l + "\n");
    text.split("\n\n").flat_map(parse_stanza).collect()
}

fn parse_stanza(stanza: &str) -> Vec<Source> {
    let field = |name: &str| -> Vec<String> {
        let mut words = Vec::new();
        let mut inside = false;
        for line in stanza.lines() {
            if line.starts_with([' ', '\t']) {
                if inside {
                    words.extend(line.split_whitespace().map(str::to_owned));
                }
                continue;
            }
            let Some((key, value)) = line.split_once(':') else { continue };
            inside = key.eq_ignore_ascii_case(name);
            if inside {
                words.extend(value.split_whitespace().map(str::to_owned));
            }
        }
        words
    };
    let has = |name: &str, word: &str| field(name).iter().any(|w| w == word);
    if !has("Types", "deb") || !has("Components", "main") || has("Enabled", "no") {
        return Vec::new();
    }
    let mut options = String::new();
    // A key written into the stanza itself cannot stand in a one-line source; the system's keyring is used then.
    if let [key] = field("Signed-By").as_slice() {
        options.push_str(" signed-by=");
        options.push_str(key);
    }
    if has("Trusted", "yes") {
        options.push_str(" trusted=yes");
    }
    let suites = field("Suites");
    let product = |uri: String| {
        let options = options.clone();
        suites.iter().map(move |suite| Source { options: options.clone(), uri: uri.clone(), suite: suite.clone() })
    };
    field("URIs").into_iter().flat_map(product).collect()
}

/// The newest release `6.12.N+x-arm64` that has an image, both header packages and the build scripts.
fn newest_complete(names: &[&str]) -> Option<String> {
    let has = |name: String| names.contains(&name.as_str());
    names
        .iter()
        .filter_map(|name| name.strip_prefix("linux-image-"))
        .filter(|release| is_stock(release, "6.12."))
        .filter(|release| {
            let short = release.trim_end_matches("-arm64");
            has(format!("linux-headers-{release}"))
                && has(format!("linux-headers-{short}-common"))
                && has(format!("linux-kbuild-{short}"))
        })
        .max_by_key(|release| numbers(release))
        .map(|release| (*release).to_owned())
}

/// The newest release `7.2.N+x-arm64`, and the package with its Image: newer ones keep it apart.
fn newest_image(names: &[&str]) -> Option<(String, String)> {
    let releases = names.iter().filter_map(|name| name.strip_prefix("linux-image-"));
    let release = releases.filter(|release| is_stock(release, "7.2.")).max_by_key(|release| numbers(release))?;
    let apart = format!("linux-binary-{release}");
    let package = if names.contains(&apart.as_str()) { apart } else { format!("linux-image-{release}") };
    Some(((*release).to_owned(), package))
}

fn is_stock(release: &str, series: &str) -> bool {
    release
        .strip_suffix("-arm64")
        .is_some_and(|v| v.starts_with(series) && !["-rt", "-cloud", "16k", "unsigned"].iter().any(|w| v.contains(w)))
}

fn numbers(release: &str) -> Vec<u64> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_source_formats_give_the_same_private_list() {
        let line = "deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib";
        let stanza = "Types: deb\n# note\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: main\n\
                      Signed-By: /k.gpg\n\nTypes: deb-src\nURIs: http://x.example\nSuites: bookworm\nComponents: main\n";
        let from_line: Vec<Source> = parse_line(line).into_iter().collect();
        assert_eq!(from_line, parse_stanzas(stanza));
        let expected = [
            "deb [arch=amd64,arm64 signed-by=/k.gpg] http://mirror.example/debian bookworm main",
            "deb [arch=amd64,arm64 signed-by=/k.gpg] http://mirror.example/debian bookworm-backports main",
            "deb [arch=amd64,arm64 signed-by=/k.gpg] http://mirror.example/debian trixie-backports main",
        ];
        assert_eq!(private_sources(&from_line, Debian::Bookworm), expected);
    }

    #[test]
    fn comments_disabled_stanzas_and_other_suites_are_left_out() {
        assert_eq!(parse_line("# deb http://m.example/debian bookworm main"), None);
        assert_eq!(parse_line("deb http://m.example/debian bookworm contrib"), None);
        assert!(parse_stanzas("Enabled: no\nTypes: deb\nURIs: u\nSuites: s\nComponents: main\n").is_empty());
        let other = parse_line("deb http://m.example/other sid main").unwrap();
        assert!(private_sources(&[other], Debian::Trixie).is_empty());
    }

    #[test]
    fn what_a_package_needs_is_read_from_a_simulation() {
        let line = "Inst libfdt1 (1.7.2-2 Debian:13.1/stable [arm64])";
        assert_eq!(to_be_unpacked(line).as_deref(), Some("libfdt1:arm64=1.7.2-2"));
        assert_eq!(to_be_unpacked("Inst qemu-system-data (1:10.0 Debian:13.1/stable [all])"), None);
        assert_eq!(to_be_unpacked("Conf libfdt1 (1.7.2-2 Debian:13.1/stable [arm64])"), None);
    }

    #[test]
    fn the_newest_complete_stock_kernel_wins() {
        let mut names = Vec::new();
        for short in ["6.12.9+deb12", "6.12.95+deb12", "6.12.100+deb12"] {
            names.push(format!("linux-image-{short}-arm64"));
            names.push(format!("linux-image-{short}-rt-arm64"));
            names.push(format!("linux-headers-{short}-arm64"));
            names.push(format!("linux-headers-{short}-common"));
            if !short.starts_with("6.12.100") {
                names.push(format!("linux-kbuild-{short}"));
            }
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(newest_complete(&names).as_deref(), Some("6.12.95+deb12-arm64"));
        assert_eq!(newest_complete(&[]), None);
    }

    #[test]
    fn a_source_is_of_the_kernels_own_number() {
        let list = " linux-source-6.12 | 6.12.117-1~deb12u1 | m bookworm-security/main amd64 Packages\n \
                    linux-source-6.12 | 6.12.11-2~deb12u1 | m bookworm-security/main amd64 Packages\n";
        assert_eq!(version_in(list, "6.12.117").as_deref(), Some("6.12.117-1~deb12u1"));
        assert_eq!(version_in(list, "6.12.11").as_deref(), Some("6.12.11-2~deb12u1"));
        assert_eq!(version_in(list, "6.12.1"), None);
    }

    #[test]
    fn the_newest_guest_kernel_is_taken_from_the_package_that_has_it() {
        let mut names = vec!["linux-image-7.2.9+deb13-arm64", "linux-image-7.2.12+deb13-arm64"];
        names.extend(["linux-image-7.2.12+deb13-rt-arm64", "linux-image-7.2.13+deb13-cloud-arm64"]);
        names.extend(["linux-image-7.3.4+deb13-arm64", "linux-image-7.2.20+deb13-arm64-16k"]);
        let owned = |release: &str, package: &str| Some((release.to_owned(), package.to_owned()));
        let release = "7.2.12+deb13-arm64";
        assert_eq!(newest_image(&names), owned(release, "linux-image-7.2.12+deb13-arm64"));
        names.push("linux-binary-7.2.12+deb13-arm64");
        assert_eq!(newest_image(&names), owned(release, "linux-binary-7.2.12+deb13-arm64"));
        assert_eq!(newest_image(&["linux-image-6.12.9+deb13-arm64"]), None);
    }
}
