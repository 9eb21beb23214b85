//! Detects that a peer has closed its connection while it waits for a response.
//!
//! A long poll (`Prefer: wait`) may take a minute, and holds a connection permit meanwhile. HTTP lets a peer close its
//! sending half and wait for the response, so the end of its input says nothing. A peer that has closed both halves
//! cannot read the response any more.

use std::{io, pin::Pin, sync::Arc, task::Context, task::Poll, task::ready, time::Duration};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::UnixStream,
};

/// How often to poll a peer that has sent more, or has closed its sending half: neither says what it does next.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// One end of a connection, which can be read and written while another task watches it.
#[derive(Debug, Clone)]
pub(super) struct SharedStream(Arc<UnixStream>);

impl SharedStream {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self(Arc::new(stream))
    }

    /// Completes once the peer has closed the connection.
    pub(super) async fn closed(&self) {
        loop {
            // An error means the end as well.
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
            // A short read means that the buffer is drained. The readiness is cleared with the state from before the
            // read, so that bytes that arrive meanwhile are not missed; this saves a read that would find nothing.
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
