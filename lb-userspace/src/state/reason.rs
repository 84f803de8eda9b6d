//! What an error tells its reader.

/// What is wrong, and how to mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Reason {
    /// What is wrong, and where.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
    /// The path of the value that is wrong, where it is one: `backends[0].weight`.
    pub field: Option<String>,
}

impl Reason {
    /// A reason with a hint.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: Some(hint.into()),
            field: None,
        }
    }

    /// A reason that needs no hint.
    pub fn bare(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
            field: None,
        }
    }

    /// The same about the value at this path.
    #[must_use]
    pub fn about(self, field: impl std::fmt::Display) -> Self {
        Self {
            field: Some(field.to_string()),
            ..self
        }
    }
}
