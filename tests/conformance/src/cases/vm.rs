//! A handle becomes a VM.

use covisor_abi::Call;
use covisor_abi::EngineKind;
use covisor_abi::EngineStatus;
use covisor_abi::MAX_VCPUS;
use covisor_abi::VmCreate;

use crate::case::Case;
use crate::case::Checked;
use crate::case::all_but_handshake;
use crate::case::done;
use crate::case::ensure;
use crate::case::refused;
use crate::host::Raw;
use crate::machine::Handle;
use crate::machine::greeting;
use crate::refusal::Refusal;
use zerocopy::IntoBytes;

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "vm/engine-is-told",
        shows: "whoever asks for any engine is told which one runs the VM",
        run: engine_is_told,
    },
    Case { name: "vm/unknown-engine", shows: "an engine that does not exist is refused", run: unknown_engine },
    Case {
        name: "vm/engine-that-cannot-run",
        shows: "an engine that this machine does not have is refused",
        run: other_engine,
    },
    Case { name: "vm/vcpu-counts", shows: "a VM has 1 to 64 vCPUs", run: vcpu_counts },
    Case { name: "vm/twice", shows: "a handle is one VM at most", run: twice },
    Case { name: "vm/comes-second", shows: "what is a VM's is refused before there is one", run: comes_second },
    Case {
        name: "vm/on-a-handle-for-one-call-at-a-time",
        shows: "a handle that lets one call wait for the other has all calls, too",
        run: one_call_at_a_time,
    },
];

fn create(handle: &Handle, engine: u32, vcpus: u32) -> std::io::Result<u32> {
    let mut create = VmCreate { engine, vcpus };
    handle.call(Call::VmCreate, &mut create).map(|()| create.engine)
}

fn engine_is_told() -> Checked {
    let engine = done("VmCreate", create(&Handle::greeted()?, EngineKind::Auto as u32, 1))?;
    let told = EngineKind::from_u32(engine).filter(|&engine| engine != EngineKind::Auto);
    ensure!(told.is_some(), "engine {engine} is told");
    let again = done("VmCreate with that engine", create(&Handle::greeted()?, engine, 1))?;
    ensure!(again == engine, "engine {again} is told of {engine}");
    Ok(())
}

fn unknown_engine() -> Checked {
    let handle = Handle::greeted()?;
    for engine in [4, 5, 0xff, 1 << 31, u32::MAX] {
        refused(format!("engine {engine}"), create(&handle, engine, 1), Refusal::Invalid)?;
    }
    done("the handle's VM after that", create(&handle, 0, 1)).map(drop)
}

fn other_engine() -> Checked {
    let handle = Handle::greeted()?;
    let mut answer = greeting();
    done("the handshake", handle.call(Call::Handshake, &mut answer))?;
    let cannot = (1..4_u32).filter(|&engine| answer.engines[engine as usize] != EngineStatus::Usable as u32);
    let cannot: Vec<u32> = cannot.collect();
    ensure!(!cannot.is_empty(), "every engine can run here: {answer:?}");
    for engine in cannot {
        refused(format!("engine {engine}"), create(&handle, engine, 1), Refusal::NoEngine)?;
    }
    done("the handle's VM after that", create(&handle, 0, 1)).map(drop)
}

fn vcpu_counts() -> Checked {
    let handle = Handle::greeted()?;
    for vcpus in [0, MAX_VCPUS + 1, 1 << 16, u32::MAX] {
        refused(format!("{vcpus} vCPUs"), create(&handle, 0, vcpus), Refusal::Invalid)?;
    }
    done("64 vCPUs", create(&handle, 0, MAX_VCPUS))?;
    (0..MAX_VCPUS).try_for_each(|vcpu| done(format!("vCPU {vcpu}"), handle.create_vcpu(vcpu, 0)))
}

fn twice() -> Checked {
    let handle = Handle::with_vm(1)?;
    refused("the second VM", create(&handle, 0, 1), Refusal::Exists)?;
    done("a vCPU of the first", handle.create_vcpu(0, 0))
}

fn comes_second() -> Checked {
    let handle = done("opening the device", Raw::open())?;
    done("the handshake", handle.call(Call::Handshake, greeting().as_mut_bytes()))?;
    all_but_handshake().filter(|&call| call != Call::VmCreate).try_for_each(|call| {
        refused(format!("{call:?}"), handle.call(call, &mut vec![0; call.size()]), Refusal::NotFound)
    })
}

fn one_call_at_a_time() -> Checked {
    let handle = done("opening the device", Raw::open())?;
    done("the handshake", handle.call(Call::Handshake, greeting().as_mut_bytes()))?;
    let mut create = VmCreate { engine: 0, vcpus: 1 };
    done("VmCreate", handle.call(Call::VmCreate, create.as_mut_bytes()))?;
    let zeros = |call: Call| handle.call(call, &mut vec![0; call.size()]);
    done("VcpuCreate", zeros(Call::VcpuCreate))?;
    done("VcpuGet", zeros(Call::VcpuGet))?;
    done("Kick", zeros(Call::Kick))?;
    // The kick ends it before it begins.
    done("Run", zeros(Call::Run))?;
    done("Stats", zeros(Call::Stats))
}
