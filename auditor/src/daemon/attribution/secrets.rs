//! Secrets of TLS connections: whom they are offered to, and who has claimed them.

use std::mem;

use auditor_common::tls::SecretTaken;

use super::Attribution;
use crate::clock::Boottime;
use crate::daemon::conversation::Findings;

/// Connections that a new secret is offered to at once.
const OFFERED: usize = 16;
/// Libraries whose names are remembered.
const LIBRARIES: usize = 4096;

impl Attribution {
    /// A TLS library has derived keys from a secret: connections of its session may have waited for it.
    pub(super) fn secret(&mut self, event: &SecretTaken) {
        let (session, at) = (event.header.session, Boottime(event.header.time));
        if !self.keyrings.taken(event) {
            return;
        }
        let waiting = self.waiting_for_secrets.range((session, 0)..=(session, u64::MAX));
        // The others look for it when their next bytes come; those that were made last wait for the newest.
        for cookie in waiting.rev().take(OFFERED).map(|(_, cookie)| *cookie).collect::<Vec<_>>() {
            let mut findings = mem::take(&mut self.findings);
            if let Some(conversation) = self.conversations.get_mut(&cookie) {
                conversation.offer(at, &self.keyrings.of(session, at), &mut findings);
            }
            self.report(cookie, at, &mut findings);
            self.findings = findings;
            self.weigh(cookie, at);
        }
    }

    /// What a library is called has become known, perhaps later than its first secrets.
    pub(super) fn library(&mut self, number: u64, name: String) {
        if self.libraries.len() >= LIBRARIES {
            self.libraries.pop_first();
        }
        for conversation in self.conversations.values_mut() {
            conversation.is_called(number, &name);
        }
        self.libraries.insert(number, name);
    }

    /// Notes which secrets a connection has claimed and released, and whether it waits for one.
    pub(super) fn account_for_secrets(&mut self, cookie: u64, findings: &mut Findings) {
        let waits = findings.waits.take();
        if waits.is_none() && findings.secrets.is_empty() {
            return;
        }
        let Some(session) = self.conversations.get(&cookie).map(|conversation| conversation.session) else {
            return;
        };
        match waits {
            Some(true) => _ = self.waiting_for_secrets.insert((session, cookie)),
            Some(false) => _ = self.waiting_for_secrets.remove(&(session, cookie)),
            None => {}
        }
        for (secret, claimed) in findings.secrets.drain(..) {
            if claimed {
                let library = self.keyrings.claim(session, secret);
                if let Some(number) = library
                    && let Some(conversation) = self.conversations.get_mut(&cookie)
                {
                    conversation.derived_by(number, self.libraries.get(&number));
                }
            } else {
                self.keyrings.release(session, secret);
            }
        }
    }
}
