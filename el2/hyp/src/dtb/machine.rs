// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the DTB says about the machine, as far as el2 needs it, within fixed limits.
//!
//! Guarantees that banks are non-empty, sorted and disjoint, that every CPU is started by PSCI, and
//! that nothing was dropped silently: what does not fit is a `Stop`. Addresses of devices are those of
//! a CPU, translated through every bus above them.

use super::read::{Dtb, Node, number};
use crate::layout::{Span, overlap};
use crate::stop::Stop;
use arrayvec::ArrayVec;

/// Most RAM banks.
pub const MAX_BANKS: usize = 16;
/// Most reserved ranges.
pub const MAX_RESERVED: usize = 64;
/// Most CPUs.
pub const MAX_CPUS: usize = 32;
/// Most runs of hidden frames.
pub const MAX_HIDDEN: usize = 8;
/// Most redistributor regions.
pub const MAX_GICR: usize = 4;

/// Bytes of a frame.
const FRAME: u64 = 4096;

/// A range that the DTB reserves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Where.
    pub span: Span,
    /// Whether nobody may map it.
    pub no_map: bool,
}

/// Which interrupt controller there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Gic {
    /// None that is known.
    #[default]
    Unknown,
    /// GICv2: guests are not supported on it.
    V2,
    /// GICv3 or later.
    V3 {
        /// Distributor.
        distributor: Span,
        /// Redistributor regions.
        redistributors: ArrayVec<Span, MAX_GICR>,
    },
}

/// The machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// RAM.
    pub banks: ArrayVec<Span, MAX_BANKS>,
    /// Reserved ranges.
    pub reserved: ArrayVec<Reserved, MAX_RESERVED>,
    /// MPIDR affinities of all enabled CPUs, in the DTB's order.
    pub cpus: ArrayVec<u64, MAX_CPUS>,
    /// Initial RAM disk.
    pub initrd: Option<Span>,
    /// PL011 that is the console.
    pub console: Option<u64>,
    /// Interrupt controller.
    pub gic: Gic,
    /// Frames of devices that the host must not reach: they would do DMA past every check.
    pub hidden: ArrayVec<Span, MAX_HIDDEN>,
    /// Whether an SMMU stands before some of the devices.
    pub has_smmu: bool,
    /// Whether a PSCI node was seen.
    has_psci: bool,
    /// Depth of a node that the host's tree is to be without, while what stands below it is read: that goes too.
    left_out: Option<usize>,
    initrd_start: Option<u64>,
    initrd_end: Option<u64>,
}

impl Machine {
    /// Reads the machine out of a DTB.
    ///
    /// # Errors
    /// A `Stop` for what is missing, malformed, or more than is supported.
    pub fn read(dtb: &Dtb<'_>) -> Result<Self, Stop> {
        let mut machine = Self::default();
        for span in dtb.reservations() {
            machine.reserve(span, false)?;
        }
        let console = console_path(dtb);
        dtb.for_each_node(|node| machine.take(node, console))?;
        machine.finish()
    }

    /// The ranges that nobody may map.
    pub fn no_map(&self) -> impl Iterator<Item = &Span> + Clone {
        self.reserved.iter().filter(|reserved| reserved.no_map).map(|reserved| &reserved.span)
    }

    fn take(&mut self, node: &Node<'_, '_>, console: Option<&str>) -> Result<(), Stop> {
        let depth = node.path.len();
        self.left_out = self.left_out.filter(|above| depth > *above);
        if node.has_own_dma() {
            self.left_out = self.left_out.or(Some(depth));
            if node.path.first() == Some(&"reserved-memory") {
                return Err(Stop::new(
                    "reserved memory is a device that must be hidden",
                    "/reserved-memory compatible",
                ));
            }
            return self.hide(node);
        }
        match node.path {
            _ if self.left_out.is_some() => {}
            ["chosen"] => {
                self.initrd_start = node.property("linux,initrd-start").map(number);
                self.initrd_end = node.property("linux,initrd-end").map(number);
            }
            ["psci"] => self.take_psci(node)?,
            ["cpus", _] if node.string("device_type") == Some("cpu") => self.take_cpu(node)?,
            ["reserved-memory", _] if node.is_enabled() => self.take_reserved(node)?,
            _ if node.is_memory() && node.is_enabled() => self.take_memory(node)?,
            _ => self.take_device(node, console),
        }
        Ok(())
    }

