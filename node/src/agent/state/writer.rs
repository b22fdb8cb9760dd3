//! The thread that writes state files, one after the other in the order of the core's effects, so that a slow disk
//! delays acknowledgements and nothing else.
//!
//! Bound: the core has at most one write of each kind under way, so the queue holds at most a handful of jobs.

use std::{sync::mpsc, thread};

use postern_common::grant::SavedGrants;
use tokio::sync::mpsc::UnboundedSender;

use super::State;
use crate::agent::core::{Persisted, identity::Identity};

/// What is to be written.
#[derive(Debug)]
pub enum Job {
    /// The identity.
    Identity(Box<Identity>),
    /// The grants and the mark.
    Grants(Box<SavedGrants>),
    /// Remove grants and mark.
    RemoveGrants,
}

/// What became of a job.
#[derive(Debug)]
pub struct Done {
    /// What it was; absent for removals.
    pub what: Option<Persisted>,
    /// Whether it worked; the text says what to do.
    pub result: Result<(), String>,
}

/// The writing thread. When it is dropped the thread finishes what is queued.
#[derive(Debug)]
pub struct Writer {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread; it owns the state and its lock.
    ///
    /// # Errors
    /// If the operating system has no thread.
    pub fn start(state: State, done: UnboundedSender<Done>) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel();
        let thread = thread::Builder::new().name("postern-state".into()).stack_size(512 << 10).spawn(move || {
            for job in queue {
                // Nobody listens any more only when the agent stops: the rest is still written.
                let _ = done.send(perform(&state, job));
            }
        })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Queues a job.
    pub fn submit(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(job); // the thread ends only when `jobs` is dropped
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn perform(state: &State, job: Job) -> Done {
    match job {
        Job::Identity(identity) => {
            let result = state.write_identity(&identity).map_err(|error| error.to_string());
            Done { what: Some(Persisted::Identity), result }
        }
        Job::Grants(saved) => {
            let result = state.write_grants(&saved).map_err(|error| {
                // What was saved before may name a peer that is gone now: a restart must not find it.
                let _ = state.remove_grants();
                error.to_string()
            });
            Done { what: Some(Persisted::Grants(saved.position)), result }
        }
        Job::RemoveGrants => Done { what: None, result: state.remove_grants().map_err(|error| error.to_string()) },
    }
}
