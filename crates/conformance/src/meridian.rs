//! A shard behind a gateway.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode};
use meridian_gateway::{Answer, AnswerBody, Databases, Gateway, Grant, Options, Unanswered, serve};
use meridian_net::Listener;
use meridian_storage::StorageError;
use meridian_types::{DatabaseId, KeyPrefix, Permissions, Quotas, ShardId, V8Format};
use tokio::task::JoinHandle;

use crate::shard::Shard;

/// The default database, named `main`. Every other one is there, too, but for [`UNKNOWN_DATABASE`].
pub const DATABASE: DatabaseId = DatabaseId([0xab; 16]);
pub const UNKNOWN_DATABASE: DatabaseId = DatabaseId([0; 16]);

/// May read and write everything.
pub const WRITER_TOKEN: &str = "token-that-may-write";
/// May read everything.
pub const READER_TOKEN: &str = "token-that-may-read";
/// May read and write a database that is not [`DATABASE`].
pub const OTHERS_TOKEN: &str = "token-for-another-database";
/// May read and write the keys that begin with `"a"`.
pub const PREFIX_TOKEN: &str = "token-for-keys-of-a";

/// The knowledge of its cluster that the gateway is given.
#[derive(Debug, Clone, Copy)]
pub struct Catalogue {
    pub has_default: bool,
    pub is_current: bool,
    /// Of the database.
    pub quotas: Quotas,
    /// Of the token for writing.
    pub token_quotas: Quotas,
}

impl Default for Catalogue {
    fn default() -> Self {
        let (quotas, token_quotas) = Default::default();
        Self { has_default: true, is_current: true, quotas, token_quotas }
    }
}

impl meridian_gateway::Catalogue for Catalogue {
    fn default_database(&self) -> Option<DatabaseId> {
        self.has_default.then_some(DATABASE)
    }

    fn by_name(&self, name: &str) -> Option<DatabaseId> {
        (name == "main").then_some(DATABASE)
    }

    fn name(&self, database: DatabaseId) -> Option<String> {
        (database == DATABASE).then(|| "main".to_owned())
    }

    fn quotas(&self, _: DatabaseId) -> Quotas {
        self.quotas
    }

    fn shard(&self, database: DatabaseId) -> Option<ShardId> {
        (database != UNKNOWN_DATABASE).then_some(ShardId(1))
    }

    fn authorize(&self, bearer: &str) -> Option<Grant> {
        match bearer {
            WRITER_TOKEN => {
                let grant = Grant::new(Databases::All, Permissions::ALL);
                Some(grant.of_token(1, self.token_quotas))
            }
            READER_TOKEN => Some(Grant::new(Databases::All, Permissions::READ_ONLY)),
            OTHERS_TOKEN => {
                Some(Grant::new(Databases::Only(vec![DatabaseId([1; 16])]), Permissions::ALL))
            }
            PREFIX_TOKEN => {
                let prefix = KeyPrefix::new(&b"\x02a\x00"[..]).ok()?;
                Some(Grant::new(Databases::All, Permissions::ALL).within([prefix]))
            }
            _ => None,
        }
    }

    fn v8_format(&self, _: DatabaseId) -> V8Format {
        V8Format::default()
    }

    fn is_current(&self) -> bool {
        self.is_current
    }
}

/// A shard behind a gateway.
pub struct Meridian {
    pub shard: Arc<Shard>,
    pub gateway: Gateway<Shard, Catalogue>,
    catalogue: Catalogue,
    options: Options,
}

impl Meridian {
    /// # Errors
    /// None that is known of: the engine is in memory.
    pub fn new(options: Options, catalogue: Catalogue) -> Result<Self, StorageError> {
        let shard = Arc::new(Shard::open()?);
        let gateway = Gateway::new(Arc::clone(&shard), Arc::new(catalogue), options.clone());
        Ok(Self { shard, gateway, catalogue, options })
    }

    /// Posts a request of the data path, without a socket.
    ///
    /// # Errors
    /// [`Unanswered`], which no write here is.
    pub async fn post(
        &self,
        path: &str,
        database: DatabaseId,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), Unanswered> {
        Ok(whole(self.answer(path, database, body).await?))
    }

    /// The answer to such a request, which may stream.
    ///
    /// # Errors
    /// As [`Meridian::post`].
    pub async fn answer(
        &self,
        path: &str,
        database: DatabaseId,
        body: Bytes,
    ) -> Result<Answer, Unanswered> {
        let request = Request::post(path)
            .header("authorization", format!("Bearer {WRITER_TOKEN}"))
            .header("x-denokv-version", "3")
            .header("x-denokv-database-id", database.to_string())
            .body(Full::new(body))
            .map_err(|_| Unanswered)?;
        self.gateway.handle(request).await
    }

    /// Serves the shard on a free port, until the task is aborted; gives its URL.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn serve(&self) -> std::io::Result<(String, JoinHandle<()>)> {
        let listener = Listener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_address()?);
        let (shard, catalogue) = (Arc::clone(&self.shard), Arc::new(self.catalogue));
        let serving =
            serve(listener, shard, catalogue, self.options.clone(), std::future::pending());
        Ok((url, tokio::spawn(serving)))
    }
}

/// The status and the bytes of an answer that does not stream.
pub fn whole(answer: Answer) -> (StatusCode, Bytes) {
    let status = answer.status();
    match answer.into_body() {
        AnswerBody::Whole(bytes) => (status, bytes),
        AnswerBody::Frames(_) => (status, Bytes::new()),
    }
}
