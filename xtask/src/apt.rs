// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Debian's archive through an apt directory of our own: the machine's package state is neither read nor touched,
//! no privilege is needed, signatures and hashes are checked by apt itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::download::Progress;
use crate::hashes;
use crate::process::{self, Guarded, TICK};
use crate::say::{self, Step};
use crate::sources::Mirror;
use crate::version;

/// How old package lists may be before they are fetched anew.
const LISTS_MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// What the lists of a release take, with their unpacked form.
const LISTS_BYTES: u64 = 80 << 20;

const NEEDS_APT: &str = "the lab needs apt and dpkg; elsewhere than on Debian pass --guest-kernel FILE \
                         --guest-modules DIR and install qemu-system-x86_64 and a static busybox";

const NEEDS_MIRROR: &str = "apt on this machine is set up with no Debian mirror: name one with --mirror URL, or pass \
                            --guest-kernel FILE --guest-modules DIR and install qemu-system-x86_64 (11.0 or newer) \
                            and a static busybox";

/// One binary package of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The size of the download in bytes.
    pub size: u64,
    /// Its `Depends` field.
    pub depends: String,
    /// The suite it was listed in.
    pub suite: String,
}

impl Package {
    /// Its version in a form that a file's name can hold.
    pub fn file_version(&self) -> String {
        self.version.replace(':', "_")
    }
}

/// One private apt directory, with the suites of one Debian release.
pub struct Apt<'a> {
    cache: &'a Cache,
    root: PathBuf,
    mirror: String,
}

impl<'a> Apt<'a> {
    /// Opens the directory for the release that `suite` belongs to, and fetches its package lists where there are
    /// none, or none of today.
    pub fn open(cache: &'a Cache, mirror: Option<&Mirror>, suite: &str) -> Result<Self> {
        let mirror = mirror.context(NEEDS_MIRROR)?;
        let release = release_of(suite);
        let root = cache.path("apt").join(release);
        for directory in ["lists/partial", "archives/partial", "etc"] {
            fs::create_dir_all(root.join(directory)).with_context(|| root.display().to_string())?;
        }
        let apt = Self { cache, root, mirror: mirror.main.clone() };
        let sources = sources_list(mirror, release, &keyring(mirror)?);
        let same = fs::read_to_string(apt.sources_file()).is_ok_and(|old| old == sources);
        if !same && apt.stamp_file().exists() {
            // The lists that it speaks of are another mirror's.
            fs::remove_file(apt.stamp_file())?;
        }
        fs::write(apt.sources_file(), sources)?;
        fs::write(apt.root.join("status"), "")?;
        fs::write(apt.config_file(), apt.config())?;
        let age = apt.lists_age()?;
        if age.is_none_or(|age| age > LISTS_MAX_AGE) {
            apt.update(release, age.is_some())?;
        }
        Ok(apt)
    }

    fn sources_file(&self) -> PathBuf {
        self.root.join("etc/sources.list")
    }

    fn config_file(&self) -> PathBuf {
        self.root.join("etc/apt.conf")
    }

    fn stamp_file(&self) -> PathBuf {
        self.root.join("updated")
    }

    /// How old the lists are, if there are whole ones. The stamp holds their hashes.
    fn lists_age(&self) -> Result<Option<Duration>> {
        let Ok(modified) = fs::metadata(self.stamp_file()).and_then(|stamp| stamp.modified()) else {
            return Ok(None);
        };
        if let Some(what) = hashes::damage(&self.lists(), &self.stamp_file())? {
            say::line(&format!("package lists are damaged ({what}): they are fetched again"));
            // What is left of them would be taken for up to date.
            fs::remove_dir_all(self.lists())?;
            fs::create_dir_all(self.lists().join("partial"))?;
            return Ok(None);
        }
        Ok(Some(SystemTime::now().duration_since(modified).unwrap_or_default()))
    }

    fn lists(&self) -> PathBuf {
        self.root.join("lists")
    }