    fn take_memory(&mut self, node: &Node<'_, '_>) -> Result<(), Stop> {
        let wrong = Stop::new("memory is malformed", "/memory reg");
        let reg = node.property("reg").ok_or(wrong)?;
        for (start, size) in node.cells.pairs(reg).ok_or(wrong)? {
            let end = start.checked_add(size).ok_or(wrong)?;
            if size != 0 && self.banks.try_push(start..end).is_err() {
                return Err(Stop::with("more RAM banks than are supported", "/memory reg, limit", MAX_BANKS as u64));
            }
        }
        Ok(())
    }

    /// Hides all frames of a node's `reg`; runs that touch are joined.
    fn hide(&mut self, node: &Node<'_, '_>) -> Result<(), Stop> {
        let wrong = Stop::new("a device that must be hidden is malformed", "its reg");
        for (start, size) in node.cells.pairs(node.property("reg").ok_or(wrong)?).ok_or(wrong)? {
            let start = node.to_cpu(start).ok_or(wrong)?;
            let end = start.checked_add(size).and_then(|end| end.checked_next_multiple_of(FRAME)).ok_or(wrong)?;
            let run = start & !FRAME.wrapping_sub(1)..end;
            match self.hidden.iter_mut().find(|other| other.start <= run.end && run.start <= other.end) {
                Some(other) => *other = other.start.min(run.start)..other.end.max(run.end),
                None => self.hidden.try_push(run).map_err(|_| {
                    Stop::with("more devices to hide than are supported", "DTB, limit", MAX_HIDDEN as u64)
                })?,
            }
        }
        Ok(())
    }

    fn take_reserved(&mut self, node: &Node<'_, '_>) -> Result<(), Stop> {
        let no_map = node.property("no-map").is_some();
        let Some(reg) = node.property("reg") else { return Ok(()) };
        let wrong = Stop::new("reserved memory is malformed", "/reserved-memory reg");
        for (start, size) in node.cells.pairs(reg).ok_or(wrong)? {
            self.reserve(start..start.checked_add(size).ok_or(wrong)?, no_map)?;
        }
        Ok(())
    }

    fn reserve(&mut self, span: Span, no_map: bool) -> Result<(), Stop> {
        self.reserved
            .try_push(Reserved { span, no_map })
            .map_err(|_| Stop::with("more reserved ranges than are supported", "limit", MAX_RESERVED as u64))
    }

    fn take_cpu(&mut self, node: &Node<'_, '_>) -> Result<(), Stop> {
        let wrong = Stop::new("CPU is malformed", "/cpus reg");
        let mut addresses = node.cells.pairs(node.property("reg").ok_or(wrong)?).ok_or(wrong)?;
        let (mpidr, _) = addresses.next().ok_or(wrong)?;
        if node.string("status") == Some("fail") {
            return Ok(());
        }
        match node.string("enable-method") {
            Some("psci") => {}
            Some("spin-table") => return Err(Stop::with("CPU is started by spin-table, not PSCI", "/cpus cpu", mpidr)),
            Some(_) => return Err(Stop::with("CPU is not started by PSCI", "/cpus cpu", mpidr)),
            // One CPU that is never started by anyone needs no method.
            None if self.cpus.is_empty() => {}
            None => return Err(Stop::with("CPU has no enable-method", "/cpus cpu", mpidr)),
        }
        if self.cpus.contains(&mpidr) {
            return Err(Stop::with("CPU is listed twice", "/cpus cpu", mpidr));
        }
        self.cpus
            .try_push(mpidr)
            .map_err(|_| Stop::with("more CPUs than are supported", "/cpus, limit", MAX_CPUS as u64))
    }

    fn take_psci(&mut self, node: &Node<'_, '_>) -> Result<(), Stop> {
        // PSCI 0.1 names its functions itself and has no version call: not served.
        if !node.is_compatible("arm,psci-0.2") && !node.is_compatible("arm,psci-1.0") {
            return Ok(());
        }
        if node.string("method") != Some("smc") {
            return Err(Stop::new("PSCI is not called by SMC", "/psci method"));
        }
        self.has_psci = true;
        Ok(())
    }

