//! Parses the command line, calls the library, and turns the answer into an exit code.

use std::{path::PathBuf, process::ExitCode};

use credproxy::{
    cli::{self, Cli, Command, Exit, Failure, Options, Serve},
    config::{Environment, dev_socket},
    lifecycle::{self, check, dev},
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

fn serve(options: &Options, how: &Serve, env: &Environment) -> Result<ExitCode, Failure> {
    telemetry::start(&env.log_filter());
    let runtime = runtime(&mut Builder::new_multi_thread())?;
    let failed = |error| Failure::new(Exit::Failure, error);
    if how.dev {
        let socket = dev_socket(options.socket.as_deref(), env)?;
        let announce =
            |paths: &[PathBuf]| paths.iter().try_for_each(|path| cli::print_dev_session(path, dev::ALIVE, dev::DEAD));
        runtime.block_on(dev::serve(socket, announce)).map_err(failed)??;
    } else {
        let config = options.configuration(env)?;
        runtime.block_on(lifecycle::serve(&config, env)).map_err(failed)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn check(options: &Options, env: &Environment) -> Result<ExitCode, Failure> {
    let config = options.configuration(env)?;
    let findings = runtime(&mut Builder::new_current_thread())?.block_on(check::check(&config, env));
    let findings: Vec<_> = findings.into_iter().map(|finding| (finding.subject, finding.result)).collect();
    Ok(cli::print_findings(&findings, options.json))
}
