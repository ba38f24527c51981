// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The lab: boots guests in `vsva`, on the machine's KVM or in level 1, and brings back what they said.

use std::fmt::{self, Display};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::apt::Apt;
use crate::binaries::Binaries;
use crate::cache::{self, Cache};
use crate::console::{self, Message, Transcript};
use crate::initramfs;
use crate::kernel::{Kernel, Want};
use crate::machine::{self, Kvm};
use crate::modules::Modules;
use crate::process::{self, Guarded, TICK};
use crate::qemu::Qemu;
use crate::say::{self, Step};
use crate::sources::Mirror;
use crate::unpack::unpacked;

/// The suite of what is no kernel: busybox, and tools for the guest.
const TOOLS_SUITE: &str = "trixie";
/// How long a machine that has panicked gets to end by itself.
const GRACE: Duration = Duration::from_secs(5);
/// How often a run is repeated after the emulation has failed.
const LEVEL1_RETRIES: usize = 2;
/// How long a guest may say nothing: every check of the guest program has a deadline well below it.
const SILENCE: Duration = Duration::from_secs(120);
/// How long level 1, which gives a sign of life every ten seconds, may give none. Shorter than [`SILENCE`], so that a
/// silent guest is known to be alone with it or not.
const LEVEL1_SILENCE: Duration = Duration::from_secs(90);
/// What `vsva` says where a processor of the guest has given up.
const TRIPLE_FAULT: &str = "the guest crashed: triple fault";
/// Level 1's sign of life.
const ALIVE: &str = "VSVA-ALIVE";
/// How many lines of the guest's console tell what went wrong.
const LAST_LINES: usize = 25;
/// How many lines of what is around it do.
const LAST_LINES_AROUND: usize = 8;
/// Level 1's processors. One, because QEMU's emulation of SVM does not bear two: after a VMRUN that injects an interrupt,
/// it leaves `exception_index` at its vector until the next exit (target/i386/tcg/system/svm_helper.c:helper_vmrun, seen
/// in 10.2), and where another thread stops the processor meanwhile, the guest gets the interrupt a second time. With two
/// processors guests hung or triple-faulted now and then, with one none did (docs/lab.md).
const LEVEL1_CPUS: &str = "1";
/// What level 1 needs beside the guest's memory, for itself, `vsva` and the images, in MiB.
const LEVEL1_MIB: u64 = 1024;
/// The size of the disk image that a guest gets.
const DISK_BYTES: usize = 16 << 20;
/// The trace's name where `vsva` writes it, which level 1's script knows, and what `vsva` adds for trace viewers.
const TRACE: &str = "trace";
const VIEWER_SUFFIX: &str = ".trace.json";
/// The disk by which it leaves level 1, and its size: an upper bound, which takes no room.
const TRACE_DISK: &str = "trace.disk";
const TRACE_DISK_BYTES: u64 = 1 << 30;

/// Where guests run, from the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Level1 {
    /// In level 1 where the machine's KVM does not serve.
    Auto,
    /// Always in level 1.
    Always,
    /// Never in level 1.
    Never,
}

impl Level1 {
    /// Whether guests run in level 1 on this machine; an error where that is refused and the machine itself is none.
    pub fn decide(self) -> Result<bool> {
        Ok(match (self, machine::kvm()?) {
            (Self::Auto | Self::Never, Kvm::Usable) => {
                say::line("guests run on this machine's KVM");
                false
            }
            (Self::Always, _) => true,
            (Self::Auto, Kvm::Unusable(why)) => {
                say::line(&format!("{why}: guests run in level 1, under QEMU's emulation"));
                true
            }
            (Self::Never, Kvm::Unusable(why)) => {
                bail!("this machine's KVM does not serve: {why}; leave out --level1 never")
            }
        })
    }
}

/// What every boot needs from elsewhere.
pub struct Supplies {
    cache: Cache,
    mirror: Option<Mirror>,
    busybox: PathBuf,
    outer: Option<Outer>,
}

/// Level 0 and 1.
struct Outer {
    qemu: Qemu,
    kernel: Kernel,
}

/// A place where guests can be booted.
pub struct Lab {
    /// What was downloaded for it.
    pub supplies: Supplies,
    /// What was built for it.
    pub binaries: Binaries,
}

