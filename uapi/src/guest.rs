// SPDX-License-Identifier: MIT OR Apache-2.0
//! Calls that a guest makes to `el2`: the pKVM guest ABI, PSCI and SMCCC.
//!
//! Conduit HVC. Results are SMCCC's: x0 is 0, [`NOT_SUPPORTED`] or [`INVALID_PARAMETER`]; x1–x3 are zero unless stated.
//! Source: Linux `Documentation/virt/kvm/arm/hypercalls.rst`, Arm DEN0028 (SMCCC), DEN0022 (PSCI).

items! {
    /// Every guest status.
    GUEST_STATUSES: i64;
    /// Done.
    OK = 0;
    /// The call is not known here.
    NOT_SUPPORTED = -1;
    /// An argument is wrong; nothing changed.
    INVALID_PARAMETER = -3;
}

items! {
    /// Every status of PSCI that is not among the others.
    PSCI_STATUSES: i64;
    /// An argument is wrong; nothing changed. Of the random numbers too.
    INVALID_PARAMETERS = -2;
    /// The CPU is on.
    ALREADY_ON = -4;
    /// The CPU was started, and has not run yet.
    ON_PENDING = -5;
    /// The entry point can not be one.
    INVALID_ADDRESS = -9;
}

items! {
    /// Every status of the random numbers that is not among the others.
    TRNG_STATUSES: i64;
    /// There are not so many now.
    NO_ENTROPY = -3;
}

/// Words of the pKVM vendor-hypervisor UID 28b46fb6-2ec5-11e9-a9ca-4b564d003a74, as `CALL_UID` returns them.
pub const PKVM_UID: [u32; 4] = [0xb66f_b428, 0xe911_c52e, 0x564b_caa9, 0x743a_004d];

/// Features word 0 that a protected guest sees: bits 0 (features), 2 (meminfo), 3 (share), 4 (unshare), 5 to 8 (MMIO
/// guard), 9 (relinquish).
pub const FEATURES: u32 = 1 | 1 << 2 | 1 << 3 | 1 << 4 | 0xf << 5 | 1 << 9;

/// Runs of granules that a guest may have open by [`MMIO_GUARD_MAP`]; granules that touch are one run.
pub const MMIO_RUNS: u64 = 32;

/// Features word 3 that a protected guest sees: bit 16 ([`ATTEST`] is function 112).
pub const FEATURES_3: u32 = 1 << 16;

/// Bytes of a granule, the answer of [`HYP_MEMINFO`].
pub const GRANULE: u64 = 4096;

items! {
    /// Parts of a report's first word: [`ATTEST`].
    REPORT: u64;
    /// Bits `[31:0]`: version of the report.
    REPORT_VERSION = 1;
    /// The VM was measured; without it the digest is zero.
    REPORT_MEASURED = 1 << 32;
}

