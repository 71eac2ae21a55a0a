// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who may import whom (design, section 3).

use anyhow::Result;
use serde_json::Value;

use crate::cmd;
use crate::env::Env;

/// What a package may depend on.
struct Rule {
    package: &'static str,
    /// Packages of this repository.
    ours: &'static [&'static str],
    /// Crates from outside; none means any.
    others: Option<&'static [&'static str]>,
}

/// Crates that speak to hardware or keep its memory; they belong to `arch` and the wiring.
const HARDWARE: &[&str] = &[
    "aarch64-cpu",
    "tock-registers",
    "arm-gic",
    "arm-sysregs",
    "spin",
    "buddy_system_allocator",
    "smccc",
    "safe-mmio",
];

/// The same, and fixed tables for what the device tree names.
const WIRING: &[&str] =
    &["spin", "buddy_system_allocator", "smccc", "arm-gic", "aarch64-cpu", "tock-registers", "arrayvec"];

/// Test crates that import the wiring or its pure half (docs/adr/0011), in the order of the rules.
#[cfg(test)]
const IMPORT_THE_WIRING: &[&str] = &["freehold-fuzz", "freehold-model", "freehold-el2-watch"];

const RULES: &[Rule] = &[
    Rule { package: "freehold-uapi", ours: &[], others: Some(&[]) },
    Rule { package: "freehold-mem", ours: &[], others: Some(&[]) },
    Rule { package: "freehold-virt", ours: &["freehold-mem", "freehold-uapi"], others: Some(&["arm-gic"]) },
    Rule { package: "freehold-arch", ours: &["freehold-mem", "freehold-virt"], others: Some(HARDWARE) },
    Rule {
        package: "freehold-el2",
        ours: &["freehold-mem", "freehold-virt", "freehold-arch", "freehold-uapi"],
        others: Some(WIRING),
    },
    Rule { package: "freehold-driver-core", ours: &["freehold-uapi"], others: Some(&[]) },
    Rule { package: "freehold-driver-linux", ours: &["freehold-driver-core", "freehold-uapi"], others: Some(&[]) },
    Rule { package: "freehold-oracle", ours: &["freehold-uapi"], others: None },
    Rule {
        package: "freehold-states",
        ours: &["freehold-mem", "freehold-driver-core", "freehold-uapi"],
        others: Some(&[]),
    },
    Rule { package: "freehold-trace", ours: &["freehold-mem"], others: Some(&[]) },
    Rule {
        package: "freehold-fuzz",
        ours: &[
            "freehold-model",
            "freehold-oracle",
            "freehold-el2",
            "freehold-mem",
            "freehold-virt",
            "freehold-driver-core",
            "freehold-uapi",
        ],
        others: Some(&[]),
    },
    Rule {
        package: "freehold-model",
        ours: &["freehold-oracle", "freehold-el2", "freehold-mem", "freehold-virt", "freehold-uapi"],
        others: Some(&[]),
    },
    Rule { package: "freehold-count", ours: &[], others: Some(&[]) },
    Rule { package: "freehold-attest", ours: &[], others: Some(&["sha2"]) },
    Rule { package: "freehold-guest", ours: &["freehold-uapi"], others: None },
    Rule {
        package: "freehold-el2-watch",
        ours: &[
            "freehold-mem",
            "freehold-virt",
            "freehold-arch",
            "freehold-uapi",
            "freehold-el2",
            "freehold-trace",
            "freehold-oracle",
        ],
        others: Some(WIRING),
    },
    Rule {
        package: "freehold-vmm",
        ours: &["freehold-uapi", "freehold-guest", "freehold-vmm-boot", "freehold-attest"],
        others: None,
    },
    Rule { package: "freehold-vmm-boot", ours: &[], others: None },
    Rule { package: "freehold-selftest", ours: &[], others: Some(&["libc"]) },
    Rule { package: "xtask", ours: &["freehold-uapi", "freehold-states", "freehold-trace"], others: None },
];

/// Crates of rust-vmm's on which the VMM is built.
const BUILT_ON: [(&str, &[&str]); 2] = [
    ("freehold-vmm", &["kvm-bindings", "kvm-ioctls", "vm-superio", "vmm-sys-util"]),
    ("freehold-vmm-boot", &["vm-fdt", "vm-superio"]),
];

