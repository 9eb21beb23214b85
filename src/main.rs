//! Parses the command line, calls the library, and turns the answer into an exit code.

use std::{num::NonZero, path::PathBuf, process::ExitCode};

use credproxy::{
    cli::{self, AuditArgs, Cli, Command, Exit, Failure, Options, Serve, StoreCommand, ask_passphrase},
    config::{Environment, KeySource, dev_socket},
    lifecycle::{self, check, confine, dev},
    telemetry,
};
use tokio::runtime::{Builder, Runtime};

fn main() -> ExitCode {
    let Cli { options, command } = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(exit) => return exit,
    };
    let env = Environment::process();
    let done = match command {
        Command::Serve(how) => serve(&options, &how, &env),
        Command::Check => check(&options, &env),
        Command::Providers => options.configuration(&env).and_then(|config| cli::print_presets(&config, options.json)),
        Command::Store(command) => store(&options, &command, &env),
        Command::Audit(wanted) => audit(&options, &wanted, &env),
        Command::Client(command) => runtime(&mut Builder::new_current_thread()).map(|runtime| {
            let exit = runtime.block_on(cli::run(&options, &command, &env));
            // A terminal that is still being read from would keep the runtime until the next line.
            runtime.shutdown_background();
            exit
        }),
    };
    done.unwrap_or_else(|failure| failure.report())
}

fn runtime(builder: &mut Builder) -> Result<Runtime, Failure> {
    builder.enable_all().build().map_err(|error| Failure::new(Exit::Failure, error))
}

/// One processor gives a hundred thousand answers per second. More threads than these, on a machine that has many
/// processors, would take memory and be idle.
const MOST_WORKERS: usize = 4;

fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get).min(MOST_WORKERS)
}

fn serve(options: &Options, how: &Serve, env: &Environment) -> Result<ExitCode, Failure> {
    telemetry::start(&env.log_filter());
    let failed = |error| Failure::new(Exit::Failure, error);
    confine::close_up().map_err(failed)?;
    if how.dev {
        let runtime = runtime(Builder::new_multi_thread().worker_threads(workers()))?;
        let socket = dev_socket(options.socket.as_deref(), env)?;
        let announce =
            |paths: &[PathBuf]| paths.iter().try_for_each(|path| cli::print_dev_session(path, dev::ALIVE, dev::DEAD));
        runtime.block_on(dev::serve(socket, env, announce)).map_err(failed)??;
    } else {
        let config = options.configuration(env)?;
        let confined = confine::confine(&config, env, !how.unconfined).map_err(failed)?;
        let runtime = runtime(Builder::new_multi_thread().worker_threads(workers()))?;
        runtime.block_on(lifecycle::serve(&config, confined, &ask_passphrase)).map_err(failed)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn check(options: &Options, env: &Environment) -> Result<ExitCode, Failure> {
    let config = options.configuration(env)?;
    let findings = runtime(&mut Builder::new_current_thread())?.block_on(check::check(&config, env, &ask_passphrase));
    let findings: Vec<_> = findings.into_iter().map(|finding| (finding.subject, finding.result)).collect();
    Ok(cli::print_findings(&findings, options.json))
}

fn audit(options: &Options, wanted: &AuditArgs, env: &Environment) -> Result<ExitCode, Failure> {
    let config = options.configuration(env)?;
    cli::print_audit(&config.audit, wanted, options.json)
}

fn store(options: &Options, command: &StoreCommand, env: &Environment) -> Result<ExitCode, Failure> {
    let config = options.configuration(env)?;
    let runtime = runtime(&mut Builder::new_current_thread())?;
    let failed = |error| Failure::new(Exit::Failure, error);
    match command {
        StoreCommand::Backup { target } => {
            let copied = lifecycle::store::backup(&config, env, &ask_passphrase, target);
            let found = runtime.block_on(copied).map_err(failed)?;
            cli::print_backup(target, &config.store.key.place(), &found, options.json)
        }
        StoreCommand::Verify { copy } => {
            let found = lifecycle::store::verify(&config, env, &ask_passphrase, copy.as_deref());
            cli::print_verification(&runtime.block_on(found).map_err(failed)?, options.json)
        }
        StoreCommand::Rekey { to } => {
            let parse = |text: &String| KeySource::parse(text, &config.store.path);
            let unknown = || Failure::new(Exit::Usage, format!("--to {}", KeySource::FORM));
            let source = to.as_ref().map(|text| parse(text).ok_or_else(unknown)).transpose()?;
            let rekeyed = lifecycle::store::rekey(&config, env, &ask_passphrase, source.as_ref());
            let done = runtime.block_on(rekeyed).map_err(failed)?;
            let moved = source.is_some_and(|source| source != config.store.key);
            cli::print_rekeyed(done.sealed, done.before, &done.place, moved, options.json)
        }
    }
}
