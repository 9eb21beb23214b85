//! Prints the instructions of `credproxy serve --dev`, and the warning of a tracer.

use std::path::Path;

use super::{Failure, output};

/// Prints `curl` commands for a daemon with the accounts `alive` and `dead`, which share a provider.
pub fn print_dev_session(socket: &Path, alive: &str, dead: &str) -> Result<(), Failure> {
    // A program built by cargo is not on the search path.
    let program = std::env::current_exe().unwrap_or_else(|_| "credproxy".into());
    output::data(&dev_session(&program, socket, alive, dead))
}

/// Warns that another process traces this one. A person who debugs a command knows; everybody else must.
pub fn warn_of_tracer(tracer: u32) {
    output::note(&format!("warning: process {tracer} traces this one, and can read every secret that it holds"));
}

fn dev_session(program: &Path, socket: &Path, alive: &str, dead: &str) -> String {
    let (provider, dead) = (alive.split('/').next().unwrap_or(alive), dead.rsplit('/').next().unwrap_or(dead));
    let (program, socket) = (quoted(&program.to_string_lossy()), quoted(&socket.to_string_lossy()));
    // A body does not end with a newline.
    let curl = format!("curl -iw '\\n' --unix-socket {socket}");
    let refresh = format!("{curl} -X POST http://localhost/v1/tokens/{provider}/refresh");
    format!(
        "\
credproxy is ready to be tried: its store is in memory, its authorization server built in.
Try these in another terminal; Ctrl-C ends the daemon, and nothing is kept.

# an access token
{curl} http://localhost/v1/tokens/{provider}

# a new one: 200
{refresh}

# again: 429, inside the cooldown, with Retry-After
{refresh}

# an account whose grant is dead: 401
{curl} -X POST 'http://localhost/v1/tokens/{provider}/refresh?bucket={dead}'

# how the accounts stand
{curl} http://localhost/v1/tokens

# a login of your own: with a display a browser opens, else a code is shown
{program} --socket {socket} login {provider}/mine

# how the accounts stand, by the command line
{program} --socket {socket} status"
    )
}

/// Quotes the text as one word for a shell.
fn quoted(text: &str) -> String {
    if text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+@".contains(&byte)) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_name_the_socket_as_one_word() {
        let lines =
            dev_session(Path::new("/bin/credproxy"), Path::new("/tmp/a b/it's.sock"), "dev/default", "dev/dead");
        assert_eq!(lines.matches(r"--unix-socket '/tmp/a b/it'\''s.sock'").count(), 5, "{lines}");
        assert!(lines.contains(r"/bin/credproxy --socket '/tmp/a b/it'\''s.sock' status"), "{lines}");
        assert!(lines.contains("'http://localhost/v1/tokens/dev/refresh?bucket=dead'"), "{lines}");
    }
}
