//! The files that the guest knows of.
//!
//! A guest keeps as many as its memory holds, and each would take a descriptor of the host's. So of those that were not used for
//! long only the name and the folder are kept. Such a file is found again by its name, and it must be the same file: by its
//! device and inode.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::ffi::CStr;
use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::FileType;
use rustix::fs::Stat;

use super::calls;
use crate::share::Errno;
use crate::share::NodeId;
use crate::share::ROOT;

/// Most files that a guest can have us know: some 200 MB of host memory.
const MOST_NODES: usize = 1 << 20;
/// Folders above each other, when a file is looked for again; more than the longest path has.
const DEEPEST: usize = 2048;

/// What a file is on the host: device and inode.
pub(super) type Key = (u64, u64);

pub(super) fn key(stat: &Stat) -> Key {
    (stat.st_dev, stat.st_ino)
}

#[derive(Debug)]
struct Node {
    key: Key,
    kind: FileType,
    parent: NodeId,
    name: CString,
    file: Option<Arc<OwnedFd>>,
    /// How often the guest was told of it.
    known: u64,
    /// Times that it is open: then it keeps its descriptor.
    open: u32,
    /// It was used since its descriptor was looked at last.
    used: bool,
}

/// The table.
#[derive(Debug)]
pub(super) struct Nodes {
    nodes: HashMap<NodeId, Node>,
    by_key: HashMap<Key, NodeId>,
    next: NodeId,
    /// Nodes with descriptors, those that came first at the front; some may have none any more.
    held: VecDeque<NodeId>,
    /// How many have one, and how many may.
    count: usize,
    most: usize,
    most_nodes: usize,
}

impl Nodes {
    /// A table with the folder itself, that keeps up to `most` descriptors.
    pub(super) fn new(root: OwnedFd, most: usize) -> Result<Self, Errno> {
        let stat = calls::stat(root.as_fd())?;
        let node = Node {
            key: key(&stat),
            kind: calls::kind(&stat),
            parent: ROOT,
            name: CString::default(),
            file: Some(Arc::new(root)),
            known: 1,
            open: 1,
            used: true,
        };
        Ok(Self {
            by_key: HashMap::from([(node.key, ROOT)]),
            nodes: HashMap::from([(ROOT, node)]),
            next: ROOT + 1,
            held: VecDeque::new(),
            count: 0,
            most: most.max(1),
            most_nodes: MOST_NODES,
        })
    }

    #[cfg(test)]
    pub(super) fn limit(&mut self, most_nodes: usize) {
        self.most_nodes = most_nodes;
    }

