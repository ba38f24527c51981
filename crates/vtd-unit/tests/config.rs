// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A unit's options: what each of them needs, how far numbers go, and what is said of those that cannot be.

use std::str::FromStr;

use vtd_unit::{ConfigError, UnitConfig};

fn check(options: &str) -> Result<UnitConfig, ConfigError> {
    let config = UnitConfig::from_str(options)?;
    config.capabilities().map(|_| config)
}

/// Everything off but scalable mode with pass-through: what the cases below switch on stands alone.
const LEAST: &str =
    "fsts=off,fs1gp=off,fs5lp=off,pasid=off,prs=off,pds=off,sms=off,nwfs=off,dt=off,smpwc=off";

#[test]
fn each_dependency_is_checked_and_named() {
    check(LEAST).unwrap();
    for (given, option, needs) in [
        ("fsts=on,smts=off", "fsts", "smts"),
        ("pt=off", "smts", "fsts, ssts or pt"),
        ("ssts=on,smts=off", "ssts", "smts"),
        ("ssads=on,smpwc=on", "ssads", "ssts"),
        ("ssads=on,ssts=on", "ssads", "smpwc"),
        ("nest=on,ssts=on", "nest", "fsts"),
        ("nest=on,fsts=on", "nest", "ssts"),
        ("fs1gp=on", "fs1gp", "fsts"),
        ("fs5lp=on", "fs5lp", "fsts"),
        ("pasid=on,smts=off", "pasid", "smts"),
        ("prs=on,pds=on", "prs", "dt"),
        ("prs=on,pds=on,dt=on,smts=off", "prs", "smts"),
        ("prs=on,dt=on", "prs", "pds"),
        ("pds=on", "pds", "dt"),
        ("sms=on,dt=on", "sms", "prs"),
        ("nwfs=on", "nwfs", "dt"),
        ("smpwc=on,smts=off", "smpwc", "smts"),
        ("srs=on,smts=off", "srs", "smts"),
        ("eafs=on,smpwc=on", "eafs", "fsts"),
        ("eafs=on,fsts=on", "eafs", "smpwc"),
        ("rps=on,smts=off", "rps", "smts"),
        ("vcmd=on", "vcmd", "pasid"),
        ("eim=on", "eim", "ir"),
    ] {
        let error = check(&format!("{LEAST},{given}")).unwrap_err();
        assert_eq!(error, ConfigError::Needs { option, needs }, "{given}");
        assert_eq!(error.to_string(), format!("IOMMU option {option} needs {needs}"));
    }
}

#[test]
fn numbers_have_their_ranges() {
    for (option, least, most) in [
        ("pss", 0u64, 19),
        ("mamv", 0, 63),
        ("fault-records", 1, 100),
        ("haw", 32, 52),
        ("iotlb-entries", 1, 1 << 24),
        ("structure-entries", 0, 1 << 24),
    ] {
        for value in [least, most] {
            check(&format!("{option}={value}")).unwrap();
        }
        for value in [most + 1].into_iter().chain(least.checked_sub(1)) {
            let error = check(&format!("{option}={value}")).unwrap_err();
            let ConfigError::OutOfRange { option: named, value: said, .. } = error else {
                panic!("{option}={value}: {error}");
            };
            assert_eq!((named, said), (option, value));
        }
        for value in ["", "x", "-1", "1.5", "99999999999999999999999"] {
            let error = check(&format!("{option}={value}")).unwrap_err();
            assert!(matches!(error, ConfigError::InvalidValue { .. }), "{option}={value}: {error}");
        }
    }
}

#[test]
fn what_is_no_option_or_no_value_is_said_in_one_line() {
    for (given, expected) in [
        ("warp=on", "unknown IOMMU option 'warp'; known are: cm, "),
        ("=on", "unknown IOMMU option ''"),
        ("cm=maybe", "IOMMU option 'cm' takes on or off, not 'maybe'"),
        ("vcmd=5", "IOMMU option 'vcmd' takes off, on, early, early1 or final, not '5'"),
        ("pss=on", "IOMMU option 'pss' takes a number, not 'on'"),
    ] {
        let said = check(given).unwrap_err().to_string();
        assert!(said.starts_with(expected) && !said.contains('\n'), "{said}");
    }
    // A name alone switches on, and spaces and empty pieces are nothing.
    assert_eq!(check(" ir , ,eim=on,").unwrap(), check("ir=on,eim=on").unwrap());
    assert_eq!(check("on").unwrap(), UnitConfig::default());
}

#[test]
fn the_most_and_the_least_that_a_unit_can_be_are_possible() {
    check("smts=off,pt=off,c=off,cm=off,psi=off,esrtps=off,fsts=off,fs1gp=off,fs5lp=off,pasid=off,prs=off,pds=off,\
           sms=off,nwfs=off,dt=off,smpwc=off")
    .unwrap();
    check("ssts=on,ssads=on,nest=on,srs=on,eafs=on,rps=on,vcmd=final,ir=on,eim=on,haw=52,fault-records=100")
        .unwrap();
}
