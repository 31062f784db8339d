//! What another thread asks the main thread.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use crate::control::Reply;
use crate::platform::lock;

/// How far a question is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Asked,
    /// The main thread works on it, so that its answer is worth waiting for.
    Taken,
    /// Who asked has been told that there is no answer.
    Withdrawn,
}

/// The main thread's side of a question.
#[derive(Debug)]
pub(super) struct Question {
    state: Arc<Mutex<State>>,
    reply: SyncSender<Reply>,
}

/// The side of who asks.
#[derive(Debug)]
pub(super) struct Asked {
    state: Arc<Mutex<State>>,
    reply: Receiver<Reply>,
}

/// A question, which goes to the main thread with an event.
pub(super) fn question() -> (Question, Asked) {
    let state = Arc::new(Mutex::new(State::Asked));
    let (sender, receiver) = mpsc::sync_channel(1);
    (Question { state: Arc::clone(&state), reply: sender }, Asked { state, reply: receiver })
}

impl Question {
    /// Does what is asked, and answers, unless who asked was told already that it is not done.
    pub(super) fn answer(self, work: impl FnOnce() -> Reply) {
        {
            let mut state = lock(&self.state);
            if *state == State::Withdrawn {
                return;
            }
            *state = State::Taken;
        }
        let reply = work();
        // Who asked waits, unless its thread has ended with the machine.
        let _ = self.reply.try_send(reply);
    }
}

impl Asked {
    /// The answer, if the main thread takes the question within this time; otherwise nothing is done.
    pub(super) fn wait(self, patience: Duration) -> Option<Reply> {
        if let Ok(reply) = self.reply.recv_timeout(patience) {
            return Some(reply);
        }
        {
            let mut state = lock(&self.state);
            if *state == State::Asked {
                *state = State::Withdrawn;
                return None;
            }
        }
        self.reply.recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    #[test]
    fn test_what_is_not_taken_in_time_is_not_done() {
        let (question, asked) = question();
        assert_eq!(asked.wait(SHORT), None);
        question.answer(|| unreachable!("it was said that this is not done"));
    }

    #[test]
    fn test_what_is_taken_is_waited_for() {
        let (question, asked) = question();
        let (taken, is_taken) = mpsc::channel();
        let (go, may_go) = mpsc::channel();
        let main = thread::spawn(move || {
            question.answer(|| {
                taken.send(()).unwrap();
                may_go.recv().unwrap();
                Reply::Done
            });
        });
        is_taken.recv().unwrap();
        let waits = thread::spawn(move || asked.wait(SHORT));
        thread::sleep(3 * SHORT);
        go.send(()).unwrap();
        assert_eq!(waits.join().unwrap(), Some(Reply::Done));
        main.join().unwrap();
    }

    #[test]
    fn test_a_machine_that_ends_answers_nothing() {
        let (question, asked) = question();
        drop(question);
        assert_eq!(asked.wait(SHORT), None);
    }
}
