//! Many accounts beside few: what grows with them, and what must not.

use credproxy::clock::{Clock as _, SystemClock};

use super::idle::first_answer;
use crate::{
    Fallible, load,
    load::{Load, head_and_body, repeat, serial},
    processors::stay_on,
    server::Server,
    stores,
    table::{Pairs, Reach, Row},
    world::{PAIRS, SHORT, World},
};

const MOST: usize = 100_000;
const SOME: usize = 1000;
const FEW: usize = 10;

pub(crate) fn accounts(world: &World) -> Fallible<Vec<Row>> {
    let mut rows = Vec::from(beside_few(world, SOME)?);
    let [started, resident, listed, after, all_asked, warm] = beside_few(world, MOST)?;
    rows.extend([started.reach(Reach::AtMost(50.0)), resident.reach(Reach::AtMost(48.0)), listed, after, all_asked]);
    rows.push(warm.reach(Reach::RatioAtMost(1.1)));
    Ok(rows)
}

/// So many accounts beside a few: the start, memory, the list, memory once each is known, and the answers then.
fn beside_few(world: &World, accounts: usize) -> Fallible<[Row; 6]> {
    let row =
        |what: &str, unit, pairs: &Pairs| Row::ratio(format!("{accounts} accounts against {FEW}: {what}"), unit, pairs);
    let (many, few) = (world.home_with(accounts)?, world.home_with(FEW)?);
    let [started, stored] = Pairs::measure(PAIRS, [&many, &few], |home| {
        let (server, millis) = first_answer(|| world.credproxy(home))?;
        server.settle()?;
        let memory = server.memory()?.resident;
        server.stop()?;
        Ok([millis, memory])
    })?;
    let (many, few) = (world.credproxy(&many)?, world.credproxy(&few)?);
    let [listed, grown] = Pairs::measure(1, [&many, &few], |server| list(server))?;
    let loads = [(&many, accounts), (&few, FEW)].map(|(server, count)| Load {
        socket: server.socket.clone(),
        requests: (0..count).map(|number| load::request("GET", &stores::target(scattered(number, count)))).collect(),
        connections: 1,
        fresh: false,
    });
    let [all_asked] = Pairs::measure(1, [(&many, &loads[0]), (&few, &loads[1])], |(server, load)| {
        repeat(load, load.requests.len())?;
        server.settle()?;
        Ok([server.memory()?.resident])
    })?;
    stay_on(world.processors.server)?;
    let measured = Pairs::measure(PAIRS, loads, |load| Ok([serial(load, SHORT)?.per_mille(500)]));
    stay_on(world.processors.load)?;
    let [warm] = measured?;
    Ok([
        row("from the start to the first answer", "ms", &started),
        row("resident memory", "MiB", &stored),
        row("GET /v1/tokens", "ms", &listed),
        row("memory after it", "MiB", &grown),
        row("memory once all were asked for", "MiB", &all_asked),
        row("warm GET of each in turn, p50", "µs", &warm),
    ])
}

/// The accounts in an order that no cache likes: 7,919 is prime, and divides none of the numbers.
fn scattered(number: usize, accounts: usize) -> usize {
    number * 7919 % accounts
}

/// Milliseconds for the list of all accounts, and MiB afterwards.
fn list(server: &Server) -> Fallible<[f64; 2]> {
    let clock = SystemClock::new();
    let begun = clock.monotonic();
    head_and_body(&server.socket, &load::request("GET", "/v1/tokens"))?;
    let listed = clock.monotonic().since(begun).as_secs_f64() * 1e3;
    server.settle()?;
    Ok([listed, server.memory()?.resident])
}
