//! What an error tells its reader.

/// What is wrong, and how to mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Reason {
    /// What is wrong, and where.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
}

impl Reason {
    /// A reason with a hint.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: Some(hint.into()),
        }
    }
}