/// One boot of a guest.
pub struct Boot<'a> {
    /// The directory of its consoles.
    pub name: &'a str,
    /// What it boots.
    pub kernel: &'a Kernel,
    /// Words for its command line, after those that every boot has.
    pub append: &'a str,
    /// Drivers to load, where the kernel has them as modules.
    pub modules: &'a [&'a str],
    /// Further packages in its initramfs.
    pub tree: Option<&'a Path>,
    /// What it runs.
    pub script: &'a str,
    /// How many programs in the script end with `VSVA-DONE`.
    pub programs: usize,
    /// Arguments of `vsva run`, after those that every boot has.
    pub arguments: &'a [&'a str],
    /// Where a trace of `vsva` is to be put, beside the file for trace viewers.
    pub trace: Option<&'a Path>,
    /// Virtual processors.
    pub cpus: u32,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// Whether it gets a disk.
    pub disk: bool,
    /// How long it may take, level 1 included.
    pub limit: Duration,
}

/// What became of a boot.
pub struct Outcome {
    /// What the guest said.
    pub transcript: Transcript,
    /// Everything on its console.
    pub console: String,
    /// Where that is kept.
    pub console_file: PathBuf,
    /// What `vsva` said for itself, on level 1's console or on its own.
    pub vsva: String,
    /// Why it did not come to its end.
    pub failure: Option<String>,
    /// From the start of level 0, or of `vsva`, to the end.
    pub took: Duration,
    /// Level 1's uptime when it was ready, in seconds.
    pub level1_seconds: Option<f64>,
    /// Whether the emulation around the guest is to blame, or may be.
    pub emulation_failed: bool,
    /// How many runs before this one were given up for that.
    pub repeated: usize,
}

/// A bad end of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    GuestPanic,
    Level1Panic,
    Failed(String),
    GuestSilent(Duration),
    Level1Silent(Duration),
    Limit(Duration),
}

impl Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GuestPanic => write!(f, "the guest's kernel panicked"),
            Self::Level1Panic => write!(f, "level 1's kernel panicked"),
            Self::Failed(why) => write!(f, "the machine failed ({why})"),
            Self::GuestSilent(time) => {
                write!(f, "the guest said nothing for {} s: it or vsva hangs", time.as_secs())
            }
            Self::Level1Silent(time) => {
                write!(f, "level 1 gave no sign of life for {} s: it hangs", time.as_secs())
            }
            Self::Limit(limit) => write!(f, "no end after {} s, the limit", limit.as_secs()),
        }
    }
}

impl Supplies {
    /// Gets it all. `kernel` is what level 1 runs too where it has KVM as a module, else the newest of `suite`. Without
    /// a mirror the machine itself must have the rest.
    pub fn fetch(
        cache: Cache,
        mirror: Option<Mirror>,
        in_level1: bool,
        kernel: &Kernel,
        suite: &str,
    ) -> Result<Self> {
        let busybox = busybox(&cache, mirror.as_ref())?;
        let mut supplies = Self { cache, mirror, busybox, outer: None };
        if in_level1 {
            let qemu = Qemu::find(&supplies.cache, supplies.mirror.as_ref())?;
            let has_kvm = Modules::open(&kernel.modules, &supplies.busybox)?.has("kvm_amd");
            let kernel =
                if has_kvm { kernel.clone() } else { supplies.kernel(&Want { suite, series: None })? };
            supplies.outer = Some(Outer { qemu, kernel });
        }
        Ok(supplies)
    }

    /// A kernel from the same mirror.
    pub fn kernel(&self, want: &Want) -> Result<Kernel> {
        Kernel::fetch(&self.cache, self.mirror.as_ref(), want)
    }

    /// A package of the tools' suite with all that it needs, unpacked.
    pub fn tools(&self, package: &str) -> Result<PathBuf> {
        let apt = Apt::open(&self.cache, self.mirror.as_ref(), TOOLS_SUITE)?;
        let name = format!("tools/{package}_{}", apt.newest(TOOLS_SUITE, package)?.file_version());
        unpacked(&self.cache, &name, 200 << 20, |_| apt.download_with_dependencies(package, TOOLS_SUITE))
    }
}

