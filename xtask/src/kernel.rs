// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Stock Debian kernels: the newest generic one of a suite, never a fixed version, or one that the user names.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::apt::{Apt, Package};
use crate::cache::Cache;
use crate::sources::Mirror;
use crate::unpack::unpacked;
use crate::version;

/// The first kernel in which user SVA works on x86 as stock Debian builds it.
pub const FIRST_WITH_SVA: (u32, u32) = (7, 2);

/// A kernel image and its modules.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// What `uname -r` prints in it.
    pub release: String,
    /// The bzImage.
    pub image: PathBuf,
    /// Its `lib/modules/<release>`.
    pub modules: PathBuf,
    /// Whether user SVA works in it, though it is older than those of Debian's in which it does.
    pub user_sva: bool,
}

/// Which kernel of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want<'a> {
    /// The suite it comes from, its security updates included.
    pub suite: &'a str,
    /// Only kernels of this series; otherwise the newest of all.
    pub series: Option<(u32, u32)>,
}

impl Kernel {
    /// Gets the newest generic amd64 kernel that fits `want`.
    pub fn fetch(cache: &Cache, mirror: Option<&Mirror>, want: &Want) -> Result<Self> {
        let apt = Apt::open(cache, mirror, want.suite)?;
        let packages = apt.packages(want.suite)?;
        let Some((release, parts)) = newest(&packages, want.series) else {
            let series = want.series.map_or(String::new(), |(a, b)| format!(" {a}.{b}"));
            bail!("{} has no generic amd64 kernel{series}: name another suite with --suite", want.suite);
        };
        let version = parts.first().map(|p| p.file_version()).unwrap_or_default();
        // The packages, and what is left of them unpacked, which is less.
        let need = 2 * parts.iter().map(|p| p.size).sum::<u64>();
        let tree = unpacked(cache, &format!("kernels/{release}_{version}"), need, |into| {
            apt.download(&parts, into)
        })?;
        Self::in_tree(&tree, release)
    }

    /// The kernel in a tree of unpacked packages.
    pub fn in_tree(tree: &Path, release: &str) -> Result<Self> {
        let first =
            |candidates: [String; 3]| candidates.into_iter().map(|c| tree.join(c)).find(|p| p.exists());
        let image = first([
            format!("usr/lib/modules/{release}/vmlinuz"),
            format!("lib/modules/{release}/vmlinuz"),
            format!("boot/vmlinuz-{release}"),
        ]);
        let modules = first([
            format!("usr/lib/modules/{release}/kernel"),
            format!("lib/modules/{release}/kernel"),
            format!("{release}/kernel"),
        ]);
        match (image, modules) {
            (Some(image), Some(modules)) => {
                Ok(Self { release: release.to_owned(), image, modules, user_sva: false })
            }
            _ => bail!("{} lacks an image or modules: remove it and run again", tree.display()),
        }
    }

    /// A kernel of the user's own.
    pub fn given(image: &Path, modules: &Path) -> Result<Self> {
        check_bzimage(image)?;
        let modules = fs::canonicalize(modules)
            .with_context(|| format!("{}: no such directory of modules", modules.display()))?;
        if !modules.join("kernel").is_dir() {
            bail!(
                "{} is no directory of modules: give the one named as the kernel's release",
                modules.display()
            );
        }
        let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if version::series(&release).is_none() {
            bail!("{} is not named as a kernel's release, such as 7.3.4+deb13-amd64", modules.display());
        }
        Ok(Self { release, image: fs::canonicalize(image)?, modules, user_sva: false })
    }

    /// Whether user SVA can work in it.
    pub fn has_sva(&self) -> bool {
        self.user_sva || version::series(&self.release).is_some_and(|series| series >= FIRST_WITH_SVA)
    }
}

/// The boot protocol's magic (Documentation/arch/x86/boot.rst).
fn check_bzimage(image: &Path) -> Result<()> {
    let magic = || -> std::io::Result<[u8; 4]> {
        let mut file = File::open(image)?;
        let mut magic = [0; 4];
        file.seek(SeekFrom::Start(0x202))?;
        file.read_exact(&mut magic)?;
        Ok(magic)
    };
    let found = magic().with_context(|| format!("{} cannot be read as a kernel", image.display()))?;
    if &found != b"HdrS" {
        bail!("{} is no Linux bzImage: give the vmlinuz of an amd64 kernel", image.display());
    }
    Ok(())
}

/// The release of the newest kernel and the packages that hold it: the image's own, and since 7.x those of the
/// image file and of the modules.
fn newest(packages: &[Package], series: Option<(u32, u32)>) -> Option<(&str, Vec<&Package>)> {
    let (release, image) = packages
        .iter()
        .filter_map(|p| Some((generic_release(&p.name)?, p)))
        .filter(|(release, _)| series.is_none_or(|wanted| version::series(release) == Some(wanted)))
        .max_by(|(_, a), (_, b)| version::compare(&a.version, &b.version))?;
    let mut parts = vec![image];
    for kind in ["binary", "modules"] {
        let name = format!("linux-{kind}-{release}");
        let mut candidates = packages.iter().filter(|p| p.name == name && p.version == image.version);
        if image.depends.split(',').any(|d| d.split_whitespace().next() == Some(&name)) {
            parts.push(candidates.next()?);
        }
    }
    Some((release, parts))
}

