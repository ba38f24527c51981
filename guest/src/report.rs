// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The protocol on the console: one line per check, figure and section, read by the lab.

use std::fmt::Write as _;

/// Writes the protocol's lines to the standard output (the console, as PID 1).
#[derive(Default)]
pub struct Report {
    checks: u32,
    failed: u32,
}

impl Report {
    /// Reports one check.
    pub fn check(&mut self, name: &str, passed: bool, detail: &str) {
        self.checks += 1;
        self.failed += u32::from(!passed);
        line(&check_line(name, passed, detail));
    }

    /// Reports one figure.
    pub fn figure(&self, name: &str, value: f64, unit: &str) {
        line(&figure_line(name, value, unit));
    }

    /// Starts a section in which DMAR fault lines in the kernel's log are expected.
    pub fn expect_fault_begin(&self, name: &str) {
        line(&format!("VSVA-EXPECT-FAULT begin {name}"));
    }

    /// Ends the section that [`Self::expect_fault_begin`] started.
    pub fn expect_fault_end(&self, name: &str) {
        line(&format!("VSVA-EXPECT-FAULT end {name}"));
    }

    /// The last line: says how many checks were reported, so that a lost line is noticed.
    pub fn done(&self) {
        line(&format!("VSVA-DONE {{\"checks\":{}}}", self.checks));
    }

    /// Whether every check passed and there was at least one.
    pub fn all_passed(&self) -> bool {
        self.failed == 0 && self.checks > 0
    }
}

/// A sign of life of `name`, with how much was done so far. Whoever reads the console takes it for progress: the program
/// itself says where nothing gets on any more.
pub fn alive(name: &str, steps: u64) {
    line(&format!("VSVA-ALIVE {name} {steps}"));
}

/// Longest line: /dev/kmsg, where the lab sends the output to keep it in order with the kernel's, refuses records of
/// more than 976 bytes on some kernels [Linux kernel/printk/printk.c:devkmsg_write].
const LONGEST: usize = 940;

fn check_line(name: &str, passed: bool, detail: &str) -> String {
    let start = format!("VSVA-CHECK {{\"name\":{},\"passed\":{passed},\"detail\":", json_string(name));
    let room = LONGEST.saturating_sub(start.len() + 1);
    let mut detail_json = json_string(detail);
    let mut shown = detail.len();
    while detail_json.len() > room && shown > 0 {
        shown = detail.floor_char_boundary(shown.saturating_sub((detail_json.len() - room).div_ceil(6)));
        detail_json = json_string(&format!("{}...", &detail[..shown]));
    }
    format!("{start}{detail_json}}}")
}

fn figure_line(name: &str, value: f64, unit: &str) -> String {
    // JSON has no NaN and no infinity.
    let value = if value.is_finite() { format!("{value:.3}") } else { "null".to_string() };
    format!("VSVA-FIGURE {{\"name\":{},\"value\":{value},\"unit\":{}}}", json_string(name), json_string(unit))
}

/// Writes a whole line with one system call, which /dev/kmsg makes one record of, and waits until a terminal has sent
/// it, so that kernel messages caused by what comes next do not land in its middle.
fn line(text: &str) {
    let text = format!("{text}\n");
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        // SAFETY: `rest` is valid for its length.
        let n = unsafe { libc::write(1, rest.as_ptr().cast(), rest.len()) };
        match n {
            1.. => rest = &rest[(n as usize).min(rest.len())..],
            // The output is the only place to complain to: an error other than an interruption has nowhere to go.
            _ if std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    // SAFETY: no memory is passed; on anything that is not a terminal the call fails harmlessly.
    unsafe { libc::tcdrain(1) };
}

/// `text` as a JSON string in plain ASCII, quotes included.
pub fn json_string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_strings_are_escaped_ascii() {
        assert_eq!(json_string("plain"), "\"plain\"");
        assert_eq!(json_string("a\"b\\c\nd\re\tf"), "\"a\\\"b\\\\c\\nd\\re\\tf\"");
        assert_eq!(json_string("\u{1}\u{7f}é😀"), "\"\\u0001\\u007f\\u00e9\\ud83d\\ude00\"");
    }

    #[test]
    fn lines_have_the_form_that_the_lab_reads() {
        assert_eq!(
            check_line("op-move", true, "3 \"sizes\""),
            r#"VSVA-CHECK {"name":"op-move","passed":true,"detail":"3 \"sizes\""}"#
        );
        assert_eq!(figure_line("f", 1.5, "us"), r#"VSVA-FIGURE {"name":"f","value":1.500,"unit":"us"}"#);
        assert_eq!(figure_line("f", f64::NAN, "us"), r#"VSVA-FIGURE {"name":"f","value":null,"unit":"us"}"#);
    }

    #[test]
    fn long_details_are_cut_to_what_the_kernel_log_takes() {
        for detail in ["x".repeat(5000), "é\"".repeat(900), "\u{1}".repeat(400), "y".repeat(880)] {
            let line = check_line("name", false, &detail);
            assert!(line.len() <= LONGEST, "{}", line.len());
            assert!(line.ends_with("...\"}") || line.contains(&detail), "{line}");
            assert!(line.len() > LONGEST - 60, "{}", line.len());
        }
    }

    #[test]
    fn nothing_checked_is_not_a_pass() {
        assert!(!Report::default().all_passed());
    }
}
