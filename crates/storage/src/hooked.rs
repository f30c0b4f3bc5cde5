//! The engine that tests wrap another in, to see and to hold up what is asked of it.

use std::ops::{ControlFlow, Deref};
use std::sync::Arc;

use bytes::Bytes;

use crate::{Durability, Engine, EngineSnapshot, Forgotten, Scan, StorageError, Visit, WriteBatch};

/// A call of [`Engine`], as the hooks see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call<'a> {
    CreateFamily(&'a str),
    DropFamily(&'a str),
    Get(&'a str),
    Scan(&'a str),
    Write(Durability),
    Sync,
    Flush(&'a str),
    CompactRange(&'a str),
}

/// The hooks around the calls of a [`HookedEngine`]. By default they change nothing.
pub trait Hooks: Send + Sync + 'static {
    /// Before `inner` is asked, which it is not if this fails.
    fn before(&self, inner: &dyn Engine, call: Call<'_>) -> Result<(), StorageError> {
        let _nothing = (inner, call);
        Ok(())
    }

    /// After it has done what it was asked for.
    fn after(&self, call: Call<'_>) {
        let _nothing = call;
    }

    /// The answer to [`Engine::memtable_bytes`], by default that of `inner`.
    fn memtable_bytes(&self, inner: &dyn Engine) -> u64 {
        inner.memtable_bytes()
    }

    /// The answer to [`Engine::snapshot`], in place of `inner`.
    fn snapshot(&self, inner: Arc<dyn EngineSnapshot>) -> Arc<dyn EngineSnapshot> {
        inner
    }
}

/// An engine with hooks; [`Deref`] leads to them.
pub struct HookedEngine<H> {
    inner: Arc<dyn Engine>,
    hooks: H,
}

impl<H: Hooks> HookedEngine<H> {
    pub fn new(inner: Arc<dyn Engine>, hooks: H) -> Self {
        Self { inner, hooks }
    }

    fn around<T>(
        &self,
        call: Call<'_>,
        work: impl FnOnce(&dyn Engine) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        self.hooks.before(&*self.inner, call)?;
        let done = work(&*self.inner)?;
        self.hooks.after(call);
        Ok(done)
    }
}

impl<H> Deref for HookedEngine<H> {
    type Target = H;

    fn deref(&self) -> &H {
        &self.hooks
    }
}

impl<H: Hooks> Engine for HookedEngine<H> {
    fn create_family(&self, family: &str) -> Result<(), StorageError> {
        self.around(Call::CreateFamily(family), |inner| inner.create_family(family))
    }

    fn drop_family(&self, family: &str) -> Result<(), StorageError> {
        self.around(Call::DropFamily(family), |inner| inner.drop_family(family))
    }

    fn families(&self) -> Vec<String> {
        self.inner.families()
    }

    fn get(&self, family: &str, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.around(Call::Get(family), |inner| inner.get(family, key))
    }

    fn get_cached(&self, family: &str, key: &[u8]) -> Result<Option<Option<Bytes>>, StorageError> {
        self.inner.get_cached(family, key)
    }

    fn scan(&self, family: &str, scan: Scan<'_>, visit: Visit<'_>) -> Result<(), StorageError> {
        self.around(Call::Scan(family), |inner| inner.scan(family, scan, visit))
    }

    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<(), StorageError> {
        self.around(Call::Write(durability), |inner| inner.write(batch, durability))
    }

    fn write_out(&self) -> Result<(), StorageError> {
        self.inner.write_out()
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.around(Call::Sync, |inner| inner.sync())
    }

    fn flush(&self, family: &str) -> Result<(), StorageError> {
        self.around(Call::Flush(family), |inner| inner.flush(family))
    }

    fn snapshot(&self) -> Arc<dyn EngineSnapshot> {
        self.hooks.snapshot(self.inner.snapshot())
    }

    fn memtable_bytes(&self) -> u64 {
        self.hooks.memtable_bytes(&*self.inner)
    }

    fn open_snapshots(&self) -> u64 {
        self.inner.open_snapshots()
    }

    fn forgotten(&self, family: &str) -> Arc<Forgotten> {
        self.inner.forgotten(family)
    }

    fn compact_range(
        &self,
        family: &str,
        start: &[u8],
        end: &[u8],
        paced: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        self.around(Call::CompactRange(family), |inner| {
            inner.compact_range(family, start, end, paced)
        })
    }
}
