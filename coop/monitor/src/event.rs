//! Event channels (Xen public headers, `event_channel.h`): what each is bound to. Their bits are in `shared_info` (2-level ABI).

use covisor_abi::paravirtual::CONSOLE_CHANNEL;
use covisor_abi::paravirtual::CONSOLE_GSI;

use crate::errno::Errno;

/// Channels that a guest can have, the invalid channel 0 with them.
pub const CHANNELS: usize = 256;
/// Interrupt lines.
pub const LINES: u32 = covisor_abi::MAX_GSI;
/// The timer's virtual interrupt (`xen.h`, `VIRQ_TIMER`).
pub const VIRQ_TIMER: u32 = 0;
/// Virtual interrupts that can be bound (`xen.h`, `NR_VIRQS`).
const VIRQS: u32 = 24;

/// What a channel is bound to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Channel {
    /// Nothing.
    #[default]
    Free,
    /// A virtual interrupt.
    Virtual(u32),
    /// The vCPU itself.
    Self_,
    /// An interrupt line.
    Line(u32),
    /// The console's ring.
    Console,
}

/// The channels.
#[derive(Debug)]
pub struct Events {
    channels: [Channel; CHANNELS],
    /// Lines that came while no channel was bound to them, a bit each.
    unbound: u32,
    /// Lines whose event the guest has not ended, a bit each.
    in_service: u32,
}

impl Default for Events {
    fn default() -> Self {
        let mut channels = [Channel::Free; CHANNELS];
        if let Some(console) = channels.get_mut(CONSOLE_CHANNEL as usize) {
            *console = Channel::Console;
        }
        Self { channels, unbound: 0, in_service: 0 }
    }
}

impl Events {
    /// What a channel is bound to.
    #[must_use]
    pub fn channel(&self, port: u32) -> Channel {
        self.channels.get(port as usize).copied().unwrap_or_default()
    }

    fn bind(&mut self, channel: Channel) -> Result<u32, Errno> {
        // Channel 0 is none.
        let free = self.channels.iter().skip(1).position(|channel| *channel == Channel::Free).ok_or(Errno::ENOSPC)? + 1;
        if let Some(entry) = self.channels.get_mut(free) {
            *entry = channel;
        }
        u32::try_from(free).map_err(|_| Errno::ENOSPC)
    }

    fn find(&self, channel: Channel) -> Option<u32> {
        let port = self.channels.iter().position(|entry| *entry == channel)?;
        u32::try_from(port).ok()
    }

    /// Binds a virtual interrupt.
    ///
    /// # Errors
    /// `EINVAL`, `EEXIST`, `ENOSPC`.
    pub fn bind_virtual(&mut self, virq: u32) -> Result<u32, Errno> {
        if virq >= VIRQS {
            return Err(Errno::EINVAL);
        }
        if self.find(Channel::Virtual(virq)).is_some() {
            return Err(Errno::EEXIST);
        }
        self.bind(Channel::Virtual(virq))
    }

    /// Binds a channel to the vCPU itself.
    ///
    /// # Errors
    /// `ENOSPC`.
    pub fn bind_self(&mut self) -> Result<u32, Errno> {
        self.bind(Channel::Self_)
    }

    /// Binds an interrupt line; says whether it came already.
    ///
    /// # Errors
    /// `EINVAL`, `EEXIST`, `ENOSPC`.
    pub fn bind_line(&mut self, line: u32) -> Result<(u32, bool), Errno> {
        if line >= LINES || line == CONSOLE_GSI {
            return Err(Errno::EINVAL);
        }
        if self.find(Channel::Line(line)).is_some() {
            return Err(Errno::EEXIST);
        }
        let port = self.bind(Channel::Line(line))?;
        let bit = 1 << line;
        let came = self.unbound & bit != 0;
        self.unbound &= !bit;
        if came {
            self.in_service |= bit;
        }
        Ok((port, came))
    }

    /// Frees a channel. The console's stays, for no hypercall binds it again.
    ///
    /// # Errors
    /// `EINVAL`.
    pub fn close(&mut self, port: u32) -> Result<(), Errno> {
        match self.channels.get_mut(port as usize) {
            None | Some(Channel::Free) => Err(Errno::EINVAL),
            Some(Channel::Console) => Ok(()),
            Some(entry) => {
                *entry = Channel::Free;
                Ok(())
            }
        }
    }

    /// The channel of a virtual interrupt.
    #[must_use]
    pub fn of_virtual(&self, virq: u32) -> Option<u32> {
        self.find(Channel::Virtual(virq))
    }

    /// The channel of an interrupt line that came; remembers one that has none.
    pub fn of_line(&mut self, line: u32) -> Option<u32> {
        if line == CONSOLE_GSI {
            return Some(CONSOLE_CHANNEL);
        }
        let bit = 1_u32.checked_shl(line).unwrap_or(0);
        let port = self.find(Channel::Line(line));
        if port.is_some() {
            self.in_service |= bit;
        } else {
            self.unbound |= bit;
        }
        port
    }

    /// The guest is done with a line; says whether it was served at all.
    pub fn end(&mut self, line: u32) -> bool {
        let bit = 1_u32.checked_shl(line).unwrap_or(0);
        let served = self.in_service & bit != 0;
        self.in_service &= !bit;
        served
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_channels_are_bound_once_and_freed() {
        let mut events = Events::default();
        assert_eq!(events.channel(CONSOLE_CHANNEL), Channel::Console);
        let timer = events.bind_virtual(VIRQ_TIMER).unwrap();
        assert_eq!(events.bind_virtual(VIRQ_TIMER), Err(Errno::EEXIST));
        assert_eq!(events.bind_virtual(VIRQS), Err(Errno::EINVAL));
        assert_eq!(events.of_virtual(VIRQ_TIMER), Some(timer));
        events.close(timer).unwrap();
        assert_eq!(events.close(timer), Err(Errno::EINVAL));
        assert_eq!(events.close(CONSOLE_CHANNEL), Ok(()));
        assert_eq!(events.channel(CONSOLE_CHANNEL), Channel::Console);
        assert_eq!(events.close(u32::MAX), Err(Errno::EINVAL));
    }

    #[test]
    fn test_a_line_that_comes_early_is_not_lost() {
        let mut events = Events::default();
        assert_eq!(events.of_line(17), None);
        let (port, came) = events.bind_line(17).unwrap();
        assert!(came);
        assert_eq!(events.of_line(17), Some(port));
        assert!(events.end(17));
        assert!(!events.end(17));
        assert!(!events.end(u32::MAX));
        assert_eq!(events.bind_line(LINES), Err(Errno::EINVAL));
        assert_eq!(events.bind_line(CONSOLE_GSI), Err(Errno::EINVAL));
        assert_eq!(events.of_line(CONSOLE_GSI), Some(CONSOLE_CHANNEL));
    }

    #[test]
    fn test_there_are_only_so_many_channels() {
        let mut events = Events::default();
        let bound = (0..).take_while(|_| events.bind_self().is_ok()).count();
        assert_eq!(bound, CHANNELS - 2);
        assert_eq!(events.bind_self(), Err(Errno::ENOSPC));
    }
}