    /// Read after the machine's own configuration, whose proxies and credentials stay, and whose hooks go: they
    /// would clean up the machine's directories.
    fn config(&self) -> String {
        let root = self.root.display();
        format!(
            "#clear APT::Update::Post-Invoke;\n\
             #clear APT::Update::Post-Invoke-Success;\n\
             #clear DPkg::Pre-Install-Pkgs;\n\
             #clear DPkg::Post-Invoke;\n\
             Dir::State \"{root}\";\n\
             Dir::State::status \"{root}/status\";\n\
             Dir::State::lists \"{root}/lists\";\n\
             Dir::Cache \"{root}\";\n\
             Dir::Cache::archives \"{root}/archives\";\n\
             Dir::Cache::pkgcache \"\";\n\
             Dir::Cache::srcpkgcache \"\";\n\
             Dir::Etc::sourcelist \"{root}/etc/sources.list\";\n\
             Dir::Etc::sourceparts \"-\";\n\
             Dir::Etc::preferences \"-\";\n\
             Dir::Etc::preferencesparts \"-\";\n\
             Dir::Log \"{root}\";\n\
             APT::Architecture \"amd64\";\n\
             #clear APT::Architectures;\n\
             APT::Architectures {{ \"amd64\"; }};\n\
             APT::Sandbox::User \"\";\n\
             APT::Get::AllowUnauthenticated \"false\";\n\
             Acquire::AllowInsecureRepositories \"false\";\n\
             Acquire::AllowWeakRepositories \"false\";\n\
             Acquire::AllowDowngradeToInsecureRepositories \"false\";\n\
             Acquire::Languages \"none\";\n\
             Acquire::Retries \"1\";\n\
             Acquire::http::Timeout \"20\";\n\
             Acquire::https::Timeout \"20\";\n\
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
             Acquire::IndexTargets::deb::DEP-11-icons-small::DefaultEnabled \"false\";\n\
             Acquire::IndexTargets::deb::DEP-11-icons::DefaultEnabled \"false\";\n\
             Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled \"false\";\n"
        )
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .arg("-c")
            .arg(self.config_file())
            .arg("-q")
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// With `have_old`, lists of an earlier day serve where the mirror does not answer today.
    fn update(&self, release: &str, have_old: bool) -> Result<()> {
        self.cache.need_space(LISTS_BYTES)?;
        let step = Step::begin(&format!("fetching the package lists of {release} from {}", self.mirror));
        let mut command = self.command("apt-get");
        command.arg("-o").arg("APT::Update::Error-Mode=any").arg("update");
        match self.watch(command, &self.lists(), None) {
            Ok(()) => {
                hashes::write(&self.lists(), &self.stamp_file())?;
                step.done("package lists are fresh");
                Ok(())
            }
            Err(e) => {
                process::check_interrupt()?;
                if have_old {
                    say::line(&format!("{e}; the lists of an earlier day serve"));
                    return Ok(());
                }
                bail!(
                    "no package lists of {release} from {}: {e}; name a suite that it has with --suite, a mirror that \
                     this machine reaches with --mirror URL, or --guest-kernel FILE --guest-modules DIR",
                    self.mirror
                )
            }
        }
    }

    /// Every amd64 package of the suites that belong to `suite`.
    pub fn packages(&self, suite: &str) -> Result<Vec<Package>> {
        let mut targets = self.command("apt-get");
        targets.args(["indextargets", "--format", "$(RELEASE) $(FILENAME)", "Created-By: Packages"]);
        let targets = process::output(&mut targets, NEEDS_APT)?;
        let mut packages = vec![];
        for line in String::from_utf8_lossy(&targets.stdout).lines() {
            let Some((listed, file)) = line.split_once(' ') else { continue };
            if listed.trim_end_matches("-security") != suite {
                continue;
            }
            let mut cat = Command::new("/usr/lib/apt/apt-helper");
            let text = process::output(cat.arg("cat-file").arg(file), NEEDS_APT)?.stdout;
            packages.extend(parse_packages(&String::from_utf8_lossy(&text), listed));
        }
        if packages.is_empty() {
            bail!(
                "{} has no suite {suite}: name another with --suite, or another mirror with --mirror",
                self.mirror
            );
        }
        Ok(packages)
    }

    /// The newest version of one package of `suite`.
    pub fn newest(&self, suite: &str, name: &str) -> Result<Package> {
        self.packages(suite)?
            .into_iter()
            .filter(|p| p.name == name)
            .max_by(|a, b| version::compare(&a.version, &b.version))
            .with_context(|| format!("{suite} on {} has no package {name}", self.mirror))
    }

    /// Downloads the packages, without what they depend on, into the directory `into`.
    pub fn download(&self, packages: &[&Package], into: &Path) -> Result<Vec<PathBuf>> {
        let total = packages.iter().map(|p| p.size).sum();
        let mut command = self.command("apt-get");
        command.arg("download").current_dir(into);
        command.args(packages.iter().map(|p| format!("{}={}", p.name, p.version)));
        let names: Vec<_> = packages.iter().map(|p| p.name.as_str()).collect();
        self.fetch(command, into, &names.join(", "), total)?;
        debs_in(into)
    }

    /// Downloads a package of `suite` with all that it needs, as for a machine with nothing on it.
    pub fn download_with_dependencies(&self, name: &str, suite: &str) -> Result<Vec<PathBuf>> {
        let archives = self.root.join("archives");
        for old in debs_in(&archives)? {
            fs::remove_file(old)?;
        }
        let command = || {
            let mut command = self.command("apt-get");
            command.args([
                "--download-only",
                "--yes",
                "--no-install-recommends",
                "-t",
                suite,
                "install",
                name,
            ]);
            command
        };
        let uris = process::output(command().arg("--print-uris"), NEEDS_APT)?.stdout;
        let total = sizes_of_uris(&String::from_utf8_lossy(&uris));
        self.fetch(command(), &archives, &format!("{name} and what it needs"), total)?;
        debs_in(&archives)
    }

    /// Runs a download of `total` bytes, if that is known.
    fn fetch(&self, command: Command, into: &Path, what: &str, total: u64) -> Result<()> {
        let step = Step::begin(&format!("downloading {what}, {}", say::size(total)));
        if let Err(e) = self.watch(command, into, Some(total)) {
            process::check_interrupt()?;
            bail!(
                "downloading {what} from {} failed: {e}; pass --mirror URL with a Debian mirror that this machine \
                 reaches",
                self.mirror
            );
        }
        step.done(&format!("{} downloaded and verified", say::size(bytes_in(into))));
        Ok(())
    }

    /// Runs apt, which fills a directory, with a line of progress every few seconds; a failure carries apt's reason.
    fn watch(&self, mut command: Command, into: &Path, total: Option<u64>) -> Result<()> {
        process::check_interrupt()?;
        let log = self.root.join("download.log");
        let file = fs::File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let mut child = Guarded::spawn(&mut command, NEEDS_APT)?;
        let mut progress = Progress::begin(bytes_in(into), total);
        let status = loop {
            if let Some(status) = child.status()? {
                break status;
            }
            process::check_interrupt()?;
            std::thread::sleep(TICK);
            if let Some(line) = progress.line(bytes_in(into), &self.mirror) {
                eprintln!("    {line}");
            }
        };
        if !status.success() {
            let text = fs::read_to_string(&log).unwrap_or_default();
            bail!("{}", process::first_error(&text));
        }
        Ok(())
    }
}

/// The sizes of the packages that `apt-get --print-uris` lists, together: each line has address, name, size and hash.
fn sizes_of_uris(text: &str) -> u64 {
    text.lines()
        .filter(|line| line.starts_with('\''))
        .filter_map(|line| line.split(' ').nth(2)?.parse::<u64>().ok())
        .sum()
}

/// The release whose package lists know `suite`: its backports and security updates build on it.
pub fn release_of(suite: &str) -> &str {
    suite.split('-').next().unwrap_or(suite)
}

fn sources_list(mirror: &Mirror, release: &str, keyring: &str) -> String {
    let entry = |uri: &str, suite: &str| format!("deb [arch=amd64 signed-by={keyring}] {uri} {suite} main\n");
    let mut text = entry(&mirror.main, release);
    // Suites that are never released have neither.
    if !["sid", "unstable", "experimental", "testing"].contains(&release) {
        text += &entry(&mirror.main, &format!("{release}-backports"));
        if let Some(security) = &mirror.security {
            text += &entry(security, &format!("{release}-security"));
        }
    }
    text
}

fn keyring(mirror: &Mirror) -> Result<String> {
    const USUAL: [&str; 2] =
        ["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];
    let candidates = mirror.signed_by.as_deref().into_iter().chain(USUAL);
    match candidates.into_iter().find(|path| Path::new(path).exists()) {
        Some(path) => Ok(path.to_owned()),
        None => bail!(
            "{} is missing, and signatures are always checked: install debian-archive-keyring",
            USUAL[0]
        ),
    }
}

fn debs_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut debs: Vec<_> = fs::read_dir(directory)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "deb"))
        .collect();
    debs.sort();
    Ok(debs)
}

