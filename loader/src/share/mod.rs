//! Folders of the host's that a guest sees.
//!
//! The guest's kernel sends the messages of FUSE, by the virtio file system device ([`crate::devices::virtio::fs`]).
//! [`request`] takes a message apart and checks it as a whole; [`server`] carries it out on a [`FileSystem`], which is the host's
//! ([`crate::sys::share`]). No path ever comes from the guest: a message names a file by a number that it was given for it, or by
//! one name within a folder that has a number.

mod errno;
#[cfg(all(test, target_os = "linux"))]
mod escapes;
mod filesystem;
mod nodes;
mod reply;
mod request;
mod server;
mod spec;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use errno::Errno;
pub use filesystem::Attributes;
pub use filesystem::Changes;
pub use filesystem::DirectoryEntry;
pub use filesystem::Entry;
pub use filesystem::FileSystem;
pub use filesystem::HandleId;
pub use filesystem::New;
pub use filesystem::NodeId;
pub use filesystem::NodeKind;
pub use filesystem::Opening;
pub use filesystem::Owner;
pub use filesystem::ROOT;
pub use filesystem::RenameMode;
pub use filesystem::SeekTo;
pub use filesystem::Statistics;
pub use filesystem::Time;
pub(crate) use filesystem::position;
pub(crate) use nodes::Held;
pub(crate) use nodes::Identity;
pub(crate) use nodes::Nodes;
pub use request::MOST_DATA;
pub use request::MOST_REQUEST;
pub use request::Operation;
pub use request::Refused;
pub use request::Request;
pub use server::MOST_PAGES;
pub use server::MOST_REPLY;
pub use server::NoRoom;
pub use server::Server;
pub use spec::Mapping;
pub use spec::Share;
pub use spec::ShareError;
pub use spec::Tag;
