//! Looks whether a file for Windows (Microsoft's PE format) is what every Windows that it is for will load: each check is a
//! sentence, and a file that fails one is not handed out.

use std::collections::BTreeSet;

use object::LittleEndian as LE;
use object::pe;
use object::read::pe::ImageNtHeaders;
use object::read::pe::ImageOptionalHeader;
use object::read::pe::ImageThunkData;
use object::read::pe::PeFile64;

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Not a PE file, or a broken one.
    #[error("it cannot be read as a 64-bit Windows program: {0}")]
    Unreadable(String),
    /// For another CPU.
    #[error("it is for the machine type {0:#06x}, not for x86-64")]
    Machine(u16),
    /// For another world.
    #[error("its subsystem is {found}, not {wanted}")]
    Subsystem {
        /// The number in the file.
        found: u16,
        /// The right one.
        wanted: u16,
    },
    /// It starts nowhere.
    #[error("its entry point, {0:#x}, is not in an executable section")]
    Entry(u32),
    /// The kernel refuses drivers with a wrong checksum.
    #[error("its checksum is {found:#010x}, and the content's is {computed:#010x}")]
    Checksum {
        /// The number in the file.
        found: u32,
        /// The right one.
        computed: u32,
    },
    /// What is written to could be executed.
    #[error("its section {0} is both writable and executable")]
    WritableCode(String),
    /// It could be loaded at one address only.
    #[error("it has no base relocations")]
    NoRelocations,
    /// A protection that the file does not declare.
    #[error("it does not declare {0}")]
    NotDeclared(&'static str),
    /// It needs a function that the oldest Windows that it is for does not have.
    #[error("it imports {function} of {library}, which is not in {list}")]
    Import {
        /// The file that should have it.
        library: String,
        /// The function.
        function: String,
        /// Of whose exports it is not.
        list: &'static str,
    },
    /// It would leave others too little of the stack.
    #[error(
        "its function at {function:#x} takes {size} bytes of the stack, and more than {most} leave others too little of a kernel's 24 KiB"
    )]
    Frame {
        /// Where it begins, from where the file is loaded.
        function: u32,
        /// What it takes.
        size: u32,
        /// What it may take.
        most: u32,
    },
    /// Imports that are looked up later would escape the check.
    #[error("it has delayed imports")]
    DelayedImports,
}

/// What a file has to be.
#[derive(Debug)]
pub struct Rules {
    /// What kind of program.
    pub subsystem: pe::Subsystem,
    /// Whether the checksum has to be right: the kernel looks at a driver's, and nobody at a program's.
    pub checksum: bool,
    /// What may be imported.
    pub exports: Exports,
    /// Most bytes of the stack that a function may take at once.
    pub most_stack: Option<u32>,
}

/// Functions that a Windows has: lines of a file's name and a function's, and comments.
#[derive(Debug)]
pub struct Exports {
    name: &'static str,
    all: BTreeSet<(String, String)>,
}

impl Exports {
    /// Reads the list; `name` is how errors call it. File names are compared without regard to case, as Windows does.
    #[must_use]
    pub fn parse(name: &'static str, text: &str) -> Self {
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
        let pairs = lines.filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.to_ascii_lowercase(), words.next()?.to_owned()))
        });
        Self { name, all: pairs.collect() }
    }

    fn has(&self, library: &str, function: &str) -> bool {
        self.all.contains(&(library.to_ascii_lowercase(), function.to_owned()))
    }
}

/// Where the checksum's field is, from the start of the PE signature: in the optional header, behind signature and file header.
const CHECKSUM_FIELD: usize = 4 + 20 + 64;
/// Where the offset of the PE signature is in a file.
const SIGNATURE_OFFSET_FIELD: usize = 0x3c;

/// What protects a program and every Windows since 7 honours, as each file declares it.
const DECLARED: [(pe::DllFlags, &str); 3] = [
    (pe::IMAGE_DLLCHARACTERISTICS_DYNAMIC_BASE, "that it can be loaded anywhere (DYNAMIC_BASE)"),
    (pe::IMAGE_DLLCHARACTERISTICS_NX_COMPAT, "that its data is not to be executed (NX_COMPAT)"),
    (pe::IMAGE_DLLCHARACTERISTICS_HIGH_ENTROPY_VA, "that it can be loaded above 4 GiB (HIGH_ENTROPY_VA)"),
];

/// All flaws of a file.
#[must_use]
pub fn flaws(file: &[u8], rules: &Rules) -> Vec<Flaw> {
    read(file, rules).unwrap_or_else(|error| vec![Flaw::Unreadable(error.to_string())])
}

