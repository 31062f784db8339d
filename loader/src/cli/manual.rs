//! `covisor man`.

use std::fs;
use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_mangen::Man;

use super::Cli;
use super::EXIT_USAGE;
use super::fail;

/// Arguments of `covisor man`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  covisor man | man -l -\n  covisor man --folder /usr/local/share/man/man1 && man covisor-run"
)]
pub(super) struct Args {
    /// Store a page for each command in this folder, which is made if it is not there
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

pub(super) fn manual(args: &Args) -> ExitCode {
    let done = match &args.folder {
        None => print().map_err(|error| format!("cannot write the page: {error}")),
        Some(folder) => store(folder).map_err(|error| format!("cannot store pages in {}: {error}", folder.display())),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error, EXIT_USAGE),
    }
}

fn print() -> io::Result<()> {
    let mut page = Vec::new();
    Man::new(Cli::command()).render(&mut page)?;
    io::stdout().write_all(&page)
}

fn store(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    clap_mangen::generate_to(Cli::command(), folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_each_command_has_a_page_with_its_options() {
        let folder = tempfile::tempdir().unwrap();
        let pages = folder.path().join("man1");
        store(&pages).unwrap();
        let page = |name: &str| fs::read_to_string(pages.join(name)).unwrap();
        assert!(page("covisor.1").contains("covisor\\-run(1)"));
        assert!(page("covisor-run.1").contains("\\-\\-disk"));
        assert!(page("covisor-image-create.1").contains("Example"));
    }

    #[test]
    fn test_a_folder_that_cannot_be_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(store(&file.path().join("man1")).is_err());
    }
}
