//! What Microsoft's crates for drivers (`wdk-sys` and its kin) want to find: a Windows Driver Kit, and a Windows machine to build
//! on. Neither is here, so they get a folder that is laid out like the kit and leads to mingw-w64's headers, and `wdk-build`, the
//! one crate of theirs that runs on the machine that builds, in a copy that is mended to run on Linux. All others are used as
//! published.

use std::path::{Path, PathBuf};

use covisor_guest_images::command::Cmd;
use covisor_guest_images::fs;
use serde_json::Value;

use super::{WindowsError, write_if_new};
use crate::error::Result;

/// The crate that is mended.
const BUILD_CRATE: &str = "wdk-build";
/// The version of the kit that the folder is laid out as. Its headers' version does not matter to who uses what every version has.
const KIT: &str = "10.0.22621.0";
/// mingw-w64's headers, of which those in `ddk` are the kernel's.
const HEADERS: &str = "/usr/share/mingw-w64/include";
/// The header that is wrapped, and the wrapper, which adds a type that `wdk-sys` takes for granted.
const WRAPPED: &str = "ntddk.h";
/// As above.
const WRAPPER: &str = "#include_next <ntddk.h>\ntypedef ULONG64 POOL_FLAGS;\n";
/// Where libclang is, and the headers of its own.
const LIBCLANG: &str = "/usr/lib/llvm-14/lib";
/// As above: `RESOURCES/include`.
const CLANG_RESOURCES: &str = "/usr/lib/llvm-14/lib/clang/14.0.6";

/// One spot to mend: so often the text must be in the file, and nothing else is touched.
struct Mend {
    file: &'static str,
    text: &'static str,
    replacement: &'static str,
    times: usize,
}

/// What keeps `wdk-build` from Linux.
const MENDS: &[Mend] = &[
    // A crate of bindings to Windows that compiles nowhere else.
    Mend {
        file: "Cargo.toml",
        text: "[dependencies.windows]\n",
        replacement: "[target.\"cfg(windows)\".dependencies.windows]\n",
        times: 1,
    },
    Mend {
        file: "src/utils.rs",
        text: "\nuse windows::{\n",
        replacement: "\n#[cfg(windows)]\nuse windows::{\n",
        times: 1,
    },
    // The registry, in which an installed kit is looked for when the environment names none.
    Mend {
        file: "src/utils.rs",
        text: "\nfn read_registry_key_string_value(",
        replacement: "\n#[cfg(windows)]\nfn read_registry_key_string_value(",
        times: 1,
    },
    Mend {
        file: "src/utils.rs",
        text: "    if let Some(path) = read_registry_key_string_value(",
        replacement: "    #[cfg(windows)]\n    if let Some(path) = read_registry_key_string_value(",
        times: 2,
    },
    // The environment of a build script that has no other threads: as safe here as there.
    Mend { file: "src/utils.rs", text: "#[cfg(target_os = \"windows\")]\npub fn ", replacement: "pub fn ", times: 2 },
    Mend {
        file: "src/utils.rs",
        text: "#[cfg(not(target_os = \"windows\"))]\npub fn ",
        replacement: "#[cfg(any())]\npub fn ",
        times: 2,
    },
    // Links that nobody makes in this build, but they are compiled.
    Mend {
        file: "src/cargo_make.rs",
        text: "std::os::windows::fs::symlink_file(",
        replacement: "std::os::unix::fs::symlink(",
        times: 2,
    },
];

/// What clang is told for bindgen. `wdk-build` tells it what Microsoft's headers need; these are mingw-w64's.
const CLANG_ARGUMENTS: &[&str] = &[
    "--target=x86_64-pc-windows-gnu",
    "-fno-ms-compatibility",
    "-fgnuc-version=4.2.1",
    "-Wno-implicit-function-declaration",
    "-Wno-int-conversion",
    "-ferror-limit=0",
    // Types that bindgen makes structures of that do not compile, in headers of instructions that no driver uses.
    "-D__AMXINTRIN_H",
    "-D__AMX_FP16INTRIN_H",
    "-D__AMX_COMPLEXINTRIN_H",
    "-D__INTRINSIC_GROUP_WINBASE",
    // Windows 10: the types of newer functions, too, which are looked up by name when the driver runs.
    "-D_WIN32_WINNT=0x0A00",
    "-DNTDDI_VERSION=0x0A000006",
];

/// What a build of a driver is given.
#[derive(Debug, Clone)]
pub(super) struct Kit {
    /// The folder that looks like the kit.
    root: PathBuf,
    /// The mended crate.
    pub(super) build_crate: PathBuf,
}

impl Kit {
    /// Makes both in the folder `out`, for the driver crate with this manifest.
    ///
    /// # Errors
    /// When `wdk-build` is not as it was when the mends were written, or a file cannot be made.
    pub(super) fn make(out: &Path, cargo: &Path, manifest: &Path) -> Result<Self> {
        let kit = Self { root: out.join("kit"), build_crate: out.join(BUILD_CRATE) };
        kit.link_headers()?;
        let published = published_build_crate(cargo, manifest)?;
        mend(&published, &kit.build_crate)?;
        Ok(kit)
    }