    fn take_device(&mut self, node: &Node<'_, '_>, console: Option<&str>) {
        let first = node.property("reg").and_then(|reg| node.to_cpu(node.cells.pairs(reg)?.next()?.0));
        if let Some(start) = first
            && node.is_compatible("arm,pl011")
            && console.is_some_and(|wanted| is_path(node.path, wanted))
        {
            self.console = Some(start);
        }
        if node.is_compatible("arm,smmu-v3") && node.is_enabled() {
            self.has_smmu = true;
        }
        if node.is_compatible("arm,gic-v3") {
            self.gic = gic_v3(node);
        } else if ["arm,cortex-a15-gic", "arm,gic-400"].iter().any(|name| node.is_compatible(name)) {
            self.gic = Gic::V2;
        }
    }

    fn finish(mut self) -> Result<Self, Stop> {
        self.left_out = None;
        if self.banks.is_empty() {
            return Err(Stop::new("DTB names no memory", "/memory"));
        }
        self.banks.sort_unstable_by_key(|bank| bank.start);
        let followers = self.banks.iter().skip(1);
        if let Some((_, bad)) = self.banks.iter().zip(followers).find(|(a, b)| overlap(a, b)) {
            return Err(Stop::with("RAM banks overlap", "address", bad.start));
        }
        if self.cpus.is_empty() {
            return Err(Stop::new("DTB names no CPU", "/cpus"));
        }
        if !self.has_psci {
            return Err(Stop::new("DTB names no PSCI 0.2 or later", "/psci"));
        }
        self.initrd = match (self.initrd_start, self.initrd_end) {
            (Some(start), Some(end)) if start < end => Some(start..end),
            (Some(start), Some(end)) if start > end => {
                return Err(Stop::with("initrd ends before it starts", "/chosen linux,initrd-start", start));
            }
            _ => None,
        };
        Ok(self)
    }
}

fn gic_v3(node: &Node<'_, '_>) -> Gic {
    let regions = node.property("#redistributor-regions").map_or(1, number);
    let pairs = node.property("reg").and_then(|reg| node.cells.pairs(reg));
    let Some(mut spans) = pairs.map(|pairs| {
        pairs.filter_map(|(start, size)| node.to_cpu(start).map(|start| start..start.saturating_add(size)))
    }) else {
        return Gic::Unknown;
    };
    let Some(distributor) = spans.next() else { return Gic::Unknown };
    let wanted = usize::try_from(regions).map_or(MAX_GICR, |n| n.min(MAX_GICR));
    Gic::V3 { distributor, redistributors: spans.take(wanted).collect() }
}

/// The path that `/chosen` names as console, through `/aliases` where it uses one.
fn console_path<'a>(dtb: &Dtb<'a>) -> Option<&'a str> {
    let mut name = None;
    let mut path = None;
    let _ = dtb.for_each_node(|node| {
        if node.path == ["chosen"] {
            name = node.string("stdout-path").and_then(|text| text.split(':').next());
        }
        Ok(())
    });
    let name = name?;
    if name.starts_with('/') {
        return Some(name);
    }
    let _ = dtb.for_each_node(|node| {
        if node.path == ["aliases"] {
            path = node.string(name);
        }
        Ok(())
    });
    path
}

