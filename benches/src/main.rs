//! Measures credproxy against baselines, and prints a table: `bench [ROW…]`, all rows unless told.
//!
//! `scripts/bench` builds the programs and runs this one; docs/performance.md says what each row means.

use std::{env, error::Error, process::ExitCode};

mod issuer;
mod load;
mod processors;
mod rows;
mod server;
mod stores;
mod table;
mod world;

use processors::{Processors, stay_on};
use table::Row;
use world::World;

/// An error ends the measurement; nobody sorts it.
type Fallible<T> = Result<T, Box<dyn Error>>;

/// A group of rows that are measured together.
type Group = (&'static str, fn(&World) -> Fallible<Vec<Row>>);

const GROUPS: [Group; 9] = [
    ("warm", rows::warm::warm),
    ("audit", rows::warm::audit),
    ("instructions", rows::instructions::instructions),
    ("joined", rows::joined::joined),
    ("refreshes", rows::refreshes::refreshes),
    ("saves", rows::saves::saves),
    ("idle", rows::idle::idle),
    ("accounts", rows::accounts::accounts),
    ("size", rows::idle::size),
];

fn main() -> ExitCode {
    let wanted: Vec<String> = env::args().skip(1).collect();
    if let Some(unknown) = wanted.iter().find(|name| GROUPS.iter().all(|(known, _)| known != name)) {
        let known: Vec<&str> = GROUPS.iter().map(|(name, _)| *name).collect();
        note(&format!("there are no rows {unknown}; there are {}", known.join(", ")));
        return ExitCode::from(2);
    }
    match measure(&wanted) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            note(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Whether every group was measured. One that fails does not hide the others.
#[expect(clippy::print_stdout, reason = "the table is what the program is for")]
fn measure(wanted: &[String]) -> Fallible<bool> {
    let processors = Processors::find()?;
    stay_on(processors.load)?;
    let world = World::new(processors)?;
    let (mut rows, mut complete) = (Vec::new(), true);
    for (name, group) in GROUPS.iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|it| it == name)) {
        note(&format!("measuring {name}"));
        match group(&world) {
            Ok(more) => rows.extend(more),
            Err(error) => {
                note(&format!("{name}: {error}"));
                complete = false;
            }
        }
    }
    println!("{}", table::render(&rows));
    Ok(complete)
}

/// How it goes on, for whoever waits.
#[expect(clippy::print_stderr, reason = "a measurement takes minutes")]
pub(crate) fn note(text: &str) {
    eprintln!("bench: {text}");
}
