//! A guest's configuration in a file: `covisor run --config web.toml`.
//!
//! The file is TOML. Its keys are the long names of `covisor run`'s options, and its values are what those take, so that there is one
//! definition and one parser of each. Options on the command line are over those of the file; disks and networks are added to them.
//!
//! What can be given several times is an array, and each of its parts text as for the option, or a table: `{ file = "a.img", ro = true }`
//! says `a.img,ro`. Relative paths begin at the file's folder.

use std::error::Error as _;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::path::PathBuf;
use std::str;

use clap::Arg;
use clap::ArgAction;
use clap::ArgMatches;
use clap::Command;
use clap::parser::ValueSource;
use thiserror::Error;
use toml::Spanned;
use toml::de::DeTable;
use toml::de::DeValue;

use super::options_file::Place;
use super::options_file::is_utf16;
use super::substance;
use crate::run::describe;

/// The option that names the file.
pub(super) const OPTION: &str = "config";
/// Options whose values begin with a path.
const PATHS: [&str; 4] = ["kernel", "initrd", "disk", "share"];
/// What begins the text of an option whose value is a table, by the option.
const HEADS: [(&str, &str); 3] = [("disk", "file"), ("net", "network"), ("share", "folder")];
/// How like a known word another one must be to be taken for it.
const LIKENESS: f64 = 0.5;

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub(super) enum FileError {
    #[error("configuration {}: {}", path.display(), describe(source))]
    Read { path: PathBuf, source: io::Error },
    #[error("configuration {}: it is UTF-16 text: save it as UTF-8", .0.display())]
    Utf16(PathBuf),
    #[error("configuration {}, {place}: {flaw}", path.display())]
    Flaw { path: PathBuf, place: Place, flaw: Flaw },
}

/// What is wrong in the text.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum Flaw {
    #[error("this is no UTF-8 text")]
    NoText,
    #[error("{0}")]
    Syntax(String),
    #[error("there is no key `{key}`; the nearest is `{nearest}`")]
    Unknown { key: String, nearest: String },
    #[error("there is no key `{key}`; there are {known}")]
    Strange { key: String, known: String },
    #[error("`{key}` is {wanted}")]
    Kind { key: String, wanted: &'static str },
    #[error("a table of `{key}` needs `{head}`")]
    NoHead { key: String, head: &'static str },
    #[error("`{0}`: a comma can be in no value of a table")]
    Comma(String),
    #[error("{0}")]
    Value(String),
}

/// Something wrong, and where in the text it is.
type Found = (Range<usize>, Flaw);

/// The words that say what the file says, but for options that `matches` have from the command line and that are there once only.
pub(super) fn words(path: &Path, command: &Command, matches: &ArgMatches) -> Result<Vec<OsString>, FileError> {
    let bytes = fs::read(path).map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    if is_utf16(&bytes) {
        return Err(FileError::Utf16(path.to_owned()));
    }
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    let read = |text: &str| parse(text, folder, command, matches);
    let (place, flaw) = match str::from_utf8(&bytes) {
        Ok(text) => match read(text) {
            Ok(words) => return Ok(words),
            Err((span, flaw)) => (Place::at(text, span.start), flaw),
        },
        Err(error) => {
            let good = str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
            (Place::at(good, good.len()), Flaw::NoText)
        }
    };
    Err(FileError::Flaw { path: path.to_owned(), place, flaw })
}

fn parse(text: &str, folder: &Path, command: &Command, matches: &ArgMatches) -> Result<Vec<OsString>, Found> {
    let table = DeTable::parse(text).map_err(|error| {
        let flaw = Flaw::Syntax(error.message().lines().collect::<Vec<_>>().join("; "));
        // What is missing is missing at the end.
        (error.span().unwrap_or(text.len()..text.len()), flaw)
    })?;
    let mut entries: Vec<_> = table.get_ref().iter().collect();
    // The first error of the file is told.
    entries.sort_by_key(|(key, _)| key.span().start);
    let mut words = Vec::new();
    for (key, value) in entries {
        let name = key.get_ref().as_ref();
        let arg = options(command).find(|arg| arg.get_long() == Some(name));
        let arg = arg.ok_or_else(|| (key.span(), unknown(name, command)))?;
        let is_over = matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
        let of_file = of_option(arg, name, value, folder)?;
        for (span, word) in of_file {
            check(command, &word).map_err(|flaw| (span, flaw))?;
            if !is_over || matches!(arg.get_action(), ArgAction::Append) {
                words.push(word);
            }
        }
    }
    Ok(words)
}

/// The options that are keys.
fn options(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| {
        let takes_part = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append | ArgAction::SetTrue);
        takes_part && !arg.is_hide_set() && arg.get_long().is_some_and(|name| name != OPTION)
    })
}