fn is_path(path: &[&str], wanted: &str) -> bool {
    wanted.split('/').skip(1).eq(path.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtb::testing::{Tree, board};

    fn read(tree: Tree) -> Result<Machine, Stop> {
        let blob = tree.blob();
        Machine::read(&Dtb::parse(&blob).unwrap())
    }

    #[test]
    fn a_board_is_read_whole() {
        let machine = read(board()).unwrap();
        assert_eq!(machine.banks.as_slice(), [0x4000_0000..0xc000_0000]);
        assert_eq!(machine.cpus.as_slice(), [0, 1]);
        assert_eq!(machine.initrd, Some(0x4800_0000..0x4900_0000));
        assert_eq!(machine.console, Some(0x900_0000));
        assert!(matches!(machine.gic, Gic::V3 { ref redistributors, .. } if redistributors.len() == 1));
        assert_eq!(machine.hidden.as_slice(), [0x902_0000..0x902_1000, 0xa00_0000..0xa00_1000]);
        assert_eq!(machine.reserved.len(), 1);
        assert!(machine.reserved[0].no_map);
    }

    #[test]
    fn a_console_behind_buses_is_found_where_the_cpu_sees_it() {
        let machine = read(board().with_buses("soc", &[0, 0x1000_0000, 0x10_0000], "/soc/inner/pl011@200")).unwrap();
        assert_eq!(machine.console, Some(0x1000_0200));
        let hidden = read(board().with_buses("soc", &[0, 0x1000_0000, 0x100], "/soc/inner/pl011@200")).unwrap();
        assert_eq!(hidden.console, None);
    }

    #[test]
    fn what_the_hosts_tree_is_to_be_without_is_not_taken() {
        let text = |name: &str| read(board().hiding(name)).map_err(|stop| stop.what());
        assert_eq!(text("memory@40000000"), Err("DTB names no memory"));
        assert_eq!(text("cpus"), Err("DTB names no CPU"));
        assert_eq!(text("chosen").unwrap().initrd, None);
        assert_eq!(text("intc@8000000").unwrap().gic, Gic::Unknown);
        for name in ["reserved-memory", "reserved-memory/below"] {
            assert_eq!(text(name), Err("reserved memory is a device that must be hidden"), "or the host would use it");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        for (node, text) in
            [("memory@40000000", "DTB names no memory"), ("psci", "DTB names no PSCI"), ("cpus", "DTB names no CPU")]
        {
            let stop = read(board().without(node)).unwrap_err();
            assert!(stop.what().starts_with(text), "{stop}");
        }
    }

    #[test]
    fn too_many_of_anything_is_refused() {
        let mut tree = board();
        for n in 0..MAX_BANKS as u64 {
            tree = tree.with_memory(0x10_0000_0000 + n * 0x1000_0000, 0x100_0000);
        }
        assert_eq!(read(tree).unwrap_err().what(), "more RAM banks than are supported");
        let mut tree = board();
        for n in 2..=MAX_CPUS as u32 {
            tree = tree.with_cpu(n, "psci");
        }
        assert_eq!(read(tree).unwrap_err().what(), "more CPUs than are supported");
    }

    #[test]
    fn cpus_that_psci_does_not_start_are_refused() {
        assert!(read(board().with_cpu(7, "spin-table")).unwrap_err().what().contains("spin-table"));
        assert!(read(board().with_cpu(1, "psci")).unwrap_err().what().contains("twice"));
    }

    #[test]
    fn a_console_is_found_by_its_alias() {
        let tree = board().with_text("chosen", "stdout-path", "serial0:115200n8");
        assert_eq!(read(tree.clone()).unwrap().console, None, "of no such name");
        let tree = tree.with_text("aliases", "serial0", "/pl011@9000000");
        assert_eq!(read(tree).unwrap().console, Some(0x900_0000));
    }

    #[test]
    fn what_is_no_cpu_and_what_is_not_reserved_is_passed_over() {
        let machine = read(board().with_text("cpus/cpu-map", "note", "clusters")).unwrap();
        assert_eq!(machine.cpus.as_slice(), [0, 1]);
        let machine = read(board().with_text("reserved-memory/secure@50000000", "status", "disabled")).unwrap();
        assert!(machine.reserved.is_empty());
    }

    #[test]
    fn each_range_counts_of_what_names_several() {
        let two = |from: [u32; 2]| [0, from[0], 0, 0x1000, 0, from[1], 0, 0x2000];
        let of = |path, from| read(board().with_cells(path, "reg", &two(from))).unwrap();
        let kept = of("reserved-memory/secure@50000000", [0x5000_0000, 0x6000_0000]);
        let no_map: Vec<&Span> = kept.no_map().collect();
        assert_eq!(no_map, [&(0x5000_0000..0x5000_1000), &(0x6000_0000..0x6000_2000)]);
        let hidden = of("fw-cfg@9020000", [0x902_0000, 0x904_0000]).hidden;
        assert_eq!(hidden[..2], [0x902_0000..0x902_1000, 0x904_0000..0x904_2000]);
        let banks = of("memory@40000000", [0x4000_0000, 0x8000_0000]).banks;
        assert_eq!(banks.as_slice(), [0x4000_0000..0x4000_1000, 0x8000_0000..0x8000_2000]);
    }

    #[test]
    fn what_the_header_reserves_is_reserved() {
        let machine =
            read(board().with_reservation(0x4300_0000, 0x3000).with_reservation(0x4500_0000, 0x1000)).unwrap();
        let spans: Vec<&Span> = machine.reserved.iter().map(|reserved| &reserved.span).collect();
        let [one, other, secure] = [0x4300_0000..0x4300_3000, 0x4500_0000..0x4500_1000, 0x5000_0000..0x5010_0000];
        assert_eq!(spans, [&one, &other, &secure]);
        assert_eq!(machine.no_map().count(), 1, "the host may map the others");
    }

    #[test]
    fn hidden_devices_that_touch_are_one_run() {
        for at in [0x902_1000, 0x901_f000] {
            let tree =
                board().with_text("extra", "compatible", "virtio,mmio").with_cells("extra", "reg", &[0, at, 0, 8]);
            let all = read(tree).unwrap().hidden;
            let first = u64::from(at).min(0x902_0000);
            assert_eq!(all.as_slice(), [first..first + 0x2000, 0xa00_0000..0xa00_1000]);
        }
    }

    #[test]
    fn the_only_cpu_needs_no_method_and_two_need_one_each() {
        let alone = |tree: Tree| tree.with_text("cpus/cpu@1", "status", "fail");
        let tree = board().without_property("cpus/cpu@0", "enable-method");
        assert_eq!(read(alone(tree)).unwrap().cpus.as_slice(), [0]);
        let stop = read(board().without_property("cpus/cpu@1", "enable-method")).unwrap_err();
        assert_eq!(stop.what(), "CPU has no enable-method");
    }

    #[test]
    fn a_cpu_whose_number_is_wider_than_a_register_is_malformed() {
        for (name, cells) in [("#address-cells", 3), ("#size-cells", 4)] {
            let reg = |n| [[0, 0, n].as_slice(), &[n, 0, 0, 0]][cells - 3].to_vec();
            let tree = board().with_cells("cpus", name, &[3]);
            let tree = tree.with_cells("cpus/cpu@0", "reg", &reg(0)).with_cells("cpus/cpu@1", "reg", &reg(1));
            assert_eq!(read(tree).unwrap_err().what(), "CPU is malformed", "{name}");
        }
    }

    #[test]
    fn psci_is_any_version_that_says_its_version() {
        for (compatible, served) in
            [("arm,psci-0.2", true), ("arm,psci-1.0", true), ("arm,psci", false), ("arm,psci-2.0", false)]
        {
            let machine = read(board().with_text("psci", "compatible", compatible));
            assert_eq!(machine.is_ok(), served, "{compatible}");
        }
    }

    #[test]
    fn an_smmu_counts_unless_it_is_switched_off() {
        assert!(!read(board()).unwrap().has_smmu);
        let tree = board().with_text("smmu", "compatible", "arm,smmu-v3");
        assert!(read(tree.clone()).unwrap().has_smmu);
        for (status, there) in [("okay", true), ("ok", true), ("disabled", false), ("fail", false)] {
            assert_eq!(read(tree.clone().with_text("smmu", "status", status)).unwrap().has_smmu, there, "{status}");
        }
    }

    #[test]
    fn an_initrd_of_nothing_is_none_and_one_that_ends_before_it_starts_is_refused() {
        let with = |end| read(board().with_cells("chosen", "linux,initrd-end", &[0, end]));
        assert_eq!(with(0x4800_0000).unwrap().initrd, None);
        assert_eq!(with(0x47ff_ffff).unwrap_err().what(), "initrd ends before it starts");
    }

    #[test]
    fn a_bus_of_wider_addresses_than_a_register_hides_what_is_behind_it() {
        let bus = |ranges: &[u32]| {
            board()
                .with_buses("soc", &[0, 0x1000_0000, 0x10_0000], "/soc/inner/pl011@200")
                .with_cells("soc", "ranges", ranges)
        };
        let wide = bus(&[0, 0, 0, 0, 0x1000_0000, 0x10_0000]).with_cells("soc", "#address-cells", &[3]);
        assert_eq!(read(wide).unwrap().console, None);
        let long = bus(&[0, 0, 0x1000_0000, 0, 0, 0x10_0000]).with_cells("soc", "#size-cells", &[3]);
        assert_eq!(read(long).unwrap().console, None);
        // The console's first byte is the one behind what the bus shows.
        assert_eq!(read(bus(&[0, 0, 0x1000_0000, 0x200])).unwrap().console, None);
        assert_eq!(read(bus(&[0, 0, 0x1000_0000, 0x201])).unwrap().console, Some(0x1000_0200));
    }

    #[test]
    fn overlapping_banks_are_refused() {
        assert_eq!(read(board().with_memory(0x8000_0000, 0x1000)).unwrap_err().what(), "RAM banks overlap");
        assert_eq!(read(board().with_memory(u64::MAX - 0xfff, 0x2000)).unwrap_err().what(), "memory is malformed");
    }
}
