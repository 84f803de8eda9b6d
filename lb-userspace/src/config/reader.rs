//! Tables and values of a parsed file, with the mistakes that any of them can have:
//! unknown and missing keys, wrong types, numbers out of range.

use std::ops::{Range, RangeInclusive};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::diagnostic::{Diagnostic, Diagnostics, Doubt};
use crate::state::Reason;

/// A table whose keys are taken out one by one; what is left is unknown.
pub(super) struct Table<'a> {
    entries: &'a DeTable<'a>,
    span: Range<usize>,
    /// The table's header, as its writer knows it.
    header: &'static str,
    /// The keys that were asked for.
    known: Vec<&'static str>,
}

impl<'a> Table<'a> {
    pub(super) fn new(entries: &'a DeTable<'a>, span: Range<usize>, header: &'static str) -> Self {
        Self {
            entries,
            span,
            header,
            known: Vec::new(),
        }
    }

    /// Where the table begins.
    pub(super) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// The value of a key that may be missing.
    pub(super) fn optional(&mut self, key: &'static str) -> Option<Value<'a>> {
        self.known.push(key);
        let value = self.entries.get(key)?;
        Some(Value {
            key,
            index: None,
            value,
        })
    }

    /// The value of a key that must be there; the hint says what to write.
    pub(super) fn required(
        &mut self,
        key: &'static str,
        hint: &str,
        out: &mut Diagnostics,
    ) -> Option<Value<'a>> {
        let value = self.optional(key);
        if value.is_none() {
            let message = format!("`{key}` is missing from {}", self.header);
            out.push(Diagnostic::error(self.span(), message, hint).doubted(Doubt::Any));
        }
        value
    }

    /// All that it has, where any key is right; `key` is the one that has the table.
    pub(super) fn entries(
        &self,
        key: &'static str,
    ) -> impl Iterator<Item = (&'a str, Value<'a>)> + use<'a> {
        self.entries.iter().map(move |(name, value)| {
            let value = Value {
                key,
                index: None,
                value,
            };
            (name.get_ref().as_ref(), value)
        })
    }

    /// Every key must have been asked for by now.
    pub(super) fn finish(self, out: &mut Diagnostics) {
        for (key, _) in self.entries {
            let name = key.get_ref().as_ref();
            if self.known.contains(&name) {
                continue;
            }
            let hint = match nearest(name, &self.known) {
                Some(known) => format!("did you mean `{known}`?"),
                None => format!("known here are `{}`", self.known.join("`, `")),
            };
            let message = format!("unknown key `{}` in {}", name.escape_debug(), self.header);
            out.push(Diagnostic::error(key.span(), message, hint).doubted(Doubt::Header));
        }
    }
}

/// The known word that `given` was probably meant to be.
fn nearest<'k>(given: &str, known: &[&'k str]) -> Option<&'k str> {
    let tolerance = given.chars().count().div_ceil(3).min(3);
    known
        .iter()
        .map(|word| (strsim::damerau_levenshtein(given, word), *word))
        .filter(|(distance, _)| *distance <= tolerance)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// The value of a key, or an element of the array that is.
#[derive(Clone, Copy)]
pub(super) struct Value<'a> {
    key: &'static str,
    /// Which element of the array it is.
    index: Option<usize>,
    value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Value<'a> {
    /// Where it stands.
    pub(super) fn span(&self) -> Range<usize> {
        self.value.span()
    }

    /// An error about it.
    pub(super) fn error(&self, reason: Reason) -> Diagnostic {
        Diagnostic::error(self.span(), reason.message, reason.hint.unwrap_or_default())
    }

    /// Whether it is a string.
    pub(super) fn is_string(&self) -> bool {
        matches!(self.value.get_ref(), DeValue::String(_))
    }

    /// A string.
    pub(super) fn string(&self, hint: &str, out: &mut Diagnostics) -> Option<&'a str> {
        let DeValue::String(text) = self.value.get_ref() else {
            self.wrong_type("a string", hint, out);
            return None;
        };
        Some(text)
    }

    /// A string that means something; `hint` is an example of one.
    pub(super) fn parse<T>(
        &self,
        hint: &str,
        out: &mut Diagnostics,
        parse: impl FnOnce(&str) -> Result<T, Reason>,
    ) -> Option<T> {
        parse(self.string(hint, out)?)
            .map_err(|reason| out.push(self.error(reason)))
            .ok()
    }

    /// A whole number within `range`.
    pub(super) fn integer<T>(&self, range: RangeInclusive<T>, out: &mut Diagnostics) -> Option<T>
    where
        T: TryFrom<i128> + PartialOrd + std::fmt::Display,
    {
        let bounds = format!("from {} to {}", range.start(), range.end());
        let DeValue::Integer(number) = self.value.get_ref() else {
            let hint = format!("write a number {bounds}, without quotes");
            self.wrong_type("an integer", &hint, out);
            return None;
        };
        let value = i128::from_str_radix(number.as_str(), number.radix())
            .ok()
            .and_then(|number| T::try_from(number).ok())
            .filter(|number| range.contains(number));
        if value.is_none() {
            out.push(self.error(Reason::new(
                format!("`{}` is {number}, out of range", self.name()),
                format!("use a number {bounds}"),
            )));
        }
        value
    }

    /// Yes or no.
    pub(super) fn boolean(&self, out: &mut Diagnostics) -> Option<bool> {
        let DeValue::Boolean(value) = self.value.get_ref() else {
            let hint = "write `true` or `false`, without quotes";
            self.wrong_type("a boolean", hint, out);
            return None;
        };
        Some(*value)
    }

    /// The elements of an array.
    pub(super) fn array(&self, hint: &str, out: &mut Diagnostics) -> Option<Vec<Self>> {
        let DeValue::Array(elements) = self.value.get_ref() else {
            self.wrong_type("an array", hint, out);
            return None;
        };
        let element = |(index, value)| Self {
            index: Some(index),
            value,
            ..*self
        };
        Some(elements.iter().enumerate().map(element).collect())
    }

    /// A table; `header` is what one writes above it.
    pub(super) fn table(&self, header: &'static str, out: &mut Diagnostics) -> Option<Table<'a>> {
        let DeValue::Table(entries) = self.value.get_ref() else {
            self.wrong_type(
                "a table",
                &format!("write it under the header {header}"),
                out,
            );
            return None;
        };
        Some(Table::new(entries, self.span(), header))
    }

    /// An array of tables; `header` is what one writes above each.
    pub(super) fn tables(&self, header: &'static str, out: &mut Diagnostics) -> Vec<Table<'a>> {
        let hint = format!("write the header {header}, in double brackets, above each one");
        self.array(&hint, out)
            .unwrap_or_default()
            .into_iter()
            .filter_map(|element| element.table(header, out))
            .collect()
    }

    fn name(&self) -> String {
        match self.index {
            Some(index) => format!("{}[{index}]", self.key),
            None => self.key.to_owned(),
        }
    }

    fn wrong_type(&self, expected: &str, hint: &str, out: &mut Diagnostics) {
        let found = match self.value.get_ref().type_str() {
            vowel @ ("integer" | "array") => format!("an {vowel}"),
            other => format!("a {other}"),
        };
        let message = format!("`{}` is {found}, but must be {expected}", self.name());
        // Headers decide what is a table and what an array of tables.
        out.push(Diagnostic::error(self.span(), message, hint).doubted(Doubt::Header));
    }
}
