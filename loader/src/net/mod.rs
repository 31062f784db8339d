//! Networks that the host gives to guests: what carries an adapter's frames.
//!
//! | module | concept |
//! |---|---|
//! | `mac` | addresses of adapters, given or made from names |
//! | `offload` | what one side of the link leaves to the other: checksums, segmentation |
//! | `spec` | what the user says of an adapter |
//! | `capture` | frames into a file for Wireshark |
//! | `nat` | a network of the guest's own, behind the host's sockets |
//! | `tap` | an interface of the host's |

pub mod capture;
pub mod mac;
pub mod nat;
pub mod offload;
pub mod spec;
pub mod tap;

use std::io;
use std::sync::Arc;
use std::time::Duration;

pub use capture::Captured;
pub use mac::Mac;
pub use offload::FrameHeader;
pub use offload::HeaderError;
pub use offload::Offloads;

use crate::platform::Event;

/// Bytes of an Ethernet header.
pub const ETHERNET_HEADER: usize = 14;
/// The largest frame: an Ethernet header, a VLAN tag and the largest IP packet.
pub const MAX_FRAME: usize = ETHERNET_HEADER + 4 + 65_535;
/// Bytes that an adapter must have room for before it asks for a frame: one that is never divided.
pub const LEAST_ROOM: usize = ETHERNET_HEADER + 1500;

/// Takes a frame for the guest, in parts that lie one after another.
pub type Deliver<'a> = &'a mut dyn FnMut(&FrameHeader, &[&[u8]]);

/// What carries an adapter's frames: an adapter calls it on its own thread, and it has none.
pub trait Backend: Send {
    /// What it can do with frames from the guest, and gives the guest if that can take it.
    fn offloads(&self) -> Offloads;

    /// Most bytes of an IP packet on the link.
    fn mtu(&self) -> u16;

    /// From now on `wait` also ends when `event` is signalled.
    ///
    /// # Errors
    ///
    /// The host's.
    fn attach(&mut self, event: &Arc<Event>) -> io::Result<()>;

    /// The guest's driver has started: what it agreed to.
    fn start(&mut self, agreed: Offloads);

    /// The guest sends a frame. `header` was checked against it.
    fn send(&mut self, header: &FrameHeader, frame: &[u8]);

    /// Gives the next frame for the guest, of at most `room` bytes but at least [`LEAST_ROOM`], and says whether there was
    /// one. What it does not take, the host keeps: so a guest that does not listen costs no memory.
    fn receive(&mut self, room: usize, deliver: Deliver<'_>) -> bool;

    /// Waits for the event, for something to receive, or for the end of `timeout`.
    fn wait(&mut self, timeout: Option<Duration>);

    /// When it has to do something though nothing comes: to be called again then.
    fn next_deadline(&self) -> Option<Duration>;

    /// The driver has reset the adapter.
    fn reset(&mut self);
}
