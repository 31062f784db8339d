//! The driver's interface with types: a [`Driver`] is an open handle after the handshake, a [`Vm`] a handle that has
//! become a machine, a [`Vcpu`] one CPU of it.

mod error;

use std::io;
use std::path::Path;
use std::sync::Arc;

use covisor_abi::Call;
use covisor_abi::DoorbellChange;
use covisor_abi::DoorbellSpace;
use covisor_abi::EngineKind;
use covisor_abi::EngineStatus;
use covisor_abi::Handshake;
use covisor_abi::IrqLine;
use covisor_abi::Kick;
use covisor_abi::MAGIC;
use covisor_abi::MemoryAdd;
use covisor_abi::MemoryDiscard;
use covisor_abi::Msi;
use covisor_abi::Run;
use covisor_abi::Stats;
use covisor_abi::VERSION;
use covisor_abi::VcpuCreate;
use covisor_abi::VcpuState;
use covisor_abi::VmCreate;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;

pub use error::DriverError;
pub use error::EngineVerdict;

use crate::platform::Doorbells;
use crate::platform::Event;
use crate::platform::GuestRam;
use crate::platform::InterruptController;
use crate::sys::CallRefusal;
use crate::sys::memory::unmap;
use crate::sys::transport::DEVICE_PATH;
use crate::sys::transport::Transport;
use crate::sys::transport::call_refusal;

/// The engines that a driver may have, best first.
pub const ENGINES: [EngineKind; 3] = [EngineKind::Svm, EngineKind::Vmx, EngineKind::Coop];

/// An open handle of a driver of our version.
#[derive(Debug)]
pub struct Driver {
    transport: Transport,
    handshake: Handshake,
}

impl Driver {
    /// Opens the driver and agrees on the version.
    ///
    /// # Errors
    /// When the driver is not there, not ours or not of our version.
    pub fn open() -> Result<Self, DriverError> {
        Self::open_at(Path::new(DEVICE_PATH))
    }

    /// [`Driver::open`] with the device at another path.
    ///
    /// # Errors
    /// The same.
    pub fn open_at(path: &Path) -> Result<Self, DriverError> {
        let name = path.display().to_string();
        let transport = Transport::open(path).map_err(|source| DriverError::from_open(&name, source))?;
        let mut handshake = Handshake { magic: MAGIC, version: VERSION, ..Handshake::default() };
        transport.call(Call::Handshake, &mut handshake).map_err(|source| match call_refusal(&source) {
            CallRefusal::NotOurs => DriverError::NotOurs { path: name },
            _ => DriverError::Call { call: Call::Handshake, source },
        })?;
        check_version(&handshake)?;
        Ok(Self { transport, handshake })
    }

    /// What the driver said of itself and the machine.
    #[must_use]
    pub fn handshake(&self) -> &Handshake {
        &self.handshake
    }

    /// An engine's state on this machine.
    ///
    /// # Errors
    /// When the driver gives a number that its interface does not know.
    pub fn status(&self, engine: EngineKind) -> Result<EngineStatus, DriverError> {
        let value = self.handshake.engines[engine as usize];
        EngineStatus::from_u32(value).ok_or(DriverError::BadAnswer {
            call: Call::Handshake,
            what: "engine status",
            value,
        })
    }

    /// Whether a machine with this engine and this many vCPUs can be made.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, engine: EngineKind, vcpus: u32) -> Result<(), DriverError> {
        if vcpus > self.handshake.max_vcpus {
            return Err(DriverError::TooManyVcpus { wanted: vcpus, max: self.handshake.max_vcpus });
        }
        match self.status(engine)? {
            EngineStatus::Usable => Ok(()),
            status if engine != EngineKind::Auto => Err(DriverError::EngineUnavailable { engine, status }),
            _ => {
                let mut reasons = Vec::new();
                for engine in ENGINES {
                    let status = self.status(engine)?;
                    if status != EngineStatus::NotBuilt {
                        reasons.push(format!("{}: {}", engine.name(), EngineVerdict { engine, status }));
                    }
                }
                if reasons.is_empty() {
                    reasons.push("the installed driver has none".to_owned());
                }
                Err(DriverError::NoEngine { reasons: reasons.join("; ") })
            }
        }
    }

    /// Makes this handle a machine with so many vCPUs.
    ///
    /// # Errors
    /// When the engine cannot run here, or the driver refuses.
    pub fn create_vm(self, engine: EngineKind, vcpus: u32) -> Result<Vm, DriverError> {
        self.check(engine, vcpus)?;
        let mut create = VmCreate { engine: engine as u32, vcpus };
        self.transport.call(Call::VmCreate, &mut create).map_err(|source| match call_refusal(&source) {
            // It was usable at the handshake, so somebody took it since then.
            CallRefusal::NoEngine => DriverError::EngineUnavailable { engine, status: EngineStatus::Taken },
            _ => DriverError::Call { call: Call::VmCreate, source },
        })?;
        let engine = EngineKind::from_u32(create.engine)
            .filter(|&kind| kind != EngineKind::Auto)
            .ok_or(DriverError::BadAnswer { call: Call::VmCreate, what: "engine", value: create.engine })?;
        Ok(Vm { transport: self.transport, engine })
    }
}