impl Lab {
    /// Boots a guest and waits for its end. Where the emulation is to blame, or may be ([`emulation_suspected`]), the run
    /// is repeated, and said to be.
    pub fn boot(&self, boot: &Boot) -> Result<Outcome> {
        for repeated in 0..LEVEL1_RETRIES {
            let outcome = self.attempt(boot)?;
            if !outcome.emulation_failed {
                return Ok(Outcome { repeated, ..outcome });
            }
            let kept = cache::keep_run_directory(boot.name, "emulation-failed")?;
            let why = outcome.failure.unwrap_or_default();
            say::line(&format!("{why} ({}): once more", kept.display()));
        }
        Ok(Outcome { repeated: LEVEL1_RETRIES, ..self.attempt(boot)? })
    }

    fn attempt(&self, boot: &Boot) -> Result<Outcome> {
        let step = Step::begin(&format!("booting {} ({})", boot.kernel.release, boot.name));
        let directory = cache::run_directory(boot.name)?;
        let console_file = directory.join("guest.log");
        eprintln!("    the guest's console: {}", console_file.display());
        let images = tempfile::tempdir_in(&directory)?;
        let image = self.guest_image(boot)?;
        let began = Instant::now();
        let mut watch = match &self.supplies.outer {
            Some(outer) => self.start_outer(outer, boot, image, images.path(), &directory)?,
            None => self.start_here(boot, image, images.path(), &directory)?,
        };
        let ended = watch.wait(boot.limit)?;
        let took = began.elapsed();
        drop(watch);

        let console = read_lossy(&console_file);
        let outer_console = read_lossy(&directory.join("level1.log"));
        let transcript = Transcript::read(&console);
        let outer = Transcript::read(&outer_console);
        let vsva = [outer_console, read_lossy(&directory.join("vsva.log"))].concat();
        let level1_seconds = outer.fact("level1-seconds").and_then(|s| s.parse().ok());
        let emulation_failed =
            self.supplies.outer.is_some() && emulation_suspected(ended.as_ref(), &transcript, &outer, &vsva);
        let failure = ended
            .map(|end| end.to_string())
            .or_else(|| failure(&transcript, &outer, self.supplies.outer.is_some(), boot.programs));
        if let Some(path) = boot.trace {
            match self.bring_trace(images.path(), path) {
                // The run's own failure is what is to be seen.
                Err(e) if failure.is_some() => say::line(&format!("{e:#}")),
                brought => brought?,
            }
        }
        if let Some(why) = &failure {
            say::line(&format!("{}: {why}; the last lines of {}:", boot.name, console_file.display()));
            for line in console::last_lines(&console, LAST_LINES) {
                eprintln!("    | {line}");
            }
            // What vsva and level 1 said for themselves.
            let around: String =
                vsva.lines().filter(|l| !l.contains(ALIVE)).map(|l| l.to_owned() + "\n").collect();
            for line in console::last_lines(&around, LAST_LINES_AROUND) {
                eprintln!("    around it: {line}");
            }
        }
        step.done("the guest has ended");
        Ok(Outcome {
            transcript,
            console,
            console_file,
            vsva,
            failure,
            took,
            level1_seconds,
            emulation_failed,
            repeated: 0,
        })
    }

    fn guest_image(&self, boot: &Boot) -> Result<Vec<u8>> {
        let modules = Modules::open(&boot.kernel.modules, &self.supplies.busybox)?;
        let names: Vec<_> = boot.modules.iter().copied().filter(|name| modules.has(name)).collect();
        initramfs::Guest {
            busybox: &self.supplies.busybox,
            modules: &modules.in_order(&names)?,
            program: &self.binaries.guest,
            tree: boot.tree,
            script: boot.script,
        }
        .pack()
    }

    /// Puts the trace files where they are wanted. Level 1 left them on a disk, as an archive.
    fn bring_trace(&self, images: &Path, path: &Path) -> Result<()> {
        let disk = images.join(TRACE_DISK);
        if disk.exists() {
            let mut command = Command::new(&self.supplies.busybox);
            command.args(["tar", "-x", "-C"]).arg(images).arg("-f").arg(&disk);
            process::run(&mut command, "did level 1 come to its end?")?;
        }
        for suffix in ["", VIEWER_SUFFIX] {
            let [from, to] = [&images.join(TRACE), path].map(|p| {
                let mut name = p.as_os_str().to_owned();
                name.push(suffix);
                PathBuf::from(name)
            });
            fs::copy(&from, &to).with_context(|| format!("cannot put the trace into {}", to.display()))?;
            eprintln!("    the trace: {}", to.display());
        }
        Ok(())
    }

