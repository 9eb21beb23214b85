//! Ten thousand who sit at a sandbox's door and say half of what they want, while the host has work to do.

use std::{fs, time::Duration};

use futures_util::future::join_all;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::{io::AsyncWriteExt as _, net::UnixStream};

use crate::{sandbox_boundary::World, support::http::open};

const CROWD: u64 = 10_000;

/// How many requests the honest client makes.
const REQUESTS: usize = 2000;

/// All of them, or as many as this process may have files open.
async fn crowd(world: &World) -> Vec<UnixStream> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let most = CROWD.min(limit.maximum.unwrap_or(u64::MAX).saturating_sub(500));
    if most < CROWD {
        println!("{most} instead of {CROWD}: the limit of open files allows no more");
    }
    let socket = world.socket("read");
    let mut streams = Vec::new();
    for _ in 0..most {
        let mut stream = open(&socket).await;
        // The daemon may have turned it away already.
        drop(stream.write_all(b"GET /v1/tokens/corp HTTP/1.1\r\nHost: x\r\nX-Half").await);
        streams.push(stream);
    }
    streams
}

/// The longest that 99 of 100 requests of the host's take; each must be answered.
#[expect(clippy::disallowed_methods, reason = "what is measured is the time that passes here")]
async fn p99(world: &World) -> Duration {
    let mut connection = world.daemon.connect().await;
    let mut times = Vec::with_capacity(REQUESTS);
    for at in 0..REQUESTS {
        let start = std::time::Instant::now();
        let answer = connection.request("GET", "/v1/tokens/corp", &[], "").await;
        times.push(start.elapsed());
        assert_eq!(answer.status, 200, "request {at}: {}", answer.text());
    }
    times.sort_unstable();
    times[REQUESTS * 99 / 100]
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_half_requests_keep_no_honest_one_from_its_answer() {
    let world = World::new().await;
    let open_files = || {
        let place = format!("/proc/{}/fd", world.daemon.pid().as_raw_nonzero());
        fs::read_dir(place).map(Iterator::count)
    };
    let quiet = p99(&world).await;
    let crowd = crowd(&world).await;
    let besieged = p99(&world).await;
    println!(
        "p99 of the host: {quiet:?} alone, {besieged:?} with {} others; open files: {:?}",
        crowd.len(),
        open_files()
    );
    // New ones are served as well, and so is the sandbox beside.
    let asked = join_all((0..50).map(|_| world.get("both", "/v1/tokens/corp", &[]))).await;
    assert!(asked.iter().all(|answer| answer.status == 200));
    drop(crowd);
    p99(&world).await;
}
