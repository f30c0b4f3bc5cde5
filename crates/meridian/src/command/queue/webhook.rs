//! `meridian queue webhook`: where the messages of a queue are sent to by themselves.

use std::fs::File;
use std::io::{Read, stdin};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use meridian_directory::{
    Change, Cluster, WEBHOOK_CONCURRENCY, WEBHOOK_KEY_BYTES, WEBHOOK_TIMEOUT_MS, Webhook,
    WebhookKey, WebhookSettings,
};
use meridian_types::DatabaseId;
use serde::Serialize;

use crate::command::kv::output::{Form, Output};
use crate::command::operator::{Connect, Directory, format, resolve};
use crate::command::queue::api::Target;

/// Sends the messages of a queue to a URL, each in a signed POST. An answer of 2xx acknowledges it,
/// all else is a failed attempt.
///
/// It is a setting of the database. The node that leads its shard sends, beside listeners if there
/// are any. Keys are read from files, kept in the directory, and never shown: a key is told from
/// others by its fingerprint, the first eight digits of its SHA-256.
#[derive(Args)]
pub(crate) struct WebhookCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes a webhook, which needs --url and --key-file, or changes what is said of the present one.
    Set(Set),
    /// Shows the webhook of a queue, with the fingerprints of its keys. `meridian status` says
    /// whether it fails.
    Show(Named),
    /// Makes the next key the current one. The present key is gone.
    Rotate(Named),
    /// Sends no more. Messages wait for listeners.
    Remove(Named),
}

#[derive(Args)]
struct Named {
    /// Name or id of the database.
    #[arg(value_name = "DATABASE")]
    name: String,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Args)]
struct Set {
    #[command(flatten)]
    named: Named,
    /// Where messages are sent to, http:// or https://. It is shown and logged: no place for
    /// secrets.
    #[arg(long)]
    url: Option<String>,
    /// File with the key that requests are signed with: `whsec_` and base64, or the key's bytes, of
    /// which there are 24 to 64; `-` for the standard input. A next key that is not said with it
    /// goes.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// File with a second key. Requests are signed with both, and `rotate` makes it the first.
    #[arg(long, value_name = "FILE")]
    next_key_file: Option<PathBuf>,
    /// Requests that may be open at a time. Default: 10.
    #[arg(long, value_name = "NUMBER", value_parser = concurrency())]
    concurrency: Option<u32>,
    /// Seconds that a request may take, 1 to 600. Default: 30.
    #[arg(long, value_name = "SECONDS", value_parser = timeout_s())]
    timeout: Option<u64>,
}

fn concurrency() -> clap::builder::RangedI64ValueParser<u32> {
    let (least, most) = WEBHOOK_CONCURRENCY.into_inner();
    clap::value_parser!(u32).range(i64::from(least)..=i64::from(most))
}

fn timeout_s() -> clap::builder::RangedU64ValueParser<u64> {
    let (least, most) = WEBHOOK_TIMEOUT_MS.into_inner();
    clap::value_parser!(u64).range(least / 1000..=most / 1000)
}

impl WebhookCommand {
    pub(super) async fn run(self, target: &Target, output: &mut Output) -> Result<()> {
        let queue = target.queue().to_string();
        match self.command {
            Command::Set(set) => set.run(queue, output).await,
            Command::Show(named) => named.show(target.is_named().then_some(&*queue), output).await,
            Command::Rotate(named) => {
                let rotate = |id| Change::RotateWebhookKey { id, queue: queue.clone() };
                named.change(rotate, &queue, output).await
            }
            Command::Remove(named) => {
                let remove = |id| Change::RemoveWebhook { id, queue: queue.clone() };
                named.change(remove, &queue, output).await
            }
        }
    }
}

impl Set {
    async fn run(self, queue: String, output: &mut Output) -> Result<()> {
        let Self { named, url, key_file, next_key_file, concurrency, timeout } = self;
        let settings = WebhookSettings {
            url,
            concurrency,
            timeout_ms: timeout.map(|seconds| seconds.saturating_mul(1000)),
            key: key_file.as_deref().map(key).transpose()?,
            next_key: next_key_file.as_deref().map(key).transpose()?,
        };
        if settings == WebhookSettings::default() {
            bail!("say what is to be set, such as --url or --concurrency");
        }
        let set = |id| Change::SetWebhook { id, queue: queue.clone(), settings };
        named.change(set, &queue, output).await
    }
}

/// Reads a key from a file.
fn key(path: &Path) -> Result<WebhookKey> {
    // The longest key is a text with white space around it.
    let most = 4 * *WEBHOOK_KEY_BYTES.end() as u64;
    let mut contents = Vec::new();
    let read = match path.to_str() {
        Some("-") => stdin().take(most + 1).read_to_end(&mut contents),
        _ => File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut contents)),
    };
    let shown = path.display();
    read.with_context(|| format!("cannot read {shown}"))?;
    if contents.len() as u64 > most {
        bail!("{shown} is no key: it has more than {most} bytes");
    }
    WebhookKey::from_file(&contents).with_context(|| format!("{shown} holds no key"))
}

