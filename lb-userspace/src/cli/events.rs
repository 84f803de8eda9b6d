//! `lb events`.

use std::time::Duration;

use super::{apply, args, output};
use crate::{
    api::Client,
    state::{After, Changes, Event, Happening},
};

/// How long to wait before asking again where the answer was broken off.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) async fn events(client: &Client, command: &args::Events) -> anyhow::Result<()> {
    let follow = !command.no_follow;
    let mut after = match command.after {
        Some(id) => After::Event(id),
        None if command.new => After::Now,
        None => After::Start,
    };
    loop {
        let mut stream = client.events(after, follow).await?;
        let broken = loop {
            let event = match stream.next().await {
                Ok(Some(event)) => event,
                Ok(None) => break None,
                Err(reason) => break Some(reason),
            };
            let text = match command.json {
                true => serde_json::to_string(&event)?,
                false => line(&event),
            };
            let is_read = output::print_if_read(&(text + "\n"))?;
            // Nothing comes behind it.
            if !is_read || event.what == Happening::Stopping {
                return Ok(());
            }
        };
        match broken {
            // Once it was begun it goes on from there, as long as there is a balancer.
            _ if follow => {}
            Some(reason) => return Err(reason.into()),
            None => return Ok(()),
        }
        after = stream.last().map_or(after, After::Event);
        tokio::time::sleep(PAUSE).await;
    }
}

fn line(event: &Event) -> String {
    let what = match &event.what {
        Happening::Started { version, .. } => format!("started, version {version}"),
        Happening::Stopping => "stopping; packets are forwarded on".to_owned(),
        Happening::Health {
            service,
            backend,
            up: true,
            ..
        } => format!("{service} {backend} is up"),
        Happening::Health {
            service,
            backend,
            error,
            ..
        } => {
            let error = error.as_deref().unwrap_or("its check failed");
            format!("{service} {backend} is down: {error}")
        }
        Happening::Drain {
            service,
            backend,
            phase,
            flows_left,
        } => format!("{service} {backend} is {phase}, flows left: {flows_left}"),
        Happening::DrainEnded { service, backend } => {
            format!("{service} {backend} is drained no more")
        }
        Happening::Change(changes) => differences(changes),
        Happening::Reload { file, changes, .. } => {
            format!("`{file}` is taken: {}", differences(changes))
        }
        Happening::ReloadRefused { file, error } => format!("`{file}` is refused: {error}"),
        Happening::Missed { events } => match events {
            Some(1) => "1 event is remembered no more".to_owned(),
            Some(events) => format!("{events} events are remembered no more"),
            None => "events of a daemon before this one are missing".to_owned(),
        },
    };
    let kind = event.what.kind();
    format!("{}  {kind:<14}  {what}", event.time)
}

fn differences(changes: &Changes) -> String {
    let shown = changes.differences.iter().map(apply::line);
    let mut shown: Vec<String> = shown.collect();
    match changes.changes.saturating_sub(shown.len() as u64) {
        0 => {}
        more => shown.push(format!("and {more} more")),
    }
    match shown.is_empty() {
        true => "nothing changes".to_owned(),
        false => shown.join("; "),
    }
}
