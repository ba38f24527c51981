// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Keeps the insides of crates on floors: a file uses those below it, and no circle of files comes of it. What a file uses
//! are the paths `crate::` and `super::` in it, the modules that a folder's file names, and the methods that an `impl` in
//! another file adds to a type. Tests may use what they like.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::cache::workspace;

/// The crates that are kept so, and what lies on which floor, by the beginning of a file's path under `src`; what is not
/// named lies on the first. Without floors, there are only no circles.
const CRATES: [(&str, &[(&str, u8)]); 5] = [
    (
        "vtd-unit",
        &[
            ("lib", 9),
            ("sync_tests", 8),
            ("unit.rs", 8),
            ("endpoint.rs", 8),
            ("pinned", 8),
            ("remapping", 8),
            ("queue", 7),
            ("page_request", 7),
            ("interrupt", 7),
            ("fault", 7),
            ("virtual_command", 7),
            ("global_command", 7),
            ("core", 6),
            ("worker", 6),
            ("function/", 5),
            ("registers/", 4),
            ("tables/", 3),
            ("cache/", 2),
        ],
    ),
    ("vmm", &[]),
    ("vsva", &[]),
    ("dsa", &[]),
    ("vtd-driver", &[]),
];

/// Fails with the first arrow that goes up, or the first circle.
pub fn check() -> Result<()> {
    for (name, floors) in CRATES {
        let source = workspace().join("crates").join(name).join("src");
        let mut files = BTreeMap::new();
        read(&source, "", &mut files)?;
        if let Some(what) = wrong(&files, floors) {
            bail!("crates/{name}/src: {what}");
        }
    }
    Ok(())
}

/// The files of a crate by their paths, without comments and tests.
fn read(directory: &Path, prefix: &str, files: &mut BTreeMap<String, String>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let (entry, path) = entry.map(|entry| (entry.file_name(), entry.path()))?;
        let name = format!("{prefix}{}", entry.to_string_lossy());
        if path.is_dir() {
            read(&path, &format!("{name}/"), files)?;
        } else if name.ends_with(".rs") && !name.split('/').any(|part| part == "tests" || part == "tests.rs")
        {
            files.insert(name, code(&fs::read_to_string(&path)?));
        }
    }
    Ok(())
}

fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

fn wrong(files: &BTreeMap<String, String>, floors: &[(&str, u8)]) -> Option<String> {
    let arrows = arrows(files);
    let floor =
        |file: &str| floors.iter().find(|(place, _)| file.starts_with(place)).map_or(1, |(_, floor)| *floor);
    for (from, to) in arrows.iter().flat_map(|(from, all)| all.iter().map(move |to| (from, to))) {
        if !floors.is_empty() && floor(to) > floor(from) {
            return Some(format!("{from} (floor {}) uses {to} (floor {})", floor(from), floor(to)));
        }
    }
    circle(&arrows).map(|files| format!("a circle: {}", files.join(" -> ")))
}

type Arrows = BTreeMap<String, BTreeSet<String>>;

fn arrows(files: &BTreeMap<String, String>) -> Arrows {
    let mut arrows: Arrows = files.keys().map(|file| (file.clone(), BTreeSet::new())).collect();
    let mut add = |from: &str, to: &str| {
        if from != to && from != "lib.rs" && from != "main.rs" {
            arrows.entry(from.to_owned()).or_default().insert(to.to_owned());
        }
    };
    for (file, text) in files {
        for path in paths(file, text) {
            if let Some(to) = resolve(files, &path) {
                add(file, &to);
            }
        }
    }
    for (owner, names) in added_methods(files) {
        for name in names {
            let call = format!(".{name}(");
            let turbofish = format!(".{name}::<");
            for (file, text) in files {
                if text.contains(&call) || text.contains(&turbofish) {
                    add(file, &owner);
                }
            }
        }
    }
    arrows
}