    fn arguments(boot: &Boot, kernel: &str, image: &str, disk: &str, trace: &str) -> Vec<String> {
        let append = format!("console=ttyS0 panic=-1 printk.devkmsg=on intel_iommu=on {}", boot.append);
        let mut arguments: Vec<_> = ["run", "--kernel", kernel, "--initrd", image, "--append", append.trim()]
            .map(str::to_owned)
            .into();
        arguments.extend(["--cpus".to_owned(), boot.cpus.to_string()]);
        arguments.extend(["--memory".to_owned(), format!("{}M", boot.memory_mib)]);
        if boot.disk {
            arguments.extend(["--disk".to_owned(), disk.to_owned()]);
        }
        if boot.trace.is_some() {
            arguments.extend(["--trace".to_owned(), trace.to_owned()]);
        }
        arguments.extend(boot.arguments.iter().map(|a| (*a).to_owned()));
        arguments
    }

    fn start_outer(
        &self,
        outer: &Outer,
        boot: &Boot,
        image: Vec<u8>,
        images: &Path,
        directory: &Path,
    ) -> Result<Watch> {
        let arguments =
            Self::arguments(boot, "/lab/kernel", "/lab/initrd", "/lab/disk", &format!("/lab/{TRACE}"));
        let available = Modules::open(&outer.kernel.modules, &self.supplies.busybox)?;
        let mut modules = vec!["kvm_amd"];
        if boot.trace.is_some() {
            // For the disk that takes the trace out.
            modules.extend(["virtio_pci", "virtio_blk"].iter().filter(|name| available.has(name)));
        }
        let kernel = fs::read(&boot.kernel.image)?;
        let disk = if boot.disk { vec![0; DISK_BYTES] } else { vec![] };
        let level1 = initramfs::Level1 {
            busybox: &self.supplies.busybox,
            modules: &available.in_order(&modules)?,
            vsva: &self.binaries.vsva,
            arguments: &arguments,
            files: &[("kernel", &kernel), ("initrd", &image), ("disk", &disk)],
        }
        .pack()?;
        let initrd = images.join("level1.cpio");
        fs::write(&initrd, &level1).with_context(|| no_room(&initrd))?;
        let memory = boot.memory_mib + LEVEL1_MIB + 2 * (level1.len() as u64 >> 20);
        let serial = |name: &str| format!("file:{}", directory.join(name).display());
        let errors = File::create(directory.join("qemu.log"))?;
        let mut command = outer.qemu.command();
        command
            .args(["-machine", "q35", "-accel", "tcg", "-cpu", "max,+svm", "-smp", LEVEL1_CPUS])
            .args(["-m", &format!("{memory}M"), "-nodefaults", "-no-user-config", "-display", "none"])
            .arg("-no-reboot")
            .args(["-serial", &serial("level1.log"), "-serial", &serial("guest.log")])
            .arg("-kernel")
            .arg(&outer.kernel.image)
            .arg("-initrd")
            .arg(&initrd)
            .args(["-append", "console=ttyS0 loglevel=5 panic=-1 mitigations=off"])
            .stdin(Stdio::null())
            .stdout(errors.try_clone()?)
            .stderr(errors);
        if boot.trace.is_some() {
            let disk = images.join(TRACE_DISK);
            File::create(&disk)?.set_len(TRACE_DISK_BYTES)?;
            command.arg("-drive").arg(format!("file={},format=raw,if=virtio", disk.display()));
        }
        let mut watch = Watch::start(command, directory, "qemu.log")?;
        watch.outer_silence = Some(LEVEL1_SILENCE);
        Ok(watch)
    }

    fn start_here(&self, boot: &Boot, image: Vec<u8>, images: &Path, directory: &Path) -> Result<Watch> {
        let (initrd, disk) = (images.join("guest.cpio"), images.join("disk"));
        fs::write(&initrd, image).with_context(|| no_room(&initrd))?;
        if boot.disk {
            fs::write(&disk, vec![0; DISK_BYTES]).with_context(|| no_room(&disk))?;
        }
        let text = |path: &Path| path.display().to_string();
        let mut command = Command::new(&self.binaries.vsva);
        command
            .args(Self::arguments(
                boot,
                &text(&boot.kernel.image),
                &text(&initrd),
                &text(&disk),
                &text(&images.join(TRACE)),
            ))
            .stdin(Stdio::null())
            .stdout(File::create(directory.join("guest.log"))?)
            .stderr(File::create(directory.join("vsva.log"))?);
        Watch::start(command, directory, "vsva.log")
    }
}

