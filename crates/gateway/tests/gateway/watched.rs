//! A watch of the database in memory.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use meridian_gateway::{NoRoom, Watch, WatchNews, WatchedValue, Watching};
use meridian_types::Versionstamp;

use crate::support::Memory;

pub(crate) struct MemoryWatch {
    memory: Arc<Memory>,
    watch: Watch,
    shown: Vec<Option<Option<Versionstamp>>>,
    commits: BoxStream<'static, ()>,
}

impl MemoryWatch {
    pub(crate) fn new(memory: Arc<Memory>, watch: Watch) -> Self {
        let shown = vec![None; watch.keys.len()];
        let commits =
            stream::unfold((memory.commits.subscribe(), true), |(mut commits, first)| async move {
                if !first {
                    commits.changed().await.ok()?;
                }
                Some(((), (commits, false)))
            });
        Self { memory, watch, shown, commits: commits.boxed() }
    }
}

impl Watching for MemoryWatch {
    fn poll_news(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<WatchNews, NoRoom>>> {
        loop {
            if ready!(self.commits.poll_next_unpin(context)).is_none() {
                return Poll::Ready(None);
            }
            let keys = self.watch.keys.iter().zip(&mut self.shown);
            let news: WatchNews = keys
                .map(|(key, shown)| {
                    let entry = self.memory.get(self.watch.database, key);
                    let value = entry.map_or_else(WatchedValue::absent, WatchedValue::present);
                    let is_news = *shown != Some(value.versionstamp());
                    *shown = Some(value.versionstamp());
                    is_news.then_some(value)
                })
                .collect();
            if news.iter().any(Option::is_some) {
                return Poll::Ready(Some(Ok(news)));
            }
        }
    }

    fn take_back(&mut self, _: &WatchNews) {
        self.shown.fill(None);
    }
}
