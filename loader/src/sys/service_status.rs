//! A guest that is a service of the host's.

/// What there is to know of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceStatus {
    /// Its name.
    pub service: String,
    /// What it does.
    pub state: &'static str,
    /// How it ended, if it has, as a clause.
    pub end: Option<String>,
    /// When it starts.
    pub start: &'static str,
    /// What it runs.
    pub line: String,
}
