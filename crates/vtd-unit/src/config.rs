// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The capabilities of a unit as named options, checked against each other. \[S 11.4.2, 11.4.3\]

use std::str::FromStr;

use vtd_spec::{Capabilities, Capability, ExtendedCapability};

/// Where a unit has its virtual command registers, and how they are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VirtualCommandEncoding {
    /// That of specification 3.0 to 3.2: Linux 5.7 to 5.14.
    Early,
    /// As [`Self::Early`], but a command that finds no PASID ends with status 1, which is what Linux 5.7 to 5.11 takes for that;
    /// there, it is also the status of a command that does not exist.
    EarlyNoPasid1,
    /// That of specification 3.3 and later: Linux 5.15 to 6.3, and 5.10 with later fixes.
    Final,
}

/// Sizes of a function's caches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entries {
    /// Of the IOTLB, and again of the device-TLB.
    pub iotlb: usize,
    /// Of each stage's paging-structure cache.
    pub structures: usize,
}

/// What a unit can do. The defaults are those with which a current Linux brings shared virtual addressing up.
///
/// As text, options are separated by commas, each `name=value`; a switch is `on` or `off`:
///
/// ```
/// use vtd_unit::UnitConfig;
///
/// let config: UnitConfig = "cm=off,pss=15".parse().unwrap();
/// assert!(!config.cm);
/// assert_eq!(config.pss, 15);
/// assert!("pss=20".parse::<UnitConfig>().unwrap().capabilities().is_err());
/// assert!("warp=on".parse::<UnitConfig>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitConfig {
    /// CAP.CM: software announces entries that become present.
    pub cm: bool,
    /// ECAP.SMTS: scalable mode.
    pub smts: bool,
    /// ECAP.FSTS: first stage in scalable mode.
    pub fsts: bool,
    /// ECAP.SSTS: second stage in scalable mode.
    pub ssts: bool,
    /// ECAP.SSADS: accessed and dirty bits in the second stage.
    pub ssads: bool,
    /// ECAP.NEST: first stage nested on the second.
    pub nest: bool,
    /// CAP.FS1GP: 1 GiB pages in the first stage.
    pub fs1gp: bool,
    /// CAP.FS5LP: 5-level first stage.
    pub fs5lp: bool,
    /// ECAP.PASID: requests with PASID.
    pub pasid: bool,
    /// ECAP.PSS: PASID width in bits, less one.
    pub pss: u8,
    /// ECAP.DT: device-TLBs.
    pub dt: bool,
    /// ECAP.PRS: page requests.
    pub prs: bool,
    /// ECAP.PDS: the page-request drain flag of the wait descriptor.
    pub pds: bool,
    /// ECAP.SMS: stop markers that cannot be queued are dropped silently.
    pub sms: bool,
    /// ECAP.NWFS: translation requests may say that they will not write.
    pub nwfs: bool,
    /// ECAP.SMPWC: scalable-mode page walks are coherent.
    pub smpwc: bool,
    /// ECAP.PT: pass-through.
    pub pt: bool,
    /// ECAP.C: accesses to the remapping tables are coherent.
    pub c: bool,
    /// ECAP.SRS: privileged requests.
    pub srs: bool,
    /// ECAP.EAFS: extended-accessed flag.
    pub eafs: bool,
    /// ECAP.RPS: the context entry's RID_PASID field is used.
    pub rps: bool,
    /// ECAP.VCS: the virtual command interface, in one of its encodings.
    pub vcmd: Option<VirtualCommandEncoding>,
    /// ECAP.IR: interrupt remapping.
    pub ir: bool,
    /// ECAP.EIM: 32-bit APIC ids.
    pub eim: bool,
    /// CAP.ESRTPS: setting the root table pointer invalidates.
    pub esrtps: bool,
    /// CAP.PSI: page-selective invalidation of second-stage translations.
    pub psi: bool,
    /// CAP.MAMV: largest address mask of such an invalidation.
    pub mamv: u8,
    /// Fault recording registers, 1 to 100: as many as fit their place in the register page.
    pub fault_records: u16,
    /// Host address width in bits: that of the guest's physical addresses.
    pub haw: u8,
    /// Translations each function may have cached in its IOTLB, and again in its device-TLB.
    pub iotlb_entries: usize,
    /// Tables of each stage that each function may have cached (of the last level; half as many of the one above); 0 for
    /// none.
    pub structure_entries: usize,
}

impl Default for UnitConfig {
    fn default() -> Self {
        Self {
            cm: true,
            smts: true,
            fsts: true,
            ssts: false,
            ssads: false,
            nest: false,
            fs1gp: true,
            fs5lp: true,
            pasid: true,
            pss: 19,
            dt: true,
            prs: true,
            pds: true,
            sms: true,
            nwfs: true,
            smpwc: true,
            pt: true,
            c: true,
            srs: false,
            eafs: false,
            rps: false,
            vcmd: None,
            ir: false,
            eim: false,
            esrtps: true,
            psi: true,
            mamv: 18,
            fault_records: 8,
            haw: 48,
            iotlb_entries: 8192,
            structure_entries: 1024,
        }
    }
}