/// The paths in a file that begin at its crate or at its parent, from the root of the crate; groups are taken apart. In a
/// folder's own file also those that begin with a child.
fn paths(file: &str, text: &str) -> Vec<Vec<String>> {
    let folder: Vec<String> = match file.rsplit_once('/') {
        Some((folder, _)) => folder.split('/').map(str::to_owned).collect(),
        None => vec![],
    };
    let is_folder = file.ends_with("/mod.rs");
    // The parent of a folder's own file is what the folder lies in.
    let parent = if is_folder { folder[..folder.len() - 1].to_vec() } else { folder.clone() };
    let mut found = vec![];
    for (start, base) in [("crate::", vec![]), ("super::", parent)] {
        for (at, _) in text.match_indices(start) {
            let whole_word = text[..at].chars().next_back().is_none_or(|c| !is_word(c) && c != ':');
            if whole_word {
                found
                    .extend(group(&text[at + start.len()..]).into_iter().map(|p| [base.clone(), p].concat()));
            }
        }
    }
    if is_folder {
        for line in text.lines().filter_map(|line| line.trim().split_once("use ")) {
            found.extend(group(line.1).into_iter().map(|p| [folder.clone(), p].concat()));
        }
    }
    found
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// `a::{b, c::d}` as `a::b` and `a::c::d`.
fn group(text: &str) -> Vec<Vec<String>> {
    let text = text.trim_start();
    if let Some(inner) = text.strip_prefix('{') {
        let mut depth = 0;
        let end = inner.find(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth < 0
        });
        let inner = &inner[..end.unwrap_or(inner.len())];
        let mut depth = 0;
        return inner
            .split(|c| {
                depth += i32::from(c == '{') - i32::from(c == '}');
                c == ',' && depth == 0
            })
            .flat_map(group)
            .collect();
    }
    let end = text.find(|c| !is_word(c)).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    if word.is_empty() {
        return vec![];
    }
    match rest.strip_prefix("::").map(group).filter(|rest| !rest.is_empty()) {
        Some(rest) => rest.into_iter().map(|path| [vec![word.to_owned()], path].concat()).collect(),
        None => vec![vec![word.to_owned()]],
    }
}

/// The file of the innermost module in a path.
fn resolve(files: &BTreeMap<String, String>, path: &[String]) -> Option<String> {
    (1..=path.len()).rev().find_map(|length| {
        let module = path[..length].join("/");
        [format!("{module}.rs"), format!("{module}/mod.rs")].into_iter().find(|file| files.contains_key(file))
    })
}

/// Of each file, the methods that it adds to types of other files, where no other function has their names.
fn added_methods(files: &BTreeMap<String, String>) -> BTreeMap<String, Vec<String>> {
    let mut defined: BTreeMap<&str, &str> = BTreeMap::new();
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    for (file, text) in files {
        for keyword in ["struct ", "enum "] {
            for (at, _) in text.match_indices(keyword) {
                defined.insert(word(&text[at + keyword.len()..]), file);
            }
        }
        for (at, _) in text.match_indices("fn ") {
            *count.entry(word(&text[at + 3..])).or_default() += 1;
        }
    }
    let mut added: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (file, text) in files {
        for block in text.split("\nimpl").skip(1) {
            let (head, body) = block.split_once('{').unwrap_or((block, ""));
            let body = body.split("\n}").next().unwrap_or_default();
            if defined.get(implementing(head)).is_some_and(|home| home != file) {
                let names = body.match_indices("fn ").map(|(at, _)| word(&body[at + 3..]));
                let names = names.filter(|name| count.get(name) == Some(&1)).map(str::to_owned);
                added.entry(file.clone()).or_default().extend(names);
            }
        }
    }
    added
}

fn word(text: &str) -> &str {
    &text[..text.find(|c| !is_word(c)).unwrap_or(text.len())]
}

/// The type that an `impl` is for, from what stands between that word and its block.
fn implementing(head: &str) -> &str {
    let mut head = head;
    if head.starts_with('<') {
        let mut depth = 0;
        let end = head.find(|c| {
            depth += i32::from(c == '<') - i32::from(c == '>');
            depth == 0
        });
        head = &head[end.map_or(0, |end| end + 1)..];
    }
    let head = head.rsplit(" for ").next().unwrap_or(head).trim_start();
    let path = head.split(['<', ' ', '\n']).next().unwrap_or(head);
    word(path.rsplit("::").next().unwrap_or(path))
}

