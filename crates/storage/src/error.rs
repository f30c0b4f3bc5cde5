/// Why storage could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("storage engine: {0}")]
    Engine(String),
    /// Stored bytes are not what was written. Never ignored, never retried.
    #[error("corruption in {what}: {detail}")]
    Corruption { what: String, detail: String },
    #[error("column family `{0}` does not exist")]
    NoFamily(String),
    #[error("{0}")]
    Refused(String),
    #[error("{path}: {source}")]
    File { path: String, source: std::io::Error },
}

impl StorageError {
    pub(crate) fn corruption(what: impl Into<String>, detail: impl ToString) -> Self {
        Self::Corruption { what: what.into(), detail: detail.to_string() }
    }
}

impl From<rocksdb::Error> for StorageError {
    fn from(error: rocksdb::Error) -> Self {
        Self::Engine(error.into_string())
    }
}

impl From<StorageError> for std::io::Error {
    fn from(error: StorageError) -> Self {
        Self::other(error)
    }
}

/// Stops the process at once: going on after a failed fsync or on corrupt bytes could lose or invent data.
/// No destructor runs, so nothing more is written.
pub fn fatal(error: &StorageError) -> ! {
    tracing::error!(%error, "storage failed, stopping the process");
    eprintln!("meridian: fatal: {error}");
    std::process::abort();
}
