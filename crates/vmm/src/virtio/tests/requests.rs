// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests of a driver that behaves, and what it is told of those that cannot be served.

use super::super::worker::BOUNCE_SIZE;
use super::*;

#[test]
fn data_goes_to_the_file_and_comes_back_from_it_in_pieces_of_any_size() {
    for features in [0, FLUSH | EVENT_IDX | INDIRECT_DESC] {
        let mut driver = Driver::started(1024, features);
        // Longer than one bounce buffer, in odd pieces.
        let length = 3 * BOUNCE_SIZE / 2;
        let pieces = [(DATA + 1, 1000), (DATA + 0x2_0003, 70_000), (DATA + 0x1_0000, length as u32 - 71_000)];
        let (status, written) = driver.request(0, 7, &pieces, WRITE);
        assert_eq!((status, written), (0, length as u32 + 1));
        let mut read = vec![];
        for (address, length) in pieces {
            read.extend(driver.data(address, length as usize));
        }
        assert_eq!(read, driver.disk(7 * 512, length));
        assert_eq!(driver.data(DATA, 1), [0], "nothing before the buffer");

        let fresh = pattern(length, 0x77);
        let mut rest = fresh.as_slice();
        for (address, length) in pieces {
            let (part, after) = rest.split_at(length as usize);
            driver.memory.write_slice(part, GuestAddress(address)).unwrap();
            rest = after;
        }
        assert_eq!(driver.request(1, 500, &pieces, 0), (0, 1));
        assert_eq!(driver.disk(500 * 512, length), fresh);
        assert_eq!(driver.disk(499 * 512, 512), &pattern(500 * 512, 0)[499 * 512..]);
        assert_eq!(driver.request(4, 0, &[], 0), (0, 1));
        assert_eq!(driver.request(8, 0, &[(DATA, 20)], WRITE), (0, 21));
        assert_eq!(&driver.data(DATA, 10), b"vsva-disk\0");
    }
}

#[test]
fn chains_may_be_indirect_and_laid_out_at_will() {
    let mut driver = Driver::started(16, INDIRECT_DESC);
    driver.header(0, 3);
    let count = driver.chain(INDIRECT, &[(DATA, 512)], WRITE);
    driver.descriptor(DESCRIPTORS, 5, INDIRECT, u32::from(count) * 16, INDIRECT_FLAG, 0);
    assert_eq!(driver.finish(5), (0, 513));
    assert_eq!(driver.data(DATA, 512), driver.disk(3 * 512, 512));

    // The header in two descriptors, data and status in one.
    driver.header(0, 4);
    driver.descriptor(DESCRIPTORS, 0, HEADER, 9, NEXT, 3);
    driver.descriptor(DESCRIPTORS, 3, HEADER + 9, 7, NEXT, 2);
    driver.descriptor(DESCRIPTORS, 2, DATA + 0x1000, 513, WRITE, 0);
    driver.finish(0);
    assert_eq!(driver.data(DATA + 0x1000, 512), driver.disk(4 * 512, 512));
    assert_eq!(driver.data(DATA + 0x1200, 1), [0]);
}

#[test]
fn requests_that_cannot_be_served_get_a_status() {
    let mut driver = Driver::started(16, 0);
    assert_eq!(driver.request(0, 16, &[(DATA, 512)], WRITE), (1, 0), "beyond the end");
    assert_eq!(driver.request(0, 15, &[(DATA, 1024)], WRITE), (1, 0), "across the end");
    assert_eq!(driver.request(1, u64::MAX, &[(DATA, 512)], 0), (1, 1));
    assert_eq!(driver.request(0, 0, &[(DATA, 100)], WRITE), (1, 0), "part of a sector");
    assert_eq!(driver.request(0, 0, &[(MEMORY, 512)], WRITE), (1, 0), "no memory");
    assert_eq!(driver.request(1, 0, &[(u64::MAX - 100, 512)], 0), (1, 1));
    assert_eq!(driver.request(11, 0, &[(DATA, 512)], 0), (2, 1), "discard was not offered");
    assert_eq!(driver.request(0, 0, &[], WRITE), (0, 1));
    assert_eq!(driver.disk(0, 16 * 512), pattern(16 * 512, 0));
}

#[test]
fn a_read_only_disk_is_not_written() {
    let mut driver = Driver::new(16, true);
    driver.start(READ_ONLY);
    assert_eq!(driver.request(1, 0, &[(DATA, 512)], 0), (1, 1));
    assert_eq!(driver.request(4, 0, &[], 0), (0, 1));
    assert_eq!(driver.request(0, 1, &[(DATA, 512)], WRITE), (0, 513));
    assert_eq!(driver.data(DATA, 512), driver.disk(512, 512));
}