/// Whether the driver that answered so speaks our version.
fn check_version(answer: &Handshake) -> Result<(), DriverError> {
    if answer.version != VERSION {
        return Err(DriverError::VersionMismatch { driver: answer.version, loader: VERSION });
    }
    Ok(())
}

/// A call whose failure needs no other words.
fn call<T: FromBytes + IntoBytes + Immutable>(
    transport: &Transport,
    call: Call,
    value: &mut T,
) -> Result<(), DriverError> {
    transport.call(call, value).map_err(|source| DriverError::Call { call, source })
}

/// A machine. It ends when the last user of its handle and of its memory is gone.
#[derive(Debug)]
pub struct Vm {
    transport: Transport,
    engine: EngineKind,
}

impl Vm {
    /// The engine that runs it.
    #[must_use]
    pub fn engine(&self) -> EngineKind {
        self.engine
    }

    /// Gives it RAM at these addresses (start, bytes) and maps it into this process. Also tells whether host memory comes where
    /// it is touched first, and can be given back.
    ///
    /// # Errors
    /// When the host does not have that much.
    pub fn add_memory(&self, ranges: &[(u64, u64)]) -> Result<(GuestRam, bool), DriverError> {
        let mut on_demand = true;
        let total = ranges.iter().map(|&(_, size)| size).sum();
        let mut regions = Vec::with_capacity(ranges.len());
        for &(gpa, size) in ranges {
            let mut add = MemoryAdd { gpa, size, ..MemoryAdd::default() };
            self.transport.call(Call::MemoryAdd, &mut add).map_err(|source| match call_refusal(&source) {
                CallRefusal::NoMemory => DriverError::NoMemory { bytes: total },
                _ => DriverError::Call { call: Call::MemoryAdd, source },
            })?;
            on_demand &= add.on_demand != 0;
            let bytes = usize::try_from(size).map_err(|_| DriverError::NoMemory { bytes: total })?;
            regions.push(self.transport.map(gpa, add.map, bytes).map_err(DriverError::Map)?);
        }
        let ram = GuestRam::from_regions(regions).map_err(|error| DriverError::Map(io::Error::other(error)))?;
        Ok((ram, on_demand))
    }

    /// Gives host memory back: the guest has no use for what these bytes of `ram` hold. Only whole 2 MiB go. No vCPU runs.
    ///
    /// # Errors
    /// When the driver refuses, or the host.
    pub fn discard_memory(&self, ram: &GuestRam, gpa: u64, size: u64) -> Result<(), DriverError> {
        call(&self.transport, Call::MemoryDiscard, &mut MemoryDiscard { gpa, size, ..MemoryDiscard::default() })?;
        // The driver has let go. What this process has mapped goes now.
        unmap(ram, gpa, size).map_err(DriverError::Map)
    }

    /// Bytes of host memory that its RAM has now.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn memory_allocated(&self) -> Result<u64, DriverError> {
        let mut discard = MemoryDiscard::default();
        call(&self.transport, Call::MemoryDiscard, &mut discard)?;
        Ok(discard.allocated)
    }

    /// Gives it its next vCPU. `flags` are 0, or what [`VcpuCreate`] has.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn create_vcpu(self: &Arc<Self>, vcpu: u32, flags: u32) -> Result<Vcpu, DriverError> {
        call(&self.transport, Call::VcpuCreate, &mut VcpuCreate { vcpu, flags })?;
        Ok(Vcpu { vm: Arc::clone(self), index: vcpu })
    }

    /// Makes a vCPU's run return, now or at its next start.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn kick(&self, vcpu: u32) -> Result<(), DriverError> {
        call(&self.transport, Call::Kick, &mut Kick { vcpu, reserved: 0 })
    }

    /// A vCPU's exit counts, by [`covisor_abi::StatsKind`].
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn stats(&self, vcpu: u32) -> Result<[u64; 8], DriverError> {
        let mut stats = Stats { vcpu, ..Stats::default() };
        call(&self.transport, Call::Stats, &mut stats)?;
        Ok(stats.counts)
    }
}

impl InterruptController for Vm {
    fn msi(&self, address: u64, data: u32) {
        // The guest chose both values, so a refusal is the guest's own loss.
        if let Err(error) = self.transport.call(Call::Msi, &mut Msi { address, data, reserved: 0 }) {
            log::debug!("an interrupt message to {address:#x} was lost: {error}");
        }
    }

