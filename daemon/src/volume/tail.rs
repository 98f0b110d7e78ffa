//! The journal's tail, record by record: for a replica that was away, and for a primary that fetches
//! what a power cut took.

use protocol::mistakes::{Mistake, made};
use protocol::replica::{Message, live_record_frame};
use protocol::units::Sequence;
use storage::{BrickError, Medium};

use super::driver::Driver;
use super::repair::repair;
use super::source::{BATCH_BYTES_MAX, Run, Stopped};

/// What was sent of the journal's tail.
enum Piece {
    /// So many bytes.
    Sent(usize),
    /// Nothing: what the next record wrote was overwritten since.
    Overwritten,
    /// Nothing: that was all.
    End,
}

impl<M: Medium> Run<M> {
    pub(super) async fn pulled(self, after: Sequence) {
        if self.send_tail(after, false).await.is_ok() {
            let _ = self.with(|d| d.send(self.replica, &Message::Pulled));
        }
    }

    /// Sends the records after `after`, until there are no more; who `follows` gets the live ones
    /// from there on.
    pub(super) async fn send_tail(&self, after: Sequence, follows: bool) -> Result<(), Stopped> {
        let mut next = after.next();
        loop {
            self.room().await?;
            match self.with(|d| self.send_piece(d, &mut next, follows))? {
                Ok(Piece::End) => return Ok(()),
                Ok(Piece::Sent(bytes)) => self.pace_tail(bytes).await?,
                Ok(Piece::Overwritten) => return self.leave_tail(Sequence(next.0 - 1)).await,
                Err(BrickError::Read(error)) if repair(&self.shared, &error).await => {}
                Err(error) => {
                    tracing::error!(%error, "the journal cannot be read for a catch-up");
                    self.give_up()?;
                }
            }
        }
    }

    /// Sends records from `next` on, and says which is the next then. Whoever `follows` is a whole
    /// picture after each of them, and so gets none with data that is newer than it (RS-4). A
    /// primary that fetches what a power cut took does get them: nobody made that stable, and of
    /// such large writes any part may be there (DUR-3).
    fn send_piece(
        &self,
        d: &mut Driver<M>,
        next: &mut Sequence,
        follows: bool,
    ) -> Result<Piece, BrickError> {
        if *next > d.machine.last() {
            if follows {
                // No await between here and the switch: not a record is missed.
                if let Some(link) = &mut d.links[self.replica] {
                    link.feed_live = true;
                }
                d.machine.source_done(self.replica);
            }
            return Ok(Piece::End);
        }
        d.brick.push()?;
        let mut bytes = 0;
        let after = Sequence(next.0 - 1);
        for caught in d.brick.read_records(after, BATCH_BYTES_MAX)? {
            if follows && caught.data_as_of_now && !made(Mistake::SendsNewerData) {
                if bytes == 0 {
                    return Ok(Piece::Overwritten);
                }
                break;
            }
            let record = caught.record;
            *next = record.sequence.next();
            bytes += record.payload.len();
            let frame = live_record_frame(record.encode_meta(), record.payload);
            bytes += frame.meta.len();
            d.send_frame(self.replica, frame);
        }
        d.note_progress(self.replica, bytes as u64);
        Ok(Piece::Sent(bytes))
    }

    /// The journal leads no further than to `last`: the two meet anew, and the map has the rest.
    async fn leave_tail(&self, last: Sequence) -> Result<(), Stopped> {
        // What is not stable there by then would be sent again.
        self.once(|d| d.machine.position(self.replica).1 >= last)
            .await?;
        self.with(|d| {
            let node = &d.spec.replicas[self.replica].node_name;
            tracing::info!(
                volume = %d.spec.name, %node, %last,
                "what follows in the journal was overwritten since: the map has the rest"
            );
            d.overwritten = d.overwritten.with(self.replica);
            d.link_lost(self.replica, None);
        })
    }
}
