//! File descriptors: sockets, `epoll`, `eventfd`.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::c_int;

use crate::network::Address;

/// Descriptors, and the simulated files that they stand for.
#[derive(Default)]
pub(crate) struct Files {
    pub(crate) descriptors: BTreeMap<c_int, usize>,
    pub(crate) files: BTreeMap<usize, File>,
    opened: usize,
}

/// A simulated file, with one descriptor or more.
pub(crate) struct File {
    pub(crate) machine: usize,
    pub(crate) descriptors: usize,
    /// The `epoll` files that watch it, with the descriptor that they know it by.
    pub(crate) watched: Vec<(usize, c_int)>,
    pub(crate) kind: FileKind,
}

pub(crate) enum FileKind {
    Epoll(Epoll),
    Event(u64),
    Socket(Socket),
}

#[derive(Default)]
pub(crate) struct Epoll {
    pub(crate) interests: BTreeMap<c_int, Interest>,
    pub(crate) waiting: Vec<usize>,
}

pub(crate) struct Interest {
    pub(crate) file: usize,
    pub(crate) events: u32,
    pub(crate) data: u64,
    /// Something has changed since it was last told.
    pub(crate) is_news: bool,
}

pub(crate) enum Socket {
    New { address: Option<Address> },
    Listening { address: Address, waiting: VecDeque<usize> },
    Connecting { connection: usize },
    Connected { connection: usize, side: usize },
    Failed { error: c_int },
}

impl Files {
    /// Has a descriptor that the system does not give out meanwhile stand for something new.
    pub(crate) fn open(&mut self, descriptor: c_int, machine: usize, kind: FileKind) -> usize {
        self.opened += 1;
        let file = File { machine, descriptors: 1, watched: Vec::new(), kind };
        self.files.insert(self.opened, file);
        self.descriptors.insert(descriptor, self.opened);
        self.opened
    }

    pub(crate) fn file(&self, descriptor: c_int) -> Option<usize> {
        self.descriptors.get(&descriptor).copied()
    }

    pub(crate) fn kind(&mut self, file: usize) -> Option<&mut FileKind> {
        self.files.get_mut(&file).map(|file| &mut file.kind)
    }

    pub(crate) fn socket(&mut self, descriptor: c_int) -> Option<(usize, &mut Socket)> {
        let file = self.file(descriptor)?;
        match self.kind(file) {
            Some(FileKind::Socket(socket)) => Some((file, socket)),
            _ => None,
        }
    }

    pub(crate) fn duplicate(&mut self, descriptor: c_int, new: c_int) {
        let Some(file) = self.file(descriptor) else { return };
        if let Some(known) = self.files.get_mut(&file) {
            known.descriptors += 1;
            self.descriptors.insert(new, file);
        }
    }

    pub(crate) fn listener(
        &mut self,
        machine: usize,
        port: u16,
    ) -> Option<(usize, &mut VecDeque<usize>)> {
        self.files.iter_mut().find_map(|(at, file)| match &mut file.kind {
            FileKind::Socket(Socket::Listening { address, waiting })
                if file.machine == machine && address.port == port =>
            {
                Some((*at, waiting))
            }
            _ => None,
        })
    }

    /// Forgets what a machine had open. Its descriptors, which the system is to close.
    pub(crate) fn lose(&mut self, machine: usize) -> Vec<c_int> {
        let files = &self.files;
        let is_lost = |file: &usize| files.get(file).is_some_and(|file| file.machine == machine);
        let lost: Vec<c_int> = self
            .descriptors
            .iter()
            .filter_map(|(descriptor, file)| is_lost(file).then_some(*descriptor))
            .collect();
        self.descriptors.retain(|descriptor, _| !lost.contains(descriptor));
        self.files.retain(|_, file| file.machine != machine);
        lost
    }
}
