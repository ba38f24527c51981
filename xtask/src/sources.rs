// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which mirror to use: the one that the machine itself is set up with (sources.list(5), both formats).

use std::fs;
use std::path::Path;

/// One archive that a machine's apt is set up with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Where the archive is.
    pub uri: String,
    /// Its suites.
    pub suites: Vec<String>,
    /// The keyring file that its entry names.
    pub signed_by: Option<String>,
}

/// The archives that packages are to come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Debian's main archive.
    pub main: String,
    /// Debian's security archive, where the machine has one.
    pub security: Option<String>,
    /// The keyring of the machine's entry.
    pub signed_by: Option<String>,
}

impl Mirror {
    /// `given`, or what the machine's apt in `etc` (`/etc/apt`) is set up with; `None` where that is no Debian mirror.
    pub fn choose(given: Option<&str>, etc: &Path) -> Option<Self> {
        match given {
            Some(uri) => Some(Self { main: trimmed(uri), security: None, signed_by: None }),
            None => Self::of_sources(&machine_sources(etc)),
        }
    }

    /// `None` without any Debian source.
    fn of_sources(sources: &[Source]) -> Option<Self> {
        let is_security = |source: &&Source| source.suites.iter().any(|s| s.contains("-security"));
        let is_main = |source: &&Source| {
            !source.uri.starts_with("cdrom:") && source.suites.iter().any(|s| is_debian_suite(s))
        };
        let main = sources.iter().find(is_main)?;
        Some(Self {
            main: trimmed(&main.uri),
            security: sources
                .iter()
                .filter(is_security)
                .find(|s| s.uri.contains("debian"))
                .map(|s| trimmed(&s.uri)),
            signed_by: main.signed_by.clone(),
        })
    }
}

fn trimmed(uri: &str) -> String {
    uri.trim_end_matches('/').to_owned()
}

/// Other distributions and other people's archives name their suites differently.
fn is_debian_suite(suite: &str) -> bool {
    const NAMES: [&str; 10] = [
        "bullseye",
        "bookworm",
        "trixie",
        "forky",
        "duke",
        "sid",
        "stable",
        "testing",
        "unstable",
        "oldstable",
    ];
    NAMES.contains(&suite.trim_end_matches("-updates").trim_end_matches("-backports"))
}

fn machine_sources(etc: &Path) -> Vec<Source> {
    let mut sources = fs::read_to_string(etc.join("sources.list")).map_or(vec![], |t| parse_one_line(&t));
    let mut files: Vec<_> = fs::read_dir(etc.join("sources.list.d"))
        .map(|entries| entries.filter_map(|e| Some(e.ok()?.path())).collect())
        .unwrap_or_default();
    files.sort();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|e| e.to_str()) {
            Some("list") => sources.extend(parse_one_line(&text)),
            Some("sources") => sources.extend(parse_deb822(&text)),
            _ => {}
        }
    }
    sources
}

/// `deb [options] uri suite component...`
fn parse_one_line(text: &str) -> Vec<Source> {
    let mut sources = vec![];
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or("").trim();
        let Some(rest) = line.strip_prefix("deb").filter(|r| r.starts_with([' ', '\t'])) else { continue };
        let rest = rest.trim_start();
        let (options, rest) = match rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
            Some((options, rest)) => (options, rest),
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else { continue };
        let signed_by = options.split_whitespace().find_map(|o| o.strip_prefix("signed-by="));
        sources.push(Source {
            uri: uri.to_owned(),
            suites: vec![suite.to_owned()],
            signed_by: key_file(signed_by),
        });
    }
    sources
}

