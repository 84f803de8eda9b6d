//! `lb explain`.

use std::fmt::Write;

use super::{args, output};
use crate::{
    api::Client,
    state::{Explanation, Fate, Header, Question},
};

pub(super) async fn explain(client: &Client, args: args::Explain) -> anyhow::Result<()> {
    let question = Question {
        protocol: args.protocol,
        source: args.source,
        destination: args.destination,
        tcp_flags: args.tcp_flags,
        fragment: args.fragment,
        interface: args.interface,
        length: args.length,
        ttl: args.ttl,
    };
    let explanation = client.explain(&question).await?;
    if args.json {
        return output::print_json(&explanation);
    }
    output::print(&show(&explanation))
}

fn show(told: &Explanation) -> String {
    let mut text = String::new();
    let mut line = |name: &str, what: &str| {
        let _infallible = writeln!(text, "{name:<9} {what}");
    };
    let packet = &told.packet;
    let flags = packet.tcp_flags.as_ref().map(|flags| format!(" {flags}"));
    let piece = packet.fragment.map(|piece| format!(", {piece} fragment"));
    line(
        "packet",
        &format!(
            "{}{} {} -> {}, {} bytes{}, by {}",
            packet.protocol,
            flags.unwrap_or_default(),
            packet.source,
            packet.destination,
            packet.bytes,
            piece.unwrap_or_default(),
            packet.interface
        ),
    );
    match &told.service {
        None => line("service", "none"),
        Some(service) => {
            let known = |word: Option<String>| word.unwrap_or_else(|| "?".to_owned());
            let name = service.name.clone();
            line(
                "service",
                &format!(
                    "{}  {}  {}, {}",
                    name.unwrap_or_else(|| "(removed)".to_owned()),
                    known(service.address.clone()),
                    known(service.mode.map(|mode| mode.to_string())),
                    known(service.scheduler.map(|scheduler| scheduler.to_string()))
                ),
            );
            match service.source_allowed {
                Some(true) => line("source", "is one that the service takes"),
                Some(false) => line("source", "is one that the service does not take"),
                None => {}
            }
        }
    }
    if let Some(slot) = &told.slot {
        let owner = slot.owner.as_deref().unwrap_or("nobody");
        let origin = match &slot.origin {
            Some(origin) => format!(", origin {origin}"),
            None => String::new(),
        };
        line(
            "slot",
            &format!(
                "{} of {}, {}: owner {owner}{origin}",
                slot.index, slot.of, slot.state
            ),
        );
    }
    match &told.flow {
        Some(flow) => {
            let backend = flow.backend.as_deref().unwrap_or("a removed backend");
            line("flow", &format!("known, {}, at {backend}", flow.state));
            if told.begins_flow {
                line("", "begins anew");
            }
        }
        None if told.begins_flow => line("flow", "not known; begins with this packet"),
        None => line("flow", "not known"),
    }
    if let Some(backend) = &told.backend {
        let address = backend.address.as_deref().unwrap_or("(removed)");
        line("backend", &format!("{address}, {}", backend.state));
    }
    if let Some(sent) = &told.sent {
        for (index, header) in sent.headers.iter().enumerate() {
            line(
                if index == 0 { "sent" } else { "" },
                &header_in_words(header),
            );
        }
    }
    let reason = || {
        let (name, words) = (told.reason.as_deref(), told.description.as_deref());
        format!(
            "{}: {}",
            name.unwrap_or("unknown"),
            words.unwrap_or("no reason was counted")
        )
    };
    let by = || {
        told.sent
            .as_ref()
            .map_or("", |sent| sent.interface.as_str())
    };
    let verdict = match told.fate {
        Fate::ToBackend => format!("goes to the backend, by {}", by()),
        Fate::ToClient => format!("goes to the client, by {}", by()),
        Fate::Answered if told.reason.is_some() => {
            format!("dropped, and its sender is told, by {}: {}", by(), reason())
        }
        Fate::Answered => format!("its sender is answered, by {}", by()),
        Fate::Dropped => format!("dropped, {}", reason()),
        Fate::Passed => "passes to the network stack of this host, as it came".to_owned(),
    };
    line("verdict", &verdict);
    text
}

fn header_in_words(header: &Header) -> String {
    let mut words = header.layer.clone();
    if let (Some(source), Some(destination)) = (&header.source, &header.destination) {
        let _infallible = write!(words, " {source} -> {destination}");
    }
    if let Some(detail) = &header.detail {
        let _infallible = write!(words, ", {detail}");
    }
    words
}