    /// How many files are known, and how many descriptors are held, those of files that are open counted.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.nodes.len(), self.nodes.values().filter(|node| node.file.is_some()).count())
    }

    /// The guest is told of a file that is `name` in `parent`.
    pub(super) fn enter(&mut self, parent: NodeId, name: &CStr, file: OwnedFd, stat: &Stat) -> Result<NodeId, Errno> {
        let (key, kind) = (key(stat), calls::kind(stat));
        if let Some(&id) = self.by_key.get(&key) {
            if id == ROOT {
                return Ok(ROOT);
            }
            // An inode of another type is one that was used again.
            if let Some(node) = self.nodes.get_mut(&id).filter(|node| node.kind == kind) {
                node.known += 1;
                (node.parent, node.name) = (parent, name.to_owned());
                if node.file.is_none() {
                    self.hold(id, file);
                }
                return Ok(id);
            }
        }
        if self.nodes.len() >= self.most_nodes {
            return Err(Errno::NOMEM);
        }
        let id = self.next;
        self.next += 1;
        let name = name.to_owned();
        self.nodes.insert(id, Node { key, kind, parent, name, file: None, known: 1, open: 0, used: true });
        self.by_key.insert(key, id);
        self.hold(id, file);
        Ok(id)
    }

    /// Gives a node its descriptor, and takes one from another if they are too many.
    fn hold(&mut self, id: NodeId, file: OwnedFd) -> Arc<OwnedFd> {
        let file = Arc::new(file);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.file = Some(Arc::clone(&file));
            node.used = true;
            self.held.push_back(id);
            self.count += 1;
        }
        let mut looks = 2 * self.held.len();
        while self.count > self.most && looks > 0 {
            looks -= 1;
            let Some(oldest) = self.held.pop_front() else { break };
            match self.nodes.get_mut(&oldest) {
                Some(node) if node.file.is_none() => {}
                Some(node) if node.open == 0 && !node.used && oldest != id => {
                    node.file = None;
                    self.count -= 1;
                }
                Some(node) => {
                    node.used = false;
                    self.held.push_back(oldest);
                }
                None => {}
            }
        }
        file
    }

    /// A file's descriptor.
    pub(super) fn file(&mut self, id: NodeId) -> Result<Arc<OwnedFd>, Errno> {
        // Upwards to one that has its descriptor, then down again by the names.
        let mut way = Vec::new();
        let mut at = id;
        let mut file = loop {
            let node = self.nodes.get_mut(&at).ok_or(Errno::STALE)?;
            node.used = true;
            if let Some(file) = &node.file {
                break Arc::clone(file);
            }
            way.push(at);
            if way.len() > DEEPEST {
                return Err(Errno::STALE);
            }
            at = node.parent;
        };
        for id in way.into_iter().rev() {
            let node = self.nodes.get(&id).ok_or(Errno::STALE)?;
            let found = calls::find(file.as_fd(), &node.name).map_err(|error| match error {
                Errno::NOENT | Errno::NOTDIR => Errno::STALE,
                error => error,
            })?;
            let stat = calls::stat(found.as_fd())?;
            if (key(&stat), calls::kind(&stat)) != (node.key, node.kind) {
                return Err(Errno::STALE);
            }
            file = self.hold(id, found);
        }
        Ok(file)
    }

    /// A file's descriptor and type.
    pub(super) fn typed(&mut self, id: NodeId) -> Result<(Arc<OwnedFd>, FileType), Errno> {
        let file = self.file(id)?;
        Ok((file, self.nodes.get(&id).ok_or(Errno::STALE)?.kind))
    }

    /// A file is opened.
    pub(super) fn opened(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.open += 1;
        }
    }

    /// A file is closed.
    pub(super) fn closed(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id).filter(|_| id != ROOT) {
            node.open = node.open.saturating_sub(1);
        }
        self.drop_unknown(id);
    }

    /// A file is `name` in `parent` now.
    pub(super) fn moved(&mut self, key: Key, parent: NodeId, name: &CStr) {
        let id = self.by_key.get(&key).copied().filter(|&id| id != ROOT);
        if let Some(node) = id.and_then(|id| self.nodes.get_mut(&id)) {
            (node.parent, node.name) = (parent, name.to_owned());
        }
    }

    /// The guest knows a file `count` times less.
    pub(super) fn forget(&mut self, id: NodeId, count: u64) {
        if id == ROOT {
            return;
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            node.known = node.known.saturating_sub(count);
        }
        self.drop_unknown(id);
    }

    /// Drops a file that the guest neither knows nor has open.
    fn drop_unknown(&mut self, id: NodeId) {
        if id == ROOT || self.nodes.get(&id).is_none_or(|node| node.known > 0 || node.open > 0) {
            return;
        }
        let Some(node) = self.nodes.remove(&id) else { return };
        if self.by_key.get(&node.key) == Some(&id) {
            self.by_key.remove(&node.key);
        }
        if node.file.is_some() {
            self.count -= 1;
        }
        // What is left of it in `held` goes when there is more of that than of what is held.
        if self.held.len() > 2 * self.count + 64 {
            let nodes = &self.nodes;
            self.held.retain(|id| nodes.get(id).is_some_and(|node| node.file.is_some()));
        }
    }

    /// Only the folder itself is known.
    pub(super) fn forget_all(&mut self) {
        self.nodes.retain(|&id, _| id == ROOT);
        self.by_key.retain(|_, id| *id == ROOT);
        self.held.clear();
        self.count = 0;
    }
}
