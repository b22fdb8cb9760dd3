//! What each command of a local client does.

use postern_common::{id::MachineName, protocol::FromNode, time::Now};
use zeroize::Zeroizing;

use super::{
    AfterIdentity, Command, Core, EXPLAIN_PATIENCE, Effect, MAX_OPEN_EXPLANATIONS, MAX_OPEN_QUESTIONS, Notice,
    identity::{Enrolment, Farewell, Login, Wanted},
    stream::{Credential, Purpose, Stream},
};
use crate::agent::target::ControllerTarget;

impl Core {
    /// Takes a command of a local client.
    pub fn handle_command(&mut self, command: Command, now: Now) {
        match command {
            Command::Up { target, token, name } => self.up(target, token, name, now),
            Command::AbandonJoin => {
                if self.settings.platform.is_some() {
                    return; // nobody has to wait for it
                }
                if self.stream.is_join() {
                    self.close_stream();
                }
                self.after_identity.retain(|after| !matches!(after, AfterIdentity::Connect(Purpose::Join(_))));
            }
            Command::Down => {
                self.after_identity.clear(); // a connection that waits for the disk would open again what closes here
                self.identity.wanted = Wanted::Down;
                self.close_stream();
                self.shut();
                self.effects.push_back(Effect::HostDown);
                self.settle();
                self.connect_if_wanted(now); // the controller may still have to be told of a sign-out
            }
            Command::Logout => self.logout(now),
            Command::StepUp { client, resource } => self.step_up(client, resource, now),
            Command::AbandonStepUp { client } => self.abandon_step_up(client),
            Command::Explain { question, to, service } => {
                let message = FromNode::Explain { id: question, to, service };
                if let Err(why) = self.ask(question, message, MAX_OPEN_EXPLANATIONS, now) {
                    self.effects.push_back(Effect::Explained { question, answer: Err(why) });
                }
            }
            Command::RequestAccess { question, resource, length_ms, reason } => {
                let message = FromNode::RequestAccess { id: question, resource, length_ms, reason };
                if let Err(why) = self.ask(question, message, MAX_OPEN_QUESTIONS, now) {
                    self.effects.push_back(Effect::Explained { question, answer: Err(why) });
                }
            }
        }
    }

    fn up(&mut self, target: Option<ControllerTarget>, token: Option<Zeroizing<String>>, name: MachineName, now: Now) {
        // The platform's tokens are for one controller: who may run `postern up` must not have them sent to another.
        let own = self.settings.platform.as_ref().and_then(|platform| platform.join.clone());
        if let (Some(own), Some(target)) = (&own, &target)
            && own != target
        {
            let message = format!(
                "this machine joins {} alone, by exactly the link in `[platform] join` of node.toml: change it there",
                own.authority()
            );
            return self.notify(Notice::Failed { message });
        }
        let enrolled = self.identity.enrolment.as_ref();
        if let (Some(enrolment), Some(target)) = (enrolled, &target)
            && enrolment.login.is_open()
            && enrolment.controller != *target
        {
            if enrolment.controller.authority() == target.authority() {
                return self.try_link(target.clone(), now);
            }
            let message = format!(
                "this machine has joined {}: run `postern logout` before it joins another controller",
                enrolment.controller.authority()
            );
            return self.notify(Notice::Failed { message });
        }
        if enrolled.is_some_and(|enrolment| enrolment.login.is_open()) {
            if self.identity.wanted != Wanted::Up {
                self.identity.wanted = Wanted::Up;
                self.write_identity();
            }
            match &self.stream {
                Stream::Resting { .. } => {
                    self.backoff.reset();
                    self.connect_if_wanted(now);
                }
                Stream::Live(_) => {
                    if let Some(generation) = self.enforced().map(|position| position.generation) {
                        self.notify(Notice::Enforcing { generation });
                    }
                }
                Stream::Connecting { .. }
                | Stream::Greeting { .. }
                | Stream::Joining { .. }
                | Stream::Leaving { .. } => {}
            }
            return;
        }
        let Some(target) = target.or(own).or_else(|| enrolled.map(|enrolment| enrolment.controller.clone())) else {
            let message = "this machine has not joined a controller yet: postern up https://CONTROLLER#k=...".into();
            return self.notify(Notice::Failed { message });
        };
        self.close_stream();
        self.after_identity.retain(|after| matches!(after, AfterIdentity::Settle));
        self.identity.wanted = Wanted::Up;
        self.backoff.reset();
        let credential = match (token, &self.settings.platform) {
            (Some(token), _) => Credential::Enrolment(token),
            (None, Some(_)) => Credential::Platform,
            (None, None) => Credential::Person,
        };
        self.begin_join(target, credential, name, now);
    }

