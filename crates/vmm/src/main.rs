// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command `vsva`.

use std::io;
use std::mem::ManuallyDrop;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use clap::error::ErrorKind;
use tracing_subscriber::EnvFilter;
use vmm::boot::Payload;
use vmm::cli::{self, Cli, Command, RunArgs};
use vmm::machine::{Config, Machine, Outcome, Stop};
use vmm::trace::{Summary, Trace};
use vmm::{check, signals, terminal};

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("VSVA_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();

    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if e.use_stderr() && e.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            eprintln!("vsva: {} (see vsva --help)", cli::one_line(&e));
            return cli::STATUS_USAGE.into();
        }
        Err(help) => {
            let _ = help.print();
            return if help.use_stderr() { cli::STATUS_USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    match cli.command {
        Command::Run(args) => run(*args).into(),
        Command::Check(args) => check::main(args.json),
    }
}

/// Runs a machine; returns the exit status.
fn run(args: RunArgs) -> u8 {
    if let Err(line) = args.check() {
        eprintln!("vsva: {line} (see vsva --help)");
        return cli::STATUS_USAGE;
    }
    let trace = match args.trace.as_deref().map(Trace::create).transpose() {
        Ok(trace) => trace,
        Err(error) => {
            eprintln!("vsva: {error}");
            return cli::STATUS_ERROR;
        }
    };
    let config = Config {
        payload: Payload { kernel: args.kernel, initrd: args.initrd, command_line: args.append },
        processors: args.cpus,
        memory: args.memory,
        iommu: args.iommu,
        devices: args.devices,
        disks: args.disks,
        console_log: args.console_log,
    };
    let stop = Arc::new(Stop::default());
    let built = signals::install(stop.clone())
        .map_err(|e| anyhow::anyhow!("cannot set up signals: {e}"))
        .and_then(|()| Ok(Machine::new(&config, trace.as_ref().map(Trace::tracer), stop)?));
    let mut machine = match built {
        // Never dropped, the process ends: a device's destructor waits for its work in flight, and that may wait for
        // a guest that is no more.
        Ok(machine) => ManuallyDrop::new(machine),
        Err(error) => {
            eprintln!("vsva: {error}");
            return cli::STATUS_ERROR;
        }
    };
    let outcome = machine.run();
    terminal::restore();
    if let Some(trace) = trace {
        finish(trace);
    }
    if args.figures
        && let Some(nested) = machine.nested()
    {
        match serde_json::to_string(&nested) {
            Ok(line) => eprintln!("VSVA-NESTED {line}"),
            Err(error) => eprintln!("vsva: {error}"),
        }
    }
    match outcome {
        Ok(Outcome::PowerOff) => cli::STATUS_POWER_OFF,
        Ok(Outcome::Reset) => {
            eprintln!("vsva: the guest reset itself");
            cli::STATUS_RESET
        }
        Ok(Outcome::Quit) => {
            eprintln!("\nvsva: ended with Ctrl-A x");
            cli::STATUS_QUIT
        }
        Ok(Outcome::Signal(signal)) => {
            eprintln!("vsva: ended by signal {signal}");
            u8::try_from(128 + signal).unwrap_or(cli::STATUS_ERROR)
        }
        Ok(Outcome::Failed(message)) => {
            eprintln!("vsva: {message}");
            cli::STATUS_ERROR
        }
        Err(error) => {
            eprintln!("vsva: {error}");
            cli::STATUS_ERROR
        }
    }
}

/// Ends the trace, and says what is missing in it.
fn finish(trace: Trace) {
    match trace.finish() {
        Ok(Summary { dropped: 0, .. }) => {}
        Ok(Summary { events, dropped }) => eprintln!(
            "vsva: the trace lacks {dropped} of {} events, which came faster than they could be written",
            events + dropped
        ),
        Err(error) => eprintln!("vsva: {error}"),
    }
}
