//! Parses the command line, calls the library, and turns the answer into an exit code.

use std::process::ExitCode;

use credproxy::{
    cli::{self, Cli, Command, Exit, Failure, Options, Serve},
    config::Environment,
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
        Command::Client(command) => runtime(&mut Builder::new_current_thread())
            .map(|runtime| runtime.block_on(cli::run(&options, &command, &env))),
    };
    done.unwrap_or_else(|failure| failure.report())
}

fn runtime(builder: &mut Builder) -> Result<Runtime, Failure> {
    builder.enable_all().build().map_err(|error| Failure::new(Exit::Failure, error))
}

/// `lifecycle::serve` belongs here, on a runtime of several threads (`Builder::new_multi_thread`).
fn serve(options: &Options, how: &Serve, env: &Environment) -> Result<ExitCode, Failure> {
    if !how.dev {
        options.configuration(env)?;
    }
    Err(Failure::new(Exit::Failure, "this build has no daemon"))
}

/// `lifecycle::check` and `cli::print_findings` belong here.
fn check(options: &Options, env: &Environment) -> Result<ExitCode, Failure> {
    options.configuration(env)?;
    Err(Failure::new(Exit::Failure, "this build has no daemon"))
}
