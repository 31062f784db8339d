//! `covisor doctor`: what this machine offers, what is missing, and what to do about it.

use std::process::ExitCode;

use covisor_abi::EngineKind;
use covisor_abi::EngineStatus;
use raw_cpuid::CpuId;
use raw_cpuid::Hypervisor;

use super::EXIT_DRIVER;
use crate::driver::Driver;
use crate::driver::DriverError;
use crate::driver::ENGINES;
use crate::driver::EngineVerdict;
use crate::sys::host;
use crate::sys::module;
use crate::sys::process;

/// What a guest of ordinary size needs, in bytes.
const COMFORTABLE_MEMORY: u64 = 512 << 20;

/// A line of the report.
struct Finding {
    good: bool,
    about: &'static str,
    text: String,
}

fn finding(good: bool, about: &'static str, text: impl Into<String>) -> Finding {
    Finding { good, about, text: text.into() }
}

/// Names of the engines that can run here.
pub(super) fn usable(driver: &Driver) -> String {
    let names: Vec<_> = ENGINES
        .into_iter()
        .filter(|&engine| matches!(driver.status(engine), Ok(EngineStatus::Usable)))
        .map(EngineKind::name)
        .collect();
    if names.is_empty() { "none can run here".to_owned() } else { names.join(", ") }
}

pub(super) fn doctor() -> ExitCode {
    let mut findings = vec![cpu()];
    let driver = Driver::open();
    let ready = match &driver {
        Ok(driver) => {
            findings.extend(ENGINES.into_iter().map(|engine| engine_by_driver(driver, engine)));
            findings.push(finding(true, "driver", format!("loaded, interface version {}", driver.handshake().version)));
            matches!(driver.status(EngineKind::Auto), Ok(EngineStatus::Usable))
        }
        Err(error) => {
            findings.extend(engines_by_cpuid());
            findings.push(finding(false, "driver", error.to_string()));
            findings.extend(what_the_driver_needs(error));
            false
        }
    };
    findings.push(memory());
    for line in &findings {
        println!("{} {:<8} {}", if line.good { "ok  " } else { "  - " }, line.about, line.text);
    }
    if ready {
        println!("This machine can run guests.");
        ExitCode::SUCCESS
    } else {
        println!("This machine cannot run guests yet; the lines with a dash say why.");
        EXIT_DRIVER.into()
    }
}

fn cpu() -> Finding {
    let cpuid = CpuId::new();
    let vendor = cpuid.get_vendor_info().map_or_else(String::new, |vendor| vendor.as_str().to_owned());
    let brand = cpuid.get_processor_brand_string().map_or(vendor, |brand| brand.as_str().trim().to_owned());
    let inside = match cpuid.get_hypervisor_info() {
        Some(info) => format!(", itself a virtual one ({:?})", info.identify()),
        None => String::new(),
    };
    finding(true, "cpu", format!("{brand}{inside}"))
}

fn engine_by_driver(driver: &Driver, engine: EngineKind) -> Finding {
    match driver.status(engine) {
        Ok(status) => {
            finding(status == EngineStatus::Usable, engine.name(), EngineVerdict { engine, status }.to_string())
        }
        Err(error) => finding(false, engine.name(), error.to_string()),
    }
}

/// What can be told without the driver; the firmware's lock and who holds the engine only the driver sees.
fn engines_by_cpuid() -> Vec<Finding> {
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
        None => finding(
            true,
            "svm",
            "this CPU has AMD-V with nested paging; the driver will tell whether the firmware allows it",
        ),
        Some(status) => finding(false, "svm", EngineVerdict { engine: EngineKind::Svm, status }.to_string()),
    };
    let has_vmx = cpuid.get_feature_info().is_some_and(|features| features.has_vmx());
    let vmx = if has_vmx {
        finding(
            true,
            "vmx",
            "this CPU has Intel VT-x; the driver will tell whether it is enough and the firmware allows it",
        )
    } else {
        let verdict = EngineVerdict { engine: EngineKind::Vmx, status: missing(!is_amd) };
        finding(false, "vmx", verdict.to_string())
    };
    let mut findings = vec![svm, vmx];
    let others = host::other_hypervisors();
    if !others.is_empty() {
        let text = format!(
            "loaded: {}; while one of their machines runs, covisor may not get the CPU's extension",
            others.join(", ")
        );
        findings.push(finding(true, "others", text));
    }
    findings
}

/// Why the driver is not there, as far as can be seen from outside.
fn what_the_driver_needs(error: &DriverError) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !process::is_administrator() {
        findings.push(finding(
            false,
            "rights",
            "you are not root; loading the driver and running guests need that (sudo)",
        ));
    }
    if !matches!(error, DriverError::NotLoaded { .. }) {
        return findings;
    }
    findings.push(match module::find(None) {
        Ok(path) => {
            finding(true, "module", format!("{} can be loaded by `sudo covisor driver install`", path.display()))
        }
        Err(error) => finding(false, "module", error.to_string()),
    });
    findings.push(match host::kernel_headers() {
        Some(path) => finding(true, "headers", format!("the module can be built against {}", path.display())),
        None => finding(
            false,
            "headers",
            format!(
                "the running kernel's headers are not installed: `sudo apt-get install linux-headers-{}` (only to build the module)",
                host::kernel_release()
            ),
        ),
    });
    if let Some(reason) = host::module_refusal() {
        findings.push(finding(false, "kernel", reason));
    }
    findings
}

fn memory() -> Finding {
    match host::available_memory() {
        Some(bytes) if bytes < COMFORTABLE_MEMORY => finding(
            false,
            "memory",
            format!("only {} MiB are available; end other programs, or give guests less by --mem", bytes >> 20),
        ),
        Some(bytes) => finding(true, "memory", format!("{} MiB are available", bytes >> 20)),
        None => finding(true, "memory", "the host does not tell how much is available"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_the_cpu_is_named() {
        assert!(!cpu().text.is_empty());
    }

    #[test]
    fn test_engines_are_told_without_the_driver() {
        let findings = engines_by_cpuid();
        assert!(findings.iter().any(|line| line.about == "svm") && findings.iter().any(|line| line.about == "vmx"));
    }

    #[test]
    fn test_a_missing_driver_is_explained() {
        let findings = what_the_driver_needs(&DriverError::NotLoaded { path: "/dev/covisor".to_owned() });
        assert!(findings.iter().any(|line| line.about == "module"));
        assert!(findings.iter().any(|line| line.about == "headers"));
    }
}