/// Paragraphs of `Key: value` lines; a line that starts with a blank continues the one before.
fn parse_deb822(text: &str) -> Vec<Source> {
    let uncommented: Vec<_> = text.lines().filter(|l| !l.starts_with('#')).collect();
    uncommented
        .split(|line| line.trim().is_empty())
        .flat_map(|paragraph| {
            let words = |key: &str| -> Vec<String> {
                let mut found = false;
                let mut words = vec![];
                for line in paragraph {
                    let value = if line.starts_with([' ', '\t']) {
                        line
                    } else {
                        let Some((name, value)) = line.split_once(':') else { continue };
                        found = name.eq_ignore_ascii_case(key);
                        value
                    };
                    if found {
                        words.extend(value.split_whitespace().map(str::to_owned));
                    }
                }
                words
            };
            let off = words("Enabled").first().is_some_and(|w| w.eq_ignore_ascii_case("no"));
            let binary = words("Types").iter().any(|t| t == "deb");
            let (uris, suites) = (words("URIs"), words("Suites"));
            let signed_by = key_file(words("Signed-By").first().map(String::as_str));
            let uris = if off || !binary || suites.is_empty() { vec![] } else { uris };
            uris.into_iter()
                .map(|uri| Source { uri, suites: suites.clone(), signed_by: signed_by.clone() })
                .collect::<Vec<_>>()
        })
        .collect()
}

/// An entry may also hold a fingerprint or the key itself, which name no file.
fn key_file(value: Option<&str>) -> Option<String> {
    value.filter(|v| v.starts_with('/')).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
# a comment
Types: deb
URIs: http://mirror.example/debian/
Suites: bookworm
 bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Types: deb-src
URIs: http://sources.example/debian
Suites: bookworm
";

    #[test]
    fn deb822_entries_are_read_with_continued_lines() {
        let sources = parse_deb822(DEB822);
        assert_eq!(sources.len(), 2);
        assert_eq!(sources[0].suites, ["bookworm", "bookworm-updates"]);
        assert_eq!(sources[1].uri, "http://mirror.example/debian-security");
        assert_eq!(sources[1].signed_by, None);
    }

    #[test]
    fn the_machines_mirror_is_chosen() {
        let mirror = Mirror::of_sources(&parse_deb822(DEB822)).unwrap();
        assert_eq!(mirror.main, "http://mirror.example/debian");
        assert_eq!(mirror.security.as_deref(), Some("http://mirror.example/debian-security"));
        assert_eq!(mirror.signed_by.as_deref(), Some("/usr/share/keyrings/debian-archive-keyring.gpg"));
    }

    #[test]
    fn one_line_entries_are_read_with_their_options() {
        let text = "# deb http://off.example/debian bookworm main\n\
                    deb-src http://sources.example/debian bookworm main\n\
                    deb [arch=amd64 signed-by=/keys/a.gpg] https://other.example/apt stable-tool main\n\
                    deb [signed-by=/keys/d.gpg] https://mirror.example/debian trixie main contrib # here\n\
                    deb https://mirror.example/debian-security trixie-security main\n";
        let mirror = Mirror::of_sources(&parse_one_line(text)).unwrap();
        assert_eq!(mirror.main, "https://mirror.example/debian");
        assert_eq!(mirror.security.as_deref(), Some("https://mirror.example/debian-security"));
        assert_eq!(mirror.signed_by.as_deref(), Some("/keys/d.gpg"));
    }

    #[test]
    fn a_disabled_entry_is_left_out() {
        let text = "Types: deb\nURIs: http://a.example/debian\nSuites: sid\nEnabled: no\n";
        assert_eq!(parse_deb822(text), []);
    }

    #[test]
    fn a_machine_without_debian_sources_has_no_mirror_but_a_given_one() {
        let sources = parse_one_line("deb http://archive.example/ubuntu noble main\n");
        assert!(Mirror::of_sources(&sources).is_none());
        let nowhere = Path::new("/nonexistent");
        assert!(Mirror::choose(None, nowhere).is_none());
        let given = Mirror::choose(Some("http://x.example/debian/"), nowhere).unwrap();
        assert_eq!(given.main, "http://x.example/debian");
    }
}