fn unknown(key: &str, command: &Command) -> Flaw {
    let known = || options(command).filter_map(Arg::get_long);
    let likeness = |name: &&str| strsim::normalized_damerau_levenshtein(key, name);
    let nearest = known().max_by(|one, other| likeness(one).total_cmp(&likeness(other)));
    match nearest.filter(|name| likeness(name) > LIKENESS) {
        Some(nearest) => Flaw::Unknown { key: key.to_owned(), nearest: nearest.to_owned() },
        None => Flaw::Strange { key: key.to_owned(), known: known().collect::<Vec<_>>().join(", ") },
    }
}

/// Each of an option's values as a word of the command line, with its place.
fn of_option(
    arg: &Arg,
    name: &str,
    value: &Spanned<DeValue<'_>>,
    folder: &Path,
) -> Result<Vec<(Range<usize>, OsString)>, Found> {
    let refuse = |value: &Spanned<DeValue<'_>>, wanted| (value.span(), Flaw::Kind { key: name.to_owned(), wanted });
    match (arg.get_action(), value.get_ref()) {
        (ArgAction::SetTrue, DeValue::Boolean(true)) => Ok(vec![(value.span(), format!("--{name}").into())]),
        (ArgAction::SetTrue, DeValue::Boolean(false)) => Ok(Vec::new()),
        (ArgAction::SetTrue, _) => Err(refuse(value, "true or false")),
        (ArgAction::Append, DeValue::Array(values)) => {
            let one = |value: &Spanned<DeValue<'_>>| {
                let text = match value.get_ref() {
                    DeValue::Table(table) => of_table(name, table, value.span())?,
                    other => text(other).ok_or_else(|| refuse(value, "an array of texts or tables"))?,
                };
                Ok((value.span(), word(name, &text, folder)))
            };
            values.iter().map(one).collect()
        }
        (ArgAction::Append, _) => Err(refuse(value, "an array: [\"…\"]")),
        (_, other) => {
            let text = text(other).ok_or_else(|| refuse(value, "a text or a number"))?;
            Ok(vec![(value.span(), word(name, &text, folder))])
        }
    }
}

/// A text or a number as it is typed.
fn text(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(
            i64::from_str_radix(number.as_str(), number.radix()).map_or_else(|_| number.to_string(), |n| n.to_string()),
        ),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        _ => None,
    }
}

/// `{ file = "a.img", ro = true, format = "raw" }` as `a.img,ro,format=raw`.
fn of_table(option: &str, table: &DeTable<'_>, span: Range<usize>) -> Result<String, Found> {
    let kind = |span: Range<usize>, wanted| (span, Flaw::Kind { key: option.to_owned(), wanted });
    let head = HEADS.into_iter().find(|(name, _)| *name == option).map(|(_, head)| head);
    let head = head.ok_or_else(|| kind(span.clone(), "an array of texts"))?;
    let mut words = table
        .get(head)
        .and_then(|value| text(value.get_ref()))
        .ok_or_else(|| (span.clone(), Flaw::NoHead { key: option.to_owned(), head }))?;
    let mut entries: Vec<_> = table.iter().filter(|(key, _)| key.get_ref().as_ref() != head).collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    for (key, value) in entries {
        let key = key.get_ref().as_ref();
        let values = match value.get_ref() {
            DeValue::Boolean(is_so) => {
                if *is_so {
                    words.push_str(&format!(",{key}"));
                }
                continue;
            }
            DeValue::Array(values) => values.iter().collect(),
            _ => vec![value],
        };
        for value in values {
            let text =
                text(value.get_ref()).ok_or_else(|| kind(value.span(), "a table of texts, numbers, true and false"))?;
            if text.contains(',') {
                return Err((value.span(), Flaw::Comma(text)));
            }
            words.push_str(&format!(",{key}={text}"));
        }
    }
    Ok(words)
}

