// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which distribution this is.

/// What `/etc/os-release` says.
pub(super) struct Distro {
    /// Its name, for messages.
    pub name: String,
    debian: Option<Debian>,
}

/// A Debian release that set-up knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Debian {
    /// 12
    Bookworm,
    /// 13
    Trixie,
}

impl Debian {
    /// Its code name.
    pub(super) fn codename(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// Where QEMU 10 and Linux 6.12 are, if not in the release itself.
    pub(super) fn backports(self) -> Option<&'static str> {
        match self {
            Self::Bookworm => Some("bookworm-backports"),
            Self::Trixie => None,
        }
    }
}

impl Distro {
    /// Reads this machine's.
    pub(super) fn this_machine() -> Self {
        let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        Self::parse(&text, std::env::consts::ARCH)
    }

    /// The Debian release, on x86-64.
    pub(super) fn debian(&self) -> Option<Debian> {
        self.debian
    }

    fn parse(text: &str, arch: &str) -> Self {
        let value = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
                .map(|v| v.trim().trim_matches('"').to_owned())
                .unwrap_or_default()
        };
        let debian = match (value("ID").as_str(), value("VERSION_ID").as_str(), arch) {
            ("debian", "12", "x86_64") => Some(Debian::Bookworm),
            ("debian", "13", "x86_64") => Some(Debian::Trixie),
            _ => None,
        };
        let name = format!("this is {} {} on {arch}", value("ID"), value("VERSION_ID"));
        Self { name, debian }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_12_and_13_on_x86_64_are_known_and_nothing_else() {
        let known = |text: &str, arch: &str| Distro::parse(text, arch).debian();
        assert_eq!(known("ID=debian\nVERSION_ID=\"12\"\n", "x86_64"), Some(Debian::Bookworm));
        assert_eq!(known("ID=debian\nVERSION_ID=\"13\"\n", "x86_64"), Some(Debian::Trixie));
        assert_eq!(known("ID=debian\nVERSION_ID=\"12\"\n", "aarch64"), None);
        assert_eq!(known("ID=fedora\nVERSION_ID=41\n", "x86_64"), None);
        assert_eq!(known("", "x86_64"), None);
    }
}
