//! Frames out of a connection's bytes. Small frames are read many at a time; a large one is read
//! straight into the buffer that its payload stays in.

use std::io;

use bytes::{Bytes, BytesMut};
use protocol::frame::{FRAME_BYTES_MAX, HEADER_BYTES, RawFrame, take_frame};

use super::Connection;

/// Bytes received at once.
const CHUNK_BYTES: usize = 64 << 10;

/// Reads frames from a connection.
#[derive(Debug)]
pub struct FrameReader {
    chunk: Vec<u8>,
    /// Where in `chunk` the next frame begins.
    at: usize,
}

impl Default for FrameReader {
    fn default() -> Self {
        Self {
            chunk: Vec::with_capacity(CHUNK_BYTES),
            at: 0,
        }
    }
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// The length that a header announces, itself included.
fn announced(header: &[u8]) -> io::Result<usize> {
    let mut len = [0; 4];
    len.copy_from_slice(&header[..4]);
    let bytes = u32::from_le_bytes(len) as usize;
    if bytes > FRAME_BYTES_MAX {
        return Err(invalid(protocol::frame::FrameError::TooLong {
            bytes,
            limit: FRAME_BYTES_MAX,
        }));
    }
    Ok(HEADER_BYTES + bytes)
}

fn receive(connection: &dyn Connection, into: &mut Vec<u8>) -> io::Result<()> {
    match connection.receive(into)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

impl FrameReader {
    /// Whether a whole frame is there already, so that the next one costs no wait.
    #[must_use]
    pub fn has_frame(&self) -> bool {
        let rest = &self.chunk[self.at..];
        rest.len() >= HEADER_BYTES && announced(rest).is_ok_and(|whole| rest.len() >= whole)
    }

    /// Waits for the next frame.
    ///
    /// # Errors
    /// `UnexpectedEof` where the peer closed, `InvalidData` where it sent no frame.
    pub fn next(&mut self, connection: &dyn Connection) -> io::Result<RawFrame> {
        while self.chunk.len() - self.at < HEADER_BYTES {
            self.chunk.drain(..self.at);
            self.at = 0;
            receive(connection, &mut self.chunk)?;
        }
        let whole = announced(&self.chunk[self.at..])?;
        let there = &self.chunk[self.at..];
        let mut frame = Vec::with_capacity(whole);
        let first = there.len().min(whole);
        frame.extend_from_slice(&there[..first]);
        self.at += first;
        while frame.len() < whole {
            // Room for exactly `whole` was asked for; an allocator that gave more must not let
            // bytes of the next frame in.
            if frame.capacity() == whole {
                receive(connection, &mut frame)?;
                continue;
            }
            self.chunk.clear();
            receive(connection, &mut self.chunk)?;
            self.at = self.chunk.len().min(whole - frame.len());
            frame.extend_from_slice(&self.chunk[..self.at]);
        }
        let mut frame = Bytes::from(frame)
            .try_into_mut()
            .unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        take_frame(&mut frame)
            .map_err(invalid)?
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}
