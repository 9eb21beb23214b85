//! Files: sockets' places, the store, the key, the configuration.

use std::{
    fs::{self, File, Permissions},
    io::Write as _,
    os::unix::{
        fs::{PermissionsExt as _, chown, symlink},
        net::UnixListener,
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::time::{sleep, timeout};

use crate::{
    confinement::{FILTER, runs},
    support::{
        daemon::{Daemon, Home},
        http::code,
        skip::skip,
    },
    world::{AT_ONCE, REFRESH, TOKEN, World, access_token},
};

/// `serve` must end with a failure, and say this.
pub(crate) async fn assert_refused(daemon: &Daemon, what: &str, due: &[&str]) {
    let output = timeout(AT_ONCE, daemon.command(&["serve"], "")).await;
    let output = output.unwrap_or_else(|_| panic!("{what}: it neither starts nor fails"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code().is_some_and(|code| code != 0), "{what}: {} {said}", output.status);
    assert!(due.iter().all(|text| said.contains(text)), "{what}: {said}");
    assert!(!said.contains("panicked"), "{what}: {said}");
}

fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn write(path: &Path, bytes: &[u8]) {
    File::create(path).unwrap().write_all(bytes).unwrap();
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A daemon not started, and the directory that its socket would lie in.
fn unstarted() -> (Arc<Home>, Daemon, std::path::PathBuf) {
    let home = Home::new();
    let daemon = Daemon::prepare(&home, "a", "", &[]);
    let directory = daemon.socket().parent().unwrap().to_owned();
    (home, daemon, directory)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sockets_directory_that_is_none_of_ours_is_refused() {
    let (_home, daemon, directory) = unstarted();
    write(&directory, b"a file");
    assert_refused(&daemon, "a file", &["a directory"]).await;
    assert_eq!(fs::read(&directory).unwrap(), b"a file");
    fs::remove_file(&directory).unwrap();

    fifo(&directory);
    assert_refused(&daemon, "a pipe", &["a directory"]).await;
    fs::remove_file(&directory).unwrap();

    symlink("nowhere", &directory).unwrap();
    assert_refused(&daemon, "a link to nothing", &[directory.to_str().unwrap()]).await;
    fs::remove_file(&directory).unwrap();

    fs::create_dir(&directory).unwrap();
    for mode in [0o777, 0o1777, 0o770] {
        set_mode(&directory, mode);
        assert_refused(&daemon, "writable by others", &["writable by others"]).await;
    }
    set_mode(&directory, 0o700);
    if !is_root() {
        skip("in part: only root can give files away");
        return;
    }
    chown(&directory, Some(65534), None).unwrap();
    assert_refused(&daemon, "another user's", &["belongs to another user"]).await;
    fs::remove_dir(&directory).unwrap();

    // Who owns the link decides where it will lead tomorrow.
    let ours = directory.with_file_name("ours");
    fs::create_dir(&ours).unwrap();
    set_mode(&ours, 0o700);
    symlink(&ours, &directory).unwrap();
    std::os::unix::fs::lchown(&directory, Some(65534), None).unwrap();
    assert_refused(&daemon, "another user's link", &["belongs to another user"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_below_a_directory_of_others_is_refused() {
    let (home, daemon, directory) = unstarted();
    let run = home.path().join("run");
    fs::create_dir(&directory).unwrap();
    set_mode(&directory, 0o700);
    for mode in [0o777, 0o775] {
        set_mode(&run, mode);
        assert_refused(&daemon, "above, writable", &[run.to_str().unwrap(), "writable by group or others"]).await;
        let checked = daemon.command(&["check"], "").await;
        assert!(String::from_utf8_lossy(&checked.stdout).contains("writable by group or others"), "{checked:?}");
    }
    // As `/tmp` is: nobody can rename what is another's there.
    set_mode(&run, 0o1777);
    let mut started = Daemon::prepare(&home, "b", "", &[]);
    started.launch().await;
    started.kill9().await;
    if !is_root() {
        skip("only root can give files away");
        return;
    }
    chown(&run, Some(65533), None).unwrap();
    assert_refused(&daemon, "above, another user's", &[run.to_str().unwrap(), "belongs to user 65533"]).await;
}

/// Whoever is given the directory of a sandbox's socket would have the other, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_sandboxs_directory_that_holds_something_else_of_ours_is_refused() {
    for (place, named) in [
        ("{home}/run/a/agents.sock", "the socket host of role host"),
        ("{home}/run/s", "the socket host of role host"),
        ("{home}/run/a/below/s", "the socket host of role host"),
        ("{home}/run/link/s", "the socket host of role host"),
        ("{home}/data/s", "the store"),
        ("{home}/state/s", "the audit log"),
    ] {
        let home = Home::new();
        fs::create_dir(home.path().join("run/a")).unwrap();
        set_mode(&home.path().join("run/a"), 0o700);
        symlink("a", home.path().join("run/link")).unwrap();
        let config = format!("[sockets.agents]\npath = \"{place}\"\nrole = \"sandbox\"\n");
        let daemon = Daemon::prepare(&home, "a", &config, &[]);
        assert_refused(&daemon, place, &["the socket agents", named, "a directory of its own"]).await;
        let checked = daemon.command(&["check"], "").await;
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(checked.status.code() == Some(1) && said.contains(named), "{place}: {said}");
    }
}

/// A server that another user has put in the place of the daemon's: it gets no secret.
#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_program_at_the_sockets_path_is_sent_no_secret() {
    if !is_root() {
        skip("only root can run processes of other users");
        return;
    }
    let home = Home::new();
    let place = home.path().join("theirs");
    fs::create_dir(&place).unwrap();
    chown(&place, Some(65533), None).unwrap();
    for open in [home.path().to_owned(), place.clone()] {
        set_mode(&open, 0o755);
    }
    let (socket, heard) = (place.join("s"), place.join("heard"));
    let script = "import os, socket, sys\nos.setuid(65533)\nserver = socket.socket(socket.AF_UNIX)\n\
         server.bind(sys.argv[1])\nserver.listen(9)\nwhile True:\n    peer, _ = server.accept()\n    \
         said = peer.recv(100000)\n    open(sys.argv[2], 'ab').write(said + b'!')\n    peer.close()\n";
    let mut server =
        std::process::Command::new("python3").args(["-c", script]).arg(&socket).arg(&heard).spawn().unwrap();
    let listening = async {
        while tokio::net::UnixStream::connect(&socket).await.is_err() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(AT_ONCE, listening).await.expect("it listens");
    let daemon = Daemon::prepare(&home, "a", "", &[]);
    let socket = socket.to_str().unwrap();
    for (arguments, input) in [
        (&["import", "corp"][..], r#"{"access_token": "a", "refresh_token": "canary-rt"}"#),
        (&["key", "set", "openai"], "canary-key"),
    ] {
        let ran = daemon.command(&[&["--socket", socket], arguments].concat(), input).await;
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(!ran.status.success() && said.contains("--trust-uid 65533"), "{arguments:?}: {said}");
        let heard = || String::from_utf8_lossy(&fs::read(&heard).unwrap_or_default()).into_owned();
        assert!(!heard().contains("canary") && !heard().contains("PUT"), "{}", heard());
        // Unless the person says that this is the daemon's user.
        let ran = daemon.command(&[&["--socket", socket, "--trust-uid", "65533"], arguments].concat(), input).await;
        assert!(!ran.status.success());
        let told = async {
            while !heard().contains("canary") {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(AT_ONCE, told).await.expect("it is sent");
        File::create(place.join("heard")).unwrap();
        chown(place.join("heard"), Some(65533), None).unwrap();
    }
    server.kill().unwrap();
    server.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_at_a_sockets_path_is_neither_followed_nor_removed() {
    let (home, daemon, directory) = unstarted();
    fs::create_dir(&directory).unwrap();
    set_mode(&directory, 0o700);
    let (target, path) = (home.path().join("precious"), daemon.socket());
    let living = home.path().join("living.sock");
    let _living = UnixListener::bind(&living).unwrap();
    let dead = home.path().join("dead.sock");
    drop(UnixListener::bind(&dead).unwrap());
    for to in [&target, &living, &dead] {
        write(&target, b"precious");
        symlink(to, &path).unwrap();
        assert_refused(&daemon, "a link", &["is not a socket"]).await;
        assert_eq!(fs::read_link(&path).unwrap(), *to);
        assert!(fs::read(&target).unwrap() == b"precious" && living.exists() && dead.exists());
        fs::remove_file(&path).unwrap();
    }
    fifo(&path);
    assert_refused(&daemon, "a pipe", &["is not a socket"]).await;
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_refused(&daemon, "a directory", &["is not a socket"]).await;
    fs::remove_dir(&path).unwrap();

    // Alive, though it answers nobody.
    let mute = UnixListener::bind(&path).unwrap();
    assert_refused(&daemon, "a living socket", &["another daemon is listening"]).await;
    drop(mute);
    let mut daemon = daemon;
    daemon.launch().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_replaced_while_running_is_not_removed_at_the_end() {
    let mut world = World::new().await;
    let path = world.daemon.socket();
    fs::remove_file(&path).unwrap();
    write(&path, b"someone else's");
    world.daemon.sigterm();
    assert!(world.daemon.wait().await.success());
    assert_eq!(fs::read(&path).unwrap(), b"someone else's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_or_key_that_others_reach_is_refused() {
    let mut world = World::new().await;
    world.daemon.kill9().await;
    let data = world.home.path().join("data");
    let (key, database) = (data.join("store.key"), data.join("credproxy.db"));
    let due = |path: &Path| path.to_str().unwrap().to_owned();
    for (path, bad, good) in
        [(&data, 0o777, 0o700), (&key, 0o644, 0o600), (&database, 0o640, 0o600), (&data.join("owners"), 0o722, 0o700)]
    {
        set_mode(path, bad);
        assert_refused(&world.daemon, "open to others", &[&due(path), "chmod"]).await;
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, bad, "it is left as it was");
        set_mode(path, good);
    }
    let kept = data.join("kept");
    for path in [&key, &database] {
        fs::rename(path, &kept).unwrap();
        symlink(&kept, path).unwrap();
        assert_refused(&world.daemon, "a link", &[&due(path), "not a regular file"]).await;
        fs::remove_file(path).unwrap();
        fifo(path);
        assert_refused(&world.daemon, "a pipe", &[&due(path), "not a regular file"]).await;
        fs::remove_file(path).unwrap();
        fs::rename(&kept, path).unwrap();
    }
    world.daemon.launch().await;
    world.assert_unhurt("all that").await;
}

/// `flock` as network file systems have it: for files that are open for writing, or not at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_without_locks_is_named_as_what_is_in_the_way() {
    let flock = if cfg!(target_arch = "x86_64") { "73" } else { "32" };
    for (errno, name) in [("9", "EBADF"), ("37", "ENOLCK"), ("95", "EOPNOTSUPP")] {
        if !runs(FILTER, &[flock, errno]) {
            return;
        }
        let home = Home::in_memory(|_| ["python3", "-c", FILTER, flock, errno].map(Into::into).to_vec());
        let daemon = Daemon::prepare(&home, "a", "", &[]);
        let owners = home.path().join("data/owners");
        let due = [owners.to_str().unwrap(), "the file system lacks what the store needs", "choose a local one"];
        assert_refused(&daemon, name, &due).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_replaced_while_running_costs_no_refresh_token() {
    let mut world = World::new().await;
    let database = world.home.path().join("data/credproxy.db");
    let kept = database.with_extension("kept");
    world.assert_unhurt("nothing").await;
    for replaced in [false, true] {
        fs::rename(&database, &kept).unwrap();
        if replaced {
            fs::copy(&kept, &database).unwrap();
            set_mode(&database, 0o600);
        }
        let refused = world.daemon.request("POST", REFRESH, &[], "").await;
        assert_eq!(code(&refused), (503, "STORE_UNAVAILABLE".to_owned()), "{}", refused.text());
        let health = world.daemon.request("GET", "/v1/health", &[], "").await;
        assert_eq!(health.status, 503, "{}", health.text());
        world.assert_unhurt("a database that is gone").await;
        fs::rename(&kept, &database).unwrap();
        let well = async {
            while world.daemon.request("GET", "/v1/health", &[], "").await.status != 200 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(AT_ONCE, well).await.expect("the old database is back");
    }
    let answer = world.daemon.request("POST", REFRESH, &[], "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let fresh = access_token(&answer);
    world.daemon.restart().await;
    assert_eq!(access_token(&world.daemon.request("GET", TOKEN, &[], "").await), fresh);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_is_no_text_file_is_refused_at_once() {
    let (_home, daemon, _) = unstarted();
    let config = daemon.config();
    let name = config.to_str().unwrap().to_owned();
    fs::remove_file(&config).unwrap();
    assert_refused(&daemon, "nothing", &[&name]).await;
    fs::create_dir(&config).unwrap();
    assert_refused(&daemon, "a directory", &[&name]).await;
    fs::remove_dir(&config).unwrap();
    fifo(&config);
    assert_refused(&daemon, "a pipe", &[&name, "pipe"]).await;
    fs::remove_file(&config).unwrap();
    symlink("/dev/zero", &config).unwrap();
    assert_refused(&daemon, "no end", &[&name, "1 MiB"]).await;
    fs::remove_file(&config).unwrap();
    File::create(&config).unwrap().set_len(100 << 20).unwrap();
    assert_refused(&daemon, "100 MiB", &[&name, "1 MiB"]).await;
    fs::remove_file(&config).unwrap();
    write(&config, b"\x7fELF\x02\x01\xff\xfe");
    assert_refused(&daemon, "no text", &[&name]).await;
    write(&config, format!("x = {}{}", "[".repeat(100_000), "]".repeat(100_000)).as_bytes());
    assert_refused(&daemon, "a deep one", &[&name]).await;
    write(&config, b"[providers.corp]\nclient_secret = \"canary-secret\nissuer = 1");
    assert_refused(&daemon, "no TOML", &[&format!("{name}:2")]).await;
}

/// Every key with values that it does not take. Whatever the value, the message names the key and its line alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_value_is_named_by_its_place_and_never_shown() {
    let (_home, daemon, _) = unstarted();
    let config = daemon.config();
    let provider = "[providers.corp]\nissuer = \"https://h.example\"\nclient_id = \"me\"\n";
    let sandbox = "[sockets.s]\npath = \"/run/x/s\"\nrole = \"sandbox\"\n";
    let keyed = format!("{sandbox}operations = [\"keys\"]\n");
    let tables: [(&str, &[&str]); 8] = [
        ("", &["confine"]),
        ("[store]\n", &["url", "key"]),
        ("[refresh]\n", &["cooldown", "request_timeout"]),
        ("[audit]\n", &["path", "max_size", "keep", "on_failure"]),
        ("[limits]\n", &["logins", "logins_per_socket", "sandboxes"]),
        (
            sandbox,
            &[
                "path",
                "role",
                "allow",
                "operations",
                "uids",
                "connections",
                "connections_per_user",
                "rate",
                "burst",
                "forced_refreshes",
            ],
        ),
        (&keyed, &["keys"]),
        (
            provider,
            &[
                "issuer",
                "token_endpoint",
                "revocation_endpoint",
                "client_id",
                "client_secret",
                "client_auth",
                "request_format",
                "expose",
                "dead_grant_codes",
                "reuse_grace",
                "concurrent_refreshes",
                "ca_file",
                "scopes",
            ],
        ),
    ];
    // Of these, a small number is right.
    let numbers = [
        "keep",
        "logins",
        "logins_per_socket",
        "sandboxes",
        "connections",
        "connections_per_user",
        "forced_refreshes",
        "concurrent_refreshes",
    ];
    let wrong =
        ["7", "-1", "true", "1979-05-27", "[[\"canary-1\"]]", "{ canary-2 = \"canary-3\" }", "inf", "\"\"", "[\"\"]"];
    let mut runs = Vec::new();
    for (table, keys) in tables {
        for key in keys {
            let rest: String = table
                .lines()
                .filter(|line| !line.starts_with(&format!("{key} =")))
                .fold(String::new(), |text, line| text + line + "\n");
            for value in wrong.into_iter().filter(|value| *value != "7" || !numbers.contains(key)) {
                runs.push((format!("{rest}{key} = {value}\n"), *key, rest.lines().count() + 1, value));
            }
        }
    }
    let mut failed = Vec::new();
    for (text, key, line, value) in runs {
        write(&config, text.as_bytes());
        let output = daemon.command(&["check"], "").await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let place = format!("{}:{line}: ", config.display());
        if output.status.code() != Some(2) || !said.contains(&place) || !said.contains(key) {
            failed.push(format!("{key} = {value}: {:?} {said}", output.status.code()));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
