//! Parses the command line, calls the library, and turns the answer into an exit code.

use std::{num::NonZero, path::PathBuf, process::ExitCode, time::Duration};

use credproxy::{
    cli::{self, AuditArgs, Cli, Command, Exit, Failure, Options, Serve, Severity, StoreCommand, ask_passphrase},
    config::{Confinement, Environment, KeySource, dev_socket},
    lifecycle::{self, check, confine, dev},
    telemetry,
};
use tokio::runtime::Builder;

fn main() -> ExitCode {
    let Cli { options, command } = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(exit) => return exit,
    };
    let env = Environment::process();
    if !matches!(command, Command::Serve(_))
        && let Err(failure) = harden_process()
    {
        return failure.report();
    }
    let done = match command {
        Command::Serve(how) => serve(&options, &how, &env),
        Command::Check => check(&options, &env),
        Command::Providers => options.configuration(&env).and_then(|config| cli::print_presets(&config, options.json)),
        Command::Store(command) => store(&options, &command, &env),
        Command::Audit(wanted) => audit(&options, &wanted, &env),
        Command::Client(command) => block_on(&mut Builder::new_current_thread(), cli::run(&options, &command, &env)),
    };
    done.unwrap_or_else(|failure| failure.report())
}

/// Every command may hold a secret: a token, a key, the store's key.
fn harden_process() -> Result<(), Failure> {
    let tracer = confine::harden_command_process().map_err(|error| Failure::new(Exit::Failure, error))?;
    if let Some(tracer) = tracer {
        cli::warn_of_tracer(tracer);
    }
    Ok(())
}

/// The time that threads have to end. Whatever matters has been waited for by then; the rest may never end: a name
/// server that does not answer, a terminal that is still being read from.
const THREAD_SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);

/// Runs the command on its own runtime and abandons what does not end with it.
fn block_on<T>(builder: &mut Builder, work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = builder.enable_all().build().map_err(|error| Failure::new(Exit::Failure, error))?;
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(THREAD_SHUTDOWN_TIMEOUT);
    Ok(done)
}

/// One processor gives a hundred thousand answers per second. More threads than these, on a machine that has many
/// processors, would take memory and be idle.
const MAX_WORKERS: usize = 4;

fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get).min(MAX_WORKERS)
}

fn serve(options: &Options, how: &Serve, env: &Environment) -> Result<ExitCode, Failure> {
    telemetry::start(&env.log_filter());
    let failed = |error| Failure::new(Exit::Failure, error);
    confine::harden_daemon_process(how.traced).map_err(failed)?;
    if how.dev {
        let socket = dev_socket(options.socket.as_deref(), env)?;
        let announce =
            |paths: &[PathBuf]| paths.iter().try_for_each(|path| cli::print_dev_session(path, dev::ALIVE, dev::DEAD));
        block_on(Builder::new_multi_thread().worker_threads(workers()), dev::serve(socket, env, announce))?
            .map_err(failed)??;
    } else {
        let config = options.configuration(env)?;
        env.check_certificates()?;
        let wanted = if how.unconfined { Confinement::Off } else { config.confine };
        let confined = confine::confine(&config, env, wanted).map_err(failed)?;
        let served = lifecycle::serve(&config, confined, &ask_passphrase);
        block_on(Builder::new_multi_thread().worker_threads(workers()), served)?.map_err(failed)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn check(options: &Options, env: &Environment) -> Result<ExitCode, Failure> {
    let config = options.configuration(env)?;
    env.check_certificates()?;
    let findings = block_on(&mut Builder::new_current_thread(), check::check(&config, env, &ask_passphrase))?;
    let row = |finding: check::Finding| match finding.result {
        Ok(detail) if finding.is_warning => (finding.subject, Severity::Warning, detail),
        Ok(detail) => (finding.subject, Severity::Ok, detail),
        Err(detail) => (finding.subject, Severity::Wrong, detail),
    };
    Ok(cli::print_findings(&findings.into_iter().map(row).collect::<Vec<_>>(), options.json))
}

fn audit(options: &Options, wanted: &AuditArgs, env: &Environment) -> Result<ExitCode, Failure> {
    let config = options.configuration(env)?;
    cli::print_audit(&config.audit, wanted, options.json)
}

fn store(options: &Options, command: &StoreCommand, env: &Environment) -> Result<ExitCode, Failure> {
    let config = options.configuration(env)?;
    let runtime = &mut Builder::new_current_thread();
    let failed = |error| Failure::new(Exit::Failure, error);
    match command {
        StoreCommand::Backup { target } => {
            let copied = lifecycle::store::backup(&config, env, &ask_passphrase, target);
            let found = block_on(runtime, copied)?.map_err(failed)?;
            cli::print_backup(target, &config.store.key.place(), &found, options.json)
        }
        StoreCommand::Verify { copy } => {
            let found = lifecycle::store::verify(&config, env, &ask_passphrase, copy.as_deref());
            cli::print_verification(&block_on(runtime, found)?.map_err(failed)?, options.json)
        }
        StoreCommand::Rekey { to } => {
            let parse = |text: &String| KeySource::parse(text, &config.store.path);
            let unknown = || Failure::new(Exit::Usage, format!("--to {}", KeySource::FORM));
            let source = to.as_ref().map(|text| parse(text).ok_or_else(unknown)).transpose()?;
            let rekeyed = lifecycle::store::rekey(&config, env, &ask_passphrase, source.as_ref());
            let done = block_on(runtime, rekeyed)?.map_err(failed)?;
            let moved = source.is_some_and(|source| source != config.store.key);
            cli::print_rekeyed(done.sealed, done.before, &done.place, moved, options.json)
        }
    }
}
