// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a run found: an aligned table for people, JSON for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::console::{Check, Figure};
use crate::nested::{self, Nested};

/// The checks and figures of a whole command.
#[derive(Debug, Default)]
pub struct Report {
    /// What was checked.
    pub checks: Vec<Check>,
    /// What was measured.
    pub figures: Vec<Figure>,
    /// What a host did for an assigned device: `nested` among the figures of the JSON.
    pub nested: Option<Nested>,
}

impl Report {
    /// Adds a check of the lab itself.
    pub fn check(&mut self, name: &str, passed: bool, detail: impl Into<String>) {
        self.checks.push(Check::new(name, passed, detail));
    }

    /// Adds a figure of the lab itself.
    pub fn figure(&mut self, name: &str, value: f64, unit: &str) {
        self.figures.push(Figure { name: name.to_owned(), value: Some(value), unit: unit.to_owned() });
    }

    /// Prints the table, writes the JSON where it is asked for, and fails unless every check passed.
    pub fn conclude(&self, json: Option<&Path>) -> Result<()> {
        // Whoever reads no further must not cost the file and the exit status.
        let _ = std::io::stdout().write_all(self.table().as_bytes());
        if let Some(path) = json {
            fs::write(path, self.json()?).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let failed = self.checks.iter().filter(|c| !c.passed).count();
        match (self.checks.len(), failed) {
            (0, _) => bail!("nothing was checked"),
            (_, 0) => Ok(()),
            (all, failed) => bail!("{failed} of {all} checks failed"),
        }
    }

    fn table(&self) -> String {
        let mut rows = vec![["check".to_owned(), "result".to_owned(), "detail".to_owned()]];
        for check in &self.checks {
            let result = if check.passed { "passed" } else { "FAILED" };
            let detail = if check.passed { shortened(&check.detail) } else { check.detail.clone() };
            rows.push([check.name.clone(), result.to_owned(), detail]);
        }
        let mut text = aligned(&rows, false);
        if !self.figures.is_empty() {
            let mut rows = vec![["figure".to_owned(), "value".to_owned(), "unit".to_owned()]];
            for figure in &self.figures {
                let value = figure.value.map_or("-".to_owned(), number);
                rows.push([figure.name.clone(), value, figure.unit.clone()]);
            }
            text.push('\n');
            text += &aligned(&rows, true);
        }
        if let Some(nested) = &self.nested {
            text.push('\n');
            text += &nested::table(nested);
        }
        let passed = self.checks.iter().filter(|c| c.passed).count();
        let _ = writeln!(text, "\n{passed} of {} checks passed", self.checks.len());
        text
    }

    fn json(&self) -> Result<String> {
        #[derive(Serialize)]
        #[serde(untagged)]
        enum Value<'a> {
            Figure { value: Option<f64>, unit: &'a str },
            Nested(&'a Nested),
        }
        #[derive(Serialize)]
        struct Document<'a> {
            checks: &'a [Check],
            figures: BTreeMap<&'a str, Value<'a>>,
        }
        let figures = self.figures.iter();
        let mut figures: BTreeMap<_, _> =
            figures.map(|f| (f.name.as_str(), Value::Figure { value: f.value, unit: &f.unit })).collect();
        if let Some(nested) = &self.nested {
            figures.insert("nested", Value::Nested(nested));
        }
        Ok(serde_json::to_string_pretty(&Document { checks: &self.checks, figures })? + "\n")
    }
}

/// Fails early where a file that a long run is to end with cannot be written.
pub fn check_writable(path: &Path) -> Result<()> {
    let existed = path.exists();
    fs::OpenOptions::new()
        .append(true)
        .create(true)
        // Not waiting for the reader of a pipe.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    if !existed {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// A passed check's detail in the table; the JSON has all of it.
fn shortened(detail: &str) -> String {
    const LONGEST: usize = 100;
    match detail.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", detail[..end].trim_end()),
        None => detail.to_owned(),
    }
}

/// Three significant digits at least, whole numbers whole.
fn number(value: f64) -> String {
    match value.abs() {
        a if a >= 1000.0 || value.fract() == 0.0 => format!("{value:.0}"),
        a if a >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

/// Columns as wide as their widest cell, with a rule under the first row; numbers in the second are aligned to the
/// right where `numbers` says so.
fn aligned(rows: &[[String; 3]], numbers: bool) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (first, second) = (width(0), width(1));
    let mut text = String::new();
    for (index, [a, b, c]) in rows.iter().enumerate() {
        let line = match numbers {
            true => format!("{a:first$}  {b:>second$}  {c}"),
            false => format!("{a:first$}  {b:second$}  {c}"),
        };
        let _ = writeln!(text, "{}", line.trim_end());
        if index == 0 {
            let _ = writeln!(text, "{}  {}  {}", "-".repeat(first), "-".repeat(second), "-".repeat(width(2)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::default();
        report.check("copy", true, "64 MiB");
        report.check("checksum of a page", false, "0x1 is not 0x2");
        report.figure("copy", 1234.5, "MiB/s");
        report.figure("fault", 12.34, "us");
        report
    }

    #[test]
    fn the_table_is_aligned() {
        assert_eq!(
            report().table(),
            "check               result  detail\n\
             ------------------  ------  --------------\n\
             copy                passed  64 MiB\n\
             checksum of a page  FAILED  0x1 is not 0x2\n\
             \n\
             figure  value  unit\n\
             ------  -----  -----\n\
             copy     1234  MiB/s\n\
             fault    12.3  us\n\
             \n\
             1 of 2 checks passed\n"
        );
    }

    #[test]
    fn long_details_are_cut_in_the_table_where_nothing_failed() {
        let mut report = Report::default();
        report.check("a", true, "x".repeat(500));
        assert!(report.table().lines().all(|line| line.len() < 130));
        report.check("b", false, "y".repeat(500));
        assert!(report.table().contains(&"y".repeat(500)));
        assert!(report.json().unwrap().contains(&"x".repeat(500)));
    }

    #[test]
    fn the_json_holds_checks_and_figures() {
        let value: serde_json::Value = serde_json::from_str(&report().json().unwrap()).unwrap();
        assert_eq!(value["checks"][1]["name"], "checksum of a page");
        assert_eq!(value["checks"][1]["passed"], false);
        assert_eq!(value["figures"]["fault"]["value"], 12.34);
    }

    #[test]
    fn a_process_on_the_host_is_among_the_figures() {
        let mut report = report();
        report.nested = nested::find(nested::tests::LINE);
        let value: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        assert_eq!(value["figures"]["nested"]["process"]["host_entry"]["type"], "nested");
        assert_eq!(value["figures"]["nested"]["counts"]["nested_walks"], 12);
        assert!(report.table().contains("\nguest CR3 "));
    }

    #[test]
    fn a_file_that_cannot_be_written_is_told_before_the_run() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.json");
        check_writable(&path).unwrap();
        assert!(!path.exists());
        fs::write(&path, "old").unwrap();
        check_writable(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert!(check_writable(directory.path()).is_err());
        assert!(check_writable(&directory.path().join("none/report.json")).is_err());
    }

    #[test]
    fn one_failed_check_fails_the_command_and_none_at_all_too() {
        let mut all_passed = report();
        assert_eq!(all_passed.conclude(None).unwrap_err().to_string(), "1 of 2 checks failed");
        all_passed.checks.pop();
        all_passed.conclude(None).unwrap();
        assert!(Report::default().conclude(None).is_err());
    }
}