fn word(name: &str, text: &str, folder: &Path) -> OsString {
    let mut word = OsString::from(format!("--{name}="));
    if PATHS.contains(&name) && !text.is_empty() {
        word.push(folder.join(text))
    } else {
        word.push(text)
    }
    word
}

/// Lets the option's own parser see the value.
fn check(command: &Command, word: &OsString) -> Result<(), Flaw> {
    let words = [OsString::from(command.get_name()), word.clone()];
    let Err(error) = command.clone().try_get_matches_from(words) else { return Ok(()) };
    let name = word.to_string_lossy();
    let name = name.split('=').next().unwrap_or_default().trim_start_matches('-');
    // The parser's own reason says enough beside the place; else what clap says.
    let reason = error.source().map_or_else(|| substance(&error.render().to_string()), |why| format!("{name}: {why}"));
    Err(Flaw::Value(reason))
}

#[cfg(test)]
mod tests {
    use super::super::run::Args;
    use super::*;
    use crate::run::Config;

    fn config(words: &[&str]) -> Result<Config, String> {
        Args::parse(words.iter().map(OsString::from))?.into_config()
    }

    /// What a file asks for, beside `more` words.
    fn of_file(text: &str, more: &[&str]) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.toml");
        fs::write(&path, text).unwrap();
        let words = [&["--config", path.to_str().unwrap()], more].concat();
        // So that paths and places can be looked at.
        config(&words).map_err(|error| error.replace(path.to_str().unwrap(), "web.toml"))
    }

    fn refusal(text: &str) -> String {
        let error = of_file(text, &[]).unwrap_err();
        assert!(!error.contains('\n'), "{error}");
        error.strip_prefix("configuration web.toml, ").unwrap_or(&error).to_owned()
    }

    /// Each key, with a value that is not the default.
    const ALL: &str = r#"
# A guest.
name = "web"
kernel = "/vm/vmlinuz"
initrd = "/vm/initrd.img"
append = "quiet panic=10"
mem = "1G"
cpus = 1
engine = "svm"
console = "serial"
exec = "uname -a"
no-reboot = true
verbose = false
timeout = 0.5
stop-timeout = 90
disk = ["/vm/web.img", { file = "/vm/a,b.iso", ro = true, format = "raw" }]
share = ["/srv", { folder = "/home", tag = "home", ro = true, uid = 1000 }]

[[net]]
network = "nat"
mac = "02:00:00:12:34:56"
mtu = 9_000
forward = ["tcp:2222:22", "udp:5000-5010:6000"]
no-loopback = true