fn read(bytes: &[u8], rules: &Rules) -> Result<Vec<Flaw>, object::Error> {
    let file = PeFile64::parse(bytes)?;
    let headers = file.nt_headers();
    let optional = headers.optional_header();
    let mut flaws = Vec::new();

    let machine = headers.file_header().machine.get(LE);
    if machine != pe::IMAGE_FILE_MACHINE_AMD64 {
        flaws.push(Flaw::Machine(machine.0));
    }
    let subsystem = optional.subsystem();
    if subsystem != rules.subsystem {
        flaws.push(Flaw::Subsystem { found: subsystem.0, wanted: rules.subsystem.0 });
    }
    let entry = optional.address_of_entry_point();
    let mut has_entry = false;
    for section in file.section_table().iter() {
        let may = |flag: pe::SectionFlags| section.characteristics.get(LE).0 & flag.0 != 0;
        let is_code = may(pe::IMAGE_SCN_MEM_EXECUTE);
        if is_code && may(pe::IMAGE_SCN_MEM_WRITE) {
            flaws.push(Flaw::WritableCode(String::from_utf8_lossy(section.raw_name()).into_owned()));
        }
        let start = section.virtual_address.get(LE);
        has_entry |= is_code && (start..start.saturating_add(section.virtual_size.get(LE))).contains(&entry);
    }
    if !has_entry {
        flaws.push(Flaw::Entry(entry));
    }
    if rules.checksum {
        let (found, computed) = (optional.check_sum(), checksum(bytes));
        if found != computed {
            flaws.push(Flaw::Checksum { found, computed });
        }
    }
    let is_there = |directory| file.data_directory(directory).is_some_and(|it| it.size.get(LE) != 0);
    let is_fixed = headers.file_header().characteristics.get(LE).0 & pe::IMAGE_FILE_RELOCS_STRIPPED.0 != 0;
    if is_fixed || !is_there(pe::IMAGE_DIRECTORY_ENTRY_BASERELOC) {
        flaws.push(Flaw::NoRelocations);
    }
    let declared = optional.dll_characteristics().0;
    flaws.extend(DECLARED.iter().filter(|(flag, _)| declared & flag.0 == 0).map(|&(_, what)| Flaw::NotDeclared(what)));
    if is_there(pe::IMAGE_DIRECTORY_ENTRY_DELAY_IMPORT) {
        flaws.push(Flaw::DelayedImports);
    }
    if let Some(most) = rules.most_stack {
        let large = frames(&file, bytes)?.into_iter().filter(|(_, size)| *size > most);
        flaws.extend(large.map(|(function, size)| Flaw::Frame { function, size, most }));
    }
    for (library, function) in imports(&file)? {
        if !rules.exports.has(&library, &function) {
            flaws.push(Flaw::Import { library, function, list: rules.exports.name });
        }
    }
    Ok(flaws)
}

/// What a file imports: the other file's name and the function's; `#7` is one that has only a number.
fn imports(file: &PeFile64<'_>) -> Result<Vec<(String, String)>, object::Error> {
    let mut all = Vec::new();
    let Some(table) = file.import_table()? else { return Ok(all) };
    let mut descriptors = table.descriptors()?;
    while let Some(descriptor) = descriptors.next()? {
        let library = String::from_utf8_lossy(table.name(descriptor.name.get(LE))?).into_owned();
        let lookup = match descriptor.original_first_thunk.get(LE) {
            0 => descriptor.first_thunk.get(LE),
            original => original,
        };
        let mut thunks = table.thunks(lookup)?;
        while let Some(thunk) = thunks.next::<pe::ImageNtHeaders64>()? {
            let function = if thunk.is_ordinal() {
                format!("#{}", thunk.ordinal())
            } else {
                let (_, name) = table.hint_name(thunk.address())?;
                String::from_utf8_lossy(name).into_owned()
            };
            all.push((library.clone(), function));
        }
    }
    Ok(all)
}

/// Where each function begins that touches the stack, and the bytes that it takes there, as the tables for exceptions have it
/// (Microsoft's "x64 exception handling", `RUNTIME_FUNCTION` and `UNWIND_INFO`).
fn frames(file: &PeFile64<'_>, bytes: &[u8]) -> Result<Vec<(u32, u32)>, object::Error> {
    let sections = file.section_table();
    let Some(directory) = file.data_directory(pe::IMAGE_DIRECTORY_ENTRY_EXCEPTION) else { return Ok(Vec::new()) };
    if directory.size.get(LE) == 0 {
        return Ok(Vec::new());
    }
    let functions = directory.data(bytes, &sections)?.as_chunks::<12>().0.iter();
    let frames = functions.filter_map(|&[a, b, c, d, _, _, _, _, e, f, g, h]| {
        let unwinding = sections.pe_data_at(bytes, u32::from_le_bytes([e, f, g, h]))?;
        Some((u32::from_le_bytes([a, b, c, d]), frame(unwinding)?))
    });
    Ok(frames.collect())
}

