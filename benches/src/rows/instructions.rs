//! Instructions per warm `GET`, outside the kernel: the same in every run, whoever else uses the machine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    Fallible,
    load::repeat,
    server::Server,
    table::{Pairs, Row},
    world::{World, write},
};

/// Twice as many and once as many are counted; what the start takes is in both.
const ANSWERS: usize = 10_000;

pub(crate) fn instructions(world: &World) -> Fallible<Vec<Row>> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        crate::note("SKIPPED: instructions are counted by valgrind, which is not installed");
        return Ok(Vec::new());
    }
    let home = world.home_with(10)?;
    let server = world.credproxy(&home)?;
    let answer = World::answer_of(&server)?;
    server.stop()?;
    let ours = |answers| {
        let (arguments, socket) = world.prepare(&home, "")?;
        count(world, &world.program("credproxy"), &arguments.map(Into::into), (&home, &socket), answers)
    };
    let other = |answers| {
        let home = world.home()?;
        write(&home.join("answer"), answer.as_bytes())?;
        let (program, arguments, socket) = world.prepare_bare(&home);
        count(world, &program, &arguments, (&home, &socket), answers)
    };
    let sides: [&dyn Fn(usize) -> Fallible<f64>; 2] = [&ours, &other];
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let [pairs] = Pairs::measure(1, sides, |count| Ok([(count(2 * ANSWERS)? - count(ANSWERS)?) / ANSWERS as f64]))?;
    Ok(vec![Row::ratio("warm GET: instructions outside the kernel", "per answer", &pairs)])
}

/// All instructions of a server that gives so many answers on one connection.
fn count(
    world: &World,
    program: &Path,
    arguments: &[PathBuf],
    (home, socket): (&Path, &Path),
    answers: usize,
) -> Fallible<f64> {
    let counted = home.join("instructions");
    let mut all = vec![
        "--tool=cachegrind".into(),
        "--cache-sim=no".into(),
        format!("--cachegrind-out-file={}", counted.display()).into(),
        program.to_owned(),
    ];
    all.extend_from_slice(arguments);
    let server = Server::start(Path::new("valgrind"), &all, home, socket.to_owned(), world.processors)?;
    repeat(&World::get(&server, 1), answers)?;
    server.stop()?;
    let text = fs::read_to_string(counted)?;
    let summary = text.lines().find_map(|line| line.strip_prefix("summary: ")).ok_or("valgrind has counted nothing")?;
    Ok(summary.trim().parse()?)
}
