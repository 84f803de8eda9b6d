//! The text of a configuration file, and where in it something stands.

use std::{fs, io, ops::Range, path::Path};

use crate::state::Reason;

/// The text of a configuration file with the name that messages call it by.
#[derive(Clone, Debug)]
pub struct Source {
    name: String,
    text: String,
    /// Where the file first was not UTF-8; the text has U+FFFD there.
    invalid: Option<Range<usize>>,
}

impl Source {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// A [`Reason`] when the file cannot be read.
    pub fn open(path: &Path) -> Result<Self, Reason> {
        let name = path.display();
        let bytes = fs::read(path).map_err(|error| {
            Reason::new(
                format!("cannot read `{name}`: {error}"),
                match error.kind() {
                    io::ErrorKind::NotFound => "check the path of the configuration file",
                    io::ErrorKind::PermissionDenied => "let this user read the file, or be root",
                    _ => "name a file with a configuration in TOML",
                },
            )
        })?;
        Ok(Self::new(name.to_string(), &bytes))
    }

    /// A text that is there already.
    #[must_use]
    pub fn new(name: impl Into<String>, bytes: &[u8]) -> Self {
        let invalid = std::str::from_utf8(bytes).err().map(|error| {
            let start = error.valid_up_to();
            start..start + char::REPLACEMENT_CHARACTER.len_utf8()
        });
        Self {
            name: name.into(),
            text: String::from_utf8_lossy(bytes).into_owned(),
            invalid,
        }
    }

    /// What messages call the file.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Where the file first was not UTF-8.
    pub(super) fn invalid(&self) -> Option<Range<usize>> {
        self.invalid.clone()
    }

    /// Line and column of a byte, both from 1; columns count characters.
    #[must_use]
    pub fn position(&self, byte: usize) -> (usize, usize) {
        let before = &self.text[..self.floor(byte)];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        (line, before[line_start..].chars().count() + 1)
    }

    /// The line that a byte is in.
    pub(super) fn line(&self, byte: usize) -> &str {
        let (before, after) = self.text.split_at(self.floor(byte));
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let length = after.find('\n').unwrap_or(after.len());
        &self.text[start..before.len() + length]
    }

    /// `span` moved to where a frame can be drawn: inside the text, at the bounds of
    /// characters, on one line, and at least one character wide where there is one.
    pub(super) fn frame(&self, span: &Range<usize>) -> Range<usize> {
        let start = self.floor(span.start);
        let line_end = self.text[start..]
            .find(['\r', '\n'])
            .map_or(self.text.len(), |length| start + length);
        let mut end = self.floor(span.end).clamp(start, line_end);
        if end == start
            && let Some(next) = self.text[start..line_end].chars().next()
        {
            end += next.len_utf8();
        }
        start..end
    }

    fn floor(&self, byte: usize) -> usize {
        self.text.floor_char_boundary(byte)
    }
}
