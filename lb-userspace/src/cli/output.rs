//! Data to stdout, messages to stderr.

use std::{
    env, io,
    io::{IsTerminal, Write},
};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::state::Reason;

/// Writes data. A reader that has gone away (`lb status | head`) is no failure.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    print_if_read(text)?;
    Ok(())
}

/// Writes data, and says whether there is still somebody who reads it.
pub(super) fn print_if_read(text: &str) -> anyhow::Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What clears the screen before data is shown anew; nothing where stdout is no terminal.
pub(super) fn clear() -> &'static str {
    if io::stdout().is_terminal() && env::var_os("TERM").is_none_or(|term| term != "dumb") {
        "\x1b[H\x1b[2J"
    } else {
        ""
    }
}

/// Writes data as JSON.
pub(super) fn print_json(data: &impl Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(data)?))
}

/// Says something to the person; a closed stderr is theirs to know of.
pub(super) fn message(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Says why the command failed.
pub(super) fn error(error: &anyhow::Error) {
    let (red, plain) = if colour() {
        ("\x1b[1;31m", "\x1b[0m")
    } else {
        ("", "")
    };
    message(&format!("{red}error:{plain} {error:#}"));
    let reasons = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<Reason>());
    for hint in reasons.filter_map(|reason| reason.hint.as_deref()) {
        message(&format!("hint: {hint}"));
    }
}

/// Whether messages are coloured (<https://no-color.org>).
pub(super) fn colour() -> bool {
    let set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && env::var_os("TERM").is_none_or(|term| term != "dumb") && {
        io::stderr().is_terminal()
    }
}

/// A column of a table.
#[derive(Clone, Copy)]
pub(super) enum Column {
    /// Text, to the left.
    Text(&'static str),
    /// Numbers, to the right.
    Number(&'static str),
}

/// Lays out a table, each line with `indent` before it.
pub(super) fn table(
    indent: &str,
    columns: &[Column],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(columns.iter().map(|column| match column {
            Column::Text(title) | Column::Number(title) => *title,
        }))
        .add_rows(rows);
    for (index, kind) in columns.iter().enumerate() {
        let column = table.column_mut(index).expect("there is a title for it");
        column.set_padding((0, 2));
        if matches!(kind, Column::Number(_)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
        .lines()
        .map(|line| format!("{indent}{}\n", line.trim_end()))
        .collect()
}
