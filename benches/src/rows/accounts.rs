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

const MANY: usize = 100_000;
const FEW: usize = 10;

pub(crate) fn accounts(world: &World) -> Fallible<Vec<Row>> {
    let (many, few) = (world.home_with(MANY)?, world.home_with(FEW)?);
    let [started, stored] = Pairs::measure(PAIRS, [&many, &few], |home| {
        let (server, millis) = first_answer(|| world.credproxy(home))?;
        server.settle()?;
        let memory = server.memory()?.resident;
        server.stop()?;
        Ok([millis, memory])
    })?;
    let mut rows = vec![
        Row::ratio("100,000 accounts beside 10: from the start to the first answer", "ms", &started)
            .reach(Reach::AtMost(50.0)),
        Row::ratio("100,000 accounts beside 10: resident memory", "MiB", &stored).reach(Reach::AtMost(48.0)),
    ];
    let (many, few) = (world.credproxy(&many)?, world.credproxy(&few)?);
    let [listed, grown] = Pairs::measure(1, [&many, &few], |server| list(server))?;
    rows.push(Row::ratio("100,000 accounts beside 10: GET /v1/tokens", "ms", &listed));
    rows.push(Row::ratio("100,000 accounts beside 10: memory after it", "MiB", &grown));
    let loads = [(&many, MANY), (&few, FEW)].map(|(server, accounts)| Load {
        socket: server.socket.clone(),
        requests: (0..accounts)
            .map(|number| load::request("GET", &stores::target(scattered(number, accounts))))
            .collect(),
        connections: 1,
        fresh: false,
    });
    let [all_asked] = Pairs::measure(1, [(&many, &loads[0]), (&few, &loads[1])], |(server, load)| {
        repeat(load, load.requests.len())?;
        server.settle()?;
        Ok([server.memory()?.resident])
    })?;
    rows.push(Row::ratio("100,000 accounts beside 10: memory once all were asked for", "MiB", &all_asked));
    stay_on(world.processors.server)?;
    let measured = Pairs::measure(PAIRS, loads, |load| Ok([serial(load, SHORT)?.per_mille(500)]));
    stay_on(world.processors.load)?;
    let [warm] = measured?;
    rows.push(
        Row::ratio("100,000 accounts beside 10: warm GET of each in turn, p50", "µs", &warm)
            .reach(Reach::RatioAtMost(1.1)),
    );
    Ok(rows)
}

/// The accounts in an order that no cache likes: 7,919 is prime, and divides neither number.
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
