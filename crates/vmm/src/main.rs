// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command `vsva`.

use std::fmt::Display;
use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::process::ExitCode;
use std::sync::Arc;
use std::{panic, thread};

use clap::Parser;
use clap::error::ErrorKind;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use vmm::boot::Payload;
use vmm::cli::{self, Cli, Command, RunArgs};
use vmm::machine::{Config, Machine};
use vmm::stop::{Outcome, Stop};
use vmm::trace::{Recording, Summary, Trace};
use vmm::{check, sandbox, signals};

/// What is logged unless VSVA_LOG says otherwise. The virtio rings' errors are the guest's mistakes, as many as it likes.
const LOG: &str = "warn,virtio_queue=off";

fn main() -> ExitCode {
    let filter = std::env::var("VSVA_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    let filter = filter.or_else(|| LOG.parse().ok()).unwrap_or_default();
    let log = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_filter(filter);
    tracing_subscriber::registry().with(log).init();

    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if e.use_stderr() && e.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            return wrong_use(&cli::one_line(&e)).into();
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

/// Tells the user. That nobody reads it is no reason to stop.
fn say(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Says what is wrong with the command line and where to look; returns the exit status.
fn wrong_use(line: &str) -> u8 {
    let command = std::env::args().nth(1).filter(|name| cli::has_command(name));
    say(format_args!("vsva: {line} (see vsva {}--help)", command.map_or(String::new(), |name| name + " ")));
    cli::STATUS_USAGE
}

/// Runs a machine; returns the exit status.
fn run(args: RunArgs) -> u8 {
    if let Err(line) = args.check() {
        return wrong_use(&line);
    }
    match build_and_run(args) {
        Ok(status) => status,
        Err(error) => {
            say(format_args!("vsva: {error}"));
            cli::STATUS_ERROR
        }
    }
}

fn build_and_run(args: RunArgs) -> anyhow::Result<u8> {
    let stop = Arc::new(Stop::default());
    // Before any other thread starts.
    sandbox::begin(args.sandbox)?;
    signals::install(stop.clone()).map_err(|e| anyhow::anyhow!("cannot set up signals: {e}"))?;
    stop_on_panic(stop.clone());
    let trace = args.trace.as_deref().map(Trace::create).transpose()?;
    let config = Config {
        payload: Payload { kernel: args.kernel, initrd: args.initrd, command_line: args.append },
        processors: args.cpus,
        memory: args.memory,
        iommu: args.iommu,
        devices: args.devices,
        disks: args.disks,
        console_log: args.console_log,
    };
    let traces = args.trace.as_deref().map(|path| [path.to_owned(), vmm::trace::viewer_path(path)]);
    let outputs = traces.into_iter().flatten().chain(config.console_log.clone());
    let outputs: Vec<_> = outputs.collect();
    let machine = Machine::new(&config, &outputs, trace.as_ref().map(Trace::tracer), stop.clone())?;
    // Never dropped, the process ends: a device's destructor waits for its work in flight, and that may wait for a
    // guest that is no more.
    let mut machine = ManuallyDrop::new(machine);
    let trace = trace.filter(|_| !stop.requested()).map(Trace::start).transpose()?;
    let outcome = machine.run();
    if let Some(trace) = trace {
        finish(trace);
    }
    if args.figures
        && let Some(nested) = machine.nested()
    {
        match serde_json::to_string(&nested) {
            Ok(line) => say(format_args!("VSVA-NESTED {line}")),
            Err(error) => say(format_args!("vsva: {error}")),
        }
    }
    Ok(match outcome? {
        Outcome::PowerOff => cli::STATUS_POWER_OFF,
        Outcome::Reset => {
            say("vsva: the guest reset itself");
            cli::STATUS_RESET
        }
        Outcome::Quit => {
            say("\nvsva: ended with Ctrl-A x");
            cli::STATUS_QUIT
        }
        Outcome::Signal(signal) => {
            say(format_args!("vsva: ended by signal {signal}"));
            u8::try_from(128 + signal).unwrap_or(cli::STATUS_ERROR)
        }
        Outcome::Failed(message) => {
            say(format_args!("vsva: {message}"));
            cli::STATUS_ERROR
        }
    })
}

/// A panic on any thread ends the machine: what that thread did, nobody does any more.
fn stop_on_panic(stop: Arc<Stop>) {
    let previous = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        previous(info);
        let name = thread::current().name().unwrap_or("unnamed").to_owned();
        stop.request(Outcome::Failed(format!("internal error: thread {name} panicked")));
    }));
}

/// Ends the trace, and says what is missing in it.
fn finish(trace: Recording) {
    match trace.finish() {
        Ok(Summary { dropped: 0, .. }) => {}
        Ok(Summary { events, dropped }) => say(format_args!(
            "vsva: the trace lacks {dropped} of {} events, which came faster than they could be written",
            events + dropped
        )),
        Err(error) => say(format_args!("vsva: {error}")),
    }
}
