//! A peer that has gone away while it is waiting for an answer.
//!
//! A request that waits for a change (`Prefer: wait`) may take a minute, and holds a place of its socket meanwhile. HTTP
//! lets a peer end its own half of the connection and wait for the answer, so the end of what it sends tells nothing; that
//! it has closed both halves does: nobody is left to read.

use std::{io, pin::Pin, sync::Arc, task::Context, task::Poll, task::ready, time::Duration};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::UnixStream,
};

/// How often to look at a peer that has sent more, or has ended its half: neither tells of what it does next.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// One end of a connection, which can be read from and written to while somebody else watches it.
#[derive(Debug, Clone)]
pub(super) struct SharedStream(Arc<UnixStream>);

impl SharedStream {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self(Arc::new(stream))
    }

    /// Ends once the peer has closed the connection.
    pub(super) async fn closed(&self) {
        loop {
            // An error is an end, too.
            if self.0.ready(Interest::READABLE).await.is_err() || self.is_closed() {
                return;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    fn is_closed(&self) -> bool {
        let mut end = [PollFd::new(&*self.0, PollFlags::empty())];
        let looked = poll(&mut end, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        looked.is_ok() && end[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }
}

impl AsyncRead for SharedStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = buffer.remaining();
        loop {
            ready!(self.0.poll_read_ready(context))?;
            // Less than there was room for is all that there was. That is noted with what was known before the read, so
            // that bytes which come meanwhile are not missed, and saves a call that would find nothing.
            let mut all = None;
            let read = self.0.try_io(Interest::READABLE, || match self.0.try_read_buf(buffer)? {
                read if 0 < read && read < room => {
                    all = Some(read);
                    Err(io::ErrorKind::WouldBlock.into())
                }
                read => Ok(read),
            });
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && all.is_none() => {}
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(error)),
                Ok(_) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl AsyncWrite for SharedStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.0.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        rustix::net::shutdown(&*self.0, rustix::net::Shutdown::Write)?;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn only_an_end_of_both_halves_is_a_hang_up() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut near = SharedStream::new(near);
        let watching = near.clone();
        assert!(watching.closed().now_or_never().is_none(), "nothing was sent");
        far.write_all(b"more").await.unwrap();
        assert!(watching.closed().now_or_never().is_none(), "more was sent");
        far.shutdown().await.unwrap();
        let mut read = String::new();
        near.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "more");
        assert!(watching.closed().now_or_never().is_none(), "one half has ended");
        near.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        far.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");
        drop(far);
        tokio::time::timeout(Duration::from_secs(10), watching.closed()).await.expect("it is noticed");
    }

    #[tokio::test]
    async fn what_is_sent_arrives_whole_however_it_is_cut() {
        let (near, far) = UnixStream::pair().unwrap();
        let (mut near, mut far) = (SharedStream::new(near), SharedStream::new(far));
        let sent: Vec<u8> = (0..1_000_000_u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let expected = sent.clone();
        let writing = async move {
            for piece in sent.chunks(7919) {
                far.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            far.shutdown().await.unwrap();
        };
        let reading = async {
            let mut got = Vec::new();
            near.read_to_end(&mut got).await.unwrap();
            got
        };
        let ((), got) = tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(writing, reading) })
            .await
            .expect("nothing is missed");
        assert!(got == expected);
    }
}
