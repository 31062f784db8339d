//! The report, as a page for people and for programs.

use serde::Serialize;

use super::private::Private;
use crate::sys::Finding;

/// No line of the page is longer.
const WIDTH: usize = 80;
/// Where a line's text begins.
const INDENT: usize = 14;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Report {
    /// covisor's version.
    version: &'static str,
    /// The state of its source that it was built from.
    commit: &'static str,
    /// Guests can run here.
    pub(super) ready: bool,
    /// A line each.
    findings: Vec<Finding>,
}

impl Report {
    /// A report in which nothing private is.
    pub(super) fn new(ready: bool, findings: Vec<Finding>, private: &Private) -> Self {
        let findings = findings.into_iter().map(|Finding { good, about, text }| Finding {
            good,
            about,
            // What is said on a line of its own stays on it.
            text: private.paths(&text).replace(char::is_control, " "),
        });
        Self { version: env!("CARGO_PKG_VERSION"), commit: env!("COVISOR_COMMIT"), ready, findings: findings.collect() }
    }

    /// For people.
    pub(super) fn page(&self) -> String {
        let mut page = format!("covisor {}, built from {}\n", self.version, self.commit);
        for finding in &self.findings {
            let mark = if finding.good { "ok  " } else { "  - " };
            let first = format!("{mark} {:<8} ", finding.about);
            let further = " ".repeat(INDENT);
            let options = textwrap::Options::new(WIDTH).initial_indent(&first).subsequent_indent(&further);
            page.push_str(&textwrap::fill(&finding.text, options));
            page.push('\n');
        }
        page.push_str(if self.ready {
            "This machine can run guests.\n"
        } else {
            "This machine cannot run guests yet; the lines with a dash say why.\n"
        });
        page
    }

    /// For programs: one object of JSON.
    pub(super) fn json(&self) -> String {
        crate::control::to_line(self) + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(ready: bool) -> Report {
        let long = format!("/home/ann/{}: {}", "x".repeat(100), "a word and ".repeat(20));
        let findings = vec![Finding::new(true, "cpu", "one"), Finding::new(false, "driver", long)];
        Report::new(ready, findings, &Private::default())
    }

    #[test]
    fn test_a_page_fits_into_a_message() {
        let page = report(false).page();
        assert!(page.lines().all(|line| line.chars().count() <= WIDTH), "{page}");
        assert!(page.starts_with(concat!("covisor ", env!("CARGO_PKG_VERSION"), ", built from ")));
        assert!(page.contains("\nok   cpu      one\n  -  driver   ~/xxxx"), "{page}");
        assert!(page.lines().skip(3).take(3).all(|line| line.starts_with(&" ".repeat(INDENT))), "{page}");
        assert!(page.ends_with("\nThis machine cannot run guests yet; the lines with a dash say why.\n"));
        assert!(report(true).page().ends_with("\nThis machine can run guests.\n"));
    }

    #[test]
    fn test_programs_get_the_same() {
        let value: serde_json::Value = serde_json::from_str(&report(true).json()).unwrap();
        assert_eq!(value["ready"], true);
        assert_eq!(value["findings"][0], serde_json::json!({ "good": true, "about": "cpu", "text": "one" }));
        assert!(value["findings"][1]["text"].as_str().unwrap().starts_with("~/xxx"));
        assert!(!value["commit"].as_str().unwrap().is_empty());
    }
}
