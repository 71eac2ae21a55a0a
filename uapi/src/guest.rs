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

/// Words of the pKVM vendor-hypervisor UID 28b46fb6-2ec5-11e9-a9ca-4b564d003a74, as `CALL_UID` returns them.
pub const PKVM_UID: [u32; 4] = [0xb66f_b428, 0xe911_c52e, 0x564b_caa9, 0x743a_004d];

/// Features word 0 that a protected guest sees: bits 0 (features), 2 (meminfo), 3 (share), 4 (unshare), 9 (relinquish).
pub const FEATURES: u32 = 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 9;

/// Bytes of a granule, the answer of [`HYP_MEMINFO`].
pub const GRANULE: u64 = 4096;

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
    /// Gives a granule back to the host, zeroed. It must be private; RAM that is not backed is nothing to give, and fine.
    MEM_RELINQUISH = 0xC600_0009;
    args("ipa": "granule, aligned", "x2": "0", "x3": "0");
    rets();
    errors(INVALID_PARAMETER);
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
    /// Whether a PSCI function is implemented.
    PSCI_FEATURES = 0x8400_000A;
    args("function": "identifier asked about");
    rets();
    errors(NOT_SUPPORTED);
    when("guest, at any time");
}
