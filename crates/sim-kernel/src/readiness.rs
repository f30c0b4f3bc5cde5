//! The readiness of files for calls that do not wait, and the news of it.

use std::ffi::c_int;

use crate::files::{FileKind, Interest, Socket};
use crate::kernel::{Kernel, State, Wait};
use crate::network::ROOM;

const IN: u32 = libc::EPOLLIN as u32;
const OUT: u32 = libc::EPOLLOUT as u32;
const ENDED: u32 = libc::EPOLLRDHUP as u32;
const BROKEN: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;

impl Kernel {
    /// Closes a descriptor; the last one ends what it stands for.
    pub(crate) fn close(&mut self, descriptor: c_int) {
        let Some(at) = self.files.descriptors.remove(&descriptor) else { return };
        let Some(file) = self.files.files.get_mut(&at) else { return };
        file.descriptors -= 1;
        if file.descriptors > 0 {
            return;
        }
        let Some(file) = self.files.files.remove(&at) else { return };
        for (epoll, known_as) in file.watched {
            if let Some(FileKind::Epoll(epoll)) = self.files.kind(epoll) {
                epoll.interests.remove(&known_as);
            }
        }
        match file.kind {
            FileKind::Socket(Socket::Connected { connection, side }) => {
                self.give_up(connection, side, false);
            }
            FileKind::Socket(Socket::Connecting { connection }) => {
                self.give_up(connection, 0, true);
            }
            FileKind::Socket(Socket::Listening { waiting, .. }) => {
                for connection in waiting {
                    self.give_up(connection, 1, false);
                }
            }
            _ => {}
        }
    }

    /// The events of `epoll` that hold for a file now.
    fn readiness(&mut self, file: usize) -> u32 {
        let Some(kind) = self.files.kind(file) else { return 0 };
        let (connection, side) = match kind {
            FileKind::Epoll(_) => return 0,
            FileKind::Event(count) => return if *count > 0 { IN | OUT } else { OUT },
            FileKind::Socket(Socket::Listening { waiting, .. }) => {
                return if waiting.is_empty() { 0 } else { IN };
            }
            FileKind::Socket(Socket::Failed { .. }) => return IN | OUT | BROKEN,
            FileKind::Socket(Socket::New { .. }) => return OUT | libc::EPOLLHUP as u32,
            FileKind::Socket(Socket::Connecting { .. }) => return 0,
            FileKind::Socket(Socket::Connected { connection, side }) => (*connection, *side),
        };
        let has_room = self
            .side(connection, 1 - side)
            .is_none_or(|other| other.arrived.len() + other.coming < ROOM);
        let Some(here) = self.side(connection, side) else { return IN | OUT | BROKEN };
        let mut ready = 0;
        if !here.arrived.is_empty() || here.ended || here.is_reset {
            ready |= IN;
        }
        if here.ended {
            ready |= ENDED;
        }
        if has_room || here.is_reset {
            ready |= OUT;
        }
        if here.is_reset {
            ready |= BROKEN;
        }
        ready
    }

    /// Something has changed with a file: whatever watches it is told.
    pub(crate) fn changed(&mut self, file: usize) {
        let Some(changed) = self.files.files.get(&file) else { return };
        for (at, known_as) in changed.watched.clone() {
            let Some(FileKind::Epoll(epoll)) = self.files.kind(at) else { continue };
            if let Some(interest) = epoll.interests.get_mut(&known_as) {
                interest.is_news = true;
            }
            for thread in std::mem::take(&mut epoll.waiting) {
                if self.thread(thread).state == State::Waits(Wait::Epoll(at)) {
                    self.wake(thread);
                }
            }
        }
    }

    /// Changes what an `epoll` file watches. False: it is none.
    pub(crate) fn watch(
        &mut self,
        epoll: usize,
        operation: c_int,
        descriptor: c_int,
        event: Option<(u32, u64)>,
    ) -> bool {
        let watched = self.files.file(descriptor);
        let Some(FileKind::Epoll(inner)) = self.files.kind(epoll) else { return false };
        // Descriptors of the system, as those of signals, are never ready.
        let Some(watched) = watched else { return true };
        match event {
            Some((events, data)) if operation != libc::EPOLL_CTL_DEL => {
                let interest = Interest { file: watched, events, data, is_news: true };
                inner.interests.insert(descriptor, interest);
                if let Some(file) = self.files.files.get_mut(&watched)
                    && !file.watched.contains(&(epoll, descriptor))
                {
                    file.watched.push((epoll, descriptor));
                }
                self.changed(watched);
            }
            _ => {
                inner.interests.remove(&descriptor);
                if let Some(file) = self.files.files.get_mut(&watched) {
                    file.watched.retain(|known| *known != (epoll, descriptor));
                }
            }
        }
        true
    }

    /// Up to `room` events of what an `epoll` file watches. As with edges, each is told once.
    pub(crate) fn news(&mut self, epoll: usize, room: usize) -> Vec<(u32, u64)> {
        let Some(FileKind::Epoll(inner)) = self.files.kind(epoll) else { return Vec::new() };
        let news: Vec<(c_int, usize, u32, u64)> = inner
            .interests
            .iter()
            .filter(|(_, interest)| interest.is_news)
            .map(|(descriptor, interest)| {
                (*descriptor, interest.file, interest.events, interest.data)
            })
            .collect();
        let mut told = Vec::new();
        for (descriptor, file, events, data) in news {
            if told.len() == room {
                break;
            }
            let ready = self.readiness(file) & (events | BROKEN);
            if let Some(FileKind::Epoll(inner)) = self.files.kind(epoll)
                && let Some(interest) = inner.interests.get_mut(&descriptor)
            {
                interest.is_news = false;
            }
            if ready != 0 {
                told.push((ready, data));
            }
        }
        told
    }

    /// The thread will wait for an `epoll` file.
    pub(crate) fn waits_for(&mut self, epoll: usize, thread: usize) {
        if let Some(FileKind::Epoll(epoll)) = self.files.kind(epoll) {
            epoll.waiting.retain(|waiting| *waiting != thread);
            epoll.waiting.push(thread);
        }
    }
}
