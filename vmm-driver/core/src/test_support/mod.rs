//! What tests and fuzz targets need to run core as an ordinary program: a vCPU that is a plain struct, a host in user
//! mode, and a guest with page tables.

mod guest;
mod host;
mod vcpu;

pub use guest::TestGuest;
pub use host::MockHost;
pub use host::MockTimer;
pub use host::MockWaker;
pub use vcpu::TestVcpu;
