//! What of Windows keeps covisor from the hardware, or its driver from loading, in words.

use crate::sys::Finding;

/// What was read of this Windows; `None` where it does not say.
#[derive(Debug, Clone, Default)]
pub(in crate::sys) struct Facts {
    /// This process has an administrator's rights.
    pub(in crate::sys) is_administrator: bool,
    /// Hyper-V runs below this Windows.
    pub(in crate::sys) is_on_hyper_v: bool,
    /// And this Windows is the one that it belongs to, not a guest (its CPUID leaf 4000_0003, EBX bit 0).
    pub(in crate::sys) is_hyper_v_root: bool,
    /// Virtualization-based security was asked for.
    pub(in crate::sys) vbs: bool,
    /// Memory integrity is on.
    pub(in crate::sys) memory_integrity: bool,
    /// Secure Boot is on.
    pub(in crate::sys) secure_boot: Option<bool>,
    /// Drivers must be signed.
    pub(in crate::sys) enforces_signatures: Option<bool>,
    /// Test certificates count.
    pub(in crate::sys) test_signing: Option<bool>,
    /// The firmware has virtualization on.
    pub(in crate::sys) firmware_has_it_on: Option<bool>,
    /// Names of other hypervisors' drivers that run.
    pub(in crate::sys) others: Vec<&'static str>,
}

/// What is to be said of the facts. What concerns loading is left out when the driver is loaded.
pub(in crate::sys) fn findings(facts: &Facts, loaded: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !facts.is_administrator {
        findings.push(Finding::new(
            false,
            "rights",
            "you are not an administrator here; the driver and guests need that: open the window by \"Run as administrator\"",
        ));
    }
    findings.extend(hardware(facts));
    if !loaded {
        findings.extend(loading(facts));
    }
    findings
}

/// What Windows and the firmware let be loaded, in one line.
pub(in crate::sys) fn security(facts: &Facts) -> String {
    let on = |fact: Option<bool>| match fact {
        Some(true) => "on",
        Some(false) => "off",
        None => "not told",
    };
    format!(
        "Secure Boot: {}; virtualization-based security: {}; memory integrity: {}; signatures enforced: {}; test signing: {}",
        on(facts.secure_boot),
        on(Some(facts.vbs)),
        on(Some(facts.memory_integrity)),
        on(facts.enforces_signatures),
        on(facts.test_signing),
    )
}

/// Who has the CPU's virtualization.
fn hardware(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.is_hyper_v_root {
        let remedy = "type `bcdedit /set hypervisorlaunchtype off` as administrator and restart (`auto` undoes it)";
        let text = if facts.vbs || facts.memory_integrity {
            format!(
                "Windows runs on Hyper-V for virtualization-based security, which holds the CPU's extension: switch memory \
                 integrity off in Windows Security (Device security, Core isolation), then {remedy}; engine coop does not need \
                 the extension"
            )
        } else {
            format!(
                "Windows runs on Hyper-V (for virtual machines, WSL 2, the sandbox or containers), which holds the CPU's \
                 extension: {remedy}; engine coop does not need the extension"
            )
        };
        findings.push(Finding::new(false, "hyper-v", text));
    } else if facts.is_on_hyper_v {
        findings.push(Finding::new(
            true,
            "hyper-v",
            "this Windows is a guest of Hyper-V, whose host decides what it gets",
        ));
    } else if facts.firmware_has_it_on == Some(false) {
        findings.push(Finding::new(
            false,
            "firmware",
            "virtualization is switched off in the firmware's settings: switch on \"SVM Mode\" (AMD) or \"Intel Virtualization \
             Technology\" there, then power the machine off and on; engine coop does not need it",
        ));
    }
    if !facts.others.is_empty() {
        let text = format!(
            "running: {}; while one of their machines runs, covisor may not get the CPU's extension",
            facts.others.join(", ")
        );
        findings.push(Finding::new(true, "others", text));
    }
    findings
}

