//! The target that the driver is compiled for. The compiler has none for Windows' kernel: its targets for Windows use SSE, and extended
//! state is the guest's while the driver answers an exit. So the one for programs is taken, with what that for bare metal says about
//! registers. Both descriptions come from the compiler itself, since their format is its own affair.

use std::path::{Path, PathBuf};

use covisor_guest_images::command::Cmd;
use serde_json::{Map, Value};

use super::{WindowsError, write_if_new};
use crate::error::Result;

/// Calling convention, object files, types.
const PROGRAMS: &str = "x86_64-pc-windows-gnu";
/// No use of registers that the kernel does not save, no unwinding.
const BARE_METAL: &str = "x86_64-unknown-none";
/// What is taken from the latter.
const OF_BARE_METAL: [&str; 5] = ["features", "rustc-abi", "max-atomic-width", "panic-strategy", "disable-redzone"];
/// What the linker needs to leave out what nobody calls.
const FUNCTION_SECTIONS: &str = "function-sections";

/// The target's name.
pub(super) const NAME: &str = "x86_64-covisor-nt";

/// Writes the description into the folder and returns its path.
pub(super) fn write(folder: &Path, rustc: &Path) -> Result<PathBuf> {
    let path = folder.join(NAME).with_extension("json");
    let target = join(&describe(rustc, PROGRAMS)?, &describe(rustc, BARE_METAL)?).ok_or(WindowsError::NoTarget)?;
    write_if_new(&path, target.as_bytes())?;
    Ok(path)
}

/// What the compiler says about a target of its own.
fn describe(rustc: &Path, target: &str) -> Result<String> {
    Ok(Cmd::new(rustc)
        .args(["-Zunstable-options", "--print", "target-spec-json", "--target", target])
        .env("RUSTC_BOOTSTRAP", "1")
        .output()?)
}

/// The one for programs with what is wanted of the other; `None` where they are not as they were.
fn join(programs: &str, bare_metal: &str) -> Option<String> {
    let mut target: Map<String, Value> = serde_json::from_str(programs).ok()?;
    let bare_metal: Map<String, Value> = serde_json::from_str(bare_metal).ok()?;
    for key in OF_BARE_METAL {
        target.insert(key.to_owned(), bare_metal.get(key)?.clone());
    }
    target.remove(FUNCTION_SECTIONS);
    let without_sse = target["features"].as_str()?.contains("+soft-float");
    without_sse.then(|| serde_json::to_string_pretty(&target).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARE: &str = r#"{"features":"-sse,+soft-float","rustc-abi":"softfloat","max-atomic-width":64,
        "panic-strategy":"abort","disable-redzone":true,"os":"none"}"#;

    #[test]
    fn test_registers_are_those_of_bare_metal_and_the_rest_is_windows() {
        let joined = join(r#"{"os":"windows","features":"+sse3","function-sections":false}"#, BARE).unwrap();
        let joined: Value = serde_json::from_str(&joined).unwrap();
        assert_eq!(joined["os"], "windows");
        assert_eq!(joined["features"], "-sse,+soft-float");
        assert_eq!(joined["rustc-abi"], "softfloat");
        assert!(joined.get("function-sections").is_none());
    }

    #[test]
    fn test_a_compiler_that_says_other_things_is_refused() {
        assert_eq!(join("{}", "{}"), None);
        assert_eq!(join("{}", &BARE.replace("+soft-float", "+sse")), None);
        assert_eq!(join("no JSON", BARE), None);
    }
}
