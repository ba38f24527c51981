// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The program of the guest: drives a DSA by plain pointers and checks every byte of what it does against the CPU.
//!
//! As PID 1 of an initramfs it takes its options from the kernel's command line (`vsva.mode=demo vsva.seed=1 …`),
//! mounts what it needs, loads the modules that /modules.list names, runs and switches the machine off. As an
//! ordinary program: `guest demo --seed=1`.
//!
//! On the console, each on a line of its own: `VSVA-CHECK {"name","passed","detail"}`,
//! `VSVA-FIGURE {"name","value","unit"}`, `VSVA-ALIVE NAME STEPS` while something goes on, `VSVA-EXPECT-FAULT begin|end NAME` around checks that may make the IOMMU
//! log faults, and at the end `VSVA-DONE {"checks"}`.

mod accel_config;
mod checks;
mod completion;
mod descriptor;
mod disk;
mod facts;
mod follow;
mod init;
mod kmsg;
mod memory;
mod options;
mod pattern;
mod portal;
mod process;
mod progress;
mod reference;
mod report;
mod rounds;
mod runner;
#[cfg(test)]
mod soft;
mod sysfs;

use std::path::Path;

use anyhow::{Result, ensure};

use options::{Mode, Options};
use runner::{Lab, Runner, watched};
use sysfs::Device;

fn main() {
    if init::is_init() {
        init::set_up();
        let options = std::fs::read_to_string("/proc/cmdline")
            .map_err(anyhow::Error::from)
            .and_then(|line| Options::from_kernel(&line));
        init::supervise(|| run(options, true));
    }
    std::process::exit(run(Options::from_arguments(std::env::args().skip(1)), false));
}

/// Runs the mode and gives the exit status.
fn run(options: Result<Options>, as_init: bool) -> i32 {
    // Short sleeps while waiting for the device should be short.
    // SAFETY: no memory is passed.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1000) };
    progress::share();
    let options = match options {
        Ok(options) => options,
        Err(error) => {
            eprintln!("guest: {error:#}");
            return 2;
        }
    };
    if options.mode == Mode::Follow {
        return match follow::follow(Path::new(&options.console)) {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("guest: {error:#}");
                1
            }
        };
    }
    let mut runner = Runner::new(&options);
    if as_init {
        match init::load_modules(Path::new("/modules.list")) {
            Ok(names) => runner.report.check("modules", true, &format!("loaded: {}", names.join(" "))),
            Err(error) => runner.report.check("modules", false, &format!("{error:#}")),
        }
    }
    let passed = match options.mode {
        Mode::Demo => demo(&mut runner, &options),
        Mode::AccelConfig => accel_config(&mut runner, &options),
        Mode::Disk => {
            environment(&mut runner);
            disk::run(&mut runner.report, &options.disk, options.seed);
            runner.check_log();
            runner.report.done();
            runner.report.all_passed()
        }
        Mode::Shell => shell(&mut runner),
        Mode::Follow => true,
    };
    i32::from(!passed)
}

fn environment(runner: &mut Runner) {
    runner.report.check("environment-system", true, &facts::system());
    match facts::iommu() {
        Ok(detail) => runner.report.check("environment-iommu", true, &detail),
        Err(error) => runner.report.check("environment-iommu", false, &format!("{error:#}")),
    }
}

/// Finds the device and brings it up with `bring_up`, in a child: an interrupt that never comes makes the driver
/// wait for ever.
fn bring_up(runner: &mut Runner, name: &str, bring_up: fn(&Device) -> Result<String>) -> Option<Device> {
    let outcome = Device::find().and_then(|device| {
        let (_, detail) = watched(name, |_| {
            facts::scalable_mode()?;
            let missing = device.missing_operations()?;
            ensure!(missing.is_empty(), "the device lacks operations: {}", missing.join(", "));
            let detail = bring_up(&device)?;
            Ok(format!("{detail}; {}", facts::device(&device)?))
        })?;
        Ok((device, detail))
    });
    runner.kmsg.drain(false);
    match outcome {
        Ok((device, detail)) => {
            runner.report.check(name, true, &detail);
            Some(device)
        }
        Err(error) => {
            runner.report.check(name, false, &format!("{error:#}"));
            None
        }
    }
}

fn lab(device: Device, options: &Options) -> Lab {
    Lab {
        device: Some(device),
        seed: options.seed,
        disk: Some(options.disk.clone().into()),
        large: options.large_mib << 20,
        first_queue: 0,
    }
}

fn demo(runner: &mut Runner, options: &Options) -> bool {
    environment(runner);
    if !checks::all().iter().any(|check| options.wants(check.name)) {
        let known: Vec<_> = checks::all().iter().map(|check| check.name).collect();
        runner.report.check(
            "only",
            false,
            &format!("no check has such a name; there are {}", known.join(" ")),
        );
    }
    match bring_up(runner, "bring-up-sysfs", Device::bring_up) {
        Some(device) => {
            let mut lab = lab(device, options);
            for check in checks::all() {
                runner.run(&mut lab, &check);
            }
        }
        None => {
            for check in checks::all() {
                runner.report.check(check.name, false, "not run: the device could not be brought up");
            }
        }
    }
    runner.check_log();
    runner.report.figure("guest-run-time", runner.elapsed(), "s");
    runner.report.done();
    runner.report.all_passed()
}

fn accel_config(runner: &mut Runner, options: &Options) -> bool {
    environment(runner);
    if let Some(device) = bring_up(runner, "bring-up-accel-config", accel_config::bring_up) {
        let mut lab = lab(device.clone(), options);
        for check in checks::operations() {
            runner.run(&mut lab, &check);
        }
        match watched("tear-down-accel-config", |_| accel_config::tear_down(&device)) {
            Ok((_, detail)) => runner.report.check("tear-down-accel-config", true, &detail),
            Err(error) => runner.report.check("tear-down-accel-config", false, &format!("{error:#}")),
        }
    }
    runner.check_log();
    runner.report.done();
    runner.report.all_passed()
}

fn shell(runner: &mut Runner) -> bool {
    println!("{}", facts::system());
    bring_up(runner, "bring-up-sysfs", Device::bring_up);
    println!("guest: run checks with `/init demo`; the machine goes off when the shell ends");
    match init::shell() {
        Ok(()) => true,
        Err(error) => {
            println!("guest: {error:#}");
            false
        }
    }
}
