//! Requests for change feeds.

use std::sync::Arc;

use http_body_util::BodyExt;
use hyper::http::request::Parts;

use meridian_types::Permission;

use super::lookup::Authorized;
use super::{Failure, Gateway};
use crate::answer::{self, Answer, AnswerBody};
use crate::change_query::ChangeQuery;
use crate::change_stream::{self, ChangeFeed, Open, Rooms};
use crate::database::{Database, NoChanges};
use crate::refusal::{Overload, Refusal};
use crate::route::Route;
use crate::usage::Opened;
use crate::{Catalogue, audit, rights};

impl From<NoChanges> for Refusal {
    fn from(why: NoChanges) -> Self {
        match why {
            NoChanges::Unavailable(unavailable) => unavailable.into(),
            other => Self::NoChanges(other),
        }
    }
}

impl<D: Database, C: Catalogue> Gateway<D, C> {
    /// Answers once the first changes can be had, or it is known that there are none yet: what
    /// cannot be served is refused before the stream begins. Until then the feed is a request in
    /// progress like others.
    pub(super) async fn changes(&self, parts: &Parts) -> Result<Answer, Failure> {
        let authorized = self.authorize(parts, Route::Changes)?;
        let Authorized { token, ref grant, database, .. } = authorized;
        let ChangeQuery { prefix, after, follow, form } =
            ChangeQuery::parse(&parts.uri, &parts.headers)?;
        audit::of(parts).follow(&prefix)?;
        rights::check_feed(grant, &prefix).map_err(Refusal::from)?;
        let _request = self.begin(&authorized, parts).await?;
        let holder = self.holder(token, None);
        let feed = self.share(Overload::ChangeFeeds, holder, 1)?;
        let feed = self.count_open(parts, Opened::Watch, feed)?;
        let now = || self.database.changes(change_stream::first(database, &prefix, None));
        let through = match follow {
            true => None,
            false => Some(now().await.map_err(Refusal::from)?.reached),
        };
        let first = change_stream::first(database, &prefix, after.or(through));
        let first = self.database.changes(first).await.map_err(Refusal::from)?;
        let (answers, asked) = (self.answers.clone(), self.asked_changes.clone());
        let feed = ChangeFeed {
            database: Arc::clone(&self.database),
            id: database,
            prefix,
            form,
            after: after.or(through),
            through,
            rooms: Rooms { answers, asked, holder },
            grant: grant.clone(),
            _open: (feed, Open::new(self.telemetry.open_feeds())),
        };
        let access = self.stream_access(&authorized, Permission::Read);
        let body = AnswerBody::Frames(feed.start(first, access).boxed_unsync());
        Ok(answer::changes(body, form.content_type()))
    }
}