    fn line(&self, gsi: u32, level: bool) {
        if let Err(error) = self.transport.call(Call::IrqLine, &mut IrqLine { gsi, level: level.into() }) {
            log::warn!("interrupt line {gsi} could not be set: {error}");
        }
    }
}

impl Doorbells for Vm {
    fn add(&self, space: DoorbellSpace, address: u64, width: u32, event: &Event) -> io::Result<()> {
        let mut change = DoorbellChange { address, space: space as u32, width, event: event.handle() };
        self.transport.call(Call::DoorbellAdd, &mut change)
    }

    fn remove(&self, space: DoorbellSpace, address: u64, width: u32) -> io::Result<()> {
        let mut change = DoorbellChange { address, space: space as u32, width, event: 0 };
        self.transport.call(Call::DoorbellRemove, &mut change)
    }
}

/// One CPU of a machine.
#[derive(Debug)]
pub struct Vcpu {
    vm: Arc<Vm>,
    index: u32,
}

impl Vcpu {
    /// Its number.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Sets its registers.
    ///
    /// # Errors
    /// When the driver finds them impossible.
    pub fn set_state(&self, state: &VcpuState) -> Result<(), DriverError> {
        let mut state = VcpuState { vcpu: self.index, reserved: 0, ..*state };
        call(&self.vm.transport, Call::VcpuSet, &mut state)
    }

    /// Reads its registers.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn state(&self) -> Result<VcpuState, DriverError> {
        let mut state = VcpuState { vcpu: self.index, ..VcpuState::default() };
        call(&self.vm.transport, Call::VcpuGet, &mut state)?;
        Ok(state)
    }
}

/// What runs a vCPU: the driver, or a test's stand-in.
pub trait RunVcpu: Send {
    /// Runs it until it needs the loader; `run.data` completes the read that the last return asked for.
    ///
    /// # Errors
    /// When the driver refuses.
    fn run(&mut self, run: &mut Run) -> Result<(), DriverError>;
}

impl RunVcpu for Vcpu {
    #[inline]
    fn run(&mut self, run: &mut Run) -> Result<(), DriverError> {
        run.vcpu = self.index;
        match self.vm.transport.call(Call::Run, run) {
            Ok(()) => Ok(()),
            // The host ended the call before the guest ran: the same as an exit for it.
            Err(error) if call_refusal(&error) == CallRefusal::Interrupted => {
                run.exit = covisor_abi::ExitReason::Interrupted as u32;
                Ok(())
            }
            Err(source) => Err(DriverError::Call { call: Call::Run, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::words::INSTALL;

    /// A device of another kind.
    const FOREIGN: &str = if cfg!(windows) { "NUL" } else { "/dev/null" };

    fn driver(engines: [EngineStatus; 4]) -> Driver {
        Driver {
            transport: Transport::open(Path::new(FOREIGN)).unwrap(),
            handshake: Handshake { engines: engines.map(|status| status as u32), max_vcpus: 1, ..Handshake::default() },
        }
    }

    #[test]
    fn test_a_missing_device_is_said_with_its_remedy() {
        let error = Driver::open_at(&Path::new(DEVICE_PATH).with_extension("not-there")).unwrap_err();
        assert!(matches!(error, DriverError::NotLoaded { .. }), "{error}");
    }

    // Wine's NUL refuses calls as if they were known.
    #[cfg(target_os = "linux")]
    #[test]
    fn test_a_foreign_device_is_told_from_ours() {
        let error = Driver::open_at(Path::new(FOREIGN)).unwrap_err();
        assert!(matches!(error, DriverError::NotOurs { .. }), "{error}");
    }

    #[test]
    fn test_another_version_is_refused_naming_both() {
        let error = check_version(&Handshake { version: VERSION + 5, ..Handshake::default() }).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "the driver speaks interface version 9, this covisor speaks version 4: install the driver that belongs to it \
                 by {INSTALL}"
            )
        );
    }

    #[test]
    fn test_auto_without_any_engine_gives_the_reasons() {
        use EngineStatus::{CpuLacks, DisabledByFirmware, NotBuilt};
        let driver = driver([DisabledByFirmware, DisabledByFirmware, CpuLacks, NotBuilt]);
        let error = driver.check(EngineKind::Auto, 1).unwrap_err().to_string();
        assert!(error.contains("svm: AMD-V is switched off in the firmware"), "{error}");
        assert!(error.contains("vmx: this CPU does not have Intel VT-x"), "{error}");
        assert!(!error.contains("coop"), "{error}");
    }

    #[test]
    fn test_more_vcpus_than_the_driver_has_are_refused() {
        let driver = driver([EngineStatus::Usable; 4]);
        assert!(matches!(driver.check(EngineKind::Svm, 2), Err(DriverError::TooManyVcpus { wanted: 2, max: 1 })));
    }
}
