//! Requests that are carried out together: what the driver has made available by the time that the disk looks.
//!
//! Reads, or writes, of one place behind the other become one operation on the disk, and the driver hears of all requests at once.

use std::io;
use std::sync::Arc;

use vm_memory::Bytes;
use vm_memory::GuestAddress;

use super::Disk;
use super::Operation;
use super::Request;
use super::RequestError;
use super::Status;
use super::parse;
use crate::devices::virtio::Chain;
use crate::devices::virtio::QueueError;
use crate::devices::virtio::VirtQueue;
use crate::platform::GuestRam;

/// Most requests of a batch: the first does not wait for too many others.
const MOST_REQUESTS: usize = 64;
/// A batch with so many bytes of data is large enough.
const ENOUGH_DATA: u64 = 4 << 20;

/// A request in the batch.
struct Entry {
    chain: Chain,
    request: Request,
}

/// Requests of one queue. It keeps its memory from one batch to the next.
#[derive(Default)]
pub(super) struct Batch {
    entries: Vec<Entry>,
    /// Chains for the next batch.
    spare: Vec<Chain>,
    /// What the driver is told: chain and bytes written.
    done: Vec<(u16, u32)>,
}

impl Batch {
    /// Takes what there is in `queue`, up to the batch's limits; whether there was anything. What is broken ends the batch, and is
    /// told when what came before it is done.
    pub(super) fn take(&mut self, queue: &mut VirtQueue, disk: &Disk) -> (bool, Result<(), QueueError>) {
        self.spare.extend(self.entries.drain(..).map(|entry| entry.chain));
        let mut data = 0;
        while self.entries.len() < MOST_REQUESTS && data < ENOUGH_DATA {
            let mut chain = self.spare.pop().unwrap_or_default();
            match queue.pop(&mut chain) {
                Ok(true) => {}
                Ok(false) => {
                    self.spare.push(chain);
                    break;
                }
                Err(error) => return (!self.entries.is_empty(), Err(error)),
            }
            let head = chain.head;
            let Some(request) = parse(&mut chain, queue.memory(), disk) else {
                return (!self.entries.is_empty(), Err(QueueError::NoStatus { queue: queue.index(), head }));
            };
            data += chain.readable.len() + chain.writable.len();
            self.entries.push(Entry { chain, request });
        }
        (!self.entries.is_empty(), Ok(()))
    }

    /// Carries the batch out: `execute` does one operation with the buffers of these chains, `refused` hears of what is no operation.
    /// Then each request has its status, and the driver hears of all.
    pub(super) fn carry_out(
        &mut self,
        queue: &mut VirtQueue,
        mut execute: impl FnMut(&Operation, &[&Chain], &GuestRam) -> io::Result<u32>,
        mut refused: impl FnMut(&RequestError),
    ) -> Result<(), QueueError> {
        let memory = Arc::clone(queue.memory());
        self.done.clear();
        let mut rest = self.entries.as_slice();
        while !rest.is_empty() {
            let (operation, count) = together(rest);
            let (these, others) = rest.split_at(count);
            rest = others;
            let all_done = operation.is_some_and(|operation| {
                let chains: Vec<&Chain> = these.iter().map(|entry| &entry.chain).collect();
                execute(&operation, &chains, &memory).is_ok()
            });
            for Entry { chain, request } in these {
                let result = match &request.operation {
                    Err(error) => {
                        refused(error);
                        Err(error.status())
                    }
                    Ok(Operation::Read { length, .. }) if all_done => Ok(*length),
                    Ok(_) if all_done => Ok(0),
                    // Also where they could not be done together: each has a status of its own.
                    Ok(operation) => execute(operation, &[chain], &memory).map_err(|_| Status::IoError),
                };
                let (status, written) = result.map_or_else(|status| (status, 0), |written| (Status::Ok, written));
                answer(&memory, request.status, status, queue.index())?;
                self.done.push((chain.head, written + 1));
            }
        }
        queue.complete_all(&self.done)
    }
}

/// How many of the first requests are reads, or writes, of one place behind the other; and if they are several, the operation that
/// is all of them.
fn together(entries: &[Entry]) -> (Option<Operation>, usize) {
    let mut operations = entries.iter().map_while(|entry| entry.request.operation.ok());
    let Some(first) = operations.next() else { return (None, 1) };
    let (mut joined, mut count) = (first, 1);
    for operation in operations {
        let Some(longer) = join(joined, operation) else { break };
        (joined, count) = (longer, count + 1);
    }
    ((count > 1).then_some(joined), count)
}

/// The operation that is both, if `next` goes on where `first` ends.
fn join(first: Operation, next: Operation) -> Option<Operation> {
    match (first, next) {
        (Operation::Read { offset, length }, Operation::Read { offset: at, length: more })
            if offset + u64::from(length) == at =>
        {
            Some(Operation::Read { offset, length: length.checked_add(more)? })
        }
        (Operation::Write { offset, length }, Operation::Write { offset: at, length: more })
            if offset + u64::from(length) == at =>
        {
            Some(Operation::Write { offset, length: length.checked_add(more)? })
        }
        _ => None,
    }
}

