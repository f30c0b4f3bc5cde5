//! Feeds that are read to their end.

use meridian_tests::kv_connect::{ChangeLine, ChangesFrom, KvClient};

/// Everything behind `after`, up to now, and the bookmark to go on from.
pub(crate) async fn all_behind(
    client: &KvClient,
    prefix: &str,
    after: &str,
) -> (Vec<ChangeLine>, String) {
    all_from(client, prefix, Some(after)).await
}

/// As [`all_behind`], or only the bookmark of now.
pub(crate) async fn all_from(
    client: &KvClient,
    prefix: &str,
    after: Option<&str>,
) -> (Vec<ChangeLine>, String) {
    until_end(client, prefix, after).await.unwrap_or_else(|message| panic!("{message}"))
}

/// As [`all_from`].
///
/// # Errors
/// The feed's own words, if it ends before all is told.
pub(crate) async fn until_end(
    client: &KvClient,
    prefix: &str,
    after: Option<&str>,
) -> Result<(Vec<ChangeLine>, String), String> {
    let from = ChangesFrom { prefix, after, follow: false };
    let mut feed = client.changes(&from).await.map_err(|error| error.to_string())?;
    let (mut lines, mut last) = (Vec::new(), String::new());
    loop {
        match feed.next().await.unwrap().expect("it says that all is told") {
            ChangeLine::Bookmark { bookmark } => last = bookmark,
            ChangeLine::End { end, .. } if end == "told" => return Ok((lines, last)),
            ChangeLine::End { message, .. } => return Err(message),
            line => lines.push(line),
        }
    }
}