    /// Connects by another link to the same controller: its key was renewed. The link is kept only once it proves good; what the
    /// controller then sends must be signed as before, so a wrong one opens nothing.
    fn try_link(&mut self, target: ControllerTarget, now: Now) {
        self.close_stream();
        self.trial = Some(target);
        if self.identity.wanted != Wanted::Up {
            self.identity.wanted = Wanted::Up;
            self.write_identity();
        }
        self.backoff.reset();
        self.connect_if_wanted(now);
    }

    /// Makes the identity durable, and then tells who waits for it.
    fn settle(&mut self) {
        self.after_identity.push(AfterIdentity::Settle);
        self.write_identity();
    }

    fn logout(&mut self, now: Now) {
        let open = self.identity.enrolment.as_ref().filter(|enrolment| enrolment.login.is_open());
        // A service has no session that could end: its lease does, unless its key renews it.
        if let Some(Enrolment { controller, device, login, .. }) = open {
            let until = match login {
                Login::Session { until, .. } => Some(*until),
                Login::Platform { until, .. } => Some(Some(*until)),
                Login::Service | Login::Ended { .. } => None,
            };
            let farewell = until.map(|until| Farewell { controller: controller.clone(), device: *device, until });
            self.identity.farewell = farewell.or(self.identity.farewell.take());
        }
        let told = matches!(self.stream, Stream::Live(_));
        if told {
            self.effects.push_back(Effect::Send(FromNode::Logout));
        }
        if told && self.identity.farewell.is_some() {
            self.await_farewell(now);
        } else {
            self.close_stream();
        }
        self.after_identity.clear();
        self.identity.keyring.wipe();
        self.identity.wanted = Wanted::Down;
        match self.identity.enrolment.as_mut() {
            Some(enrolment) if enrolment.login != Login::Service => {
                enrolment.login = Login::Ended { reason: "signed out on this machine".into() };
            }
            // A service's only credential is its enrolment, so signing it out forgets that.
            Some(_) | None => {
                self.identity.enrolment = None;
                self.verifier = None;
            }
        }
        self.shut();
        self.effects.push_back(Effect::SetLocalKeys(vec![]));
        self.effects.push_back(Effect::HostDown);
        if !told && self.identity.farewell.is_some() {
            self.after_identity.push(AfterIdentity::Connect(Purpose::Farewell)); // also after a crash
        }
        self.settle();
    }

    /// Sends a question if the controller is there and fewer than `room` are open; what became of it comes as an effect.
    fn ask(&mut self, question: u64, message: FromNode, room: usize, now: Now) -> Result<(), String> {
        match &self.stream {
            Stream::Live(_) if self.questions.len() < room => {}
            Stream::Live(_) => return Err("too many questions are open: try again in a moment".into()),
            Stream::Resting { .. }
            | Stream::Connecting { .. }
            | Stream::Greeting { .. }
            | Stream::Joining { .. }
            | Stream::Leaving { .. } => return Err("the controller is not connected".into()),
        }
        self.questions.insert(question, now.monotonic.saturating_add(EXPLAIN_PATIENCE));
        self.effects.push_back(Effect::Send(message));
        Ok(())
    }
}