fn answer(memory: &GuestRam, address: u64, status: Status, queue: u16) -> Result<(), QueueError> {
    memory
        .write_obj(status as u8, GuestAddress(address))
        .map_err(|error| QueueError::Ring { queue, error: virtio_queue::Error::GuestMemory(error) })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::BlockHandler;
    use super::*;
    use crate::devices::virtio::testing::Buffer;
    use crate::devices::virtio::testing::TestQueue;
    use crate::disk::BlockBackend;
    use crate::platform::lock;

    const HEADERS: u64 = 0x8000;
    const DATA: u64 = 0x1_0000;
    const READ: u32 = 0;
    const WRITE: u32 = 1;
    const FLUSH: u32 = 4;

    /// Notes what it is asked for: kind, first sector, sectors; sector 13 cannot be read or written.
    #[derive(Debug, Clone, Default)]
    struct Noting(Arc<Mutex<Vec<(u32, u64, u64)>>>);

    impl Noting {
        fn note(&self, kind: u32, offset: u64, buffers: &[vm_memory::VolatileSlice<'_>]) -> io::Result<()> {
            let (first, count) = (offset / 512, crate::disk::buffers::total(buffers) / 512);
            lock(&self.0).push((kind, first, count));
            if (first..first + count).contains(&13) { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
        }
    }

    impl BlockBackend for Noting {
        fn sectors(&self) -> u64 {
            100
        }
        fn is_read_only(&self) -> bool {
            false
        }
        fn read_at(&mut self, offset: u64, buffers: &[vm_memory::VolatileSlice<'_>]) -> io::Result<()> {
            self.note(READ, offset, buffers)
        }
        fn write_at(&mut self, offset: u64, buffers: &[vm_memory::VolatileSlice<'_>]) -> io::Result<()> {
            self.note(WRITE, offset, buffers)
        }
        fn flush(&mut self) -> io::Result<()> {
            self.note(FLUSH, 0, &[])
        }
        fn discard(&mut self, _offset: u64, _length: u64) -> io::Result<()> {
            Ok(())
        }
        fn write_zeroes(&mut self, _offset: u64, _length: u64, _unmap: bool) -> io::Result<()> {
            Ok(())
        }
    }

    /// Makes requests of a kind, a sector and a number of sectors, all there before the device looks; gives the statuses, what the disk
    /// was asked for, and how often the driver was interrupted.
    fn serve(requests: &[(u32, u64, u32)]) -> (Vec<u8>, Vec<(u32, u64, u64)>, usize) {
        let queue = TestQueue::new(256);
        let status = |index: u64| HEADERS + index * 32 + 16;
        for (index, &(kind, sector, sectors)) in (0..).zip(requests) {
            let header = HEADERS + index * 32;
            queue.write(header, kind);
            queue.write(header + 8, sector);
            let data = DATA + index * 0x1000;
            let mut buffers = vec![Buffer::readable(header, 16)];
            match kind {
                READ => buffers.push(Buffer::writable(data, sectors * 512)),
                WRITE => buffers.push(Buffer::readable(data, sectors * 512)),
                _ => {}
            }
            buffers.push(Buffer::writable(status(index), 1));
            queue.offer(u16::try_from(index * 3).unwrap(), &buffers);
        }
        let disk = Noting::default();
        let noted = Arc::clone(&disk.0);
        let mut handler = BlockHandler::new("disk", "", Box::new(disk));
        handler.serve(&mut queue.queue(false)).unwrap();
        let used = queue.take_used();
        let heads: Vec<u32> = used.iter().map(|entry| entry.0).collect();
        assert_eq!(heads, (0..).step_by(3).take(requests.len()).collect::<Vec<_>>());
        let statuses = (0..requests.len() as u64).map(|index| queue.bytes(status(index), 1)[0]).collect();
        let noted = lock(&noted).clone();
        (statuses, noted, queue.signals.take().len())
    }

    #[test]
    fn test_what_is_adjacent_is_done_together_and_told_at_once() {
        let (statuses, noted, interrupts) = serve(&[
            (READ, 4, 2),
            (READ, 6, 1),
            (READ, 7, 3),
            (READ, 20, 1),
            (READ, 19, 1),
            (FLUSH, 0, 0),
            (READ, 20, 1),
        ]);
        assert_eq!(statuses, [0; 7]);
        assert_eq!(noted, [(READ, 4, 6), (READ, 20, 1), (READ, 19, 1), (FLUSH, 0, 0), (READ, 20, 1)]);
        assert_eq!(interrupts, 1);
    }

    #[test]
    fn test_requests_are_done_in_their_order() {
        // Without flushes by the driver, each operation that writes is flushed.
        let (_, noted, _) = serve(&[(WRITE, 4, 2), (WRITE, 6, 1), (READ, 7, 1), (WRITE, 8, 1)]);
        assert_eq!(noted, [(WRITE, 4, 3), (FLUSH, 0, 0), (READ, 7, 1), (WRITE, 8, 1), (FLUSH, 0, 0)]);
    }

    #[test]
    fn test_what_fails_together_has_statuses_of_its_own() {
        let (statuses, noted, _) = serve(&[(READ, 12, 1), (READ, 13, 1), (READ, 14, 1)]);
        assert_eq!(statuses, [Status::Ok as u8, Status::IoError as u8, Status::Ok as u8]);
        assert_eq!(noted, [(READ, 12, 3), (READ, 12, 1), (READ, 13, 1), (READ, 14, 1)]);
    }

    #[test]
    fn test_a_batch_has_an_end() {
        let requests: Vec<_> = (0..80).map(|sector| (READ, sector + 14, 1)).collect();
        let (statuses, noted, interrupts) = serve(&requests);
        assert_eq!(statuses, [0; 80]);
        assert_eq!((noted.len(), interrupts), (2, 2));
    }
}