/// The shortest circle, closed by its first file.
fn circle(arrows: &Arrows) -> Option<Vec<String>> {
    let from_and_back = |start: &String| {
        let mut ways: BTreeMap<&String, Vec<String>> = BTreeMap::from([(start, vec![start.clone()])]);
        let mut front = vec![start];
        while !front.is_empty() {
            let mut next = vec![];
            for file in front {
                for to in &arrows[file] {
                    let way = [ways[file].clone(), vec![to.clone()]].concat();
                    if to == start {
                        return Some(way);
                    }
                    if arrows.contains_key(to) && !ways.contains_key(to) {
                        ways.insert(to, way);
                        next.push(to);
                    }
                }
            }
            front = next;
        }
        None
    };
    arrows.keys().filter_map(from_and_back).min_by_key(Vec::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(files: &[(&str, &str)], floors: &[(&str, u8)]) -> Option<String> {
        let files = files.iter().map(|(file, text)| ((*file).to_owned(), code(text))).collect();
        wrong(&files, floors)
    }

    #[test]
    fn a_circle_of_imports_is_found_through_groups_and_folders() {
        let files = [
            ("lib.rs", "mod a;\nmod b;\nmod d;\nuse a::A;"),
            ("a.rs", "use crate::{b::B, d::D};"),
            ("b.rs", "pub struct B;"),
            ("d/mod.rs", "mod e;\npub use e::D;"),
            ("d/e.rs", "use crate::a::A;"),
        ];
        assert_eq!(told(&files, &[]).unwrap(), "a circle: a.rs -> d/mod.rs -> d/e.rs -> a.rs");
        let open =
            [files[0], files[1], files[2], files[3], ("d/e.rs", "use crate::b::B; // not crate::a::A")];
        assert_eq!(told(&open, &[]), None);
    }

    #[test]
    fn a_child_that_uses_its_folder_is_a_circle_and_one_that_uses_a_sibling_is_none() {
        let folder = ("d/mod.rs", "mod e;\nmod f;\nuse e::E;\npub struct D;");
        let files = [folder, ("d/e.rs", "use super::D;"), ("d/f.rs", "")];
        assert_eq!(told(&files, &[]).unwrap(), "a circle: d/e.rs -> d/mod.rs -> d/e.rs");
        let files = [folder, ("d/e.rs", "use super::f::F;"), ("d/f.rs", "")];
        assert_eq!(told(&files, &[]), None);
    }

    #[test]
    fn a_method_that_another_file_adds_is_an_arrow_to_that_file() {
        let files = [
            ("low.rs", "pub struct Low;\nfn f(low: &Low) { low.rise(); }"),
            ("high.rs", "use crate::low::Low;\nimpl<T: X<T>> Low {\n    fn rise(&self) {}\n}"),
        ];
        assert_eq!(told(&files, &[]).unwrap(), "a circle: high.rs -> low.rs -> high.rs");
    }

    #[test]
    fn an_arrow_upwards_is_told_with_its_floors() {
        let files = [("core.rs", "use crate::unit::Unit;"), ("unit.rs", "")];
        let floors = [("unit", 8), ("core", 6)];
        assert_eq!(told(&files, &floors).unwrap(), "core.rs (floor 6) uses unit.rs (floor 8)");
        assert_eq!(told(&[("unit.rs", "use crate::core::Core;"), ("core.rs", "")], &floors), None);
    }

    #[test]
    fn what_tests_use_is_theirs() {
        let files = [
            ("a.rs", "pub struct A;\n#[cfg(test)]\nmod tests {\n    use crate::b::B;\n}"),
            ("b.rs", "use crate::a::A;"),
        ];
        assert_eq!(told(&files, &[]), None);
    }

    #[test]
    fn the_house_is_in_order() {
        check().unwrap();
    }
}
