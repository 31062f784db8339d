//! Figures, as JSON and as a table.

use std::fmt::Write as _;

/// One figure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Figure {
    /// The benchmark.
    pub(super) bench: &'static str,
    /// The operation.
    pub(super) op: String,
    /// Whose figure.
    pub(super) system: &'static str,
    /// The figure.
    pub(super) instructions: u64,
}

/// What our systems' names begin with: the table's ratios are of ours.
const OURS: &str = "covisor-";
/// covisor on AMD-V.
pub(super) const COVISOR_SVM: &str = "covisor-svm";
/// The same with the driver for Windows.
pub(super) const COVISOR_SVM_NT: &str = "covisor-svm-nt";
/// covisor on VT-x.
pub(super) const COVISOR_VMX: &str = "covisor-vmx";
/// The same with the driver for Windows.
pub(super) const COVISOR_VMX_NT: &str = "covisor-vmx-nt";
/// KVM on AMD-V.
pub(super) const KVM_SVM: &str = "kvm-svm";
/// KVM on VT-x.
pub(super) const KVM_VMX: &str = "kvm-vmx";
/// covisor without virtualization hardware.
pub(super) const COVISOR_COOP: &str = "covisor-coop";
/// Xen, with the kernel as its paravirtual dom0.
pub(super) const XEN_PV: &str = "xen-pv";
/// QEMU with KVM, on AMD-V.
pub(super) const QEMU_KVM: &str = "qemu-kvm";
/// No hypervisor.
pub(super) const BARE: &str = "bare";

impl Figure {
    /// One JSON object.
    pub(super) fn json(&self) -> String {
        let Self { bench, op, system, instructions } = self;
        format!(r#"{{"bench":"{bench}","op":"{op}","system":"{system}","instructions":{instructions}}}"#)
    }
}

/// A table with a line for each operation, a column for each system, and the first of ours as a part of each other.
pub(super) fn table(figures: &[Figure]) -> String {
    let mut ops: Vec<&str> = Vec::new();
    let mut systems: Vec<&str> = Vec::new();
    for figure in figures {
        if !ops.contains(&figure.op.as_str()) {
            ops.push(&figure.op);
        }
        if !systems.contains(&figure.system) {
            systems.push(figure.system);
        }
    }
    let is_ours = |system: &str| system.starts_with(OURS);
    systems.sort_by_key(|system| !is_ours(system));
    let ours = systems.first().copied().filter(|system| is_ours(system));
    let is_compared = |system: &&str| ours.is_some() && !is_ours(system);
    let others: Vec<&str> = systems.iter().copied().filter(is_compared).collect();
    let value = |op: &str, system: &str| {
        figures.iter().find(|figure| figure.op == op && figure.system == system).map(|figure| figure.instructions)
    };

    let mut text = format!("{:<16}", "op");
    for system in &systems {
        push(&mut text, format_args!("{system:>15}"));
    }
    for other in &others {
        push(&mut text, format_args!("{:>15}", format!("of {other}")));
    }
    text.push('\n');
    for op in ops {
        push(&mut text, format_args!("{op:<16}"));
        for system in &systems {
            let shown = value(op, system).map_or_else(|| "-".to_owned(), |figure| figure.to_string());
            push(&mut text, format_args!("{shown:>15}"));
        }
        for other in &others {
            let ours = ours.and_then(|ours| value(op, ours));
            let ratio = ours.zip(value(op, other)).and_then(|(ours, theirs)| percent(ours, theirs));
            push(&mut text, format_args!("{:>15}", ratio.unwrap_or_else(|| "-".to_owned())));
        }
        text.push('\n');
    }
    text
}

/// `part` of `whole` in percent, with one digit behind the point.
fn percent(part: u64, whole: u64) -> Option<String> {
    let permille = u128::from(part) * 1000 / u128::from((whole > 0).then_some(whole)?);
    Some(format!("{}.{} %", permille / 10, permille % 10))
}

/// Appends to a string.
fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = text.write_fmt(arguments);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(op: &str, system: &'static str, instructions: u64) -> Figure {
        Figure { bench: "exits", op: op.to_owned(), system, instructions }
    }

    #[test]
    fn a_figure_is_one_json_object() {
        let json = figure("cpuid", COVISOR_SVM, 612).json();
        assert_eq!(json, r#"{"bench":"exits","op":"cpuid","system":"covisor-svm","instructions":612}"#);
    }

    #[test]
    fn the_table_has_our_column_first_and_the_ratio_last() {
        let text =
            table(&[figure("cpuid", KVM_SVM, 1000), figure("cpuid", COVISOR_SVM, 125), figure("msr", KVM_SVM, 5)]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["op", "covisor-svm", "kvm-svm", "of", "kvm-svm"]);
        assert_eq!(lines[1], ["cpuid", "125", "1000", "12.5", "%"]);
        assert_eq!(lines[2], ["msr", "-", "5", "-"]);
    }

    #[test]
    fn without_a_system_of_ours_there_are_no_ratios() {
        let text = table(&[figure("getpid", BARE, 321), figure("getpid", XEN_PV, 979)]);
        assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["op", "bare", "xen-pv", "getpid", "321", "979"]);
    }

    #[test]
    fn of_two_systems_of_ours_the_first_has_the_ratios() {
        let text = table(&[
            figure("getpid", XEN_PV, 1000),
            figure("getpid", COVISOR_COOP, 700),
            figure("getpid", COVISOR_SVM, 350),
            figure("boot", COVISOR_SVM, 10),
            figure("boot", XEN_PV, 20),
        ]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["op", "covisor-coop", "covisor-svm", "xen-pv", "of", "xen-pv"]);
        assert_eq!(lines[1], ["getpid", "700", "350", "1000", "70.0", "%"]);
        assert_eq!(lines[2], ["boot", "-", "10", "20", "-"]);
    }
}
