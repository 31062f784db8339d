//! What is to be said of the engines: by the driver, or, as far as that goes, without it.

use covisor_abi::EngineKind;
use covisor_abi::EngineStatus;
use raw_cpuid::CpuId;
use raw_cpuid::Hypervisor;

use crate::driver::Driver;
use crate::driver::EngineVerdict;
use crate::sys::Finding;
use crate::sys::host;

pub(super) fn by_driver(driver: &Driver, engine: EngineKind) -> Finding {
    match driver.status(engine) {
        Ok(status) => {
            Finding::new(status == EngineStatus::Usable, engine.name(), EngineVerdict { engine, status }.to_string())
        }
        Err(error) => Finding::new(false, engine.name(), error.to_string()),
    }
}

/// What can be told without the driver; the firmware's lock and who holds the engine only the driver sees.
pub(super) fn by_cpuid() -> Vec<Finding> {
    let cpuid = CpuId::new();
    let vendor = cpuid.get_vendor_info();
    let is_amd = vendor.is_some_and(|vendor| matches!(vendor.as_str(), "AuthenticAMD" | "HygonGenuine"));
    let missing = |of_this_vendor: bool| match cpuid.get_hypervisor_info().map(|info| info.identify()) {
        Some(Hypervisor::HyperV) if of_this_vendor => EngineStatus::HiddenByHyperV,
        Some(Hypervisor::QEMU) | None => EngineStatus::CpuLacks,
        Some(_) if of_this_vendor => EngineStatus::HiddenByHypervisor,
        Some(_) => EngineStatus::CpuLacks,
    };
    let svm = match (cpuid.get_extended_processor_and_feature_identifiers(), cpuid.get_svm_info()) {
        (Some(features), Some(svm)) if features.has_svm() && svm.has_nested_paging() => None,
        (Some(features), _) if features.has_svm() => Some(EngineStatus::NoNestedPaging),
        _ => Some(missing(is_amd)),
    };
    let svm = match svm {
        None => Finding::new(
            true,
            "svm",
            "this CPU has AMD-V with nested paging; the driver will tell whether the firmware allows it",
        ),
        Some(status) => Finding::new(false, "svm", EngineVerdict { engine: EngineKind::Svm, status }.to_string()),
    };
    let has_vmx = cpuid.get_feature_info().is_some_and(|features| features.has_vmx());
    let vmx = if has_vmx {
        Finding::new(
            true,
            "vmx",
            "this CPU has Intel VT-x; the driver will tell whether it is enough and the firmware allows it",
        )
    } else {
        let verdict = EngineVerdict { engine: EngineKind::Vmx, status: missing(!is_amd) };
        Finding::new(false, "vmx", verdict.to_string())
    };
    let coop = Finding::new(
        true,
        "coop",
        "needs no virtualization, and kernels with Xen PV support; the driver will tell whether it can run beside this kernel",
    );
    let mut findings = vec![svm, vmx, coop];
    let others = host::other_hypervisors();
    if !others.is_empty() {
        let text = format!(
            "loaded: {}; while one of their machines runs, covisor may not get the CPU's extension",
            others.join(", ")
        );
        findings.push(Finding::new(true, "others", text));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::ENGINES;

    #[test]
    fn test_engines_are_told_without_the_driver() {
        let findings = by_cpuid();
        for engine in ENGINES {
            assert!(findings.iter().any(|line| line.about == engine.name()), "{}", engine.name());
        }
    }
}