/// Whether the emulation is to blame for how a run in level 1 ended, or may be. Level 1's own kernel that panics, hangs or
/// is reset before vsva has ended runs under nothing else. A guest's processors that stand still or triple-fault were seen
/// at any point of a run, before any device was in use too, with level 1 alive; vsva has no part in what a processor does
/// between two exits. A guest that panics is its own, and so is whatever comes after a check that failed.
fn emulation_suspected(ended: Option<&End>, guest: &Transcript, outer: &Transcript, vsva: &str) -> bool {
    match ended {
        Some(End::Level1Panic | End::Level1Silent(_)) => true,
        None if outer.fact("exit").is_none() => true,
        _ if guest.checks.iter().any(|check| !check.passed) => false,
        Some(End::GuestSilent(_)) => true,
        Some(_) => false,
        None => vsva.contains(TRIPLE_FAULT),
    }
}

/// Why a run whose machine has ended by itself is a failure all the same.
fn failure(guest: &Transcript, outer: &Transcript, has_outer: bool, programs: usize) -> Option<String> {
    match outer.fact("exit") {
        None if has_outer => return Some("level 1 ended before vsva did".to_owned()),
        Some(status) if status != "0" => return Some(format!("vsva ended with status {status}")),
        _ => {}
    }
    if let Some(broken) = guest.broken.first() {
        return Some(format!("the console's protocol is broken: {broken}"));
    }
    if guest.done != programs {
        return Some(format!("{} of {programs} programs said that they were done", guest.done));
    }
    guest.fact("end").is_none().then(|| "the guest did not reach its end".to_owned())
}

/// A machine under way: it is killed when this value is dropped.
struct Watch {
    child: Guarded,
    console: Tail,
    outer: Tail,
    errors: PathBuf,
    silence: Duration,
    /// None without level 1.
    outer_silence: Option<Duration>,
}

impl Watch {
    fn start(mut command: Command, directory: &Path, errors: &str) -> Result<Self> {
        let child = Guarded::spawn(&mut command, "is it there and executable?")?;
        Ok(Self {
            child,
            console: Tail::new(directory.join("guest.log")),
            outer: Tail::new(directory.join("level1.log")),
            errors: directory.join(errors),
            silence: SILENCE,
            outer_silence: None,
        })
    }

    /// Waits for the end, showing the guest's checks as they come; gives the reason of a bad end.
    fn wait(&mut self, limit: Duration) -> Result<Option<End>> {
        let began = Instant::now();
        let (mut heard, mut heard_outer) = (began, began);
        let mut panicked: Option<(End, Instant)> = None;
        loop {
            process::check_interrupt()?;
            let status = self.child.status()?;
            for (tail, end) in [(&mut self.outer, End::Level1Panic), (&mut self.console, End::GuestPanic)] {
                for line in tail.lines() {
                    // A line of vsva or of the kernel in level 1 is a sign of life like those given on purpose.
                    match end {
                        End::GuestPanic => heard = Instant::now(),
                        _ => heard_outer = Instant::now(),
                    }
                    show(&line);
                    if console::is_panic(&line) {
                        panicked.get_or_insert_with(|| (end.clone(), Instant::now()));
                    }
                }
            }
            match (status, &panicked) {
                (Some(_), Some((end, _))) => return Ok(Some(end.clone())),
                (None, Some((end, at))) if at.elapsed() > GRACE => return Ok(Some(end.clone())),
                (Some(status), None) if status.success() => return Ok(None),
                (Some(status), None) => {
                    let text = read_lossy(&self.errors);
                    return Ok(Some(End::Failed(format!("{status}: {}", process::first_error(&text)))));
                }
                (None, _) if self.outer_silence.is_some_and(|longest| heard_outer.elapsed() > longest) => {
                    return Ok(Some(End::Level1Silent(heard_outer.elapsed())));
                }
                (None, _) if heard.elapsed() > self.silence => {
                    return Ok(Some(End::GuestSilent(self.silence)));
                }
                (None, _) if began.elapsed() > limit => return Ok(Some(End::Limit(limit))),
                (None, _) => std::thread::sleep(TICK),
            }
        }
    }
}

