//! What tests and fuzz targets need to run core as an ordinary program: a vCPU that is a plain struct, a host in user
//! mode, and a guest with page tables.

mod comparison;
mod engine;
mod guest;
mod host;
#[cfg(test)]
pub(crate) mod machine;
mod native;

pub use crate::test_vcpu::TestVcpu;
pub use comparison::compare_with_cpu;
pub use engine::Mock;
pub use engine::MockCpu;
pub use engine::MockEngine;
pub use engine::MockOnDemandEngine;
pub use engine::MockParavirtualEngine;
pub use engine::MockTables;
pub use engine::Script;
pub use guest::TestGuest;
pub use host::MockHost;
pub use host::MockTimer;
pub use host::MockWaker;
pub use native::NATIVE_CODE;
pub use native::NATIVE_DATA;
pub use native::NATIVE_DATA_SIZE;
pub use native::Native;
pub use native::NativeState;
