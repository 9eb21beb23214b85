//! The daemon that nobody asks: its memory, its start, its size.

use std::fs;

use credproxy::clock::{Clock as _, SystemClock};

use crate::{
    Fallible,
    load::{Crowd, repeat},
    server::Server,
    table::{Pairs, Reach, Row},
    world::{PAIRS, World, write},
};

/// So many connections show what one takes.
const CONNECTIONS: usize = 5000;

pub(crate) fn idle(world: &World) -> Fallible<Vec<Row>> {
    let home = world.home_with(1)?;
    let ours = world.credproxy(&home)?;
    let bare = world.bare_like(&ours)?;
    let [resident, proportional] = Pairs::measure(1, [&ours, &bare], |server| {
        server.settle()?;
        let memory = server.memory()?;
        Ok([memory.resident, memory.proportional])
    })?;
    let [silent, asked] = Pairs::measure(1, [&ours, &bare], |server| connection(server))?;
    ours.stop()?;
    let bare_home = world.home()?;
    write(&bare_home.join("answer"), b"content-type: application/json\n\n{}")?;
    let start_bare = || {
        let socket = world.prepare_bare(&bare_home).2;
        if socket.exists() {
            fs::remove_file(socket)?;
        }
        world.bare(&bare_home)
    };
    let start_ours = || world.credproxy(&home);
    let sides: [&dyn Fn() -> Fallible<Server>; 2] = [&start_ours, &start_bare];
    let [started] = Pairs::measure(PAIRS, sides, |start| {
        let (server, millis) = first_answer(start)?;
        server.stop()?;
        Ok([millis])
    })?;
    Ok(vec![
        Row::ratio("idle memory: resident", "MiB", &resident).reach(Reach::AtMost(12.0)),
        Row::ratio("idle memory: with its part of what is shared", "MiB", &proportional),
        Row::ratio("memory of a connection that never asked", "bytes", &silent),
        Row::ratio("memory of an idle connection", "bytes", &asked),
        Row::ratio("from the start to the first answer", "ms", &started).reach(Reach::AtMost(15.0)),
    ])
}

/// Starts a server, and gives the milliseconds that it took to its first answer.
pub(super) fn first_answer(start: impl Fn() -> Fallible<Server>) -> Fallible<(Server, f64)> {
    let clock = SystemClock::new();
    let begun = clock.monotonic();
    let server = start()?;
    repeat(&World::get(&server, 1), 1)?;
    Ok((server, clock.monotonic().since(begun).as_secs_f64() * 1e3))
}

/// Bytes for a connection, before and after it asked.
fn connection(server: &Server) -> Fallible<[f64; 2]> {
    server.settle()?;
    let before = server.memory()?.proportional;
    let load = World::get(server, CONNECTIONS);
    let mut crowd = Crowd::new(&load)?;
    server.settle()?;
    let silent = server.memory()?.proportional;
    crowd.ask_all()?;
    crowd.wait_for_all()?;
    server.settle()?;
    let asked = server.memory()?.proportional;
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let each = |memory: f64| (memory - before) * 1024.0 * 1024.0 / CONNECTIONS as f64;
    Ok([each(silent), each(asked)])
}

pub(crate) fn size(world: &World) -> Fallible<Vec<Row>> {
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let size = |program: &&str| Ok([fs::metadata(world.program(program))?.len() as f64 / (1024.0 * 1024.0)]);
    let [sizes] = Pairs::measure(1, ["credproxy", "bare"], size)?;
    Ok(vec![Row::ratio("the program", "MiB", &sizes)])
}