/// Progress for people: that a level has come up, and each check as it is made.
fn show(line: &str) {
    match console::message(line) {
        Some(Message::Check(check)) => {
            let result = if check.passed { "ok    " } else { "FAILED" };
            eprintln!("    {result}  {}", check.name);
        }
        Some(Message::Fact(name, seconds)) if name.ends_with("-seconds") => {
            eprintln!(
                "    {}'s user space after {seconds} s of its own time",
                name.trim_end_matches("-seconds")
            );
        }
        _ => {}
    }
}

/// The lines that have come to a growing file since the last look.
struct Tail {
    path: PathBuf,
    at: u64,
    rest: Vec<u8>,
}

impl Tail {
    fn new(path: PathBuf) -> Self {
        Self { path, at: 0, rest: vec![] }
    }

    fn lines(&mut self) -> Vec<String> {
        let mut new = vec![];
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.at))?;
            file.read_to_end(&mut new)
        });
        // Not there yet is as good as empty.
        self.at += read.unwrap_or(0) as u64;
        self.rest.append(&mut new);
        let Some(end) = self.rest.iter().rposition(|b| *b == b'\n') else { return vec![] };
        let rest = self.rest.split_off(end + 1);
        let whole = std::mem::replace(&mut self.rest, rest);
        String::from_utf8_lossy(&whole).lines().map(str::to_owned).collect()
    }
}

fn no_room(path: &Path) -> String {
    format!("cannot write {}: is the disk full?", path.display())
}