/// `7.3.4+deb13-amd64` of `linux-image-7.3.4+deb13-amd64`; nothing for metapackages, flavours other than the generic
/// one, and unsigned or debugging variants.
fn generic_release(package: &str) -> Option<&str> {
    let release = package.strip_prefix("linux-image-")?;
    let version = release.strip_suffix("-amd64")?;
    let plain = |part: &str| part.starts_with("rc") || part.starts_with(|c: char| c.is_ascii_digit());
    version.split('-').all(plain).then_some(release)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str, depends: &str) -> Package {
        Package {
            name: name.into(),
            version: version.into(),
            size: 1,
            depends: depends.into(),
            suite: "trixie-backports".into(),
        }
    }

    #[test]
    fn only_generic_kernels_count() {
        assert_eq!(generic_release("linux-image-7.3.4+deb13-amd64"), Some("7.3.4+deb13-amd64"));
        assert_eq!(generic_release("linux-image-6.1.0-49-amd64"), Some("6.1.0-49-amd64"));
        assert_eq!(generic_release("linux-image-7.3-rc7-amd64"), Some("7.3-rc7-amd64"));
        for other in [
            "linux-image-amd64",
            "linux-image-cloud-amd64",
            "linux-image-7.3.4+deb13-cloud-amd64",
            "linux-image-7.3.4+deb13-rt-amd64",
            "linux-image-7.3.4+deb13-amd64-dbg",
            "linux-image-6.1.0-49-amd64-unsigned",
            "linux-headers-7.3.4+deb13-amd64",
        ] {
            assert_eq!(generic_release(other), None, "{other}");
        }
    }

    #[test]
    fn the_newest_kernel_is_chosen_by_version_not_by_name() {
        let packages = [
            package("linux-image-7.2.9+deb13-amd64", "7.2.9-1~bpo13+1", ""),
            package("linux-image-7.2.12+deb13-amd64", "7.2.12-1~bpo13+1", ""),
            package("linux-image-7.3.4+deb13-cloud-amd64", "7.3.4-1~bpo13+1", ""),
        ];
        let (release, parts) = newest(&packages, None).unwrap();
        assert_eq!(release, "7.2.12+deb13-amd64");
        assert_eq!(parts.len(), 1);
    }

    #[test]
    fn image_and_modules_come_from_the_packages_the_image_depends_on() {
        let depends = "dracut | x (>= 1), linux-binary-7.3.4+deb13-amd64 (= 7.3.4-1), \
                       linux-modules-7.3.4+deb13-amd64 (= 7.3.4-1)";
        let packages = [
            package("linux-modules-7.3.4+deb13-amd64", "7.3.4-1", ""),
            package("linux-image-7.3.4+deb13-amd64", "7.3.4-1", depends),
            package("linux-binary-7.3.4+deb13-amd64", "7.3.4-1", ""),
        ];
        let (_, parts) = newest(&packages, Some((7, 3))).unwrap();
        let names: Vec<_> = parts.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "linux-image-7.3.4+deb13-amd64",
                "linux-binary-7.3.4+deb13-amd64",
                "linux-modules-7.3.4+deb13-amd64"
            ]
        );
        assert!(newest(&packages[1..2], None).is_none(), "a kernel without its parts is none");
    }

    #[test]
    fn a_series_keeps_newer_ones_out() {
        let packages = [
            package("linux-image-6.1.0-49-amd64", "6.1.192-1", ""),
            package("linux-image-6.12.117+deb12-amd64", "6.12.117-1~deb12u1", ""),
        ];
        assert_eq!(newest(&packages, Some((6, 1))).unwrap().0, "6.1.0-49-amd64");
        assert!(newest(&packages, Some((7, 2))).is_none());
    }

    #[test]
    fn modules_must_be_named_as_their_release() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("vmlinuz");
        let mut bytes = vec![0; 4096];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        fs::write(&image, bytes).unwrap();
        for (name, known) in [("modules", false), ("7.3.4+deb13-amd64", true)] {
            let modules = directory.path().join(name);
            fs::create_dir_all(modules.join("kernel")).unwrap();
            assert_eq!(Kernel::given(&image, &modules).is_ok(), known, "{name}");
        }
    }

    #[test]
    fn a_file_that_is_no_kernel_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("vmlinuz");
        fs::write(&file, vec![0; 4096]).unwrap();
        let message = Kernel::given(&file, directory.path()).unwrap_err().to_string();
        assert!(message.contains("no Linux bzImage"), "{message}");
        let message =
            Kernel::given(&directory.path().join("none"), directory.path()).unwrap_err().to_string();
        assert!(message.contains("cannot be read"), "{message}");
    }
}
