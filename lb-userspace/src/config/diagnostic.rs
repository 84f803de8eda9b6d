//! Mistakes in a configuration file, and how they are shown: what, where, why, and
//! how to mend it.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use super::Source;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file can be used, but it may not mean what its writer thinks.
    Warning,
}

/// A mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// The bytes of the file that are wrong.
    pub span: Range<usize>,
    /// Other bytes that have to do with it, and what they are.
    pub other: Option<(Range<usize>, String)>,
    /// How to mend it.
    pub hint: String,
    /// Which syntax errors elsewhere could have caused it.
    pub(super) doubt: Doubt,
}

/// Which syntax errors could be the true cause of a mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// None but one on the same line.
    Line,
    /// One in a table header: keys then seem to be in another table.
    Header,
    /// Any: something is missing that could be what was not understood.
    Any,
}

impl Diagnostic {
    /// A mistake that makes the file unusable.
    pub(super) fn error(
        span: Range<usize>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Error,
            message: message.into(),
            span,
            other: None,
            hint: hint.into(),
            doubt: Doubt::Line,
        }
    }

    /// Something that is doubtful.
    pub(super) fn warning(
        span: Range<usize>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(span, message, hint)
        }
    }

    /// Points to a second place.
    pub(super) fn with_other(self, span: Range<usize>, label: impl Into<String>) -> Self {
        Self {
            other: Some((span, label.into())),
            ..self
        }
    }

    /// Says which syntax errors could have caused it.
    pub(super) fn doubted(self, doubt: Doubt) -> Self {
        Self { doubt, ..self }
    }

    /// The message with the lines of `source` that it speaks of. `colour` for a
    /// terminal.
    #[must_use]
    pub fn render(&self, source: &Source, colour: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut snippet = Snippet::source(source.text())
            .path(source.name())
            .annotation(AnnotationKind::Primary.span(source.frame(&self.span)));
        if let Some((span, label)) = &self.other {
            let span = source.frame(span);
            snippet = snippet.annotation(AnnotationKind::Context.span(span).label(label));
        }
        let hint = Level::HELP.with_name("hint").message(&self.hint);
        let group = level
            .primary_title(&self.message)
            .element(snippet)
            .element(hint);
        let renderer = if colour {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        renderer.render(&[group])
    }
}

/// Every mistake of a file, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    pub(super) fn push(&mut self, diagnostic: Diagnostic) {
        self.0.push(diagnostic);
    }

    pub(super) fn retain(&mut self, keep: impl FnMut(&Diagnostic) -> bool) {
        self.0.retain(keep);
    }

    pub(super) fn sort(&mut self) {
        self.0.sort_by_key(|diagnostic| diagnostic.span.start);
    }

    /// The mistakes, in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Diagnostic> {
        self.0.iter()
    }

    /// How many there are of this severity.
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        self.iter()
            .filter(|found| found.severity == severity)
            .count()
    }

    /// On one line: how many errors there are, and the first.
    #[must_use]
    pub fn summary(&self, source: &Source) -> String {
        let errors = self.count(Severity::Error);
        let mut found = self.iter();
        let first = found.find(|found| found.severity == Severity::Error);
        let Some(first) = first else {
            return format!("`{}` has no errors", source.name());
        };
        let (line, column) = source.position(first.span.start);
        let (name, message) = (source.name(), &first.message);
        match errors {
            1 => format!("`{name}` has an error in line {line}, column {column}: {message}"),
            _ => format!(
                "`{name}` has {errors} errors, the first in line {line}, column {column}: {message}"
            ),
        }
    }

    /// All of them as text, an empty line between two.
    #[must_use]
    pub fn render(&self, source: &Source, colour: bool) -> String {
        let mut text = String::new();
        for diagnostic in self.iter() {
            text.push_str(&diagnostic.render(source, colour));
            text.push_str("\n\n");
        }
        text
    }
}
