//! Answers on their way: many small ones in one call, data not copied.

use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc::UnboundedReceiver;

use super::Ended;
use super::transmit::Room;
use crate::reply::Reply;

/// Data of so many bytes is copied together with its head.
const COPIED_BYTES_MAX: usize = 16 << 10;
/// Bytes that are gathered before they go.
const GATHERED_BYTES: usize = 64 << 10;
/// A client that takes nothing for so long, while there is something for it, is left: its room is
/// others' as well.
const UNREAD_WITHIN: Duration = Duration::from_secs(60);

/// An answer, and the room that is free when it has gone.
pub(super) type Outgoing = (Reply, Room);

/// Sends answers until nobody can give any more. How many there are is bounded by their room.
pub(super) async fn run<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut replies: UnboundedReceiver<Outgoing>,
) -> Result<(), Ended> {
    let mut gathered = BytesMut::with_capacity(GATHERED_BYTES);
    let mut rooms = Vec::new();
    while let Some(first) = replies.recv().await {
        let mut next = Some(first);
        while let Some((reply, room)) = next {
            rooms.push(room);
            gathered.put_slice(&reply.head);
            for data in reply.data {
                if data.len() <= COPIED_BYTES_MAX {
                    gathered.put_slice(&data);
                } else {
                    send(&mut writer, &gathered).await?;
                    gathered.clear();
                    send(&mut writer, &data).await?;
                }
            }
            if gathered.len() >= GATHERED_BYTES {
                send(&mut writer, &gathered).await?;
                gathered.clear();
                rooms.clear();
            }
            next = replies.try_recv().ok();
        }
        send(&mut writer, &gathered).await?;
        within(writer.flush()).await?;
        gathered.clear();
        rooms.clear();
    }
    // The other end may be gone already.
    let _ = within(writer.shutdown()).await;
    Ok(())
}

async fn within<T>(future: impl Future<Output = std::io::Result<T>>) -> Result<T, Ended> {
    match tokio::time::timeout(UNREAD_WITHIN, future).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(Ended::Unread(UNREAD_WITHIN.as_secs())),
    }
}

/// Sends all of it; each part that goes is a sign of life.
async fn send<W: AsyncWrite + Unpin>(writer: &mut W, mut bytes: &[u8]) -> Result<(), Ended> {
    while !bytes.is_empty() {
        let sent = within(writer.write(bytes)).await?;
        if sent == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::WriteZero).into());
        }
        bytes = &bytes[sent..];
    }
    Ok(())
}
