//! What the guest asks about the hypervisor, and its earliest messages: `xen_version`, `vm_assist`, `console_io`.

use covisor_abi::paravirtual::EARLY_CONSOLE_PORT;

use crate::errno::Errno;
use crate::hypercall::Arguments;
use crate::hypercall::Done;
use crate::hypercall::OK;
use crate::hypercall::Outcome;
use crate::machine::Machine;
use crate::processor::Processor;

/// Operations of `xen_version` (`version.h`).
mod version {
    pub(super) const VERSION: u64 = 0;
    pub(super) const EXTRA_VERSION: u64 = 1;
    pub(super) const GET_FEATURES: u64 = 6;
}

/// The version whose interface this is: 4.17.
const VERSION: u64 = 4 << 16 | 17;
/// Features (`features.h`): frame numbers that need no translation (2), page directories anywhere (4), updates that keep accessed and
/// dirty bits (5), none that must be cleared (6), bits of grant mappings (7). The kernel insists on 5 and 7. With 2 it takes frame
/// numbers in page tables as they are, which is right, as machine frames and its own have the same numbers.
const FEATURES: u32 = 0xf4;

/// `vm_assist` (`xen.h`): operation and types.
mod assist {
    pub(super) const ENABLE: u64 = 0;
    /// 4 GiB segments, their notification, writable page tables, huge page directories.
    pub(super) const LAST_TYPE: u64 = 3;
}

/// `console_io`: write.
const CONSOLE_WRITE: u64 = 0;

impl<P: Processor> Machine<'_, P> {
    /// `xen_version(operation, argument)`.
    pub(super) fn xen_version(&mut self, &[operation, argument, ..]: &Arguments) -> Outcome {
        match operation {
            version::VERSION => Ok(Done::Result(VERSION)),
            version::EXTRA_VERSION => {
                let mut text = [0; 16];
                text[..8].copy_from_slice(b".covisor");
                self.write_bytes(argument, &text)?;
                OK
            }
            version::GET_FEATURES => {
                let mut submap = [0; 4];
                self.read_bytes(argument, &mut submap)?;
                let features = if submap == [0; 4] { FEATURES } else { 0 };
                self.write_bytes(argument.wrapping_add(4), &features.to_le_bytes())?;
                OK
            }
            _ => Err(Errno::ENOSYS),
        }
    }

    /// `vm_assist(operation, type)`: what the kernel may ask for is done anyway.
    pub(super) fn vm_assist(&mut self, &[operation, kind, ..]: &Arguments) -> Outcome {
        if operation == assist::ENABLE && kind <= assist::LAST_TYPE { OK } else { Err(Errno::EINVAL) }
    }

    /// `console_io(operation, count, text)`: one byte at a time goes to the host.
    pub(super) fn console_io(&mut self, &[operation, count, text, ..]: &Arguments) -> Outcome {
        if operation != CONSOLE_WRITE {
            return Err(Errno::ENOSYS);
        }
        let count = count & 0xffff_ffff;
        if count == 0 {
            return OK;
        }
        let mut byte = [0];
        self.read_bytes(text, &mut byte)?;
        self.port_write(EARLY_CONSOLE_PORT, byte[0].into(), 1);
        Ok(if count == 1 { Done::Host(0) } else { Done::HostAgain([operation, count - 1, text.wrapping_add(1), 0, 0]) })
    }
}
