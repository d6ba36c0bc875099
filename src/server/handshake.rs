//! The first bytes of a connection, read by us: the library waits for them for ever.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};

/// What a client opened with.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened {
    /// The preface and the client's settings; to be read again by the library.
    Http2(Bytes),
    Other,
}

/// A socket whose first bytes were read already.
pub struct Prefixed {
    prefix: Bytes,
    stream: TcpStream,
}

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER_BYTES: usize = 9;
/// A longer first frame cannot be sensible settings; the library may judge it.
const SETTINGS_BYTES_MAX: usize = 1024;

/// Reads until the client's preface and settings are there, or it is clear that they will not come.
pub async fn open(stream: &mut TcpStream) -> io::Result<Opened> {
    let mut read = BytesMut::with_capacity(256);
    loop {
        match step(&read) {
            Step::Done => return Ok(Opened::Http2(read.freeze())),
            Step::NotHttp2 => return Ok(Opened::Other),
            Step::More => {}
        }
        if stream.read_buf(&mut read).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed during the handshake"));
        }
    }
}

/// One line for a person with curl or a browser.
pub async fn say_what_is_spoken(stream: &mut TcpStream) -> io::Result<()> {
    const TEXT: &str = "this port speaks gRPC (HTTP/2); health over HTTP is on --http-port\n";
    let response = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{TEXT}",
        TEXT.len()
    );
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    More,
    Done,
    NotHttp2,
}

fn step(read: &[u8]) -> Step {
    let common = read.len().min(PREFACE.len());
    if read[..common] != PREFACE[..common] {
        return Step::NotHttp2;
    }
    let Some([high, middle, low, ..]) = read.get(PREFACE.len()..) else {
        return Step::More;
    };
    let length = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
    let whole = PREFACE.len() + FRAME_HEADER_BYTES + length.min(SETTINGS_BYTES_MAX);
    if read.len() < whole { Step::More } else { Step::Done }
}

// === impl Prefixed ===

impl Prefixed {
    pub fn new(prefix: Bytes, stream: TcpStream) -> Self {
        Self { prefix, stream }
    }
}

impl AsyncRead for Prefixed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.prefix.is_empty() {
            let step = this.prefix.len().min(buf.remaining());
            buf.put_slice(&this.prefix[..step]);
            this.prefix.advance(step);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    /// h2 asks once before it reads the prefix, and then at each write. To a first "yes" it gives each DATA frame above 256
    /// bytes a write of its own; to a first "no" it joins those of up to 1 KiB, so that the answers of one turn leave in one
    /// write. Larger ones are written without a copy either way.
    fn is_write_vectored(&self) -> bool {
        self.prefix.is_empty() && self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handshake_ends_with_the_settings() {
        let mut bytes = PREFACE.to_vec();
        bytes.extend([0, 0, 6, 4, 0, 0, 0, 0, 0]);
        bytes.extend([0, 3, 0, 0, 0, 100]);
        for length in 0..bytes.len() {
            assert_eq!(step(&bytes[..length]), Step::More, "after {length} bytes");
        }
        assert_eq!(step(&bytes), Step::Done);
        bytes.push(0);
        assert_eq!(step(&bytes), Step::Done);
    }

    #[test]
    fn another_protocol_is_known_by_its_first_bytes() {
        assert_eq!(step(b"GET / HTTP/1.1\r\n"), Step::NotHttp2);
        assert_eq!(step(b"\x16\x03\x01"), Step::NotHttp2);
        assert_eq!(step(b"PRI * HTTP/1"), Step::NotHttp2);
    }
}
