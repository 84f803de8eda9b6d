//! `lb flows`.

use super::{
    args,
    output::{self, Column},
};
use crate::{
    api::Client,
    config::duration,
    state::{FlowFilter, FlowList},
};

pub(super) async fn flows(client: &Client, args: args::Flows) -> anyhow::Result<()> {
    let filter = FlowFilter {
        service: args.service,
        backend: args.backend,
        client: args.client,
        state: args.state,
        limit: args.limit,
    };
    let list = client.flows(&filter).await?;
    if args.json {
        return output::print_json(&list);
    }
    output::print(&table(&list))?;
    if list.truncated {
        output::message("there are more; `--limit` or another filter shows them");
    }
    Ok(())
}

fn table(list: &FlowList) -> String {
    let columns = [
        Column::Text("SERVICE"),
        Column::Text("PROTOCOL"),
        Column::Text("CLIENT"),
        Column::Text("ADDRESS"),
        Column::Text("SOURCE"),
        Column::Text("BACKEND"),
        Column::Text("STATE"),
        Column::Number("IDLE"),
    ];
    let rows = list.flows.iter().map(|flow| {
        vec![
            flow.service.clone(),
            flow.protocol.to_string(),
            flow.client.clone(),
            flow.address.clone(),
            flow.source.clone(),
            flow.backend.clone(),
            flow.state.to_string(),
            duration::format(std::time::Duration::from_secs(flow.idle_seconds)),
        ]
    });
    output::table("", &columns, rows)
}