/// A configuration that can not be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No option has this name.
    #[error("unknown IOMMU option '{name}'; known are: {}", OPTIONS.join(", "))]
    UnknownOption {
        /// What was given.
        name: String,
    },
    /// The value does not fit the option.
    #[error("IOMMU option '{name}' takes {expected}, not '{value}'")]
    InvalidValue {
        /// The option.
        name: String,
        /// What was given.
        value: String,
        /// What it takes.
        expected: &'static str,
    },
    /// The unit's thread could not be started.
    #[error("no thread for the IOMMU: {0}; raise the limit of processes")]
    NoThread(String),
    /// One option needs another.
    #[error("IOMMU option {option} needs {needs}")]
    Needs {
        /// The option.
        option: &'static str,
        /// What it cannot be without.
        needs: &'static str,
    },
    /// A number is out of its range.
    #[error("IOMMU option {option} is {value}; it must be {range}")]
    OutOfRange {
        /// The option.
        option: &'static str,
        /// What was given.
        value: u64,
        /// What is possible.
        range: &'static str,
    },
}

/// The names of all options.
const OPTIONS: [&str; 32] = [
    "cm",
    "smts",
    "fsts",
    "ssts",
    "ssads",
    "nest",
    "fs1gp",
    "fs5lp",
    "pasid",
    "pss",
    "dt",
    "prs",
    "pds",
    "sms",
    "nwfs",
    "smpwc",
    "pt",
    "c",
    "srs",
    "eafs",
    "rps",
    "vcmd",
    "ir",
    "eim",
    "esrtps",
    "psi",
    "mamv",
    "fault-records",
    "haw",
    "iotlb-entries",
    "structure-entries",
    "on",
];

impl FromStr for UnitConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        for option in text.split(',').map(str::trim).filter(|option| !option.is_empty() && *option != "on") {
            let (name, value) = option.split_once('=').unwrap_or((option, "on"));
            config.set(name, value)?;
        }
        Ok(config)
    }
}

