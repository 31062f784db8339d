//! The handshake, and what comes before it.

use covisor_abi::Call;
use covisor_abi::EngineStatus;
use covisor_abi::Handshake;
use covisor_abi::MAX_VCPUS;
use covisor_abi::VERSION;
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

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "handshake/answers",
        shows: "the driver tells its version and an engine that can run guests",
        run: answers,
    },
    Case { name: "handshake/comes-first", shows: "every other call is refused before it", run: comes_first },
    Case { name: "handshake/wrong-magic", shows: "who does not mean this driver is refused", run: wrong_magic },
    Case {
        name: "handshake/other-version",
        shows: "a program of another version is told the driver's, and can do nothing else",
        run: other_version,
    },
    Case { name: "handshake/again", shows: "the latest handshake counts", run: again },
    Case { name: "handshake/many-handles", shows: "handles have nothing to do with each other", run: many_handles },
];

fn answers() -> Checked {
    let handle = Handle::open()?;
    let mut answer = greeting();
    done("the handshake", handle.call(Call::Handshake, &mut answer))?;
    let [best, others @ ..] = answer.engines.map(EngineStatus::from_u32);
    ensure!(best == Some(EngineStatus::Usable), "no engine is usable: {answer:?}");
    ensure!(others.contains(&best) && others.iter().all(Option::is_some), "the engines do not agree: {answer:?}");
    let is_sound = answer.version == VERSION && answer.max_vcpus == MAX_VCPUS && answer.tsc_khz > 0;
    ensure!(is_sound && answer.memory_available > 0, "{answer:?}");
    Ok(())
}

/// Every call by its structure full of zeros.
fn zeros(handle: &Raw, expected: impl Fn(Call) -> Refusal) -> Checked {
    all_but_handshake()
        .try_for_each(|call| refused(format!("{call:?}"), handle.call(call, &mut vec![0; call.size()]), expected(call)))
}

/// `Run` does not look at the handshake, for it comes often: there is no VM without one.
fn before_handshake(call: Call) -> Refusal {
    if call == Call::Run { Refusal::NotFound } else { Refusal::Version }
}

fn comes_first() -> Checked {
    let handle = done("opening the device", Raw::open())?;
    zeros(&handle, before_handshake)
}

fn wrong_magic() -> Checked {
    let handle = Handle::open()?;
    for magic in [0, !greeting().magic, greeting().magic.swap_bytes()] {
        let mut greeting = Handshake { magic, ..greeting() };
        refused(format!("magic {magic:#x}"), handle.call(Call::Handshake, &mut greeting), Refusal::Invalid)?;
    }
    let create = handle.call(Call::VmCreate, &mut VmCreate { engine: 0, vcpus: 1 });
    refused("VmCreate", create, Refusal::Version)
}

fn other_version() -> Checked {
    let handle = Handle::open()?;
    for version in [0, VERSION - 1, VERSION + 1, u32::MAX] {
        let mut answer = Handshake { version, ..greeting() };
        done(format!("the handshake of version {version}"), handle.call(Call::Handshake, &mut answer))?;
        ensure!(answer.version == VERSION, "version {version} is answered by {}", answer.version);
        let create = handle.call(Call::VmCreate, &mut VmCreate { engine: 0, vcpus: 1 });
        refused("VmCreate", create, Refusal::Version)?;
    }
    Ok(())
}

fn again() -> Checked {
    let handle = Handle::greeted()?;
    done("the second handshake", handle.call(Call::Handshake, &mut greeting()))?;
    let mut other = Handshake { version: VERSION + 1, ..greeting() };
    done("the handshake of another version", handle.call(Call::Handshake, &mut other))?;
    let create = |handle: &Handle| handle.call(Call::VmCreate, &mut VmCreate { engine: 0, vcpus: 1 });
    refused("VmCreate", create(&handle), Refusal::Version)?;
    done("the handshake after that", handle.call(Call::Handshake, &mut greeting()))?;
    done("VmCreate", create(&handle))
}

fn many_handles() -> Checked {
    let handles = (0..32).map(|_| Handle::open()).collect::<Checked<Vec<_>>>()?;
    for handle in handles.iter().step_by(2) {
        done("the handshake", handle.call(Call::Handshake, &mut greeting()))?;
    }
    for (index, handle) in handles.iter().enumerate() {
        let create = handle.call(Call::VmCreate, &mut VmCreate { engine: 0, vcpus: 1 });
        match index % 2 {
            0 => done("VmCreate after the handshake", create)?,
            _ => refused("VmCreate without a handshake", create, Refusal::Version)?,
        }
    }
    Ok(())
}