/// The bytes of a directory's packages, finished and partial.
fn bytes_in(directory: &Path) -> u64 {
    let sum = |path: &Path| -> u64 {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter_map(|e| e.metadata().ok()).filter(|m| m.is_file()).map(|m| m.len()).sum()
    };
    sum(directory) + sum(&directory.join("partial"))
}

fn parse_packages(text: &str, suite: &str) -> Vec<Package> {
    let parse = |paragraph: &str| {
        let field = |name: &str| {
            paragraph.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
        };
        Some(Package {
            name: field("Package")?.to_owned(),
            version: field("Version")?.to_owned(),
            size: field("Size")?.parse().ok()?,
            depends: field("Depends").unwrap_or("").to_owned(),
            suite: suite.to_owned(),
        })
    };
    text.split("\n\n").filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_list_is_read() {
        let text = "Package: busybox-static\nSource: busybox (1:1.37.0-6)\nVersion: 1:1.37.0-6+b9\nSize: 955316\n\
                    \nPackage: broken\n\nPackage: b\nVersion: 2\nDepends: a (>= 1), c\nSize: 7\n";
        let packages = parse_packages(text, "trixie");
        assert_eq!(packages.len(), 2);
        assert_eq!(packages[0].version, "1:1.37.0-6+b9");
        assert_eq!(packages[0].size, 955_316);
        assert_eq!(packages[1].depends, "a (>= 1), c");
    }

    #[test]
    fn the_sizes_of_a_download_are_summed() {
        let text = "Reading package lists...\n\
                    'http://m.example/a_1_amd64.deb' a_1_amd64.deb 1000 SHA256:00\n\
                    'http://m.example/b_2_amd64.deb' b_2_amd64.deb 24 SHA256:00\n";
        assert_eq!(sizes_of_uris(text), 1024);
    }

    #[test]
    fn the_sources_hold_the_release_its_backports_and_its_security_updates() {
        let mirror = Mirror {
            main: "http://m.example/debian".into(),
            security: Some("http://m.example/debian-security".into()),
            signed_by: None,
        };
        let text = sources_list(&mirror, "trixie", "/keys/k.gpg");
        assert_eq!(
            text,
            "deb [arch=amd64 signed-by=/keys/k.gpg] http://m.example/debian trixie main\n\
             deb [arch=amd64 signed-by=/keys/k.gpg] http://m.example/debian trixie-backports main\n\
             deb [arch=amd64 signed-by=/keys/k.gpg] http://m.example/debian-security trixie-security main\n"
        );
        assert_eq!(sources_list(&mirror, "sid", "/k").lines().count(), 1);
    }

    #[test]
    fn backports_belong_to_their_release() {
        assert_eq!(release_of("trixie-backports"), "trixie");
        assert_eq!(release_of("sid"), "sid");
    }
}
