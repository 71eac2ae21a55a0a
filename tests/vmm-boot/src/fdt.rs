// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's device tree.

use vm_fdt::{Error, FdtWriter};

use crate::layout::{self, Layout};

/// What the device tree tells.
#[derive(Clone, Debug)]
pub struct Machine<'m> {
    /// Where things are.
    pub layout: Layout,
    /// `MPIDR_EL1` of each CPU.
    pub cpus: &'m [u64],
    /// The kernel's command line.
    pub cmdline: &'m str,
}

const CONTROLLER: u32 = 1;
const SHARED: u32 = 0;
const PRIVATE: u32 = 1;
const EDGE_RISING: u32 = 1;
const LEVEL_HIGH: u32 = 4;
/// Affinity fields of `MPIDR_EL1`.
const AFFINITY: u64 = 0xff_00ff_ffff;
/// What divides to the usual rates; the port has no real clock.
const SERIAL_CLOCK: u32 = 1_843_200;

/// Writes the tree.
///
/// # Errors
/// If the writer refuses a name or a value.
pub fn write(machine: &Machine<'_>) -> Result<Vec<u8>, Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_string("model", "freehold-vmm")?;
    fdt.property_u32("interrupt-parent", CONTROLLER)?;
    chosen(&mut fdt, machine)?;
    let memory = fdt.begin_node(&format!("memory@{:x}", layout::RAM))?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[layout::RAM, machine.layout.memory])?;
    fdt.end_node(memory)?;
    cpus(&mut fdt, machine.cpus)?;
    controller(&mut fdt, machine.cpus.len())?;
    timer(&mut fdt)?;
    let psci = fdt.begin_node("psci")?;
    fdt.property_string_list("compatible", vec!["arm,psci-1.0".to_owned(), "arm,psci-0.2".to_owned()])?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(psci)?;
    serial(&mut fdt)?;
    fdt.end_node(root)?;
    fdt.finish()
}

fn chosen(fdt: &mut FdtWriter, machine: &Machine<'_>) -> Result<(), Error> {
    let chosen = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", machine.cmdline)?;
    fdt.property_string("stdout-path", &serial_name())?;
    if let Some((start, end)) = machine.layout.initrd {
        fdt.property_u64("linux,initrd-start", start)?;
        fdt.property_u64("linux,initrd-end", end)?;
    }
    fdt.end_node(chosen)
}