calls! {
    /// SMCCC version.
    SMCCC_VERSION = 0x8000_0000;
    args();
    rets("version": "in x0: 0x10002");
    errors();
    when("guest, at any time");
    /// SMCCC architecture features.
    SMCCC_ARCH_FEATURES = 0x8000_0001;
    args("function": "identifier asked about");
    rets();
    errors(NOT_SUPPORTED);
    when("guest, at any time");
    /// Vendor-hypervisor UID, in x0–x3.
    VENDOR_UID = 0x8600_FF01;
    args();
    rets("words": "in x0–x3: pKVM's UID");
    errors();
    when("guest, at any time");
    /// Bitmap of vendor-hypervisor functions, in x0–x3.
    VENDOR_FEATURES = 0x8600_0000;
    args();
    rets("bitmap": "in x0–x3");
    errors();
    when("guest, at any time");
    /// Memory information: the granule; x1 of the result says whether ranges are understood (1).
    HYP_MEMINFO = 0xC600_0002;
    args("x1": "0", "x2": "0", "x3": "0");
    rets("ranges": "1: MEM_SHARE and MEM_UNSHARE take a count in x2");
    errors(INVALID_PARAMETER);
    when("protected guest");
    /// Lends granules to the host. x2 is a count, where 0 means 1. x1 returns how many were done. The first granule must
    /// be private; RAM that is not backed yet is backed first. Done are at most 512, up to the first that is not private.
    MEM_SHARE = 0xC600_0003;
    args("ipa": "first granule, aligned", "count": "granules, 0 means 1", "x3": "0");
    rets("done": "granules shared, maybe fewer than asked");
    errors(INVALID_PARAMETER);
    when("protected guest");
    /// Takes granules back from the host. Returns only when the host has let go of them. The first granule must be lent;
    /// done are at most 512, up to the first that is not lent.
    MEM_UNSHARE = 0xC600_0004;
    args("ipa": "first granule, aligned", "count": "granules, 0 means 1", "x3": "0");
    rets("done": "granules private again, maybe fewer than asked");
    errors(INVALID_PARAMETER);
    when("protected guest");
    /// Bytes of a granule of the MMIO guard, in x0.
    MMIO_GUARD_INFO = 0xC600_0005;
    args("x1": "0", "x2": "0", "x3": "0");
    rets("granule": "in x0: 4096");
    errors(INVALID_PARAMETER);
    when("protected guest");
    /// From here on an access outside RAM that `MMIO_GUARD_MAP` has not opened is an external abort in the guest, whether a
    /// load, a store, a fetch or a walk: the host does not learn of it. The frames of the VM's interrupt controller are
    /// `el2`'s, and stay. Nothing takes it back.
    MMIO_GUARD_ENROLL = 0xC600_0006;
    args("x1": "0", "x2": "0", "x3": "0");
    rets();
    errors(INVALID_PARAMETER);
    when("protected guest");
    /// Opens a granule outside RAM: the host emulates what is there. It may be said before `MMIO_GUARD_ENROLL`, and again.
    /// More than `MMIO_RUNS` runs of granules are refused.
    MMIO_GUARD_MAP = 0xC600_0007;
    args("ipa": "granule, aligned", "x2": "0", "x3": "0");
    rets();
    errors(INVALID_PARAMETER);
    when("protected guest");
    /// Shuts a granule outside RAM, open or not. One in the middle of a run is refused if that makes too many runs.
    MMIO_GUARD_UNMAP = 0xC600_0008;
    args("ipa": "granule, aligned", "x2": "0", "x3": "0");
    rets();
    errors(INVALID_PARAMETER);
    when("protected guest");
    /// Gives a granule back to the host, zeroed. It must be private; RAM that is not backed is nothing to give, and fine.
    MEM_RELINQUISH = 0xC600_0009;
    args("ipa": "granule, aligned", "x2": "0", "x3": "0");
    rets();
    errors(INVALID_PARAMETER);
    when("protected guest");
    /// Says what this VM started from: docs/attestation.md. Words are little-endian, as stores of x1 to x9 would leave
    /// them. Nobody but the guest can ask; the report is not signed yet.
    ATTEST = 0xC600_0070;
    args("nonce0": "bytes 0 to 7 of a nonce", "nonce1": "8 to 15", "nonce2": "16 to 23", "nonce3": "24 to 31");
    rets("format": "`REPORT_VERSION`, and `REPORT_MEASURED`", "digest0": "bytes 0 to 7 of the launch measurement (SHA-256)", "digest1": "8 to 15", "digest2": "16 to 23", "digest3": "24 to 31", "nonce0": "as it came", "nonce1": "as it came", "nonce2": "as it came", "nonce3": "as it came");
    errors();
    when("protected guest");
    /// PSCI version: 1.1.
    PSCI_VERSION = 0x8400_0000;
    args();
    rets("version": "in x0: 0x10001");
    errors();
    when("guest, at any time");
    /// Powers the VM off.
    PSCI_SYSTEM_OFF = 0x8400_0008;
    args();
    rets();
    errors();
    when("guest, at any time");
    /// Resets the VM.
    PSCI_SYSTEM_RESET = 0x8400_0009;
    args();
    rets();
    errors();
    when("guest, at any time");
    /// Resets the VM: type 0, a warm reset, or a vendor's type (bit 31). The host learns that it was this call.
    PSCI_SYSTEM_RESET2 = 0x8400_0012;
    args("type": "kind of reset", "cookie": "not looked at");
    rets();
    errors(INVALID_PARAMETERS);
    when("guest, at any time");
    /// As `PSCI_SYSTEM_RESET2`.
    PSCI_SYSTEM_RESET2_64 = 0xC400_0012;
    args("type": "kind of reset", "cookie": "not looked at");
    rets();
    errors(INVALID_PARAMETERS);
    when("guest, at any time");
    /// Waits as WFI does, whatever the state that is asked for; returns to its caller.
    PSCI_CPU_SUSPEND = 0x8400_0001;
    args("state": "power state, original format", "entry": "not looked at", "context": "not looked at");
    rets();
    errors(INVALID_PARAMETERS);
    when("guest, at any time");
    /// As `PSCI_CPU_SUSPEND`.
    PSCI_CPU_SUSPEND_64 = 0xC400_0001;
    args("state": "power state, original format", "entry": "not looked at", "context": "not looked at");
    rets();
    errors(INVALID_PARAMETERS);
    when("guest, at any time");
    /// Switches the calling CPU off. Does not return.
    PSCI_CPU_OFF = 0x8400_0002;
    args();
    rets();
    errors();
    when("guest, at any time");
    /// Starts a CPU that is off: at EL1 with all interrupts masked, its registers as after reset but for x0.
    PSCI_CPU_ON = 0x8400_0003;
    args("target": "its number, in Aff0", "entry": "address of its first instruction", "context": "its x0");
    rets();
    errors(INVALID_PARAMETERS, INVALID_ADDRESS, ALREADY_ON, ON_PENDING);
    when("guest, at any time");
    /// As `PSCI_CPU_ON`, with arguments of 64 bits.
    PSCI_CPU_ON_64 = 0xC400_0003;
    args("target": "its number, in Aff0", "entry": "address of its first instruction", "context": "its x0");
    rets();
    errors(INVALID_PARAMETERS, INVALID_ADDRESS, ALREADY_ON, ON_PENDING);
    when("guest, at any time");
    /// Whether a CPU is on (0), off (1) or starting (2).
    PSCI_AFFINITY_INFO = 0x8400_0004;
    args("target": "its number, in Aff0", "level": "0");
    rets("state": "in x0");
    errors(INVALID_PARAMETERS);
    when("guest, at any time");
    /// As `PSCI_AFFINITY_INFO`.
    PSCI_AFFINITY_INFO_64 = 0xC400_0004;
    args("target": "its number, in Aff0", "level": "0");
    rets("state": "in x0");
    errors(INVALID_PARAMETERS);
    when("guest, at any time");
    /// There is no trusted OS that would have to be migrated: 2.
    PSCI_MIGRATE_INFO_TYPE = 0x8400_0006;
    args();
    rets("kind": "in x0: 2");
    errors();
    when("guest, at any time");
    /// Version of the random number interface, 1.0. There is none where the CPU has no source (`FEAT_RNG`): nothing that
    /// the host controls stands in for it.
    TRNG_VERSION = 0x8400_0050;
    args();
    rets("version": "in x0: 0x10000");
    errors(NOT_SUPPORTED);
    when("guest, at any time");
    /// Whether a function of the random number interface is implemented.
    TRNG_FEATURES = 0x8400_0051;
    args("function": "identifier asked about");
    rets();
    errors(NOT_SUPPORTED);
    when("guest, at any time");
    /// Names the source, in x0–x3.
    TRNG_GET_UUID = 0x8400_0052;
    args();
    rets("words": "in x0–x3");
    errors(NOT_SUPPORTED);
    when("guest, at any time");
    /// Random bits in w1–w3, the lowest in w3; the rest is zero.
    TRNG_RND = 0x8400_0053;
    args("bits": "1 to 96");
    rets("high": "bits 95:64", "middle": "bits 63:32", "low": "bits 31:0");
    errors(NOT_SUPPORTED, INVALID_PARAMETERS, NO_ENTROPY);
    when("guest, at any time");
    /// Random bits in x1–x3, the lowest in x3; the rest is zero.
    TRNG_RND_64 = 0xC400_0053;
    args("bits": "1 to 192");
    rets("high": "bits 191:128", "middle": "bits 127:64", "low": "bits 63:0");
    errors(NOT_SUPPORTED, INVALID_PARAMETERS, NO_ENTROPY);
    when("guest, at any time");
    /// Whether a PSCI function is implemented.
    PSCI_FEATURES = 0x8400_000A;
    args("function": "identifier asked about");
    rets();
    errors(NOT_SUPPORTED);
    when("guest, at any time");
}
