// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an input is made of.

use arbitrary::{Arbitrary, Unstructured};

/// As many steps as there are bytes for, and no more than `N`: the derived way would end after a few.
pub fn steps<'a, T: Arbitrary<'a>, const N: usize>(
    bytes: &mut Unstructured<'a>,
) -> arbitrary::Result<Vec<T>> {
    let mut steps = Vec::new();
    while !bytes.is_empty() && steps.len() < N {
        steps.push(bytes.arbitrary()?);
    }
    Ok(steps)
}