fn cpus(fdt: &mut FdtWriter, ids: &[u64]) -> Result<(), Error> {
    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 0)?;
    for id in ids.iter().map(|id| id & AFFINITY) {
        let cpu = fdt.begin_node(&format!("cpu@{id:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_string("enable-method", "psci")?;
        fdt.property_u64("reg", id)?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(cpus)
}

fn controller(fdt: &mut FdtWriter, cpus: usize) -> Result<(), Error> {
    let cpus = u32::try_from(cpus).unwrap_or(layout::CPUS).min(layout::CPUS);
    let first = layout::redistributors(cpus);
    let controller = fdt.begin_node(&format!("intc@{:x}", layout::DISTRIBUTOR))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    let bytes = layout::DISTRIBUTOR - first;
    fdt.property_array_u64("reg", &[layout::DISTRIBUTOR, layout::DISTRIBUTOR_BYTES, first, bytes])?;
    fdt.property_phandle(CONTROLLER)?;
    fdt.end_node(controller)
}

/// The architecture's private interrupts: secure and plain physical timer, virtual timer, hypervisor's timer.
fn timer(fdt: &mut FdtWriter) -> Result<(), Error> {
    let timer = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    fdt.property_null("always-on")?;
    let lines: Vec<u32> = [13, 14, 11, 10].into_iter().flat_map(|line| [PRIVATE, line, LEVEL_HIGH]).collect();
    fdt.property_array_u32("interrupts", &lines)?;
    fdt.end_node(timer)
}

fn serial_name() -> String {
    format!("/serial@{:x}", layout::SERIAL)
}

fn serial(fdt: &mut FdtWriter) -> Result<(), Error> {
    let serial = fdt.begin_node(serial_name().trim_start_matches('/'))?;
    fdt.property_string("compatible", "ns16550a")?;
    fdt.property_array_u64("reg", &[layout::SERIAL, layout::SERIAL_BYTES])?;
    fdt.property_u32("clock-frequency", SERIAL_CLOCK)?;
    // The port's model tells of events, not of a state: each is an edge.
    fdt.property_array_u32("interrupts", &[SHARED, layout::SERIAL_SPI, EDGE_RISING])?;
    fdt.end_node(serial)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Image;

    /// The tree for four CPUs, read by somebody else's reader.
    fn with_tree(initrd: Option<u64>, look: impl FnOnce(&fdt::Fdt<'_>, Layout)) {
        let image = Image { bytes: Vec::new(), text_offset: 0, size: 45 << 20 };
        let layout = layout::place(256 << 20, &image, initrd).unwrap();
        let cpus = [0x8000_0000, 0x8000_0001, 0x8000_0100, 0x1_8000_0000];
        let machine = Machine { layout, cpus: &cpus, cmdline: "console=ttyS0 quiet" };
        let bytes = write(&machine).unwrap();
        assert!(bytes.len() as u64 <= layout::TREE_BYTES);
        look(&fdt::Fdt::new(&bytes).unwrap(), layout);
    }

    fn cells(tree: &fdt::Fdt<'_>, node: &str, property: &str) -> Vec<u32> {
        let node = tree.find_node(node).unwrap_or_else(|| panic!("no {node}"));
        let value = node.property(property).unwrap_or_else(|| panic!("no {property}")).value;
        value.chunks(4).map(|cell| u32::from_be_bytes(cell.try_into().unwrap())).collect()
    }

    #[test]
    fn the_kernel_is_told_its_memory_and_files() {
        with_tree(Some(1_234_567), |tree, layout| {
            assert_eq!(tree.chosen().bootargs(), Some("console=ttyS0 quiet"));
            let (start, end) = layout.initrd.unwrap();
            assert_eq!(end - start, 1_234_567);
            let low = |address: u64| vec![0, u32::try_from(address).unwrap()];
            assert_eq!(cells(tree, "/chosen", "linux,initrd-start"), low(start));
            assert_eq!(cells(tree, "/chosen", "linux,initrd-end"), low(end));
            assert_eq!(cells(tree, "/memory", "reg"), [low(layout::RAM), low(256 << 20)].concat());
        });
        with_tree(None, |tree, _| assert!(tree.find_node("/chosen").unwrap().property("linux,initrd-start").is_none()));
    }

    #[test]
    fn every_cpu_has_its_affinity_and_is_started_through_psci() {
        with_tree(None, |tree, _| {
            let ids: Vec<usize> = tree.cpus().map(|cpu| cpu.ids().first()).collect();
            assert_eq!(ids, [0, 1, 0x100, 0x1_0000_0000]);
            for cpu in tree.cpus() {
                assert_eq!(cpu.property("enable-method").unwrap().as_str(), Some("psci"));
            }
            assert_eq!(tree.find_node("/psci").unwrap().property("method").unwrap().as_str(), Some("hvc"));
        });
    }

    #[test]
    fn interrupts_go_to_a_controller_with_a_redistributor_for_each_cpu() {
        with_tree(None, |tree, _| {
            let parent = cells(tree, "/", "interrupt-parent");
            assert_eq!(cells(tree, "/intc", "phandle"), parent);
            let reg = cells(tree, "/intc", "reg");
            assert_eq!(reg, [0, 0x3fff_0000, 0, 0x1_0000, 0, 0x3ff7_0000, 0, 0x8_0000]);
            assert_eq!(cells(tree, "/timer", "interrupts"), [1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4]);
        });
    }

    #[test]
    fn the_console_is_where_its_path_says() {
        with_tree(None, |tree, _| {
            let port = tree.chosen().stdout().unwrap();
            assert_eq!(port.property("compatible").unwrap().as_str(), Some("ns16550a"));
            let region = port.reg().unwrap().next().unwrap();
            assert_eq!((region.starting_address as u64, region.size), (layout::SERIAL, Some(4096)));
            assert_eq!(cells(tree, "/serial", "interrupts"), [0, layout::SERIAL_SPI, 1]);
        });
    }
}