/// What keeps an unsigned driver from loading.
fn loading(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.memory_integrity {
        findings.push(Finding::new(
            false,
            "security",
            "memory integrity is on and refuses drivers that Microsoft has not signed: switch it off in Windows Security (Device \
             security, Core isolation), and restart",
        ));
    }
    if facts.enforces_signatures != Some(false) && facts.test_signing == Some(false) {
        let first = match facts.secure_boot {
            Some(true) => "switch Secure Boot off in the firmware's settings, then ",
            _ => "",
        };
        findings.push(Finding::new(
            false,
            "signing",
            format!(
                "Windows loads signed drivers only: {first}type `bcdedit /set testsigning on` as administrator, restart, and sign \
                 covisor.sys with a test certificate"
            ),
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_what_guards_the_kernel_is_told_in_a_line() {
        let facts = Facts { secure_boot: Some(true), test_signing: Some(false), ..Facts::default() };
        let told = security(&facts);
        assert!(
            told.starts_with("Secure Boot: on; ") && told.ends_with("enforced: not told; test signing: off"),
            "{told}"
        );
    }

    /// An administrator on a machine without obstacles.
    fn ready() -> Facts {
        Facts {
            is_administrator: true,
            secure_boot: Some(false),
            enforces_signatures: Some(true),
            test_signing: Some(true),
            firmware_has_it_on: Some(true),
            ..Facts::default()
        }
    }

    fn about(facts: &Facts) -> Vec<&'static str> {
        findings(facts, false).iter().filter(|finding| !finding.good).map(|finding| finding.about).collect()
    }

    fn text(facts: &Facts, about: &str) -> String {
        findings(facts, false).into_iter().find(|finding| finding.about == about).unwrap().text
    }

    #[test]
    fn test_nothing_is_said_where_nothing_is_in_the_way() {
        assert!(findings(&ready(), false).is_empty());
        // Before Windows 8 neither of these can be asked for.
        let old = Facts { secure_boot: None, firmware_has_it_on: None, ..ready() };
        assert!(findings(&old, false).is_empty());
    }

    #[test]
    fn test_hyper_v_below_is_told_from_hyper_v_around() {
        let root = Facts { is_on_hyper_v: true, is_hyper_v_root: true, ..ready() };
        assert!(text(&root, "hyper-v").contains("hypervisorlaunchtype off"));
        assert!(text(&root, "hyper-v").contains("WSL 2"));
        let vbs = Facts { vbs: true, ..root };
        assert!(text(&vbs, "hyper-v").contains("virtualization-based security"));
        let guest = Facts { is_on_hyper_v: true, ..ready() };
        assert!(about(&guest).is_empty());
    }

    #[test]
    fn test_firmware_counts_only_where_no_hypervisor_hides_it() {
        let off = Facts { firmware_has_it_on: Some(false), ..ready() };
        assert!(text(&off, "firmware").contains("SVM Mode"));
        assert_eq!(about(&Facts { is_on_hyper_v: true, is_hyper_v_root: true, ..off }), ["hyper-v"]);
    }

    #[test]
    fn test_what_forbids_an_unsigned_driver() {
        let signed = Facts { test_signing: Some(false), ..ready() };
        assert!(!text(&signed, "signing").contains("Secure Boot"));
        assert!(text(&Facts { secure_boot: Some(true), ..signed.clone() }, "signing").contains("Secure Boot"));
        assert!(about(&Facts { enforces_signatures: Some(false), ..signed.clone() }).is_empty());
        assert_eq!(about(&Facts { memory_integrity: true, ..ready() }), ["security"]);
        // A driver that is loaded has passed all this.
        assert!(findings(&signed, true).is_empty());
    }

    #[test]
    fn test_rights_and_others_are_told() {
        assert_eq!(about(&Facts { is_administrator: false, ..ready() }), ["rights"]);
        assert!(text(&Facts { others: vec!["VirtualBox"], ..ready() }, "others").contains("VirtualBox"));
    }
}