/// The bytes of the stack that these steps of unwinding give back, with the return address.
fn frame(unwinding: &[u8]) -> Option<u32> {
    let count = usize::from(*unwinding.get(2)?);
    let mut codes = unwinding.get(4..)?.as_chunks::<2>().0.get(..count)?.iter().copied();
    let mut size = 8_u32;
    while let Some([_, code]) = codes.next() {
        let (operation, information) = (code & 15, code >> 4);
        let (bytes, more) = match (operation, information) {
            // A push.
            (0, _) => (8, 0),
            (1, 0) => (u32::from(u16::from_le_bytes(codes.next()?)) * 8, 0),
            (1, _) => {
                let [[a, b], [c, d]] = [codes.next()?, codes.next()?];
                (u32::from_le_bytes([a, b, c, d]), 0)
            }
            (2, _) => (u32::from(information) * 8 + 8, 0),
            // What was kept, with where it is.
            (4 | 8, _) => (0, 1),
            (5 | 9, _) => (0, 2),
            _ => (0, 0),
        };
        size = size.saturating_add(bytes);
        for _ in 0..more {
            codes.next()?;
        }
    }
    Some(size)
}

/// The checksum as `CheckSumMappedFile` computes it: the sum of all 16-bit words but the field's own, with the carries added in, and
/// the file's length.
#[must_use]
pub fn checksum(file: &[u8]) -> u32 {
    let field = checksum_field(file);
    let is_field = |index: usize| field.is_some_and(|field| (field..field + 4).contains(&index));
    let byte = |index: usize| if is_field(index) { 0 } else { u32::from(file.get(index).copied().unwrap_or(0)) };
    let mut sum = 0_u32;
    for index in (0..file.len()).step_by(2) {
        sum += byte(index) | byte(index + 1) << 8;
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // No Windows loads a file of 4 GiB.
    sum.wrapping_add(u32::try_from(file.len()).unwrap_or(u32::MAX))
}

/// Where the field is in the file.
fn checksum_field(file: &[u8]) -> Option<usize> {
    let signature = file.get(SIGNATURE_OFFSET_FIELD..SIGNATURE_OFFSET_FIELD + 4)?;
    let signature = u32::from_le_bytes(signature.try_into().ok()?);
    usize::try_from(signature).ok()?.checked_add(CHECKSUM_FIELD)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the sections of the file that the tests make are, in the file and in memory.
    const CODE: u32 = 0x1000;
    const DATA: u32 = 0x2000;
    const RELOCATIONS: u32 = 0x3000;
    /// Where the optional header begins.
    const OPTIONAL: usize = 0x40 + 4 + 20;
    /// Where the data directories begin.
    const DIRECTORIES: usize = OPTIONAL + 112;
    /// Where the section headers begin.
    const SECTIONS: usize = OPTIONAL + 240;

    fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_words(file: &mut [u8], at: usize, words: &[u32]) {
        for (index, word) in words.iter().enumerate() {
            put(file, at + index * 4, &word.to_le_bytes());
        }
    }

    /// A driver with nothing wrong, of one function that is imported. Every section lies in the file where it lies in memory.
    fn driver() -> Vec<u8> {
        let mut file = vec![0; 0x4000];
        put(&mut file, 0, b"MZ");
        put_words(&mut file, 0x3c, &[0x40]);
        put(&mut file, 0x40, b"PE\0\0");
        put(&mut file, 0x44, &pe::IMAGE_FILE_MACHINE_AMD64.0.to_le_bytes());
        put(&mut file, 0x46, &3_u16.to_le_bytes());
        put(&mut file, 0x54, &240_u16.to_le_bytes());
        put(&mut file, 0x56, &pe::IMAGE_FILE_EXECUTABLE_IMAGE.0.to_le_bytes());
        put(&mut file, OPTIONAL, &pe::IMAGE_NT_OPTIONAL_HDR64_MAGIC.to_le_bytes());
        put_words(&mut file, OPTIONAL + 16, &[CODE]);
        put_words(&mut file, OPTIONAL + 32, &[0x1000, 0x1000]);
        put_words(&mut file, OPTIONAL + 56, &[0x4000, 0x1000]);
        put(&mut file, OPTIONAL + 68, &pe::IMAGE_SUBSYSTEM_NATIVE.0.to_le_bytes());
        let declared = DECLARED.iter().fold(0, |all, (flag, _)| all | flag.0);
        put(&mut file, OPTIONAL + 70, &declared.to_le_bytes());
        put_words(&mut file, OPTIONAL + 108, &[16]);
        put_words(&mut file, DIRECTORIES + 8, &[DATA, 40]);
        put_words(&mut file, DIRECTORIES + 5 * 8, &[RELOCATIONS, 12]);
        let read = pe::IMAGE_SCN_MEM_READ.0;
        let sections = [
            (b".text\0\0\0", CODE, read | pe::IMAGE_SCN_MEM_EXECUTE.0),
            (b".data\0\0\0", DATA, read | pe::IMAGE_SCN_MEM_WRITE.0),
            (b".reloc\0\0", RELOCATIONS, read | pe::IMAGE_SCN_MEM_DISCARDABLE.0),
        ];
        for (index, (name, at, characteristics)) in sections.into_iter().enumerate() {
            let header = SECTIONS + index * 40;
            put(&mut file, header, name);
            put_words(&mut file, header + 8, &[0x1000, at, 0x1000, at]);
            put_words(&mut file, header + 36, &[characteristics]);
        }
        // One descriptor, the thunks at 0x40 and 0x60, names behind them.
        put_words(&mut file, DATA as usize, &[DATA + 0x40, 0, 0, DATA + 0x80, DATA + 0x60]);
        put_words(&mut file, DATA as usize + 0x40, &[DATA + 0x90]);
        put_words(&mut file, DATA as usize + 0x60, &[DATA + 0x90]);
        put(&mut file, DATA as usize + 0x80, b"ntoskrnl.exe\0");
        put(&mut file, DATA as usize + 0x92, b"DbgPrint\0");
        sign(&mut file);
        file
    }

    /// Writes the right checksum.
    fn sign(file: &mut [u8]) {
        let sum = checksum(file);
        put_words(file, 0x40 + CHECKSUM_FIELD, &[sum]);
    }

    fn rules() -> Rules {
        let exports = Exports::parse("the list", "# comment\nNTOSKRNL.exe DbgPrint # for words\n\nhal.dll\n");
        Rules { subsystem: pe::IMAGE_SUBSYSTEM_NATIVE, checksum: true, exports, most_stack: Some(4096) }
    }

    /// The flaws of the driver when it was changed so, with a checksum that is right again.
    fn changed(change: impl FnOnce(&mut Vec<u8>)) -> Vec<Flaw> {
        let mut file = driver();
        change(&mut file);
        sign(&mut file);
        flaws(&file, &rules())
    }

    #[test]
    fn test_a_good_driver_has_no_flaw() {
        assert_eq!(flaws(&driver(), &rules()), []);
    }

    #[test]
    fn test_what_is_no_program_is_told_so() {
        assert!(matches!(flaws(b"", &rules())[..], [Flaw::Unreadable(_)]));
        assert!(matches!(flaws(&driver()[..0x100], &rules())[..], [Flaw::Unreadable(_)]));
    }

    #[test]
    fn test_a_wrong_checksum_is_found_where_it_counts() {
        let mut file = driver();
        let right = checksum(&file);
        put_words(&mut file, 0x40 + CHECKSUM_FIELD, &[right + 1]);
        assert_eq!(flaws(&file, &rules()), [Flaw::Checksum { found: right + 1, computed: right }]);
        assert_eq!(flaws(&file, &Rules { checksum: false, ..rules() }), []);
    }

    #[test]
    fn test_a_checksum_sees_every_byte_but_its_own() {
        let mut file = driver();
        let sum = checksum(&file);
        file[0x1234] ^= 1;
        assert_ne!(checksum(&file), sum);
        file[0x1234] ^= 1;
        file.push(1);
        assert_ne!(checksum(&file), sum);
        file.pop();
        put_words(&mut file, 0x40 + CHECKSUM_FIELD, &[0x1234_5678]);
        assert_eq!(checksum(&file), sum);
    }

    #[test]
    fn test_another_world_is_found() {
        let found = changed(|file| put(file, OPTIONAL + 68, &pe::IMAGE_SUBSYSTEM_WINDOWS_CUI.0.to_le_bytes()));
        assert_eq!(found, [Flaw::Subsystem { found: 3, wanted: 1 }]);
        let found = changed(|file| put(file, 0x44, &pe::IMAGE_FILE_MACHINE_ARM64.0.to_le_bytes()));
        assert_eq!(found, [Flaw::Machine(pe::IMAGE_FILE_MACHINE_ARM64.0)]);
    }

    #[test]
    fn test_an_entry_in_data_is_found() {
        assert_eq!(changed(|file| put_words(file, OPTIONAL + 16, &[DATA])), [Flaw::Entry(DATA)]);
        assert_eq!(changed(|file| put_words(file, OPTIONAL + 16, &[0])), [Flaw::Entry(0)]);
    }

    #[test]
    fn test_writable_code_is_found() {
        let all = pe::IMAGE_SCN_MEM_READ.0 | pe::IMAGE_SCN_MEM_WRITE.0 | pe::IMAGE_SCN_MEM_EXECUTE.0;
        let found = changed(|file| put_words(file, SECTIONS + 36, &[all]));
        assert_eq!(found, [Flaw::WritableCode(".text".to_owned())]);
    }

    #[test]
    fn test_missing_relocations_are_found() {
        assert_eq!(changed(|file| put_words(file, DIRECTORIES + 5 * 8, &[0, 0])), [Flaw::NoRelocations]);
        let stripped = pe::IMAGE_FILE_EXECUTABLE_IMAGE.0 | pe::IMAGE_FILE_RELOCS_STRIPPED.0;
        assert_eq!(changed(|file| put(file, 0x56, &stripped.to_le_bytes())), [Flaw::NoRelocations]);
    }

    #[test]
    fn test_each_missing_protection_is_found() {
        let found = changed(|file| put(file, OPTIONAL + 70, &[0, 0]));
        assert_eq!(found, DECLARED.map(|(_, what)| Flaw::NotDeclared(what)));
    }

    #[test]
    fn test_imports_that_are_not_in_the_list_are_found() {
        let other = |library: &str, function: &str| {
            [Flaw::Import { library: library.to_owned(), function: function.to_owned(), list: "the list" }]
        };
        let found = changed(|file| put(file, DATA as usize + 0x92, b"ExAllocatePool2\0"));
        assert_eq!(found, other("ntoskrnl.exe", "ExAllocatePool2"));
        let found = changed(|file| put(file, DATA as usize + 0x80, b"win32k.sys\0"));
        assert_eq!(found, other("win32k.sys", "DbgPrint"));
        // By number: the table in the file, then the one that is looked up if the other is missing.
        let by_number = |file: &mut Vec<u8>, at: u32| put_words(file, (DATA + at) as usize, &[7, 0x8000_0000]);
        assert_eq!(changed(|file| by_number(file, 0x40)), other("ntoskrnl.exe", "#7"));
        let found = changed(|file| {
            put_words(file, DATA as usize, &[0]);
            by_number(file, 0x60);
        });
        assert_eq!(found, other("ntoskrnl.exe", "#7"));
    }

    #[test]
    fn test_a_function_that_takes_too_much_of_the_stack_is_found() {
        // A function at the start of the code, and how its frame is undone.
        let with_frame = |codes: &[u8]| {
            changed(|file| {
                put_words(file, DIRECTORIES + 3 * 8, &[DATA + 0x100, 12]);
                put_words(file, DATA as usize + 0x100, &[CODE, CODE + 0x10, DATA + 0x120]);
                put(file, DATA as usize + 0x120, &[1, 0, u8::try_from(codes.len() / 2).unwrap(), 0]);
                put(file, DATA as usize + 0x124, codes);
            })
        };
        let large = |size| [Flaw::Frame { function: CODE, size, most: 4096 }];
        // Two pushes, 0x88 bytes in one way and 0x78 in another, and a register that was kept.
        assert_eq!(with_frame(&[9, 0x01, 0x11, 0, 8, 0xe2, 7, 0x04, 1, 0, 2, 0x30, 1, 0x50]), []);
        assert_eq!(with_frame(&[9, 0x01, 0xfd, 1, 2, 0x30, 1, 0x50]), []);
        assert_eq!(with_frame(&[9, 0x01, 0xfe, 1, 2, 0x30, 1, 0x50]), large(4104));
        assert_eq!(with_frame(&[9, 0x11, 0, 0, 1, 0]), large(0x1_0008));
        // Cut off.
        assert_eq!(with_frame(&[9, 0x11, 0, 0]), []);
    }

    #[test]
    fn test_delayed_imports_are_found() {
        assert_eq!(changed(|file| put_words(file, DIRECTORIES + 13 * 8, &[DATA, 32])), [Flaw::DelayedImports]);
    }

    #[test]
    fn test_no_byte_makes_the_checks_panic() {
        let file = driver();
        for at in (0..0x200).chain(0x2000..0x20a0) {
            for value in [0, 0x7f, 0xff] {
                let mut broken = file.clone();
                broken[at] = value;
                let _ = flaws(&broken, &rules());
            }
        }
    }
}
