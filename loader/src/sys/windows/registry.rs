//! Reading the registry, below `HKEY_LOCAL_MACHINE`.

use std::ptr;

use windows_sys::Win32::Foundation::ERROR_SUCCESS;
use windows_sys::Win32::System::Registry::HKEY;
use windows_sys::Win32::System::Registry::HKEY_LOCAL_MACHINE;
use windows_sys::Win32::System::Registry::KEY_ENUMERATE_SUB_KEYS;
use windows_sys::Win32::System::Registry::KEY_QUERY_VALUE;
use windows_sys::Win32::System::Registry::REG_DWORD;
use windows_sys::Win32::System::Registry::REG_SZ;
use windows_sys::Win32::System::Registry::RegCloseKey;
use windows_sys::Win32::System::Registry::RegEnumKeyExW;
use windows_sys::Win32::System::Registry::RegOpenKeyExW;
use windows_sys::Win32::System::Registry::RegQueryValueExW;

use super::wide::wide;

/// Letters of the longest name of a key, with the zero at its end (Microsoft's "Registry Element Size Limits").
const LONGEST_NAME: usize = 256;
/// Letters of the longest text that is read.
const LONGEST_TEXT: usize = 512;

/// A key, open for reading.
struct Key(HKEY);

impl Key {
    fn open(path: &str, access: u32) -> Option<Self> {
        let path = wide(path);
        let mut handle: HKEY = ptr::null_mut();
        // SAFETY: the path ends with a zero; the handle is written.
        let opened = unsafe { RegOpenKeyExW(HKEY_LOCAL_MACHINE, path.as_ptr(), 0, access, &raw mut handle) };
        (opened == ERROR_SUCCESS).then_some(Self(handle))
    }

    /// Reads a value of this type into `buffer`, and gives its bytes' count.
    fn value<T>(&self, name: &str, wanted: u32, buffer: &mut [T]) -> Option<usize> {
        let name = wide(name);
        let (mut kind, mut size) = (0, u32::try_from(size_of_val(buffer)).ok()?);
        let place = buffer.as_mut_ptr().cast();
        // SAFETY: the key is open, the name ends with a zero, and no more than `size` bytes are written into the buffer, which has
        // so many and is of numbers, which may have any value.
        let read = unsafe { RegQueryValueExW(self.0, name.as_ptr(), ptr::null(), &raw mut kind, place, &raw mut size) };
        (read == ERROR_SUCCESS && kind == wanted).then_some(size as usize)
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        // SAFETY: it is open, and nobody uses it any more.
        unsafe { RegCloseKey(self.0) };
    }
}

/// A number.
pub(super) fn number(key: &str, value: &str) -> Option<u32> {
    let mut number = [0_u32];
    let size = Key::open(key, KEY_QUERY_VALUE)?.value(value, REG_DWORD, &mut number)?;
    (size == size_of::<u32>()).then_some(number[0])
}

/// A text.
pub(super) fn text(key: &str, value: &str) -> Option<String> {
    let mut text = [0_u16; LONGEST_TEXT];
    let size = Key::open(key, KEY_QUERY_VALUE)?.value(value, REG_SZ, &mut text)?;
    // Whether it is stored with its zero is up to who wrote it.
    let letters = text[..size / size_of::<u16>()].split(|&letter| letter == 0).next()?;
    Some(String::from_utf16_lossy(letters))
}

/// The names of the keys in a key; none where there is no such key.
pub(super) fn keys(key: &str) -> Vec<String> {
    let Some(key) = Key::open(key, KEY_ENUMERATE_SUB_KEYS) else { return Vec::new() };
    let name_at = |index: u32| {
        let mut name = [0_u16; LONGEST_NAME];
        let mut length = u32::try_from(name.len()).ok()?;
        let (none, no_count, no_time) = (ptr::null(), ptr::null_mut(), ptr::null_mut());
        // SAFETY: the key is open; the name is written, of at most `length` letters; nothing else is asked for.
        let read = unsafe {
            RegEnumKeyExW(key.0, index, name.as_mut_ptr(), &raw mut length, none, ptr::null_mut(), no_count, no_time)
        };
        (read == ERROR_SUCCESS).then(|| String::from_utf16_lossy(&name[..length as usize]))
    };
    (0..).map_while(name_at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_windows_own_keys_are_read() {
        let version = r"SOFTWARE\Microsoft\Windows NT\CurrentVersion";
        assert!(text(version, "CurrentVersion").is_some_and(|version| version.contains('.')));
        assert_eq!(number(version, "CurrentVersion"), None);
        assert!(keys(r"SYSTEM\CurrentControlSet").iter().any(|key| key == "Control"));
        assert_eq!((text(version, "no such value"), keys("no such key").len()), (None, 0));
    }
}