impl UnitConfig {
    /// Sets one option by name.
    ///
    /// # Errors
    ///
    /// An unknown name, or a value that is not of the option's kind.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), ConfigError> {
        let invalid =
            |expected| ConfigError::InvalidValue { name: name.into(), value: value.into(), expected };
        let switch = match name {
            "cm" => &mut self.cm,
            "smts" => &mut self.smts,
            "fsts" => &mut self.fsts,
            "ssts" => &mut self.ssts,
            "ssads" => &mut self.ssads,
            "nest" => &mut self.nest,
            "fs1gp" => &mut self.fs1gp,
            "fs5lp" => &mut self.fs5lp,
            "pasid" => &mut self.pasid,
            "dt" => &mut self.dt,
            "prs" => &mut self.prs,
            "pds" => &mut self.pds,
            "sms" => &mut self.sms,
            "nwfs" => &mut self.nwfs,
            "smpwc" => &mut self.smpwc,
            "pt" => &mut self.pt,
            "c" => &mut self.c,
            "srs" => &mut self.srs,
            "eafs" => &mut self.eafs,
            "rps" => &mut self.rps,
            "ir" => &mut self.ir,
            "eim" => &mut self.eim,
            "esrtps" => &mut self.esrtps,
            "psi" => &mut self.psi,
            _ => {
                const NUMBER: &str = "a number";
                let number = value.parse::<u64>();
                match name {
                    "vcmd" => {
                        self.vcmd = match value {
                            "off" => None,
                            "on" | "final" => Some(VirtualCommandEncoding::Final),
                            "early" => Some(VirtualCommandEncoding::Early),
                            "early1" => Some(VirtualCommandEncoding::EarlyNoPasid1),
                            _ => return Err(invalid("off, on, early, early1 or final")),
                        };
                    }
                    "pss" => self.pss = value.parse().map_err(|_| invalid(NUMBER))?,
                    "mamv" => self.mamv = value.parse().map_err(|_| invalid(NUMBER))?,
                    "fault-records" => self.fault_records = value.parse().map_err(|_| invalid(NUMBER))?,
                    "haw" => self.haw = value.parse().map_err(|_| invalid(NUMBER))?,
                    "iotlb-entries" => self.iotlb_entries = number.map_err(|_| invalid(NUMBER))? as usize,
                    "structure-entries" => {
                        self.structure_entries = number.map_err(|_| invalid(NUMBER))? as usize;
                    }
                    _ => return Err(ConfigError::UnknownOption { name: name.into() }),
                }
                return Ok(());
            }
        };
        *switch = match value {
            "on" => true,
            "off" => false,
            _ => return Err(invalid("on or off")),
        };
        Ok(())
    }

    /// The capability registers of such a unit.
    ///
    /// # Errors
    ///
    /// Options that no unit can have together, by the dependencies of \[S 11.4.2, 11.4.3\].
    pub fn capabilities(&self) -> Result<Capabilities, ConfigError> {
        let needs = [
            (self.fsts && !self.smts, "fsts", "smts"),
            (self.smts && !self.fsts && !self.ssts && !self.pt, "smts", "fsts, ssts or pt"),
            (self.ssts && !self.smts, "ssts", "smts"),
            (self.ssads && !self.ssts, "ssads", "ssts"),
            (self.ssads && !self.smpwc, "ssads", "smpwc"),
            (self.nest && !self.fsts, "nest", "fsts"),
            (self.nest && !self.ssts, "nest", "ssts"),
            (self.fs1gp && !self.fsts, "fs1gp", "fsts"),
            (self.fs5lp && !self.fsts, "fs5lp", "fsts"),
            (self.pasid && !self.smts, "pasid", "smts"),
            (self.prs && !self.dt, "prs", "dt"),
            (self.prs && !self.smts, "prs", "smts"),
            (self.prs && !self.pds, "prs", "pds"),
            (self.pds && !self.dt, "pds", "dt"),
            (self.sms && !self.prs, "sms", "prs"),
            (self.nwfs && !self.dt, "nwfs", "dt"),
            (self.smpwc && !self.smts, "smpwc", "smts"),
            (self.srs && !self.smts, "srs", "smts"),
            (self.eafs && !self.fsts, "eafs", "fsts"),
            (self.eafs && !self.smpwc, "eafs", "smpwc"),
            (self.rps && !self.smts, "rps", "smts"),
            (self.vcmd.is_some() && !self.pasid, "vcmd", "pasid"),
            (self.eim && !self.ir, "eim", "ir"),
        ];
        if let Some((_, option, needs)) = needs.into_iter().find(|(broken, ..)| *broken) {
            return Err(ConfigError::Needs { option, needs });
        }
        let ranges = [
            ("pss", u64::from(self.pss), 0..=19, "0 to 19"),
            ("mamv", u64::from(self.mamv), 0..=63, "0 to 63"),
            ("fault-records", u64::from(self.fault_records), 1..=100, "1 to 100"),
            ("haw", u64::from(self.haw), 32..=52, "32 to 52"),
            ("iotlb-entries", self.iotlb_entries as u64, 1..=1 << 24, "1 to 16777216"),
            ("structure-entries", self.structure_entries as u64, 0..=1 << 24, "0 to 16777216"),
        ];
        if let Some((option, value, _, range)) =
            ranges.into_iter().find(|(_, value, range, _)| !range.contains(value))
        {
            return Err(ConfigError::OutOfRange { option, value, range });
        }
        let cap = Capability::new()
            .with_nd(6)
            .with_cm(self.cm)
            // 39, 48 and, where the first stage has five levels, 57 bits.
            .with_sagaw(if self.fs5lp { 0b1110 } else { 0b0110 })
            // At least the host address width: what is passed through is as wide.
            .with_mgaw(if self.fs5lp { 56 } else { 47.max(self.haw - 1) })
            .with_zlr(true)
            .with_fro((FAULT_RECORDS_OFFSET / 16) as u16)
            .with_sslps(0b11)
            .with_psi(self.psi)
            .with_nfr((self.fault_records - 1) as u8)
            .with_mamv(self.mamv)
            .with_dwd(true)
            .with_drd(true)
            .with_fs1gp(self.fs1gp)
            .with_fs5lp(self.fs5lp)
            .with_esirtps(self.esrtps && self.ir)
            .with_esrtps(self.esrtps);
        let ecap = ExtendedCapability::new()
            .with_c(self.c)
            .with_qi(true)
            .with_dt(self.dt)
            .with_ir(self.ir)
            .with_eim(self.eim)
            .with_pt(self.pt)
            .with_iro((IOTLB_REGISTERS_OFFSET / 16) as u16)
            .with_mhmv(if self.ir { 15 } else { 0 })
            .with_nest(self.nest)
            .with_prs(self.prs)
            .with_srs(self.srs)
            .with_nwfs(self.nwfs)
            .with_eafs(self.eafs)
            .with_pss(if self.pasid { self.pss } else { 0 })
            .with_pasid(self.pasid)
            .with_pds(self.pds)
            .with_smts(self.smts)
            .with_vcs(self.vcmd.is_some())
            .with_ssads(self.ssads)
            .with_ssts(self.ssts)
            .with_fsts(self.fsts)
            .with_smpwc(self.smpwc)
            .with_rps(self.rps)
            .with_sms(self.sms);
        Ok(Capabilities { cap, ecap, haw: self.haw })
    }
}

/// Where the fault recording registers start: behind the MTRRs' place.
const FAULT_RECORDS_OFFSET: u64 = 0x220;

/// Where the IOTLB registers are: behind the virtual command's.
const IOTLB_REGISTERS_OFFSET: u64 = 0xf00;
