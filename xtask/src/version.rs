// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Versions as Debian orders them (deb-version(7)), and the release numbers of kernels.

use std::cmp::Ordering;

/// Orders two Debian package versions, `[epoch:]upstream[-revision]`, as dpkg does.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (epoch_a, rest_a) = split_epoch(a);
    let (epoch_b, rest_b) = split_epoch(b);
    let (upstream_a, revision_a) = rest_a.rsplit_once('-').unwrap_or((rest_a, ""));
    let (upstream_b, revision_b) = rest_b.rsplit_once('-').unwrap_or((rest_b, ""));
    epoch_a
        .cmp(&epoch_b)
        .then_with(|| compare_part(upstream_a, upstream_b))
        .then_with(|| compare_part(revision_a, revision_b))
}

fn split_epoch(version: &str) -> (u32, &str) {
    match version.split_once(':') {
        Some((epoch, rest)) => (epoch.parse().unwrap_or(0), rest),
        None => (0, version),
    }
}

/// Alternates between runs of non-digits, where `~` sorts before the end and letters before the rest, and runs
/// of digits, compared as numbers.
fn compare_part(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while !a.is_empty() || !b.is_empty() {
        loop {
            let (x, y) = (weight(a.first()), weight(b.first()));
            if x == 0 && y == 0 {
                break;
            }
            if x != y {
                return x.cmp(&y);
            }
            (a, b) = (&a[1..], &b[1..]);
        }
        let (number_a, rest_a) = split_number(a);
        let (number_b, rest_b) = split_number(b);
        let ordering = number_a.len().cmp(&number_b.len()).then_with(|| number_a.cmp(number_b));
        if ordering != Ordering::Equal {
            return ordering;
        }
        (a, b) = (rest_a, rest_b);
    }
    Ordering::Equal
}

/// 0 for a digit or the end, where a run of non-digits stops.
fn weight(byte: Option<&u8>) -> i32 {
    match byte {
        None => 0,
        Some(b) if b.is_ascii_digit() => 0,
        Some(b'~') => -1,
        Some(b) if b.is_ascii_alphabetic() => i32::from(*b),
        Some(b) => i32::from(*b) + 256,
    }
}

/// The digits at the start without leading zeros, and what follows them.
fn split_number(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let zeros = digits.iter().take_while(|b| **b == b'0').count();
    (&digits[zeros..], rest)
}

/// The first two numbers of a kernel release such as `7.3.4+deb13-amd64`.
pub fn series(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_as_dpkg_sorts_them() {
        let ascending = [
            "6.1.176-1",
            "6.1.192-1",
            "6.12.107-1",
            "6.12.117-1~bpo12+1",
            "6.12.117-1",
            "7.2.6-1~bpo13+1",
            "7.2.12-1~bpo13+1",
            "7.3~rc7-1~exp1",
            "7.3-1",
            "7.3.4-1~bpo13+1",
            "1:1.0-1",
        ];
        for (index, a) in ascending.iter().enumerate() {
            for (other, b) in ascending.iter().enumerate() {
                assert_eq!(compare(a, b), index.cmp(&other), "{a} against {b}");
            }
        }
    }

    #[test]
    fn leading_zeros_do_not_count() {
        assert_eq!(compare("1.07", "1.7"), Ordering::Equal);
        assert_eq!(compare("1.07", "1.10"), Ordering::Less);
    }

    #[test]
    fn a_series_is_the_first_two_numbers() {
        assert_eq!(series("7.3.4+deb13-amd64"), Some((7, 3)));
        assert_eq!(series("6.1.0-56-amd64"), Some((6, 1)));
        assert_eq!(series("7.3-rc7-amd64"), Some((7, 3)));
        assert_eq!(series("amd64"), None);
    }
}