impl Named {
    /// Of one queue, or of all.
    async fn show(self, queue: Option<&str>, output: &mut Output) -> Result<()> {
        let mut directory = Directory::new(&self.connect.target)?;
        let view = directory.inspect_leader(0).await?;
        let id = resolve::database(&view.cluster, &self.name)?;
        self.print(&view.cluster, id, queue, output)
    }

    async fn change(
        self,
        change: impl FnOnce(DatabaseId) -> Change,
        queue: &str,
        output: &mut Output,
    ) -> Result<()> {
        let mut directory = Directory::new(&self.connect.target)?;
        let view = directory.inspect_leader(0).await?;
        let id = resolve::database(&view.cluster, &self.name)?;
        let cluster = directory.execute(&change(id)).await?;
        self.print(&cluster, id, Some(queue), output)
    }

    fn print(
        &self,
        cluster: &Cluster,
        id: DatabaseId,
        queue: Option<&str>,
        output: &mut Output,
    ) -> Result<()> {
        let Some(database) = cluster.databases.get(&id) else {
            bail!("database {id} was deleted meanwhile")
        };
        let wanted = |webhook: &&Webhook| queue.is_none_or(|queue| webhook.queue == queue);
        let wanted = database.webhooks.iter().filter(wanted);
        let shown = wanted.map(|webhook| Shown::new(&database.name, webhook));
        let shown: Vec<Shown<'_>> = shown.collect();
        if self.connect.json || output.form() == Form::Json {
            return shown
                .iter()
                .try_for_each(|webhook| output.line(&serde_json::to_string(webhook)?));
        }
        if shown.is_empty() {
            let name = &database.name;
            return output.line(&match queue.unwrap_or_default() {
                "" => format!("the queue of database {name} has no webhook"),
                queue => format!("queue {queue} of database {name} has no webhook"),
            });
        }
        shown.iter().try_for_each(|webhook| output.line(&webhook.text()))
    }
}

/// A webhook as it is shown.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    database: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    queue: &'a str,
    url: &'a str,
    concurrency: u32,
    timeout_ms: u64,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_key: Option<&'a str>,
}

impl<'a> Shown<'a> {
    fn new(database: &'a str, webhook: &'a Webhook) -> Self {
        let Webhook { queue, url, concurrency, timeout_ms, key, next_key } = webhook;
        Self {
            database,
            queue,
            url,
            concurrency: *concurrency,
            timeout_ms: *timeout_ms,
            key: key.fingerprint(),
            next_key: next_key.as_ref().map(WebhookKey::fingerprint),
        }
    }

    fn text(&self) -> String {
        let Self { database, queue, url, concurrency, timeout_ms, key, next_key } = self;
        let of = if queue.is_empty() { String::new() } else { format!("queue {queue} of ") };
        let next = next_key.map(|next| format!(", and with next key {next}")).unwrap_or_default();
        format!(
            "messages of {of}database {database} go to {url}, {} at a time, within {} each, signed with \
             key {key}{next}",
            concurrency,
            format::duration(*timeout_ms)
        )
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn webhook() -> Webhook {
        Webhook {
            queue: String::new(),
            url: "https://example.com/hook".to_owned(),
            concurrency: 10,
            timeout_ms: 30_000,
            key: WebhookKey::new(&[7; 32]).unwrap(),
            next_key: None,
        }
    }

    #[test]
    fn webhook_is_shown_with_the_fingerprints_of_its_keys() {
        let next_key = Some(WebhookKey::new(&[1; 32]).unwrap());
        let webhook = Webhook { next_key, ..webhook() };
        let shown = Shown::new("orders", &webhook);
        assert_eq!(
            shown.text(),
            "messages of database orders go to https://example.com/hook, 10 at a time, within 30.0 s \
             each, signed with key 4bb06f8e, and with next key 72cd6e84"
        );
        assert_eq!(
            serde_json::to_string(&shown).unwrap(),
            r#"{"database":"orders","url":"https://example.com/hook","concurrency":10,"timeoutMs":30000,"key":"4bb06f8e","nextKey":"72cd6e84"}"#
        );
        let named = Webhook { queue: "emails".to_owned(), ..webhook };
        let named = Shown::new("orders", &named);
        assert!(named.text().starts_with("messages of queue emails of database orders go to"));
        assert!(serde_json::to_string(&named).unwrap().contains(r#""queue":"emails""#));
    }

    #[test]
    fn key_is_read_from_a_file_of_bounded_length_and_no_error_quotes_it() {
        let file = |contents: &[u8]| {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(contents).unwrap();
            file
        };
        let text = file(b"whsec_BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n");
        assert_eq!(key(text.path()).unwrap(), webhook().key);
        assert_eq!(key(file(&[7; 32]).path()).unwrap(), webhook().key);
        for wrong in [&b"whsec_secret"[..], b"secret", &[b's'; 300]] {
            let error = format!("{:#}", key(file(wrong).path()).unwrap_err());
            assert!(error.contains("key") && !error.contains("secret") && !error.contains("sss"));
        }
    }
}