[[net]]
network = "tap=vm0"
"#;

    #[test]
    fn test_the_file_says_what_options_say() {
        let options = "--name web --kernel /vm/vmlinuz --initrd /vm/initrd.img --mem 1G --engine svm --console serial \
             --no-reboot --timeout 0.5 --stop-timeout 90 --disk /vm/web.img --disk /vm/a,b.iso,ro,format=raw \
             --net nat,mac=02:00:00:12:34:56,mtu=9000,forward=tcp:2222:22,forward=udp:5000-5010:6000,no-loopback --net tap=vm0 \
             --share /srv --share /home,tag=home,ro,uid=1000";
        let mut options: Vec<_> = options.split_whitespace().collect();
        options.extend(["--append", "quiet panic=10", "--exec", "uname -a"]);
        let options = format!("{:#?}", config(&options).unwrap());
        assert_eq!(format!("{:#?}", of_file(ALL, &[]).unwrap()), options);
        assert_eq!(format!("{:#?}", of_file(&ALL.replace('\n', "\r\n"), &[]).unwrap()), options);
    }

    #[test]
    fn test_every_option_has_its_key() {
        let command = Args::command();
        for name in options(&command).filter_map(Arg::get_long) {
            assert!(ALL.contains(&format!("\n{name} = ")) || ALL.contains(&format!("[[{name}]]")), "{name}");
        }
    }

    #[test]
    fn test_the_command_line_is_over_the_file() {
        let over = of_file(ALL, &["--mem", "2G", "--engine", "coop", "--disk", "c.img", "--name", "db", "single"]);
        // A word that goes nowhere is an error still.
        assert!(over.is_err());
        let over = of_file(ALL, &["--mem", "2G", "--engine", "coop", "--disk", "c.img", "--name", "db"]).unwrap();
        assert_eq!((over.memory, over.name.as_str(), over.disks.len()), (2 << 30, "db", 3));
        assert_eq!(over.disks[2].path, Path::new("c.img"));
        assert_eq!(over.engine, covisor_abi::EngineKind::Coop);
        // A wrong value is wrong where another is over it, too.
        assert!(of_file("mem = \"lots\"", &["--mem", "2G"]).is_err());
        let words = of_file("name = \"x\"\n", &["kernel=/k", "single"]).unwrap();
        assert_eq!((words.name.as_str(), words.append.as_deref()), ("x", Some("single")));
    }

    #[test]
    fn test_paths_begin_at_the_files_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.toml");
        fs::write(&path, "kernel = 'vmlinuz'\ndisk = ['web.img,ro', { file = '/abs.img' }]").unwrap();
        let config = config(&["--config", path.to_str().unwrap()]).unwrap();
        assert_eq!(config.kernel, folder.path().join("vmlinuz"));
        assert_eq!((config.disks[0].path.clone(), config.disks[0].read_only), (folder.path().join("web.img"), true));
        assert_eq!(config.disks[1].path, Path::new("/abs.img"));
    }

    #[test]
    fn test_errors_have_their_place() {
        let mut wrong = Vec::new();
        for (text, place, says) in [
            ("mem = 512\nmme = 1", "line 2, column 1", "no key `mme`; the nearest is `mem`"),
            ("no_reboot = true", "line 1, column 1", "the nearest is `no-reboot`"),
            ("colour = 1", "line 1, column 1", "; there are kernel, "),
            ("config = 'x'", "line 1, column 1", "no key `config`"),
            ("test-doorbell = 1", "line 1, column 1", "no key"),
            ("mem = 'lots'", "line 1, column 7", "mem: it should be a number of MiB"),
            ("mem = 0", "line 1, column 7", "mem: a guest needs memory"),
            ("\n\n  mem = true", "line 3, column 9", "`mem` is a text or a number"),
            ("no-reboot = 'yes'", "line 1, column 13", "`no-reboot` is true or false"),
            ("engine = 'magic'", "line 1, column 10", "magic"),
            ("cpus = 1.5", "line 1, column 8", "cpus: "),
            ("timeout = -1", "line 1, column 11", "above 0"),
            ("disk = 'a.img'", "line 1, column 8", "an array"),
            ("disk = ['a', 1979-05-27]", "line 1, column 14", "texts or tables"),
            ("disk = ['a.img,rw']", "line 1, column 9", "`rw` is no option of a disk"),
            ("disk = [{ ro = true }]", "line 1, column 9", "needs `file`"),
            ("disk = [{ file = 'a', rw = true }]", "line 1, column 9", "`rw` is no option of a disk"),
            ("[[net]]\nnetwork = 'nat'\ncapture = 'a,b'", "line 3, column 11", "comma"),
            ("[[net]]\nnetwork = 'bridge'", "line 1, column 1", "`bridge` is no network"),
            ("[mem]\na = 1", "line 1, column 1", "a text or a number"),
            ("mem = ", "line 1, column 7", ""),
            ("mem = 1\nmem = 2", "line 2, column 1", "duplicate"),
            ("ä = 'x", "line 1, ", ""),
            ("name = 'a b'", "", ""),
        ] {
            if place.is_empty() {
                // What only the whole can tell.
                assert!(of_file(text, &["--kernel", "/k"]).is_ok(), "{text}");
                continue;
            }
            let error = refusal(text);
            let is_told = error.starts_with(place) && error.contains(says) && error.len() > place.len() + 10;
            if !is_told {
                wrong.push(format!("{text}: {error}"));
            }
        }
        assert_eq!(wrong, [""; 0]);
    }

    #[test]
    fn test_files_that_are_no_text_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.toml");
        let refusal = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            config(&["--config", path.to_str().unwrap()]).unwrap_err()
        };
        assert!(refusal(b"\xff\xfea\0").contains("UTF-16"));
        assert!(refusal(b"mem = 1\n# \xc3\xbc \xff").contains("line 2, column 5: this is no UTF-8 text"));
        fs::remove_file(&path).unwrap();
        let error = config(&["--config", path.to_str().unwrap()]).unwrap_err();
        assert!(error.ends_with("x.toml: there is no such file"), "{error}");
    }
}
