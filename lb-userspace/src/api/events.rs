//! Events as they happen: server-sent events, as of the HTML standard, section 9.2.

use std::{convert::Infallible, fmt::Write as _, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::stream;
use percent_encoding::percent_decode_str;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;
use crate::state::{After, Event, Events, Listener, Reason};

/// How long there may be nothing to tell before a comment is sent, by which each side sees that
/// the other is still there.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(15);
/// Most listeners at a time: half of all connections.
pub(super) const MAX_LISTENERS: usize = 32;
/// Where a client says which event it saw last.
pub(super) const LAST_EVENT_ID: &str = "last-event-id";

/// Which events are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question {
    after: After,
    /// Also those that have not happened yet.
    follow: bool,
}

impl Question {
    /// Reads the query: `after=19a9e1b0c2d-7&follow=false`. What a client says that comes back
    /// holds in the place of what it said first.
    pub(super) fn read(query: &str, headers: &HeaderMap) -> Result<Self, Reason> {
        let mut after = None;
        let mut follow = true;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(value).decode_utf8_lossy();
            match (key, &*value) {
                ("after", "start") => after = Some(After::Start),
                ("after", id) => after = Some(After::Event(id.parse()?)),
                ("follow", "true") => follow = true,
                ("follow", "false") => follow = false,
                _ => {
                    return Err(Reason::new(
                        format!("`{pair}` in the query is not understood"),
                        "known here are `after=start`, `after=ID` and `follow=false`",
                    ));
                }
            }
        }
        if let Some(last) = headers.get(LAST_EVENT_ID) {
            let last = last.to_str().unwrap_or_default();
            after = Some(After::Event(last.parse()?));
        }
        // Who does not wait for new ones wants those that there are.
        let begin = if follow { After::Now } else { After::Start };
        let after = after.unwrap_or(begin);
        Ok(Self { after, follow })
    }

    /// The query that [`Self::read`] reads as this.
    pub(super) fn query(after: After, follow: bool) -> String {
        let after = match after {
            After::Now => String::new(),
            After::Start => "after=start&".to_owned(),
            After::Event(id) => format!("after={id}&"),
        };
        format!("{after}follow={follow}")
    }
}

/// The answer: a stream without an end, unless only what has happened is asked for.
pub(super) fn answer(
    events: &Events,
    listeners: &Arc<Semaphore>,
    question: Question,
) -> Result<Response, ApiError> {
    let place = Arc::clone(listeners).try_acquire_owned().map_err(|_| {
        let message =
            format!("{MAX_LISTENERS} clients are told of events, and there is room for no more");
        let hint = "end one of them, or ask now and then with `follow=false`";
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, Reason::new(message, hint))
    })?;
    let telling = Telling {
        listener: events.listen(question.after),
        follow: question.follow,
        has_begun: false,
        _place: place,
    };
    let chunks = stream::unfold(telling, |mut telling| async move {
        let chunk = telling.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(chunk)), telling))
    });
    let head = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((head, Body::from_stream(chunks)).into_response())
}

/// An answer under way. While a client does not read, nothing is made for it.
struct Telling {
    listener: Listener,
    follow: bool,
    has_begun: bool,
    _place: OwnedSemaphorePermit,
}

impl Telling {
    /// The next piece, when there is something to tell.
    async fn next(&mut self) -> Option<String> {
        if !std::mem::replace(&mut self.has_begun, true) {
            return Some(beginning(&self.listener));
        }
        loop {
            let news = self.listener.news();
            if !news.is_empty() {
                return Some(news.iter().map(|event| block(event)).collect());
            }
            if !self.follow {
                return None;
            }
            match tokio::time::timeout(HEARTBEAT, self.listener.wait()).await {
                Ok(true) => {}
                Ok(false) => return None,
                Err(_) => return Some(":\n\n".to_owned()),
            }
        }
    }
}

/// When to come back (in milliseconds), and as who has seen what, also before there is an event.
fn beginning(listener: &Listener) -> String {
    let mut text = "retry: 1000\n".to_owned();
    if let Some(last) = listener.last() {
        let _ = writeln!(text, "id: {last}");
    }
    text.push('\n');
    text
}

fn block(event: &Event) -> String {
    let json = serde_json::to_string(event).expect("its keys are strings");
    let kind = event.what.kind();
    format!("id: {}\nevent: {kind}\ndata: {json}\n\n", event.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str, last: Option<&str>) -> Result<(After, bool), Reason> {
        let mut headers = HeaderMap::new();
        if let Some(last) = last {
            headers.insert(LAST_EVENT_ID, last.parse().unwrap());
        }
        Question::read(query, &headers).map(|question| (question.after, question.follow))
    }

    #[test]
    fn a_question_is_read() {
        let event = |id: &str| After::Event(id.parse().unwrap());
        assert_eq!(read("", None), Ok((After::Now, true)));
        assert_eq!(read("follow=false", None), Ok((After::Start, false)));
        assert_eq!(read("after=6a-1", Some("6a-2")), Ok((event("6a-2"), true)));
        for (after, follow) in [
            (After::Now, true),
            (After::Start, true),
            (event("6a-7"), false),
        ] {
            let query = Question::query(after, follow);
            assert_eq!(read(&query, None), Ok((after, follow)), "{query}");
        }
        for (query, last) in [
            ("after=x", None),
            ("colour=red", None),
            ("follow=maybe", None),
            ("", Some("7")),
        ] {
            assert!(read(query, last).is_err(), "{query}");
        }
    }
}