    /// Lays out the folder.
    fn link_headers(&self) -> Result<()> {
        let headers = self.root.join("Include").join(KIT);
        fs::create_dir_all(headers.join("km/crt"))?;
        fs::create_dir_all(self.root.join("Lib").join(KIT).join("km/x64"))?;
        fs::symlink(HEADERS, headers.join("shared"))?;
        for header in fs::list(Path::new(HEADERS).join("ddk"))? {
            let name = header.file_name().unwrap_or_default();
            if name != WRAPPED {
                fs::symlink(&header, headers.join("km").join(name))?;
            }
        }
        write_if_new(&headers.join("km").join(WRAPPED), WRAPPER.as_bytes())
    }

    /// Adds to the command what leads the crates to the folder and bindgen to clang.
    pub(super) fn tell(&self, command: Cmd) -> Cmd {
        let arguments = format!(
            "{} -resource-dir {CLANG_RESOURCES} -isystem {HEADERS}/ddk -isystem {CLANG_RESOURCES}/include",
            CLANG_ARGUMENTS.join(" "),
        );
        command
            .env("WDKContentRoot", &self.root)
            .env("LIBCLANG_PATH", LIBCLANG)
            .env("BINDGEN_EXTRA_CLANG_ARGS", arguments)
            .env_remove("MicrosoftKitRoot")
            .env_remove("Version_Number")
    }
}

/// Where cargo has the crate, as published; it fetches it where it is missing.
fn published_build_crate(cargo: &Path, manifest: &Path) -> Result<PathBuf> {
    let text = Cmd::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--quiet", "--manifest-path"])
        .arg(manifest)
        .output()?;
    find_build_crate(&text).ok_or_else(|| WindowsError::NoBuildCrate.into())
}

/// The folder of the crate, of what `cargo metadata` says.
fn find_build_crate(metadata: &str) -> Option<PathBuf> {
    let metadata: Value = serde_json::from_str(metadata).ok()?;
    let package = metadata["packages"].as_array()?.iter().find(|package| package["name"] == BUILD_CRATE)?;
    Path::new(package["manifest_path"].as_str()?).parent().map(Path::to_path_buf)
}

/// Copies the crate and mends the copy. A file that is right already stays, so that nothing is compiled again.
fn mend(published: &Path, copy: &Path) -> Result<()> {
    let version = published.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for path in files(published)? {
        let name = path.strip_prefix(published).unwrap_or(&path);
        let mut content = fs::read(&path)?;
        let mends = MENDS.iter().filter(|mend| Path::new(mend.file) == name);
        for spot in mends {
            // Some files come with Windows' ends of lines.
            let text = String::from_utf8_lossy(&content).replace("\r\n", "\n");
            let found = text.matches(spot.text).count();
            if found != spot.times {
                return Err(WindowsError::UnknownBuildCrate {
                    version,
                    file: spot.file,
                    text: spot.text.trim(),
                    found,
                }
                .into());
            }
            content = text.replace(spot.text, spot.replacement).into_bytes();
        }
        let target = copy.join(name);
        write_if_new(&target, &content)?;
    }
    let missing = MENDS.iter().find(|mend| !copy.join(mend.file).exists());
    missing.map_or(Ok(()), |mend| {
        let (file, text) = (mend.file, mend.text.trim());
        Err(WindowsError::UnknownBuildCrate { version, file, text, found: 0 }.into())
    })
}

/// All files of a folder and of those in it.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for path in fs::list(folder)? {
        if path.is_dir() { all.extend(files(&path)?) } else { all.push(path) }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with files that have all texts to mend, as often as they should be there.
    fn crate_to_mend(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("covisor-{name}-{}", std::process::id()));
        fs::remove(&folder).unwrap();
        for mend in MENDS {
            let path = folder.join("published").join(mend.file);
            let before = std::fs::read_to_string(&path).unwrap_or_default();
            let text = mend.text.replace('\n', "\r\n");
            fs::write(&path, before + &format!("{text}x").repeat(mend.times)).unwrap();
        }
        folder
    }

    #[test]
    fn test_every_spot_is_mended() {
        let folder = crate_to_mend("mend");
        // The text of the calls is in that of the function, so the fake has what the real file has.
        mend(&folder.join("published"), &folder.join("copy")).unwrap();
        let utils = fs::read_to_string(folder.join("copy/src/utils.rs")).unwrap();
        assert!(!utils.contains("target_os"));
        assert_eq!(utils.matches("#[cfg(windows)]").count(), 4);
        fs::remove(&folder).unwrap();
    }

    #[test]
    fn test_another_version_is_told_in_words() {
        let folder = crate_to_mend("mend-new");
        fs::write(folder.join("published/src/cargo_make.rs"), "std::os::windows::fs::symlink_file(").unwrap();
        let error = mend(&folder.join("published"), &folder.join("copy")).unwrap_err().to_string();
        assert!(error.contains("src/cargo_make.rs") && error.contains("1 time"), "{error}");
        fs::remove(&folder).unwrap();
    }

    #[test]
    fn test_the_crate_is_found_in_what_cargo_says() {
        let metadata = r#"{"packages":[{"name":"wdk","manifest_path":"/r/wdk/Cargo.toml"},{"name":"wdk-build","manifest_path":"/r/wdk-build-1/Cargo.toml"}]}"#;
        assert_eq!(find_build_crate(metadata), Some(PathBuf::from("/r/wdk-build-1")));
        assert_eq!(find_build_crate("{}"), None);
    }
}
