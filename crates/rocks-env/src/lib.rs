//! RocksDB's files under a vault: the environment that a database is opened with.
//!
//! RocksDB's own C interface has no way to say how files are to be encrypted. So `encrypted_env.cc`
//! is a file system in C++ over RocksDB's, which has each file's header, key and cipher from here.
//!
//! Invariants: no two contents are encrypted under one key and counter (a file is written once, from
//! its beginning to its end); a file whose key cannot be had is an error, never read as if it were
//! plain.
//!
//! Absent on purpose: keys and ciphers (see `meridian-vault`), mapped memory, direct writes, and
//! writing to a file again. A change of a file is found by RocksDB's checksums where it was an
//! accident, and not where it was meant: counter mode authenticates nothing.

#![allow(unsafe_code, reason = "RocksDB calls back by C's rules, with pointers that it was given")]

use std::ffi::{OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::slice;
use std::sync::Arc;

use librocksdb_sys::rocksdb_env_t;
use meridian_vault::{Content, FileCipher, HEADER_BYTES, Vault};
use rocksdb::Env;

/// `Form` of the C++ file.
const FAILED: c_int = -1;
const PLAIN: c_int = 0;
const ENCRYPTED: c_int = 1;
const EMPTY: c_int = 2;

/// `Callbacks` of the C++ file.
#[repr(C)]
struct Callbacks {
    context: *mut c_void,
    begin:
        unsafe extern "C" fn(*mut c_void, *const c_char, usize, *mut u8, *mut *mut c_void) -> c_int,
    open: unsafe extern "C" fn(
        *mut c_void,
        *const c_char,
        usize,
        *const u8,
        usize,
        u64,
        *mut *mut c_void,
    ) -> c_int,
    apply: unsafe extern "C" fn(*const c_void, u64, *mut u8, usize),
    free_cipher: unsafe extern "C" fn(*mut c_void),
    free_context: unsafe extern "C" fn(*mut c_void),
}

unsafe extern "C" {
    fn meridian_encrypted_env(callbacks: *const Callbacks) -> *mut rocksdb_env_t;
}

/// The environment for a database in the vault's folder: files are written as the vault says, and
/// read encrypted or not.
pub fn encrypted_env(vault: &Arc<Vault>) -> Env {
    let callbacks = Callbacks {
        context: Arc::into_raw(Arc::clone(vault)).cast_mut().cast(),
        begin,
        open,
        apply,
        free_cipher,
        free_context,
    };
    // SAFETY: the C++ side copies the callbacks, and takes over the context, which it frees by
    // `free_context` once, when no file of it is open any more. The result is an environment that
    // has no other owner, of the layout that RocksDB's C interface frees: build.rs compares it.
    unsafe { Env::from_raw(meridian_encrypted_env(&raw const callbacks)) }
}

/// The vault that `encrypted_env` gave away.
///
/// # Safety
/// `context` is that of `encrypted_env`, and was not freed.
unsafe fn vault<'a>(context: *mut c_void) -> &'a Vault {
    // SAFETY: the caller's promise; a vault may be used by many threads at a time.
    unsafe { &*context.cast_const().cast::<Vault>() }
}

fn given_away(cipher: FileCipher) -> *mut c_void {
    Box::into_raw(Box::new(cipher)).cast()
}

/// The path that is given as so many bytes.
///
/// # Safety
/// `name` has so many bytes, which stay as they are for as long as the path is used.
unsafe fn path<'a>(name: *const c_char, bytes: usize) -> &'a Path {
    // SAFETY: the caller's promise.
    Path::new(OsStr::from_bytes(unsafe { slice::from_raw_parts(name.cast(), bytes) }))
}

/// # Safety
/// `context` is that of `encrypted_env`; `name` has so many bytes, `header` has room for a header,
/// and `cipher` for a pointer.
unsafe extern "C" fn begin(
    context: *mut c_void,
    name: *const c_char,
    name_bytes: usize,
    header: *mut u8,
    cipher: *mut *mut c_void,
) -> c_int {
    // SAFETY: `context` is that of `encrypted_env`, and `name` has so many bytes, by this function's
    // own contract.
    let (vault, file) = unsafe { (vault(context), path(name, name_bytes)) };
    match vault.begin_stream(file) {
        Ok(None) => PLAIN,
        Ok(Some((bytes, begun))) => {
            assert_eq!(bytes.len(), HEADER_BYTES, "the header has another length in C++");
            // SAFETY: there is room for a header, whose length was compared, and for a pointer.
            unsafe {
                header.copy_from_nonoverlapping(bytes.as_ptr(), HEADER_BYTES);
                cipher.write(given_away(begun));
            }
            ENCRYPTED
        }
        Err(error) => {
            tracing::error!(%error, "an encrypted file cannot be begun");
            FAILED
        }
    }
}

/// # Safety
/// `context` is that of `encrypted_env`; `name` and `head` have so many bytes, and `cipher` room for
/// a pointer.
unsafe extern "C" fn open(
    context: *mut c_void,
    name: *const c_char,
    name_bytes: usize,
    head: *const u8,
    head_bytes: usize,
    file_bytes: u64,
    cipher: *mut *mut c_void,
) -> c_int {
    if head_bytes == 0 {
        return PLAIN;
    }
    // SAFETY: `context` is that of `encrypted_env`, and the others have so many bytes for as long as
    // this function runs, by its own contract.
    let (vault, file, head) = unsafe {
        (vault(context), path(name, name_bytes), slice::from_raw_parts(head, head_bytes))
    };
    match vault.open_stream(file, head, file_bytes) {
        Ok(Content::Plain) => PLAIN,
        Ok(Content::Empty) => EMPTY,
        Ok(Content::Encrypted(opened)) => {
            // SAFETY: there is room for a pointer, by this function's own contract.
            unsafe { cipher.write(given_away(opened)) };
            ENCRYPTED
        }
        Err(error) => {
            tracing::error!(%error, "an encrypted file cannot be opened");
            FAILED
        }
    }
}

/// # Safety
/// `cipher` is one of `begin` or `open` that was not freed, and `data` has so many bytes, which no
/// other thread uses meanwhile.
unsafe extern "C" fn apply(cipher: *const c_void, offset: u64, data: *mut u8, bytes: usize) {
    // SAFETY: this function's own contract. A cipher may be used by many threads at a time.
    let (cipher, data) =
        unsafe { (&*cipher.cast::<FileCipher>(), slice::from_raw_parts_mut(data, bytes)) };
    cipher.apply(offset, data);
}

/// # Safety
/// `cipher` is one of `begin` or `open` that was not freed.
unsafe extern "C" fn free_cipher(cipher: *mut c_void) {
    // SAFETY: it was made by `given_away`, and is freed once.
    drop(unsafe { Box::from_raw(cipher.cast::<FileCipher>()) });
}

/// # Safety
/// `context` is that of `encrypted_env`, and nothing uses it any more.
unsafe extern "C" fn free_context(context: *mut c_void) {
    // SAFETY: it was made by `Arc::into_raw`, and is freed once.
    drop(unsafe { Arc::from_raw(context.cast_const().cast::<Vault>()) });
}

#[cfg(test)]
mod tests;