/// Each dependency that no rule allows, and each that is missing.
pub(super) fn check(env: &Env) -> Result<Vec<String>> {
    let mut cargo = cmd::cargo(&env.root);
    let text = cmd::output(cargo.args(["metadata", "--no-deps", "--format-version", "1"]))?;
    Ok(violations(&serde_json::from_str(&text)?))
}

fn violations(metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    if packages.is_empty() {
        return vec!["cargo metadata names no package".to_owned()];
    }
    let ours: Vec<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    packages.iter().flat_map(|p| of_package(p, &ours)).collect()
}

fn of_package(package: &Value, ours: &[&str]) -> Vec<String> {
    let name = package["name"].as_str().unwrap_or_default();
    let Some(rule) = RULES.iter().find(|r| r.package == name) else {
        return vec![format!("{name}: no import rule speaks of this package")];
    };
    let dependencies = package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default();
    let named: Vec<&str> = dependencies.iter().filter_map(|d| d["name"].as_str()).collect();
    let built_on = BUILT_ON.iter().filter(|(package, _)| *package == name).flat_map(|(_, crates)| *crates);
    let missing = built_on.filter(|c| !named.contains(c)).map(|c| format!("{name} is to be built on {c}"));
    let forbidden = dependencies
        .iter()
        // What only a crate's own tests use is not part of what it is.
        .filter(|d| d["kind"].as_str() != Some("dev"))
        .filter_map(|d| d["name"].as_str())
        .filter(|d| {
            let allowed =
                if ours.contains(d) { rule.ours.contains(d) } else { rule.others.is_none_or(|o| o.contains(d)) };
            !allowed
        })
        .map(|d| format!("{name} must not import {d}"));
    forbidden.chain(missing).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(package: &str, dependency: &str, kind: Option<&str>) -> Vec<String> {
        let names = ["freehold-uapi", "freehold-mem", "freehold-virt", "freehold-el2"];
        let mut packages: Vec<Value> =
            names.iter().filter(|n| **n != package).map(|n| json!({ "name": n, "dependencies": [] })).collect();
        packages.push(json!({ "name": package, "dependencies": [{ "name": dependency, "kind": kind }] }));
        violations(&json!({ "packages": packages }))
    }

    #[test]
    fn the_lower_crates_import_nothing_above_them() {
        assert_eq!(found("freehold-mem", "freehold-virt", None), ["freehold-mem must not import freehold-virt"]);
        assert_eq!(found("freehold-mem", "serde", None), ["freehold-mem must not import serde"]);
        assert_eq!(found("freehold-virt", "freehold-mem", None), Vec::<String>::new());
        assert_eq!(found("freehold-virt", "spin", None).len(), 1);
        assert_eq!(found("freehold-mem", "proptest", Some("dev")), Vec::<String>::new());
    }

    #[test]
    fn nothing_shipped_imports_the_wiring() {
        let importers = RULES.iter().filter(|r| r.ours.contains(&"freehold-el2")).map(|r| r.package);
        assert!(importers.eq(IMPORT_THE_WIRING.iter().copied()));
        assert_eq!(found("freehold-vmm", "freehold-el2", None)[0], "freehold-vmm must not import freehold-el2");
    }

    #[test]
    fn the_vmm_is_built_on_rust_vmm() {
        let crates = |names: &[&str]| names.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>();
        let vmm = |names: &[&str]| json!({ "packages": [{ "name": "freehold-vmm", "dependencies": crates(names) }] });
        assert_eq!(violations(&vmm(BUILT_ON[0].1)), Vec::<String>::new());
        let less = ["kvm-bindings", "vm-superio", "vmm-sys-util"];
        assert_eq!(violations(&vmm(&less)), ["freehold-vmm is to be built on kvm-ioctls"]);
    }

    #[test]
    fn a_package_without_a_rule_is_a_finding() {
        assert_eq!(found("newcomer", "serde", None), ["newcomer: no import rule speaks of this package"]);
        assert_eq!(violations(&json!({})).len(), 1);
    }
}