fn read_lossy(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// A static busybox: Debian's, or the machine's own where there is no apt.
fn busybox(cache: &Cache, mirror: Option<&Mirror>) -> Result<PathBuf> {
    let has_apt = Command::new("apt-get").arg("--version").stdout(Stdio::null()).status().is_ok();
    if mirror.is_none() || !has_apt {
        return own_busybox();
    }
    let apt = Apt::open(cache, mirror, TOOLS_SUITE)?;
    let package = apt.newest(TOOLS_SUITE, "busybox-static")?;
    let name = format!("tools/busybox_{}", package.file_version());
    let tree = unpacked(cache, &name, 8 * package.size, |into| apt.download(&[&package], into))?;
    Ok(tree.join("usr/bin/busybox"))
}

fn own_busybox() -> Result<PathBuf> {
    const LOADER: &[u8] = b"/ld-linux";
    let path = std::env::var_os("PATH").unwrap_or_default();
    for candidate in std::env::split_paths(&path).map(|directory| directory.join("busybox")) {
        if fs::read(&candidate).is_ok_and(|elf| !elf.windows(LOADER.len()).any(|w| w == LOADER)) {
            return Ok(candidate);
        }
    }
    bail!("there is neither apt with a Debian mirror nor a static busybox here: install busybox-static")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_tail_gives_whole_lines_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut tail = Tail::new(path.clone());
        assert_eq!(tail.lines(), Vec::<String>::new());
        let mut file = File::create(&path).unwrap();
        file.write_all(b"one\ntw").unwrap();
        assert_eq!(tail.lines(), ["one"]);
        file.write_all(b"o\nthree\n").unwrap();
        assert_eq!(tail.lines(), ["two", "three"]);
    }

    #[test]
    fn only_what_the_emulation_may_have_done_is_repeated() {
        let good = Transcript::read("VSVA-CHECK {\"name\":\"a\",\"passed\":true,\"detail\":\"\"}\n");
        let bad = Transcript::read("VSVA-CHECK {\"name\":\"a\",\"passed\":false,\"detail\":\"\"}\n");
        let crashed = format!("vsva: {TRIPLE_FAULT} on processor 0\n");
        let outer = Transcript::read("VSVA-FACT exit 1\n");
        let silent = Some(&End::GuestSilent(SILENCE));
        for end in [End::Level1Panic, End::Level1Silent(LEVEL1_SILENCE)] {
            assert!(emulation_suspected(Some(&end), &bad, &outer, ""));
        }
        assert!(emulation_suspected(silent, &good, &outer, ""));
        assert!(!emulation_suspected(silent, &bad, &outer, ""), "a check has failed before");
        assert!(emulation_suspected(None, &good, &outer, &crashed));
        assert!(!emulation_suspected(None, &bad, &outer, &crashed));
        assert!(!emulation_suspected(None, &good, &outer, "vsva: KVM cannot run processor 0\n"));
        assert!(emulation_suspected(None, &bad, &Transcript::default(), ""), "level 1 was reset");
        for end in [End::GuestPanic, End::Failed(String::new()), End::Limit(SILENCE)] {
            assert!(!emulation_suspected(Some(&end), &good, &outer, ""));
        }
    }

    #[test]
    fn a_run_without_its_end_is_a_failure() {
        let whole =
            "VSVA-CHECK {\"name\":\"a\",\"passed\":true}\nVSVA-DONE {\"checks\":1}\nVSVA-FACT end 0\n";
        let guest = Transcript::read(whole);
        let exit = |status: &str| Transcript::read(&format!("VSVA-FACT exit {status}\n"));
        assert_eq!(failure(&guest, &exit("0"), true, 1), None);
        assert_eq!(failure(&guest, &Transcript::default(), false, 1), None);
        for (guest, outer, programs, why) in [
            (&guest, exit("1"), 1, "status 1"),
            (&guest, Transcript::default(), 1, "level 1 ended"),
            (&guest, exit("0"), 2, "1 of 2 programs"),
            (&Transcript::read("VSVA-DONE {\"checks\":0}\n"), exit("0"), 1, "did not reach its end"),
            (&Transcript::read("VSVA-DONE {\"checks\":3}\n"), exit("0"), 1, "protocol is broken"),
        ] {
            let found = failure(guest, &outer, true, programs).unwrap();
            assert!(found.contains(why), "{found}");
        }
    }

    #[test]
    fn a_machine_that_hangs_is_ended_at_its_limit() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("600");
        let mut watch = Watch::start(command, directory.path(), "errors").unwrap();
        let limit = Duration::from_millis(300);
        assert_eq!(watch.wait(limit).unwrap(), Some(End::Limit(limit)));
    }

    #[test]
    fn a_machine_that_falls_silent_is_ended_before_its_limit() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("600");
        let mut watch = Watch::start(command, directory.path(), "errors").unwrap();
        watch.silence = Duration::from_millis(300);
        assert_eq!(watch.wait(Duration::from_secs(60)).unwrap(), Some(End::GuestSilent(watch.silence)));
    }

    #[test]
    fn a_silent_guest_is_not_blamed_on_a_level_1_that_lives() {
        for (script, level1_hangs) in [
            ("while sleep 0.2; do echo VSVA-ALIVE >>level1.log; done", false),
            ("while sleep 0.2; do echo a check >>guest.log; done", true),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let mut command = Command::new("sh");
            command.args(["-c", script]).current_dir(directory.path());
            let mut watch = Watch::start(command, directory.path(), "errors").unwrap();
            (watch.silence, watch.outer_silence) = (Duration::from_secs(3), Some(Duration::from_secs(2)));
            let end = watch.wait(Duration::from_secs(60)).unwrap();
            assert_eq!(matches!(end, Some(End::Level1Silent(_))), level1_hangs, "{script}: {end:?}");
            assert_eq!(matches!(end, Some(End::GuestSilent(_))), !level1_hangs, "{script}: {end:?}");
        }
    }

    #[test]
    fn panics_of_guest_and_level_1_are_told_apart_and_from_another_end() {
        let line = "[ 1.0] Kernel panic - not syncing: x\n";
        for (log, end) in [
            ("guest.log", Some(End::GuestPanic)),
            ("level1.log", Some(End::Level1Panic)),
            ("other.log", None),
        ] {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join(log), line).unwrap();
            let mut watch = Watch::start(Command::new("true"), directory.path(), "errors").unwrap();
            assert_eq!(watch.wait(Duration::from_secs(30)).unwrap(), end, "{log}");
        }
    }

    #[test]
    fn a_failing_machine_tells_why() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("errors"), "vsva: error: no such file\n").unwrap();
        let mut watch = Watch::start(Command::new("false"), directory.path(), "errors").unwrap();
        let end = watch.wait(Duration::from_secs(30)).unwrap().unwrap();
        assert!(end.to_string().contains("no such file"), "{end}");
    }
}
